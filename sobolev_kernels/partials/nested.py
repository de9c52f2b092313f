"""The same of any function, by autograd of autograd: one gradient an output, an order and a way to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..backends.dependence import Evaluated
from ..backends.functions import gradient, need_constant, need_second_derivatives, where_graphs, without_graph
from ..backends.kinks import need_smooth
from ..backends.running import are_mixed, with_graph
from ..errors import NotProvided, need, need_tensor
from ..paths import need_tensors
from .polynomials import Exponents


def outputs_at(function: Callable, x: torch.Tensor, O: int) -> torch.Tensor:
    """y [N, O] of a function, of one output also [N]."""
    y = function(x)
    need_tensor(y, "student", "a function that returns a tensor [N, O]")
    y = y[:, None] if y.dim() == 1 and O == 1 else y
    expected = f"outputs [{len(x)}, {O}], one column for each that fields names"
    need(y.dim() == 2 and y.shape == (len(x), O), "student", expected, y)
    return y


class Nested:
    """Derivatives of a function at x, each taken once: `at(o, exponents)`. It `looks` whether a zero is one, unless
    that look is what it is for."""

    def __init__(
        self, function: Callable, x: torch.Tensor, O: int, order: int, argument: str = "names", looks: bool = True
    ):
        self.function, self.O, self.order, self.looks, self.argument = function, O, order, looks, argument
        self.ran = with_graph(lambda x: outputs_at(function, x, O), x)
        need_tensors("student", self.ran.read)
        need_smooth(self.ran.y, order, argument)
        if order and len(x) > 1 and looks and are_mixed(self.ran):
            raise NotProvided("student: expected each sample's outputs to be its own, got one that mixes samples")
        self.columns: dict[tuple[int, Exponents], torch.Tensor] = {}
        self.gradients: dict[tuple[int, Exponents], torch.Tensor] = {}

    def at(self, o: int, e: Exponents) -> torch.Tensor:
        """[N, 1]: one input after the other, the last ones first, so that derivatives share their ways."""
        if (o, e) not in self.columns:
            i = next((i for i, n in enumerate(e) if n), None)
            before = None if i is None else (*e[:i], e[i] - 1, *e[i + 1 :])
            got = self.ran.y[:, o, None] if before is None else self.gradient(o, before)[:, i, None]
            self.columns[o, e] = got
        return self.columns[o, e]

    def gradient(self, o: int, e: Exponents) -> torch.Tensor:
        """[N, D], differentiable as often as one likes; a silent zero is refused."""
        if (o, e) not in self.gradients:
            column, x = self.at(o, e), self.ran.x
            got = gradient(column, x, torch.ones_like(column))
            at = Evaluated(lambda x: self.again(x).at(o, e), x, column, True)
            if got is None and self.looks:
                need_constant(at)
            elif self.looks:
                need_second_derivatives(at, got, lambda x: self.again(x).gradient(o, e))
            self.gradients[o, e] = torch.zeros_like(x) if got is None else got
        return self.gradients[o, e]

    def again(self, x: torch.Tensor) -> Nested:
        return Nested(self.function, x, self.O, self.order, self.argument, looks=False)


Rows = Sequence[Sequence[tuple[int, Exponents, float]]]


def nested(
    function: Callable, x: torch.Tensor, rows: Rows, O: int, argument: str = "names", looks: bool = True
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Of each row the sum of its terms (output, exponents, coefficient), [N, 1]."""
    order, kept = max(sum(e) for row in rows for _, e, _ in row), torch.is_grad_enabled()
    with where_graphs():
        taken = Nested(function, x, O, order, argument, looks)
        sums = []
        for row in rows:
            parts = [taken.at(o, e) if c == 1 else c * taken.at(o, e) for o, e, c in row]
            sums.append(sum(parts[1:], parts[0]))
    return tuple(sums) if kept and taken.ran.kept else tuple(map(without_graph, sums))

"""`Transformed`: a student between transforms of its inputs and its outputs, and how streams go through these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..backends.dependence import Evaluated
from ..backends.functions import along, where_graphs, without_graph
from ..backends.kinks import need_smooth
from ..backends.running import are_mixed, with_graph
from ..errors import NotProvided, in_words, need, need_tensor
from ..scaled import fold_of
from ..student import Student, has_hooks, recognise
from ..typed import Function
from .along import evaluated
from .layers import by_plain, directions_of, tied
from .nested import nested
from .plan import Streams
from .polynomials import Exponents
from .ways import chosen

WHOLE = torch.float32, torch.float64


class Transformed(nn.Module):
    """y = outputs(x, student(inputs(x))): a student of features of the inputs, or one that keeps conditions by itself.

    `inputs` are features, as sin and cos of the coordinates, by which the student is periodic. `outputs` is given the
    inputs and what the student gives, and gives what the solution is: `lambda x, y: g(x) + d(x) * y` is g wherever d is
    0, whatever the student. Of named derivatives (`partials`, `residual_loss`, `fit(residuals=…)`) those of the
    transforms are taken by autograd, and the streams of a student that is an MLP go through its layers as ever; so they
    do of an `nn.Sequential` that begins with other modules and goes on as an MLP. To everything else it is a module.

    Args:
        student: from the features [N, F] to [N, M].
        inputs: from [N, D] to [N, F], a function or a module. None: x itself.
        outputs: of x [N, D] and y [N, M], to [N, O]. None: y itself. Both must be smooth up to the order that is asked
            for, and take each sample by itself.

    Raises:
        TypeError: what cannot be called, or a student that is no module.

    Example:
        >>> from sobolev_kernels import MLP, partials
        >>> at_ends = lambda x, y: (1 - x[:, :1] ** 2) * y
        >>> student = Transformed(MLP(2, 1, width=8), outputs=at_ends)
        >>> p = partials(student, torch.tensor([[1.0, 0.5]]), "u, u_xx", fields="x t -> u")
        >>> p["u"].item()
        0.0
    """

    @in_words
    def __init__(
        self, student: nn.Module, *, inputs: Function | None = None, outputs: Callable | None = None
    ):  # fmt: skip
        super().__init__()
        need(isinstance(student, nn.Module), "student", "a torch.nn.Module", student, TypeError)
        for name, function in (("inputs", inputs), ("outputs", outputs)):
            need(function is None or callable(function), name, "a function, or a module", function, TypeError)
        self.student, self.inputs, self.outputs = student, inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.student(x if self.inputs is None else self.inputs(x))
        return y if self.outputs is None else self.outputs(x, y)


class Parts(NamedTuple):
    """An MLP between transforms; it takes `shift` off its inputs, and `parameters` may be others than a module's."""

    student: Student
    shift: torch.Tensor | None
    inputs: Callable | None
    outputs: Callable | None


# Names of derivatives, and transforms, of which a path that is cut was looked for, by student.
LOOKED: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()


def parts_of(student: object, x: torch.Tensor) -> Parts | None:
    """None of what is no MLP between transforms, or where somebody follows each operation."""
    if by_plain(x) or x.dtype not in WHOLE or not isinstance(student, nn.Module) or has_hooks(student):
        return None
    if type(student) is Transformed and "forward" not in vars(student):
        return within(student.student, x, student.inputs, student.outputs)
    if type(student) is nn.Sequential and "forward" not in vars(student):
        children = list(student)
        for i in range(1, len(children)):
            if isinstance(recognise(rest := nn.Sequential(*children[i:])), Student):
                return within(rest, x, nn.Sequential(*children[:i]), None)
    return None


def within(student: nn.Module, x: torch.Tensor, inputs: Callable | None, outputs: Callable | None) -> Parts | None:
    known = recognise(student)
    if isinstance(known, Student):
        return Parts(known, None, inputs, outputs) if known.parameters[0].dtype is x.dtype else None
    if inputs is None and (fold := fold_of(student, x, torch.is_grad_enabled())) is not None:
        return Parts(fold.student, student.scaler.x_mean, inputs, outputs)
    return None


def of_parts(
    parts: Parts, module: nn.Module, streams: Streams, rows: list, O: int, x: torch.Tensor, names: tuple[str, ...],
    backend: str | None = None,
) -> Sequence[torch.Tensor]:  # fmt: skip
    """Each derivative [N, 1]."""
    D, M = parts.student.widths[0], parts.student.widths[-1]
    if parts.inputs is None:
        need(x.shape[1] == D, "x", f"{D} columns, as the student takes", x)
    if parts.outputs is None:
        need(M == O, "fields", f"{M} outputs, as the student has", str(O))
    key = names, getattr(module, "inputs", None), getattr(module, "outputs", None)
    looks = key not in (looked := LOOKED.setdefault(module, set()))
    own = streams if parts.outputs is None else every_stream(streams, M)
    if parts.inputs is None:
        given, h, v = own, x if parts.shift is None else x - parts.shift, directions_of(own, x)
    else:
        given = own._replace(first=tuple((k, ()) for k in range(1, own.count)))
        h, v = features(parts.inputs, own, x, D, looks)
    way = chosen(parts.student, h, given, backend)
    results = evaluated(given, parts.student, h, v, way)
    results = results if way else tied(results, parts.student, h)
    if parts.outputs is None:
        found = results[:, :, None].unbind()
    else:
        of = surrogate(parts.outputs, streams, results.unflatten(0, (streams.count, M)).transpose(1, 2), x)
        found = nested(of, x, rows, O, looks=looks)
    looked.add(key)
    return found


def every_stream(streams: Streams, M: int) -> Streams:
    """All of them, of all outputs, as results."""
    outputs = tuple(((k, m, 1.0),) for k in range(streams.count) for m in range(M))
    return streams._replace(outputs=outputs, wanted=tuple(range(streams.count)))


class Features:
    """Derivatives of a transform, each [N, F] and taken once, one input after the other."""

    def __init__(self, function: Callable, x: torch.Tensor, F: int, order: int, looks: bool):
        def at(x: torch.Tensor) -> torch.Tensor:
            y = function(x)
            need_tensor(y, "inputs", f"a function that returns a tensor [N, {F}]")
            need(y.shape == (len(x), F), "inputs", f"features [{len(x)}, {F}], as the student takes", y)
            return y

        ran = with_graph(at, x)._replace(looked=0 if looks else order)
        need_smooth(ran.y, order, "inputs")
        if looks and len(x) > 1 and are_mixed(ran):
            raise NotProvided(
                "inputs: expected each sample's features to be its own, got a function that mixes samples"
            )
        self.found: dict[Exponents, Evaluated] = {(0,) * x.shape[1]: ran}

    def at(self, e: Exponents) -> Evaluated:
        if e not in self.found:
            i = next(i for i, n in enumerate(e) if n)
            before = self.at((*e[:i], e[i] - 1, *e[i + 1 :]))
            self.found[e] = before._replace(function=derived(before, i), y=by(before, i))
        return self.found[e]


def by(ran: Evaluated, i: int) -> torch.Tensor:
    """The derivative by one input."""
    unit = torch.zeros_like(ran.x)
    unit[:, i] = 1
    return along(ran, unit[None], again=True)[0]


def derived(ran: Evaluated, i: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: by(with_graph(ran.function, x)._replace(looked=ran.looked), i)


def features(
    function: Callable, streams: Streams, x: torch.Tensor, F: int, looks: bool
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The streams of a transform of x: the value [N, F], and all others [S - 1, N, F]."""
    with where_graphs():
        of = Features(function, x, F, streams.order, looks)
        first = next(iter(of.found.values()))
        found = [first.y]
        for basis in streams.basis[1:]:
            terms = [of.at(e).y if c == 1 else c * of.at(e).y for e, c in basis]
            found.append(sum(terms[1:], terms[0]))
        v = torch.stack(found[1:]) if found[1:] else x.new_empty(0, len(x), F)
    return (found[0], v) if first.kept else (without_graph(found[0]), without_graph(v))


def surrogate(
    outputs: Callable, streams: Streams, results: torch.Tensor, x: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that has the derivatives of outputs(x, y(x)) at x, of the streams [S, N, M] of y there.

    In the place of y it has a polynomial at each sample, with a monomial for each stream: a basis in reduced echelon
    form has a pivot that no other polynomial of it has, and derivatives of a composition take no others of y than the
    streams (docs/math.md, section 15).
    """
    pivots = [max(e for e, _ in basis) for basis in streams.basis]

    def at(points: torch.Tensor) -> torch.Tensor:
        steps = (points - x).unbind(1)
        powers = [[None, step] for step in steps]
        y = results[0]
        for k, e in enumerate(pivots[1:], 1):
            monomial = 1 / math.prod(map(math.factorial, e))
            for i, n in enumerate(e):
                while len(powers[i]) <= n:
                    powers[i].append(powers[i][-1] * steps[i])
                monomial = monomial * powers[i][n] if n else monomial
            y = y + monomial[:, None] * results[k]
        return outputs(points, y)

    return at

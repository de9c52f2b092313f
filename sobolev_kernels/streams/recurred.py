"""A GRU over all steps as one operation of the core: of a value and its tangents, whose way back is one; and of a value
alone, whose gradient is one, too, with its own way back, as those of a chain of layers (passes.py).

By PyTorch each step is two products and ten operations of few numbers, and thirty back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ..backends import core
from ..backends.standard import OWN
from ..transforms import refuse_forward_mode, several
from .cells import along, gru
from .dual import Dual
from .operations import are_weights, differentiated, fits, goes_on, saved, wants

VALUES, GRADIENT, ALONG, BACK, PAIRS, PAIRS_BACK = range(6)
# Arrays that are kept of values, and of what is owed to them, of a gradient, and of each tangent.
OF_VALUES, OF_GRADIENT, OF_TANGENT = 5, 4, 5
TILE = 32  # samples: two panels of the widest registers
PLACES = "x d first given moved out out_moved values adjoint owed tangents".split()


class Layer(NamedTuple):
    """What the core is told of a GRU of inputs [N, T, I] or, with its steps first, [T, N, I]."""

    told: object
    kept: int  # numbers of each array that is kept
    features: int  # H
    steps_first: bool

    def run(self, what: int, weights: Sequence[torch.Tensor], gradients: Sequence = (), **tensors) -> None:
        """`weights` are those of inputs and of states, and their biases if there are any; of each its gradient, None of
        what is not wanted."""
        S = 0 if "d" not in tensors else len(tensors["d"])
        gradients = gradients or [None] * len(weights)
        core._C.run_recurrent(self.told, what, S, [*map(tensors.get, PLACES), *weights, *gradients])

    def states(self, x: torch.Tensor) -> torch.Tensor:
        """Room for those of all steps."""
        return x.new_empty((*x.shape[:-1], self.features))

    def last_of(self, y: torch.Tensor | Dual) -> torch.Tensor | Dual:
        """The last state [1, N, H] of states."""
        return y.select(0 if self.steps_first else 1, -1).unsqueeze(0).clone()

    def in_torch(self, x: torch.Tensor | Dual, first: torch.Tensor, w_ih, w_hh, b_ih=None, b_hh=None):
        """States of all steps by PyTorch's operations."""
        x = x if self.steps_first else x.transpose(0, 1)
        y, _ = along(gru, x, (first,), (w_ih, b_ih, w_hh, b_hh))
        return y if self.steps_first else y.transpose(0, 1)


@lru_cache(maxsize=256)
def layer_like(sizes: tuple[int, ...], steps_first: bool, biased: bool, threads: int, isa: str) -> Layer:
    """Of sizes N, T, I, H."""
    told = core._C.Recurrent(core.CODES["Dtype"]["float32"], sizes, steps_first, biased, TILE, threads, isa)
    return Layer(told, told.kept(), sizes[-1], steps_first)


def layer_of(
    x: torch.Tensor, hx: torch.Tensor, weights: Sequence[torch.Tensor], layers: int, bidirectional: bool,
    batch_first: bool,
) -> Layer | None:  # fmt: skip
    """Of the arguments of PyTorch's function; None of what the core does not take."""
    if layers != 1 or bidirectional or len(weights) not in (2, 4) or not isinstance(hx, torch.Tensor):
        return None
    if x.dim() != 3 or hx.requires_grad or not fits(x, hx) or not are_weights(x, *weights):
        return None
    steps_first, (rows, H) = not batch_first, weights[1].shape
    N, T = (x.shape[1], x.shape[0]) if steps_first else x.shape[:2]
    shapes = [(rows, x.shape[2]), (rows, H), (rows,), (rows,)]
    if rows != 3 * H or hx.shape != (1, N, H) or [*map(tuple, (w.shape for w in weights))] != shapes[: len(weights)]:
        return None  # which PyTorch says in words
    sizes = N, T, x.shape[2], H
    return layer_like(sizes, steps_first, len(weights) == 4, torch.get_num_threads(), core.instruction_set())


class Recurred(torch.autograd.Function):
    """States and their tangents, of x and d [S, ...] without gaps."""

    @staticmethod
    def forward(ctx, layer, x, d, first, *weights):
        y, t, values, tangents = layer.states(x), layer.states(d), None, None
        if any(ctx.needs_input_grad):
            values, tangents = (x.new_empty(n * layer.kept) for n in (OF_VALUES, OF_TANGENT * len(d)))
            ctx.save_for_backward(x, d, first, *weights, values, tangents)
        ctx.set_materialize_grads(False)
        ctx.layer = layer
        places = {"out": y, "out_moved": t, "values": values, "tangents": tangents}
        layer.run(PAIRS, weights, x=x, d=d, first=first, **places)
        return y, t

    @staticmethod
    def backward(ctx, *bars):
        x, d, first, *weights, values, tangents = saved(ctx)
        _, of_x, of_d, _, *of_weights = ctx.needs_input_grad
        if goes_on(*bars):

            def written_out(x, d, *weights):
                y = ctx.layer.in_torch(Dual(x, d), first, *weights)
                return y.v, y.d

            dx, dd, *gradients = differentiated(written_out, (x, d, *weights), (of_x, of_d, *of_weights), bars)
            return None, dx, dd, None, *gradients
        given, moved = [bar.contiguous() for bar in bars]
        dx, dd = torch.empty_like(x) if of_x else None, torch.empty_like(d) if of_d else None
        gradients = [torch.empty_like(w) if any(of_weights) else None for w in weights]
        places = {"x": x, "d": d, "given": given, "moved": moved, "out": dx, "out_moved": dd}
        ctx.layer.run(PAIRS_BACK, weights, gradients, values=values, tangents=tangents, **places)
        return None, dx, dd, None, *gradients

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class Values(torch.autograd.Function):
    """States of x, and what is kept of them: an output that nobody sees, whose adjoint is what a gradient owes them."""

    @staticmethod
    def forward(ctx, layer, x, first, *weights):
        y, values = layer.states(x), x.new_empty(OF_VALUES * layer.kept)
        layer.run(VALUES, weights, x=x, first=first, out=y, values=values)
        ctx.set_materialize_grads(False)
        ctx.layer = layer
        ctx.save_for_backward(x, first, *weights, values)
        return y, values

    @staticmethod
    def backward(ctx, bar, owed):
        layer, kept = ctx.layer, torch.is_grad_enabled()
        x, first, *weights, values = saved(ctx)
        of_x, _, *of_weights = [wants(node, kept) for node, _ in ctx.next_functions]
        if bar is None and owed is None:
            return None, None, None, *(None for _ in weights)
        if kept or several(bar):
            if not several(bar) and not any(of_weights):
                return None, gradient(layer, bar, values, x, first, *weights), None, *(None for _ in weights)
            written_out = lambda x, *weights: (layer.in_torch(x, first, *weights),)  # noqa: E731
            dx, *gradients = differentiated(written_out, (x, *weights), (of_x, *of_weights), (bar,))
            return None, dx, None, *gradients
        dx = torch.empty_like(x) if of_x else None
        gradients = [torch.empty_like(w) if any(of_weights) else None for w in weights]
        given = None if bar is None else bar.contiguous()
        layer.run(BACK, weights, gradients, x=x, given=given, out=dx, values=values, owed=owed)
        return None, dx, None, *gradients

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class Gradient(torch.autograd.Function):
    """The adjoint of x from that of states."""

    @staticmethod
    def forward(ctx, layer, bar, values, x, first, *weights):
        g, adjoint = torch.empty_like(x), x.new_empty(OF_GRADIENT * layer.kept)
        layer.run(GRADIENT, weights, given=bar.contiguous(), out=g, values=values, adjoint=adjoint)
        ctx.set_materialize_grads(False)
        ctx.layer = layer
        ctx.save_for_backward(bar, x, first, *weights, values, adjoint)
        return g

    @staticmethod
    def backward(ctx, c):
        layer, kept = ctx.layer, torch.is_grad_enabled()
        bar, x, first, *weights, values, adjoint = saved(ctx)
        if c is None:
            return (None,) * (5 + len(weights))
        of_bar, of_values, of_x, _, *of_weights = [wants(node, kept) for node, _ in ctx.next_functions]
        if kept or several(c):

            def written_out(bar, x, *weights):
                x = x if x.requires_grad else x.requires_grad_()
                return torch.autograd.grad(layer.in_torch(x, first, *weights), x, bar, create_graph=True)

            needs = of_bar, of_x, *of_weights
            dbar, dx, *gradients = differentiated(written_out, (bar, x, *weights), needs, (c,))
            return None, dbar, None, dx, None, *gradients
        out = x.new_empty(bar.shape) if of_bar else None
        owed = torch.empty_like(values) if of_values else None
        gradients = [torch.empty_like(w) if any(of_weights) and w.dim() == 2 else None for w in weights]
        places = {"given": c.contiguous(), "out": out, "values": values, "adjoint": adjoint, "owed": owed}
        layer.run(ALONG, weights, gradients, **places)
        return None, out, owed, None, None, *gradients

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


OWN.update((Values, Gradient))
# without what torch.func would be told of them
recurred, values_of, gradient = [
    super(torch.autograd.Function, each).apply for each in (Recurred, Values, Gradient)
]  # fmt: skip

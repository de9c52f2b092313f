"""A chain of layers as one operation of autograd, whose gradient is one, too, and that gradient's own way back.

Of a chain amid a network each of these waits for what others do in between, so that none is a call of its own from the
start: each pass keeps what the next ones need. What a gradient owes the values comes to them as the gradient of their
slopes, an output that nobody else sees: it is all that is between the two, so that layers are gone through once forward
and once back for the values, and once each for a gradient and its adjoint, as autograd does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch

from .. import again
from ..backends import core
from ..backends.standard import OWN
from ..enums import COTANGENTS
from ..problem import Operands, Plan, Problem
from ..transforms import refuse_forward_mode, several
from .operations import is_wanted

VALUES, GRADIENT, ALONG, BACK = range(4)


class Passes(NamedTuple):
    """What the core is told of a chain for so many samples, and the numbers that its passes keep."""

    problem: Problem  # of the values
    told: object
    slopes: int
    values: int
    adjoint: int

    def run(self, what: int, parameters: Sequence[torch.Tensor], gradients: Sequence = (), **tensors) -> None:
        places = [tensors.get(name) for name in ("x", "given", "out", "slopes", "values", "adjoint", "owed")]
        places = [None if place is None or not place.numel() else place for place in places]
        core._C.run_chain(self.told, what, [*places, *parameters, *gradients])


@lru_cache(maxsize=1024)
def passes_of(problem: Problem, N: int, strides: tuple[tuple[int, int], ...], plan: Plan) -> Passes:
    """`strides` of the weights."""
    choices = dict(plan.choices)
    rows = [
        (*problem.widths[l : l + 2], core.formula("Activation", activation), strides[l], problem.biases[l])
        for l, activation in enumerate(problem.activations)
    ]
    told = core._C.Chain(
        core.CODES["Dtype"][problem.dtype], N, choices["tile"], choices["threads"], choices.get("in_place", False),
        choices["isa"], rows,
    )  # fmt: skip
    return Passes(problem, told, *told.sizes())


def save(ctx, *tensors: torch.Tensor) -> None:
    ctx.strides = [tensor.stride() for tensor in tensors]
    ctx.save_for_backward(*tensors)


def saved(ctx) -> list[torch.Tensor]:
    """What was saved, as it lay, of which the core was told: a hook of saved tensors may have moved it."""
    return [
        t if t.stride() == strides else t.new_empty_strided(t.shape, strides).copy_(t)
        for t, strides in zip(ctx.saved_tensors, ctx.strides, strict=True)
    ]


class Values(torch.autograd.Function):
    """What a chain makes of x [..., n], and its slopes."""

    @staticmethod
    def forward(ctx, passes, x, *parameters):
        rows = rows_of(x)
        y, slopes, values = (rows.new_empty(n) for n in ((len(rows), passes.problem.O), passes.slopes, passes.values))
        passes.run(VALUES, parameters, x=rows, out=y, slopes=slopes, values=values)
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        save(ctx, x, *parameters, slopes, values)
        return y.view(*x.shape[:-1], passes.problem.O), slopes

    @staticmethod
    def backward(ctx, bar, owed):
        passes = ctx.passes
        x, *parameters, slopes, values = saved(ctx)
        wanted = wanted_of(ctx)
        if bar is None and owed is None:
            return None, *(None for _ in wanted)
        if torch.is_grad_enabled() or several(bar):
            if not several(bar) and not any(wanted[1:]):
                return None, Gradient.apply(passes, values, bar, slopes, x, *parameters), *(None for _ in parameters)
            return None, *differentiated(passes, x, parameters, bar)
        rows = rows_of(x)
        dx = torch.empty_like(rows) if wanted[0] else None
        gradients = [p.new_empty(p.shape) if any(wanted[1:]) else None for p in parameters]
        given = None if bar is None else rows_of(bar)
        made = {"x": rows, "given": given, "out": dx, "slopes": slopes, "values": values, "owed": owed}
        passes.run(BACK, parameters, gradients, **made)
        return None, dx if dx is None else dx.view(x.shape), *gradients

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class Gradient(torch.autograd.Function):
    """Jᵀu, u the adjoint of what the chain makes."""

    @staticmethod
    def forward(ctx, passes, values, bar, slopes, x, *parameters):
        given = rows_of(bar)
        g, adjoint = given.new_empty(x.shape), given.new_empty(passes.adjoint)
        passes.run(GRADIENT, parameters, given=given, out=g, slopes=slopes, values=values, adjoint=adjoint)
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        save(ctx, bar, x, *parameters, slopes, values, adjoint)
        return g

    @staticmethod
    def backward(ctx, c):
        passes = ctx.passes
        bar, x, *parameters, slopes, values, adjoint = saved(ctx)
        if c is None:
            return (None,) * (5 + len(parameters))
        if torch.is_grad_enabled() or several(c):
            dbar, dx, *gradients = differentiated(passes, x, parameters, bar, c)
            return None, None, dbar, None, dx, *gradients
        _, dbar, of_slopes, _, *of_parameters = wanted_of(ctx)
        given, owed = rows_of(c), torch.empty_like(slopes) if of_slopes and passes.slopes else None
        out = given.new_empty(bar.shape) if dbar else None
        gradients = [None] * len(parameters)
        if any(of_parameters):  # of a bias there is none
            gradients = [p.new_empty(p.shape) if p.dim() == 2 else None for p in parameters]
        made = {"given": given, "out": out, "slopes": slopes, "values": values, "adjoint": adjoint, "owed": owed}
        passes.run(ALONG, parameters, gradients, **made)
        return None, None, out, owed, None, *gradients

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """[..., n] as rows without gaps."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def wanted_of(ctx) -> list[bool]:
    """Of each tensor that the operation was given, whether this backward comes to it; of leaves this is asked only of
    one whose graph is kept, which none of them is wanted of as a rule, since the answer that one is is an exception."""
    kept = torch.is_grad_enabled()
    return [
        node is not None and (is_wanted(node) if kept or node.next_functions else True)
        for node, _ in ctx.next_functions
    ]


def differentiated(
    passes: Passes, x: torch.Tensor, parameters: list[torch.Tensor], bar: torch.Tensor, c: torch.Tensor | None = None
) -> list[torch.Tensor | None]:  # fmt: skip
    """What the adjoint of the values gives x and the parameters, or that of their gradient `bar`, x and the parameters,
    by the reference: differentiable again, and of several adjoints at a time."""
    problem, rows, u = passes.problem, x.reshape(-1, x.shape[-1]), bar.reshape(-1, bar.shape[-1])
    if c is None:
        dx, *_, dparameters = apart(again.of_several(problem, Operands(rows, parameters), (u, None)))
        return [shaped(dx, x), *dparameters]
    asked = replace(problem, projection=COTANGENTS, P=1, given_gradient=True)
    operands, adjoints = Operands(rows, parameters, u[None]), (None, c.reshape(1, *rows.shape))
    dx, du, dparameters = apart(again.of_several(asked, operands, adjoints))
    return [shaped(du, bar), shaped(dx, x), *dparameters]


def apart(gradients: list) -> tuple:
    """Of x, of given vectors, and those of the parameters."""
    dx, dgiven, _, _, _, *dparameters = gradients
    return dx, dgiven, dparameters


def shaped(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient.reshape(like.shape)


OWN.update((Values, Gradient))

"""An activation of a value and its tangents as one operation of the core, and its way back as one: what is four or more
of PyTorch's and, back, three times as many passes over the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

from ..backends import core
from ..math.activations import activation_jet, is_curved
from ..math.table import Formula
from ..modules import number
from ..transforms import refuse_forward_mode
from .operations import differentiated, goes_on, saved


def formula_told(formula_of: Callable[..., Formula], arguments: tuple, named: dict) -> Formula | None:
    """The formula that such arguments tell, if all its parameters are finite numbers."""
    try:
        formula = formula_of(*arguments, **named)
    except TypeError:  # others than the table knows
        return None
    parameters = tuple(map(number, formula.parameters))
    finite = all(p is not None and math.isfinite(p) for p in parameters)
    return Formula(formula.name, parameters) if finite else None


@lru_cache(maxsize=256)
def told(formula: Formula, dtype: torch.dtype, threads: int, isa: str):
    """The core's own words for it, and whether it is curved."""
    name = str(dtype).removeprefix("torch.")
    of_core = core._C.Activated(core.CODES["Dtype"][name], core.formula("Activation", formula), threads, isa)
    return of_core, is_curved(formula)


class Activated(torch.autograd.Function):
    """σ(z) and σ'(z) d, of z [...] and d [S, ...] without gaps."""

    @staticmethod
    def forward(ctx, formula, z, d):
        ctx.told, curved = told(formula, z.dtype, torch.get_num_threads(), core.instruction_set())
        ctx.formula, n = formula, z.numel()
        y, t, slopes = torch.empty_like(z), torch.empty_like(d), None
        if any(ctx.needs_input_grad):
            slopes = z.new_empty(2 * n if curved else n)
            ctx.save_for_backward(z, d, slopes)
        ctx.set_materialize_grads(False)
        core._C.activated(ctx.told, n, len(d), [z, d, y, t, slopes])
        return y, t

    @staticmethod
    def backward(ctx, *bars):
        z, d, slopes = saved(ctx)
        if goes_on(*bars):
            written_out = lambda z, d: in_torch(ctx.formula, z, d)  # noqa: E731
            return None, *differentiated(written_out, (z, d), ctx.needs_input_grad[1:], bars)
        bar_y, bar_t = [bar.contiguous() for bar in bars]
        bar_z, bar_d = torch.empty_like(z), torch.empty_like(d) if ctx.needs_input_grad[2] else None
        core._C.activated(ctx.told, z.numel(), len(d), [bar_y, d, bar_t, slopes, bar_z, bar_d])
        return None, bar_z, bar_d

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def in_torch(formula: Formula, z: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y, slope = activation_jet(formula, z, 1)
    return y, slope * d


activated = super(torch.autograd.Function, Activated).apply  # without what torch.func would be told of it

"""An activation of a value and its tangents as one operation of the core, and its way back as one: what is four or more
of PyTorch's and, back, three times as many passes over the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.autograd import forward_ad

from ..backends import core
from ..boundary import PLAIN
from ..math.activations import activation_jet, is_curved
from ..math.table import Formula
from ..modules import number
from ..transforms import refuse_forward_mode, several


def fits(z: torch.Tensor, d: torch.Tensor) -> bool:
    """Whether the core takes a value and its tangents, and nobody follows the call who would have to see operations.

    In float64 it has some functions from the C library, lane by lane, which PyTorch's outrun.
    """
    if core.MISSING is not None or type(z) not in PLAIN or type(d) not in PLAIN or not z.is_cpu:
        return False
    if z.dtype is not torch.float32 or d.dtype is not torch.float32 or not z.numel() or z.is_neg() or d.is_neg():
        return False
    if not (z.is_contiguous() and d.is_contiguous()) or torch.compiler.is_compiling():
        return False
    watched = torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()
    return not watched and forward_ad._current_level < 0


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


def activated(formula: Formula, z: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """σ(z) and σ'(z) d, of z [...] and d [S, ...] without gaps."""
    return apply(formula, z, d)


class Activated(torch.autograd.Function):
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
    def backward(ctx, bar_y, bar_t):
        z, d, slopes = ctx.saved_tensors
        if torch.is_grad_enabled() or several(bar_y, bar_t):
            return None, *differentiated(ctx.formula, z, d, bar_y, bar_t)
        if bar_y is None and bar_t is None:
            return None, None, None
        bars = [bar if bar is None or bar.is_contiguous() else bar.contiguous() for bar in (bar_y, bar_t)]
        bar_z = torch.empty_like(z)
        bar_d = torch.empty_like(d) if bar_t is not None and ctx.needs_input_grad[2] else None
        S = 0 if bar_t is None else len(d)
        core._C.activated(ctx.told, z.numel(), S, [bars[0], d, bars[1], slopes, bar_z, bar_d])
        return None, bar_z, bar_d

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def differentiated(
    formula: Formula, z: torch.Tensor, d: torch.Tensor, bar_y: torch.Tensor | None, bar_t: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """The adjoints of z and d by PyTorch's operations, of several at a time, and differentiable again."""
    _, slope, curvature = activation_jet(formula, z, 2)
    bar_z = None if bar_y is None else slope * bar_y
    if bar_t is None:
        return bar_z, None
    bent = curvature * (bar_t * d).sum(0)
    return bent if bar_z is None else bar_z + bent, slope * bar_t


apply = super(torch.autograd.Function, Activated).apply  # without what torch.func would be told of it

"""An activation of the table by the core: its slope comes beside its value, so that its gradient is a product, and what
that owes the slope comes back to the same node."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...backends import core
from ...backends.standard import OWN
from ...math.activations import activation_jet, is_curved
from ...math.table import Formula
from ...transforms import refuse_forward_mode, several
from ..activated import formula_told, told
from ..chain import FORMULAS
from ..flowing import spelt
from ..operations import differentiated, fits, saved
from .single import Single

# ns that it saves of each number, and µs of Python that it takes amid a step. µs of a value, its gradient and what both
# owe, in a loop, PyTorch's and these, of 65,536 numbers and of 524,288, one thread of an EPYC with AVX-512, float32:
#
#     tanh      230 122   1884 787        silu      220 121   2202 835        sigmoid   117 112   976 766
#     gelu      282 180   2371 1287       softplus  268 185   2237 1282
SAVED, PYTHON = {"sigmoid": 0.4, "softplus": 1.8}, 45.0


class Activation(torch.autograd.Function):
    """σ(z) and σ'(z), of z without gaps."""

    @staticmethod
    def forward(ctx, formula, z):
        y, slope = torch.empty_like(z), torch.empty_like(z)
        ctx.told, _ = told(formula, z.dtype, torch.get_num_threads(), core.instruction_set())
        core._C.activated(ctx.told, z.numel(), 0, [z, y, slope])
        ctx.formula = formula
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, slope)
        return y, slope

    @staticmethod
    def backward(ctx, bar, owed):
        z, slope = saved(ctx)
        if torch.is_grad_enabled() or several(bar, owed):
            if owed is None:
                return None, None if bar is None else bar * slope
            written_out = lambda z: activation_jet(ctx.formula, z, 1)  # noqa: E731
            return None, *differentiated(written_out, (z,), (True,), (bar, owed))
        if bar is None and owed is None:
            return None, None
        bar, owed = (None if t is None else t.contiguous() for t in (bar, owed))
        bar_z = torch.empty_like(z)
        core._C.activated(ctx.told, z.numel(), 0, [z, bar, owed, bar_z])
        return None, bar_z

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def of_formula(formula_of: Callable[..., Formula]) -> Callable[..., torch.Tensor | None]:
    default = formula_told(formula_of, (), {})
    curved = default is not None and is_curved(default)

    def applied(input, *arguments, inplace=False, **named):
        if inplace or not fits(input):
            return None
        if not arguments and not named:
            return apply(default, input)[0] if curved else None
        formula = formula_told(formula_of, arguments, named)
        return None if formula is None or not is_curved(formula) else apply(formula, input)[0]

    return applied


def saves(name: str) -> Callable[..., float]:
    each = 1e-3 * SAVED.get(name, 2.0)
    return lambda input, *_, **named: input.numel() * each - PYTHON


TABLE = {
    function: Single(of_formula(formula_of), saves(name))
    for name, formula_of in FORMULAS.items()
    for function in spelt(name)
}
OWN.add(Activation)
apply = super(torch.autograd.Function, Activation).apply  # without what torch.func would be told of it

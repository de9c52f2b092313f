"""Rules of functions of each number by itself: a value, and the slope that all directions are multiplied by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from ..math.activations import activation_jet
from ..student import widened
from . import twice
from .activated import activated, formula_told
from .chain import FORMULAS
from .flowing import spelt
from .operations import fits
from .pair import RULES, is_pair, need_constant, new, rule, written
from .twice import is_twice


def by_autograd(function: Callable, z: torch.Tensor, twice: bool) -> tuple[torch.Tensor, torch.Tensor, Callable | None]:
    """Value, slope and curvature as PyTorch has them, which can be differentiated again."""
    z = z if z.requires_grad else z.detach().requires_grad_()
    y = function(z)
    slope = slope_of(y, z)
    curvature = slope_of(slope, z) if twice and slope.requires_grad else None
    return y, slope, None if curvature is None else lambda: curvature


def slope_of(y: torch.Tensor, z: torch.Tensor) -> torch.Tensor | None:
    return torch.autograd.grad(y, z, torch.ones_like(y), create_graph=True, allow_unused=True)[0]


def silu(z: torch.Tensor) -> torch.Tensor:
    """Compiled, of the sigmoid that its slope has, too: PyTorch's own would take another exponential."""
    return z * z.sigmoid() if torch.compiler.is_compiling() else functional.silu(z)


def slope_of_silu(y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    s = z.sigmoid()
    return torch.addcmul(s, y, 1 - s)


# By hand where it is a number or two more of what is there already: the slope of y and z, and the curvature of these
# and of the slope, None where it is 0.
BY_HAND: dict[str, tuple[Callable, Callable | None]] = {
    "relu": (lambda y, z: (z > 0).to(z.dtype), None),
    "tanh": (lambda y, z: 1 - y * y, lambda y, z, d: -2 * y * d),
    "sigmoid": (lambda y, z: y * (1 - y), lambda y, z, d: d * (1 - 2 * y)),
    "exp": (lambda y, z: y, lambda y, z, d: y),
    "sin": (lambda y, z: z.cos(), lambda y, z, d: -y),
    "cos": (lambda y, z: -z.sin(), lambda y, z, d: -y),
    "square": (lambda y, z: 2 * z, lambda y, z, d: 2.0),
    "sqrt": (lambda y, z: 0.5 / y, lambda y, z, d: -0.5 * d / z),
    "rsqrt": (lambda y, z: -0.5 * y / z, lambda y, z, d: -1.5 * d / z),
    "reciprocal": (lambda y, z: -y * y, lambda y, z, d: -2 * y * d),
    "log": (lambda y, z: 1 / z, lambda y, z, d: -d * d),
    "abs": (lambda y, z: z.sign(), None),
    "silu": (slope_of_silu, None),
    # PyTorch has no second derivative of it
    "hardsigmoid": (lambda y, z: (z.abs() < 3).to(z.dtype) / 6, None),
}
BY_AUTOGRAD = (
    "gelu", "softplus", "elu", "selu", "celu", "leaky_relu", "mish", "softsign", "logsigmoid", "hardswish",
    "hardtanh", "relu6", "softshrink", "hardshrink", "tanhshrink", "threshold", "log1p", "expm1", "log2",
    "log10", "exp2", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv",
    "sinc", "expit", "logit", "lgamma", "nan_to_num", "arctan", "arcsin", "arccos", "arcsinh", "arctanh",
)  # fmt: skip

# Of order 2 by the table of formulas, which overflows nowhere and takes as long as PyTorch's derivatives or less. Those
# of elu and softplus, whose formulas choose between branches, take a third of it.
BY_TABLE = ("gelu", "silu", "mish", "softsign")


def pointwise(
    function: Callable, slope: Callable | None, curvature: Callable | None, formula_of: Callable | None,
    by_table: bool = False,
):  # fmt: skip
    """The rule of a function of numbers, which has a formula or not; `by_table`, if of order 2 it is that one's."""
    default = formula_of and formula_told(formula_of, (), {})

    def applied(input, *arguments, inplace=False, **named):
        if not is_pair(input):
            raise TypeError("another argument than the first depends on the inputs")
        need_constant(input.run, *arguments, *named.values())
        z, formula = input.v, None
        if formula_of is not None and not is_twice(input) and fits(z, input.d):
            formula = formula_told(formula_of, arguments, named) if arguments or named else default
        if formula is not None:
            after = new(input, *activated(formula, z, input.d))
            return written(input, after) if inplace else after
        if by_table and is_twice(input):
            y, d1, c = (t.to(z.dtype) for t in activation_jet(formula_of(*arguments, **named), widened(z), 2))
            d2 = lambda: c  # noqa: E731
        elif slope is not None:
            y = function(z, *arguments, **named)
            d1 = slope(y, z)
            d2 = curvature and partial(curvature, y, z, d1)
        else:
            y, d1, d2 = by_autograd(lambda z: function(z, *arguments, **named), z, is_twice(input))
        after = twice.pointwise(input, y, d1, d2)
        return written(input, after) if inplace else after

    return applied


WRITTEN = {"silu": silu}


def register(name: str, slope: Callable | None = None, curvature: Callable | None = None) -> None:
    spellings = spelt(name)
    if not spellings:
        return
    plain = WRITTEN.get(name) or getattr(torch, name, None) or getattr(functional, name, None)
    plain = plain or getattr(torch.special, name, None) or getattr(torch.Tensor, name)
    found = pointwise(plain, slope, curvature, FORMULAS.get(name), name in BY_TABLE)
    rule(name, twice=True)(found)


for name, (slope, curvature) in BY_HAND.items():
    register(name, slope, curvature)
for name in BY_AUTOGRAD:
    register(name)
rule("__abs__", "absolute", twice=True)(RULES[torch.abs])


@rule("prelu", twice=True)
def prelu(input, weight):
    need_constant(input.run, weight)
    if weight.numel() > 1:
        weight = weight.view(-1, *[1] * (input.v.dim() - 2)) if input.v.dim() > 1 else weight
    return torch.where(input.v > 0, input, input * weight)


@rule("glu", twice=True)
def glu(input, dim=-1):
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()

"""Rules of functions of each number by itself: a value, and the slope that all directions are multiplied by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from .flowing import spelt
from .pair import RULES, is_pair, need_constant, new, rule, written


def by_autograd(function: Callable, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope as PyTorch has it, which can be differentiated again."""
    z = z if z.requires_grad else z.detach().requires_grad_()
    y = function(z)
    return y, torch.autograd.grad(y, z, torch.ones_like(y), create_graph=True)[0]


# By hand where it is a number or two more of what is there already: (slope of y and z)
SLOPES: dict[str, Callable] = {
    "relu": lambda y, z: (z > 0).to(z.dtype),
    "tanh": lambda y, z: 1 - y * y,
    "sigmoid": lambda y, z: y * (1 - y),
    "exp": lambda y, z: y,
    "sin": lambda y, z: z.cos(),
    "cos": lambda y, z: -z.sin(),
    "square": lambda y, z: 2 * z,
    "sqrt": lambda y, z: 0.5 / y,
    "rsqrt": lambda y, z: -0.5 * y / z,
    "log": lambda y, z: 1 / z,
    "abs": lambda y, z: z.sign(),
    "hardsigmoid": lambda y, z: (z.abs() < 3).to(z.dtype) / 6,  # PyTorch has no second derivative of it
}
BY_AUTOGRAD = (
    "gelu", "silu", "softplus", "elu", "selu", "celu", "leaky_relu", "mish", "softsign", "logsigmoid", "hardswish",
    "hardtanh", "relu6", "softshrink", "hardshrink", "tanhshrink", "threshold", "log1p", "expm1", "log2",
    "log10", "exp2", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv",
    "sinc", "expit", "logit", "lgamma", "nan_to_num", "arctan", "arcsin", "arccos", "arcsinh", "arctanh",
)  # fmt: skip


def pointwise(function: Callable, slope: Callable | None) -> Callable:
    def applied(input, *arguments, inplace=False, **named):
        if not is_pair(input):
            raise TypeError("another argument than the first depends on the inputs")
        need_constant(input.run, *arguments, *named.values())
        at = lambda z: function(z, *arguments, **named)  # noqa: E731
        if slope is None:
            y, d = by_autograd(at, input.v)
        else:
            y = at(input.v)
            d = slope(y, input.v)
        after = new(input, y, d * input.d)
        return written(input, after) if inplace else after

    return applied


def register(name: str, slope: Callable | None = None) -> None:
    spellings = spelt(name)
    if not spellings:
        return
    plain = getattr(torch, name, None) or getattr(functional, name, None) or getattr(torch.special, name, None)
    found = pointwise(plain or getattr(torch.Tensor, name), slope)
    RULES.update(dict.fromkeys(spellings, found))
    RULES.update(dict.fromkeys(spelt(f"{name}_"), lambda input, *a, **k: written(input, found(input, *a, **k))))


for name, slope in SLOPES.items():
    register(name, slope)
for name in BY_AUTOGRAD:
    register(name)
for function in spelt("__abs__", "absolute"):
    RULES[function] = RULES[torch.abs]


@rule("prelu")
def prelu(input, weight):
    need_constant(input.run, weight)
    if weight.numel() > 1:
        weight = weight.view(-1, *[1] * (input.v.dim() - 2)) if input.v.dim() > 1 else weight
    return torch.where(input.v > 0, input, input * weight)


@rule("glu")
def glu(input, dim=-1):
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()

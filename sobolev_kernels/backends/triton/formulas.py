"""The tables of `sobolev_kernels/math` as Triton functions: the same code objects with other primitives."""

from __future__ import annotations

import types
from collections.abc import Callable

import triton
import triton.language as tl

from ...math.activations import ACTIVATIONS
from ...math.losses import COUPLED, LOSSES
from ...math.table import Formula, Row
from . import primitives


def jitted(function: Callable) -> triton.JITFunction:
    """The text of `function` with `m` being Triton's primitives."""
    names = {"m": primitives, "tl": tl, "__name__": function.__module__}
    twin = types.FunctionType(function.__code__, names, function.__name__)
    twin.__module__ = function.__module__
    return triton.jit(twin)


def table(rows: dict[str, Row]) -> dict[str, triton.JITFunction]:
    return {name: jitted(row.function) for name, row in rows.items()}


FUNCTIONS = table(ACTIVATIONS), table(LOSSES | COUPLED)


def arguments(formula: Formula, kind: int) -> tuple[triton.JITFunction, int, float, float]:
    """For a kernel, an activation (kind 0) or a loss (1): its function, how many parameters, and these."""
    numbers = (*formula.parameters, 0.0, 0.0)
    return FUNCTIONS[kind][formula.name], len(formula.parameters), numbers[0], numbers[1]


@triton.jit
def derivatives(F: tl.constexpr, COUNT: tl.constexpr, z, a, b):
    """σ, σ', σ'' and σ''' of an activation with COUNT parameters."""
    if COUNT == 0:
        return F(z)
    elif COUNT == 1:
        return F(z, a)
    else:
        return F(z, a, b)


@triton.jit
def residual(F: tl.constexpr, COUNT: tl.constexpr, r, a):
    """ρ and its slope of a pointwise loss."""
    if COUNT == 0:
        return F(r)
    else:
        return F(r, a)


@triton.jit
def coupled(F: tl.constexpr, COUNT: tl.constexpr, rr, aa, at, tt, a):
    """ρ of the sums and its partial derivatives."""
    if COUNT == 0:
        return F(rr, aa, at, tt)
    else:
        return F(rr, aa, at, tt, a)

"""The tables of `sobolev_kernels/math` as Triton functions: the same code objects with other primitives."""

from __future__ import annotations

import hashlib
import linecache
import types
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import triton
import triton.language as tl

from ...math.activations import ACTIVATIONS
from ...math.curves import Curve, curve_of
from ...math.losses import COUPLED, LOSSES
from ...math.table import Formula, Row
from . import coarse, primitives


def jitted(function: Callable, m: types.ModuleType = primitives) -> triton.JITFunction:
    """The text of `function` with `m` being Triton's primitives."""
    names = {"m": m, "tl": tl, "__name__": function.__module__}
    twin = types.FunctionType(function.__code__, names, function.__name__)
    twin.__module__ = function.__module__
    # Within a kernel Triton takes functions of one name for one function.
    twin.__qualname__ = f"{function.__qualname__}_by_{m.__name__.rpartition('.')[2]}"
    return triton.jit(twin)


def function_of(name: str, text: str, names: dict) -> Callable:
    """The function `name` that `text` defines, with `names` to be found from it, where Triton finds its text, too."""
    file = f"<sobolev_kernels: {name}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    exec(compile(text, file, "exec"), names)
    return names[name]


def sum_of_powers(coefficients: tuple[float, ...], e: float) -> str:
    """Σ cₖ hᵏ + `e` e^-βh, without what is 0."""
    terms = [(c, "h" * power) for power, c in enumerate(coefficients)] + [(e, "e")]
    return " + ".join(" * ".join([repr(c), *of]) for c, of in terms if c) or "0.0"


@lru_cache(maxsize=64)
def jitted_curve(curve: Curve) -> triton.JITFunction:
    """σ' and σ'' of the value h, with the curve's numbers written out."""
    first, ratio = sum_of_powers(curve.first, -1.0 if curve.beta else 0.0), sum_of_powers(curve.ratio, curve.beta)
    lines = [f"e = m.exp({-curve.beta} * h)"] if curve.beta else []
    lines += [f"first = {first}", f"second = ({ratio}) * first"]
    if curve.split:
        lines += ["second = m.where(h < 0.0, second, 0.0 * h)", f"first = m.where(h > 0.0, {curve.top}, first)"]
    text = "\n    ".join(["(h):", *lines, "return first, second\n"])
    name = f"curve_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return triton.jit(function_of(name, f"def {name}{text}", {"m": primitives, "tl": tl, "__name__": __name__}))


def of_value(formula: Formula) -> triton.JITFunction | None:
    """Of an activation whose derivatives are less work of its value than of z, or None."""
    curve = curve_of(formula)
    return jitted_curve(curve) if curve and (any(curve.ratio) or curve.beta) else None


def table(rows: dict[str, Row]) -> dict[str, triton.JITFunction]:
    return {name: jitted(row.function) for name, row in rows.items()}


ACTIVATION_FUNCTIONS, LOSS_FUNCTIONS = table(ACTIVATIONS), table(LOSSES | COUPLED)
COARSE_FUNCTIONS = {name: jitted(ACTIVATIONS[name].function, coarse) for name in coarse.OF}

HALVES = ("bf16", "fp16")

# Tuples for kernels. Of their members a function and a tl.constexpr are constants for the compiler, also by the text of
# the function; a float is a run-time number.


class Activation(NamedTuple):
    """An activation for a kernel: its function, how many parameters the function has, and these; and σ' and σ'' as a
    function of the value, if there is one."""

    F: triton.JITFunction
    COUNT: tl.constexpr
    a: float
    b: float
    OF_VALUE: triton.JITFunction | None = None


class Loss(NamedTuple):
    """A loss for a kernel: its function, how many parameters the function has, and the one there may be; and what
    multiplies its slopes (`factor`) and its terms (`share`)."""

    F: triton.JITFunction
    COUNT: tl.constexpr
    a: float
    factor: float
    share: float


def activation_of(formula: Formula, precision: str = "ieee") -> Activation:
    """`precision`: of the products that its values are rounded for, and nothing else."""
    a, b = (*formula.parameters, 0.0, 0.0)[:2]
    functions = ACTIVATION_FUNCTIONS | (COARSE_FUNCTIONS if precision in HALVES else {})
    return Activation(functions[formula.name], tl.constexpr(len(formula.parameters)), a, b, of_value(formula))


def loss_of(formula: Formula, factor: float, share: float) -> Loss:
    a, *_ = *formula.parameters, 0.0
    return Loss(LOSS_FUNCTIONS[formula.name], tl.constexpr(len(formula.parameters)), a, factor, share)


@triton.jit
def whole_jet(activation, z):
    """σ to σ⁽⁵⁾ of an Activation."""
    if activation.COUNT == 0:
        return activation.F(z)
    elif activation.COUNT == 1:
        return activation.F(z, activation.a)
    else:
        return activation.F(z, activation.a, activation.b)


@triton.jit
def activation_jet(activation, z):
    """σ, σ', σ'' and σ''' of an Activation; what else its text computes is dead code."""
    return whole_jet(activation, z)[:4]


@triton.jit
def kept(activation, z, value):
    """What the derivatives are computed of again: the value, where that will do, and z."""
    if activation.OF_VALUE is None:
        return z
    else:
        return value


@triton.jit
def jet_of_kept(activation, kept):
    """σ, σ' and σ''."""
    if activation.OF_VALUE is None:
        return whole_jet(activation, kept)[:3]
    else:
        first, second = activation.OF_VALUE(kept)
        return kept, first, second


@triton.jit
def residual(loss, r):
    """ρ and its slope of a pointwise Loss."""
    if loss.COUNT == 0:
        return loss.F(r)
    else:
        return loss.F(r, loss.a)


@triton.jit
def coupled(loss, rr, aa, at, tt, ww):
    """ρ of the sums of a Loss that couples, and its partial derivatives."""
    if loss.COUNT == 0:
        return loss.F(rr, aa, at, tt, ww)
    else:
        return loss.F(rr, aa, at, tt, ww, loss.a)

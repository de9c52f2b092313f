"""The primitives of `sobolev_kernels/math` in Triton, named alike in all languages; and the product. For float32, and
those that coupled losses are made of for float64 too."""

import triton
import triton.language as tl

__all__ = ["abs", "clamp", "cos", "erf", "exp", "expm1", "log", "log1p", "sigmoid", "sin", "sqrt", "tanh", "where"]


# Triton's own, wrapped: its interpreter knows the names of `tl` only.


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def clamp(x, low, high):
    # NaN stays NaN, which tl.clamp does not promise
    return tl.where(x > high, high, tl.where(x < low, low, x))


@triton.jit
def cos(x):
    return tl.cos(x)


@triton.jit
def erf(x):
    return tl.erf(x)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def sin(x):
    return tl.sin(x)


@triton.jit
def sqrt(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def where(c, x, y):
    return tl.where(c, x, y)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # near 0 a polynomial (Cephes), because 1 - exp(-2|x|) loses the digits there
    s = x * x
    p = -5.70498872745e-3 * s + 2.06390887954e-2
    p = p * s - 5.37397155531e-2
    p = p * s + 1.33314422036e-1
    p = p * s - 3.33332819422e-1
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, x + x * s * p, tl.where(x < 0.0, -t, t))


@triton.jit
def expm1(x):
    t = tanh(0.5 * tl.where(x > 0.5, 0.0, x))
    return tl.where(x > 0.5, tl.exp(x) - 1.0, 2.0 * t / (1.0 - t))


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def log1p(x):
    # Kahan: the rounding of u = 1 + x is in the quotient too
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def reciprocal(x):
    return 1.0 / x


@triton.jit
def rounded(x):
    """To the nearest number that keeps its value where a tensor core cuts off the last 13 bits; NaN stays NaN."""
    return tl.where(x == x, (x.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True), x)


@triton.jit
def operand(x, PRECISION: tl.constexpr):
    """What is multiplied."""
    if PRECISION == "ieee":
        return x
    elif PRECISION == "tf32":
        return rounded(x)
    elif PRECISION == "bf16":
        return x.to(tl.bfloat16)
    else:
        return x.to(tl.float16)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """The product of two operands, summed in float32 (PRECISIONS of `sobolev_kernels/problem.py`)."""
    if PRECISION == "ieee":
        return tl.dot(a, b, input_precision="ieee")
    elif PRECISION == "tf32":
        return tl.dot(a, b, input_precision="tf32")
    else:
        return tl.dot(a, b)

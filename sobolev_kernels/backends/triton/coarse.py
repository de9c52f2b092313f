"""Triton's primitives of hidden activations whose values are rounded to 16 bits before they are multiplied: right to
1.2e-7, and not to so much of a result near 0."""

import triton
import triton.language as tl

from ...math.activations import ACTIVATIONS
from ...math.coarse import COARSE
from .primitives import abs, clamp, cos, erf, exp, expm1, log, log1p, sigmoid, sin, sqrt, where

__all__ = ["abs", "clamp", "cos", "erf", "exp", "expm1", "log", "log1p", "sigmoid", "sin", "sqrt", "tanh", "where"]
OF = tuple(name for name in COARSE if name in ACTIVATIONS)  # the activations that are others than of `primitives.py`


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))

"""Triton's primitives of an activation whose value is given in the place of z (`OF_VALUE` of `math/activations.py`)."""

import triton
import triton.language as tl  # noqa: F401 -- the interpreter asks each function's module for it

from .primitives import abs, clamp, cos, erf, exp, expm1, log, log1p, sin, sqrt, where

__all__ = ["abs", "clamp", "cos", "erf", "exp", "expm1", "log", "log1p", "sigmoid", "sin", "sqrt", "tanh", "where"]


@triton.jit
def sigmoid(value):
    return value


@triton.jit
def tanh(value):
    return value

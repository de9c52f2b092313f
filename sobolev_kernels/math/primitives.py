"""The primitives that activations and losses are written in, for torch tensors.

Every other target has the same names in its own language: scalar and SIMD C++ in `csrc/math/primitives.h`.
"""

from torch import abs, clamp, cos, erf, exp, expm1, log, log1p, sigmoid, sin, sqrt, tanh, where

__all__ = ["abs", "clamp", "cos", "erf", "exp", "expm1", "log", "log1p", "sigmoid", "sin", "sqrt", "tanh", "where"]

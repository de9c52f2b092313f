"""Triton's interpreter, faster."""

from sobolev_kernels.testing import interpreter  # noqa: F401

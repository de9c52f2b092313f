"""Which backend's kernels compute named derivatives, where the user may force one."""

from __future__ import annotations

import torch

from ..dispatch import requested
from ..errors import need
from ..student import Student, Unrecognised
from .along import KERNELS, way_of

FUSED = ("cpu", "cuda", "triton")  # backends that are kernels


def chosen(student: Student | Unrecognised, x: torch.Tensor) -> str | None:
    """The backend whose kernels compute it, which SOBOLEV_BACKEND may force; None where PyTorch's operations do."""
    name = requested(None)
    if name in FUSED:
        reason = getattr(student, "reason", "") or why_not(name, student, x)
        expected = f"{name} to support this problem"
        need(reason is None, "SOBOLEV_BACKEND", expected, f"a refusal: {reason}", NotImplementedError)
    return way_of(student, x, name)


def why_not(backend: str, student: Student, x: torch.Tensor) -> str | None:
    known = KERNELS.get(backend)
    return "it has no kernel of named derivatives" if known is None else known(student, x)

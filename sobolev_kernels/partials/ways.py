"""Which backend's kernels compute named derivatives, where the user may force one."""

from __future__ import annotations

import torch

from ..dispatch import requested
from ..errors import need
from ..student import Student, Unrecognised
from .along import KERNELS, way_of
from .launched import unfit
from .plan import Streams

FUSED = ("cpu", "cuda", "triton")  # backends that are kernels


def chosen(student: Student | Unrecognised, x: torch.Tensor, streams: Streams | None = None) -> str | None:
    """The backend whose kernels compute it, which SOBOLEV_BACKEND may force; None where PyTorch's operations do."""
    name = requested(None)
    if name in FUSED:
        reason = student.reason or why_not(name, student, x, streams)
        expected = f"{name} to support this problem"
        need(reason is None, "SOBOLEV_BACKEND", expected, f"a refusal: {reason}", NotImplementedError)
    if not isinstance(student, Student):
        return None
    way = way_of(student, x, name)
    return None if way == "triton" and streams is not None and unfit(streams) else way


def why_not(backend: str, student: Student, x: torch.Tensor, streams: Streams | None) -> str | None:
    if backend not in KERNELS:
        return "it has no kernel of named derivatives"
    reason = unfit(streams) if backend == "triton" and streams is not None else None
    return reason or KERNELS[backend](student, x)

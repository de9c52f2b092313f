"""Which backend computes named derivatives, where the user may force one."""

from __future__ import annotations

import torch

from ..dispatch import requested
from ..errors import need
from ..student import Student, Unrecognised
from .along import KERNELS, way_of
from .launched import unfit
from .layers import by_plain
from .plan import Streams

FOLLOWED = "somebody follows each operation"  # a compiler, or a transform of torch.func
FUSED = ("cpu", "cuda", "triton")  # backends that are kernels


def chosen(
    student: Student | Unrecognised, x: torch.Tensor, streams: Streams | None = None, backend: str | None = None
) -> str | None:  # fmt: skip
    """The backend whose kernels compute it, which the argument or SOBOLEV_BACKEND may force; None where PyTorch's
    operations do."""
    name = requested(backend)
    if name in (*FUSED, "streams"):
        reason = student.reason or (None if name == "streams" else why_not(name, student, x, streams))
        if reason is None and backend in FUSED and by_plain(x):
            reason = FOLLOWED
        expected, source = f"{name} to support this problem", "SOBOLEV_BACKEND" if backend is None else "backend"
        need(reason is None, source, expected, f"a refusal: {reason}", NotImplementedError)
    if not isinstance(student, Student):
        return None
    way = way_of(student, x, name)
    return None if way == "triton" and streams is not None and unfit(streams) else way


def by_reference(student: Student | Unrecognised, backend: str | None) -> bool:
    """Whether it is autograd of autograd: of what is no MLP, or where that is forced."""
    return not isinstance(student, Student) or requested(backend) == "reference"


def why_not(backend: str, student: Student, x: torch.Tensor, streams: Streams | None) -> str | None:
    if backend not in KERNELS:
        return "it has no kernel of named derivatives"
    reason = unfit(streams) if backend == "triton" and streams is not None else None
    return reason or KERNELS[backend](student, x)

"""Streams of directional derivatives of any order, and of Laplacians: what `jet`, losses of order 3 and 4, and
`bilaplacian` take through an MLP."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import torch

from ..student import Student
from . import fused, launched
from .constants import kept
from .fused import Call, apply
from .launched import Launched, products_of_torch
from .layers import by_plain, results_of
from .plan import Streams, plan
from .polynomials import Polynomial, multiplied
from .towers import rows, towers

# Backends whose kernels take streams of any derivatives through an MLP
KERNELS = {"cpu": fused.why_not, "triton": launched.why_not}
# Directions go side by side up to so many streams, beside the value: arrays of a tile grow with them, and the value is
# computed once for them.
TOGETHER = 16


def jet_along(
    student: Student, x: torch.Tensor, v: torch.Tensor, order: int, backend: str, precision: str = "ieee"
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """y [N, O], tangents [P, N, O] and the others [order - 1, P, N, O] of an MLP along v [P, N, D], by the kernels of a
    backend that has such, or by PyTorch's operations."""
    P, N, _ = v.shape
    O, most, way = student.widths[-1], max(1, TOGETHER // order), way_of(student, x, backend)
    y, parts = None, []
    for some in v.split(most) if P else (v,):
        streams = towers(len(some), O, order)
        along = torch.stack([some[unit(e)] for _, e in streams.first]) if len(some) else some
        results = evaluated(streams, student, x, along, way, precision)
        results = results.unflatten(0, (1 + order * len(some), O)).transpose(1, 2)
        y = results[0] if y is None else y
        parts.append(results[1:].unflatten(0, (order, len(some))) if len(some) else results.new_empty(order, 0, N, O))
    derivatives = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return y, derivatives[0], derivatives[1:]


def unit(direction: tuple[float, ...]) -> int:
    return next(i for i, c in enumerate(direction) if c)


def way_of(student: Student, x: torch.Tensor, backend: str | None = None) -> str | None:
    """The backend whose kernels take the streams; None where PyTorch's operations do, as where somebody follows each of
    them. `backend`: the only one that may."""
    if by_plain(x):
        return None
    names = KERNELS if backend is None else [name for name in KERNELS if name == backend]
    return next((name for name in names if KERNELS[name](student, x) is None), None)


def evaluated(
    streams: Streams, student: Student, x: torch.Tensor, v: torch.Tensor, way: str | None, precision: str | None = None
) -> torch.Tensor:  # fmt: skip
    """The results [R, N], by the kernels of a backend or by PyTorch's operations; on a GPU in products of a precision
    of `sobolev_loss`, or of that of PyTorch's own."""
    if way is None:
        return results_of(streams, student, x, v)
    asking = torch.is_grad_enabled() and any(t.requires_grad for t in (x, v, *student.parameters))
    if way == "triton":
        call = Launched(streams, student, results_of, precision or products_of_torch(), asking)
    else:
        call = Call(streams, student, results_of, asking)
    return apply(call, x, v, *student.parameters)


@lru_cache(maxsize=64)
def pairs(P: int, O: int) -> Streams:
    """Values and the second derivatives along each of P pairs of directions, of all O outputs. Its directions are all
    first ones and then all second ones of the pairs."""
    asked = [(0,) * (2 * P), *(tuple(int(q % P == p) for q in range(2 * P)) for p in range(P))]
    return plan(tuple(row for e in asked for row in rows({e: Fraction(1)}, O)), 2 * P)


def mixed_along(
    student: Student, x: torch.Tensor, v: torch.Tensor, w: torch.Tensor, way: str = "cpu", precision: str = "ieee"
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y [N, O] and D²m[v, w] [P, N, O] of an MLP along v and w [P, N, D], by the kernels of a backend."""
    found = []
    for some in zip(v.split(TOGETHER // 4), w.split(TOGETHER // 4), strict=True):
        both = torch.cat(some)
        streams = pairs(len(both) // 2, student.widths[-1])
        along = both[kept(tuple(unit(e) for _, e in streams.first), torch.int64, both.device)]
        results = evaluated(streams, student, x, along, way, precision)
        found.append(results.unflatten(0, (-1, student.widths[-1])).transpose(1, 2))
    return found[0][0], torch.cat([each[1:] for each in found])


def bilaplacian_of(columns: tuple[int, ...], D: int) -> Polynomial:
    """|ξ|⁴, with ξ of these columns."""
    square = {tuple(2 * (i == j) for j in range(D)): Fraction(1) for i in columns}
    return multiplied(square, square)


@lru_cache(maxsize=64)
def bilaplacians(columns: tuple[int, ...], D: int, O: int) -> Streams:
    """Values and bilaplacians of all O outputs."""
    asked = {(0,) * D: Fraction(1)}, bilaplacian_of(columns, D)
    return plan(tuple(row for p in asked for row in rows(p, O)), D)

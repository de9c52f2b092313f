"""Rules of functions of matrices, of which PyTorch's forward mode has other gradients than it should.

That of det and solve is right by itself and wrong when it is differentiated again (trusted.py). Along a direction A has
the derivatives Ȧ and Ä.
"""

from __future__ import annotations

import torch

from .flowing import SPACES
from .pair import Pair, first, is_pair, lifted, new, rule, value
from .twice import curved, is_twice, levelled, tangents


def logarithm(A: Pair, v: torch.Tensor) -> Pair:
    """log |det A|, of which v is the value: ẏ = tr A⁻¹Ȧ, ÿ = tr A⁻¹Ä - tr (A⁻¹Ȧ)²."""
    inner = torch.linalg.solve(A.v, A.d)
    t = trace(inner)
    if not is_twice(A):
        return new(A, v, t)
    of_first = inner[: A.run.P]
    return curved(A, v, t, -(of_first * of_first.mT).sum((-2, -1)))


def trace(t: torch.Tensor) -> torch.Tensor:
    return t.diagonal(dim1=-2, dim2=-1).sum(-1)


@rule("det", spaces=(*SPACES, torch.linalg), twice=True)
def det(input):
    v = torch.linalg.det(input.v)
    y = logarithm(input, v)
    return new(input, v, v * y.d) if not is_twice(input) else curved(input, v, v * y.d, v * tangents(y).square())


@rule("slogdet", spaces=(*SPACES, torch.linalg), twice=True)
def slogdet(input):
    sign, v = found = torch.linalg.slogdet(input.v)
    return type(found)((sign.detach(), logarithm(input, v)))


@rule("logdet", spaces=(*SPACES, torch.linalg), twice=True)
def logdet(input):
    return logarithm(input, torch.logdet(input.v))


@rule("solve", spaces=(torch.linalg,), twice=True)
def solve(A, B, *, left=True):
    """A⁻¹B: ẋ = A⁻¹(Ḃ - Ȧx), ẍ = A⁻¹(B̈ - Äx - 2Ȧẋ)."""
    a, b, like = value(A), value(B), first(A, B)
    if b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1]):  # of vectors
        return solve(A, B.unsqueeze(-1), left=left).squeeze(-1)
    if not left:
        return solve(A.mT, B.mT).mT
    v = torch.linalg.solve(a, b.expand(*a.shape[: max(0, a.dim() - b.dim())], *b.shape))
    streams = iter(lifted(d, v.dim()) for d in levelled(*filter(is_pair, (A, B))))
    of_a = next(streams) if is_pair(A) else None
    t = next(streams) if is_pair(B) else 0
    t = torch.linalg.solve(a, t if of_a is None else t - of_a @ v)
    if of_a is None or not is_twice(like):
        return new(like, v, t)
    P = like.run.P
    return curved(like, v, t, -2 * torch.linalg.solve(a, of_a[:P] @ t[:P]))


def inverse(input):
    return solve(input, torch.eye(input.shape[-1], dtype=input.v.dtype, device=input.v.device))


rule("inverse", "inv", spaces=(*SPACES, torch.linalg), twice=True)(inverse)

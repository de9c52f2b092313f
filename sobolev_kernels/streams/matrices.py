"""Rules of functions of matrices, of which PyTorch's forward mode has other gradients than it should.

That of det and solve is right by itself and wrong when it is differentiated again (trusted.py).
"""

from __future__ import annotations

import torch

from .flowing import SPACES
from .pair import first, is_pair, lifted, new, rule, value


def trace_of(A, d: torch.Tensor) -> torch.Tensor:
    """tr(A⁻¹ d) [P, ...] of derivatives d of A: the derivative of log |det A|."""
    return torch.linalg.solve(A, d).diagonal(dim1=-2, dim2=-1).sum(-1)


@rule("det", spaces=(*SPACES, torch.linalg))
def det(input):
    v = torch.linalg.det(input.v)
    return new(input, v, v * trace_of(input.v, input.d))


@rule("slogdet", spaces=(*SPACES, torch.linalg))
def slogdet(input):
    sign, v = found = torch.linalg.slogdet(input.v)
    return type(found)((sign.detach(), new(input, v, trace_of(input.v, input.d))))


@rule("logdet", spaces=(*SPACES, torch.linalg))
def logdet(input):
    return new(input, torch.logdet(input.v), trace_of(input.v, input.d))


@rule("solve", spaces=(torch.linalg,))
def solve(A, B, *, left=True):
    a, b, like = value(A), value(B), first(A, B)
    if b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1]):  # of vectors
        return solve(A, B.unsqueeze(-1), left=left).squeeze(-1)
    if not left:
        return solve(A.mT, B.mT).mT
    v = torch.linalg.solve(a, b.expand(*a.shape[: max(0, a.dim() - b.dim())], *b.shape))
    t = lifted(B.d, v.dim()) if is_pair(B) else 0
    if is_pair(A):
        t = t - lifted(A.d, v.dim()) @ v
    return new(like, v, torch.linalg.solve(a, t))

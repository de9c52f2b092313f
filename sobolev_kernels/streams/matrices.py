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
    like, a, b = first(A, B), value(A), value(B)
    if not left or b.dim() < 2 or b.dim() != a.dim():
        like.run.stop("a system of equations from the right, or of vectors")
    v = torch.linalg.solve(a, b)
    t = lifted(B.d, b.dim()) if is_pair(B) else 0
    if is_pair(A):
        t = t - lifted(A.d, a.dim()) @ v
    return new(like, v, torch.linalg.solve(a, t))

"""Draws the directions of one call as a tensor."""

from __future__ import annotations

import torch

from .backends import cpu
from .math.directions import draw
from .problem import Problem


def draw_directions(seed: torch.Tensor, N: int, problem: Problem) -> torch.Tensor:
    """Directions or cotangents [P, N, n] of one call, by the core where it computes the step: bit for bit its own."""
    dtype = getattr(torch, problem.dtype)
    # in a transform of torch.func a new tensor has no memory of its own to fill
    if cpu.supports(problem) is None and not torch._C._are_functorch_transforms_active():
        out = torch.empty((problem.P, N, problem.drawn), dtype=dtype)
        cpu.draw(problem, seed, out)
        return out
    key, offset = seed.tolist()
    device = torch.device(problem.device)
    name, P, n = problem.distribution, problem.P, problem.drawn
    return draw(name, key, offset, P, N, n, problem.shared, problem.scale, dtype, device)

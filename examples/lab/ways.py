"""A step of the same loss by several ways, to be timed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch

import sobolev_kernels as sk

from .times import interleaved
from .training import Method

ROUNDS = 15


def times_of_ways(
    first: torch.nn.Module, method: Method, x: torch.Tensor, targets: sk.Targets, by_hand: Callable[..., torch.Tensor]
) -> dict[str, float]:
    """Milliseconds of a loss with its gradients on one thread: fused, by the reference, and by what somebody wrote, a
    function of the student. Each has a copy of the first student."""
    losses = {way: sk.SobolevLoss(**method.settings, backend=backend) for way, backend in BACKENDS.items()}
    ways = {way: partial(loss, inputs=x, targets=method.targets or targets) for way, loss in losses.items()}
    ways["by hand"] = by_hand
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return interleaved({f"{way} ms": partial(step, deepcopy(first), loss) for way, loss in ways.items()}, ROUNDS)
    finally:
        torch.set_num_threads(threads)


BACKENDS = {"fused": None, "reference": "reference"}


def step(student: torch.nn.Module, loss: Callable[[torch.nn.Module], torch.Tensor]) -> None:
    student.zero_grad()
    loss(student).backward()

"""Whole steps as CUDA graphs, for tests and benchmarks on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from .. import Cotangents, Directions, Targets, sobolev_loss
from .problems import Data

T = TypeVar("T")
Step = Callable[[], Sequence[torch.Tensor]]


def captured(step: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of a step, and what the step returned in it: each replay fills that anew.

    The graph reads tensors where they lay, and holds none: whoever replays it keeps them.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def whole_step(numbers: Data, projections: Directions | Cotangents, backend: str, **settings: object) -> Step:
    """A step that returns its loss, of all samples, and the gradients of the parameters. It holds its numbers."""
    targets, parameters = Targets(values=numbers.y, jacobian=numbers.jacobian), list(numbers.student.parameters())
    side = "cotangents" if isinstance(projections, Cotangents) else "directions"

    def step() -> Sequence[torch.Tensor]:
        how = {side: projections, "backend": backend, **settings}
        loss = sobolev_loss(numbers.student, numbers.x, targets, **how)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), parameters)]

    return step


def replayed(graph: torch.cuda.CUDAGraph, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of what the graph gives this time."""
    graph.replay()
    torch.cuda.synchronize()
    return [tensor.clone() for tensor in results]


def assert_follows(numbers: Data, step: Step) -> None:
    """Replayed after inputs and weights have changed, a graph of the step gives what the step then gives, each time."""
    graph, results = captured(step)
    with torch.no_grad():
        for tensor in (numbers.x, *numbers.student.parameters()):
            tensor.mul_(1.25)
    for _ in range(2):
        assert all(map(torch.equal, replayed(graph, results), step()))


def assert_draws_anew(graph: torch.cuda.CUDAGraph, results: Sequence[torch.Tensor]) -> None:
    """Each replay draws other directions, and the same ones after the same torch.manual_seed."""
    torch.manual_seed(3)
    first, second = replayed(graph, results), replayed(graph, results)
    torch.manual_seed(3)
    again = replayed(graph, results)
    assert all(map(torch.equal, first, again)), "the same seed draws others"
    assert not torch.equal(first[1], second[1]), "a replay draws what the last one drew"

"""Steps that are kept: all that a backend is told of one but where its numbers lie, for tensors that lie alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import torch
from torch._C._dynamo.guards import TensorGuards

from .boundary import entering
from .dispatch import BACKENDS
from .math.directions import told
from .problem import Operands, Problem

READ = ("given", "values", "derivative", "second", "sample_weight", "output_weight", "derivative_weight")
T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A step of a backend, and what its tensors must be like for it to read them.

    No tensor is held. Two threads may run the same step.
    """

    guards: TensorGuards  # their types, dispatch keys, dtypes, devices, sizes, strides, requires_grad
    needs: tuple[int, ...]  # bytes from the first number of each to its last
    launch: Callable[..., bool]
    outputs: tuple[tuple[int, ...], ...]  # their shapes, but for those of the parameters' gradients

    def addresses(self, tensors: list[torch.Tensor]) -> list[int] | None:
        """Where these tensors are; None if they are not like those, or the memory of one of them ends too early."""
        if not self.guards.check(*tensors):
            return None
        for tensor, need in zip(tensors, self.needs, strict=True):
            if tensor.untyped_storage().nbytes() < need + tensor.storage_offset() * tensor.itemsize:
                return None
        return addresses_of(tensors)

    def run(self, addresses: list[int], made: list[torch.Tensor], seed: tuple[int, ...]) -> bool:
        """Fill what was made, outputs and gradients; False, and nothing is done, if numbers cannot be where one is."""
        return self.launch(addresses, addresses_of(made), *seed)


def addresses_of(tensors: list[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def optional_of(operands: Operands) -> list[torch.Tensor | None]:
    """What is read beside x and the parameters, in the order in which the core reads it."""
    return [getattr(operands, name) for name in READ]


def reads_of(operands: Operands) -> list[torch.Tensor]:
    return [operands.x, *operands.parameters, *[tensor for tensor in optional_of(operands) if tensor is not None]]


def step_of(
    problem: Problem, operands: Operands, tensors: list[torch.Tensor], outputs: dict, gradients: list[torch.Tensor]
) -> Step | None:  # fmt: skip
    """The step that fills such outputs from such operands, each of which starts where one of these tensors does; None
    if it is not as simple as that: what had to be copied or computed first would have to be so again."""
    reads = reads_of(operands)
    if not keeps(problem) or len(reads) != len(tensors) or not all(map(same_place, reads, tensors)):
        return None
    if len(set(map(id, tensors))) < len(tensors):
        return None  # TensorGuards take each tensor once
    if gradients and not all(p.is_contiguous() for p in operands.parameters):
        return None  # and so their gradients are made like them
    if entering(problem, operands) is not operands:
        return None
    launch, *addresses = BACKENDS[problem.backend].kept(problem, operands, outputs, gradients)
    if addresses != [addresses_of(reads), addresses_of([*outputs.values(), *gradients])]:
        return None
    guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    shapes = tuple(tuple(tensor.shape) for tensor in outputs.values())
    return Step(guards, tuple(map(reach, tensors)), launch, shapes)


def keeps(problem: Problem) -> bool:
    """Whether the problem's backend can run a step again."""
    return hasattr(BACKENDS[problem.backend], "kept")


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one is a view of the other from its first number on, which is there."""
    return a.dtype == b.dtype and a.data_ptr() == b.data_ptr() != 0 and a.numel() > 0


def reach(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first number to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.itemsize * (1 + sum((n - 1) * stride for n, stride in steps))


def surroundings() -> tuple:
    """What else a step depends on."""
    return torch.get_num_threads(), os.environ.get("SOBOLEV_ISA")


class Shelf(dict[tuple, list[T]]):
    """The last `most` likenesses, and of each the last layouts of its tensors. Two threads may put and find."""

    def __init__(self, most: int = 256, layouts: int = 8):
        super().__init__()
        self.most, self.layouts, self.lock = most, layouts, Lock()

    def put(self, likeness: tuple, kept: T) -> None:
        with self.lock:
            if likeness not in self and len(self) >= self.most:
                del self[next(iter(self))]
            self[likeness] = [kept, *self.get(likeness, ())][: self.layouts]


STEPS: Shelf[Step] = Shelf()


def again(
    problem: Problem, operands: Operands, make: Callable[[tuple[int, ...]], torch.Tensor], like: Callable
) -> list[torch.Tensor] | None:
    """Outputs and gradients by a step that is kept for such operands, if one is."""
    tensors = reads_of(operands)
    for step in STEPS.get(likeness(problem, operands), ()):
        addresses = step.addresses(tensors)
        if addresses is not None:
            made = [*map(make, step.outputs), *map(like, operands.parameters)]
            return made if step.run(addresses, made, told(operands.seed)) else None
    return None


def keep(problem: Problem, operands: Operands, outputs: dict, gradients: list[torch.Tensor]) -> None:
    step = step_of(problem, operands, reads_of(operands), outputs, gradients)
    if step is not None:
        STEPS.put(likeness(problem, operands), step)


def likeness(problem: Problem, operands: Operands) -> tuple:
    there = tuple([tensor is None for tensor in optional_of(operands)])
    return problem, tuple(operands.weights), there, operands.x.shape, *surroundings()

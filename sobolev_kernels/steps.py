"""Steps that are kept: all that a backend is told of one but where its numbers lie, for tensors that lie alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from threading import Lock
from typing import TypeVar

import torch
from torch._C._dynamo.guards import TensorGuards

from .backends import core
from .boundary import entering
from .dispatch import BACKENDS
from .math.directions import told
from .problem import DERIVATIVES_GRADIENTS, PER_SAMPLE_GRADIENTS, Operands, Problem

BACKWARDS = (DERIVATIVES_GRADIENTS, PER_SAMPLE_GRADIENTS)
READ = ("given", "values", "derivative", "second", "sample_weight", "output_weight", "derivative_weight")
ISA, BACKEND = map(os.environ.encodekey, ("SOBOLEV_ISA", "SOBOLEV_BACKEND"))
T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """What tensors must be like. No tensor is held."""

    guards: TensorGuards  # their types, dispatch keys, dtypes, devices, sizes, strides, requires_grad
    needs: tuple[int, ...]  # of each, bytes from its first number to its last, and of one number

    def addresses(self, tensors: list[torch.Tensor]) -> list[int] | None:
        """Where these tensors are; None if they are not like those, or no kernel could read one of them there."""
        return core._C.addresses(tensors, self.needs) if self.guards.check(*tensors) else None


def layout_of(tensors: list[torch.Tensor]) -> Layout | None:
    """Theirs; None where TensorGuards or addresses do not tell them from others."""
    if len(set(map(id, tensors))) < len(tensors) or not all(tensor.numel() for tensor in tensors):
        return None
    guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    return Layout(guards, sum(((reach(tensor), tensor.itemsize) for tensor in tensors), ()))


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A step of a backend, and what the tensors that it reads must be like. Two threads may run the same one."""

    layout: Layout
    launch: Callable[..., None]  # (addresses that are read, tensors to be filled, key, place, or 0, 0, their address)
    outputs: tuple[torch.Tensor, ...]  # like them, of one number
    gradients: bool  # and whether those of the parameters are computed

    def make(self, empty_like: Callable, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs and gradients to be filled."""
        return [*map(empty_like, self.outputs), *map(empty_like, parameters if self.gradients else ())]

    def run(self, addresses: list[int], made: list[torch.Tensor], seed: Sequence[int]) -> None:
        """Fill what was made, outputs and gradients."""
        self.launch(addresses, made, *seed)


def addresses_of(tensors: list[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def optional_of(operands: Operands) -> list[torch.Tensor | None]:
    """What is read beside x and the parameters, in the order in which the core reads it."""
    return [getattr(operands, name) for name in READ]


def views_in(tensors: list[torch.Tensor], operands: Operands) -> tuple[Callable | None, ...]:
    """Of each optional operand, None of one that is not there, how it comes of the tensors that are read for it."""
    places = iter(range(1 + len(operands.parameters), len(tensors)))
    views = []
    for operand in optional_of(operands):
        place = None if operand is None else next(places, None)
        if place is None:
            views.append(None)
        elif (operand.shape, operand.stride()) == (tensors[place].shape, tensors[place].stride()):
            views.append(itemgetter(place))
        else:
            views.append(partial(seen_as, place, operand.shape, operand.stride()))
    return tuple(views)


def seen_as(place: int, shape: Sequence[int], strides: Sequence[int], tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[place].as_strided(shape, strides)


def reads_of(operands: Operands) -> list[torch.Tensor]:
    return [operands.x, *operands.parameters, *[tensor for tensor in optional_of(operands) if tensor is not None]]


def step_of(
    problem: Problem, operands: Operands, tensors: list[torch.Tensor], outputs: dict, gradients: list[torch.Tensor],
    made: Container[int] = (),
) -> Step | None:  # fmt: skip
    """The step that fills such outputs from such operands, each of which starts where one of these tensors does; None
    if it is not as simple as that: what had to be copied or computed first would have to be so again.

    Those in the places `made` are made anew for each step, and need not be looked at.
    """
    reads = reads_of(operands)
    if not keeps(problem) or len(reads) != len(tensors) or not all(map(same_place, reads, tensors)):
        return None
    layout = layout_of([tensor for place, tensor in enumerate(tensors) if place not in made])
    if gradients and not all(p.is_contiguous() for p in operands.parameters):
        return None  # and so their gradients are made like them
    if layout is None or entering(problem, operands) is not operands:
        return None
    launch, *addresses = BACKENDS[problem.backend].kept(problem, operands, outputs, gradients)
    if addresses != [addresses_of(reads), addresses_of([*outputs.values(), *gradients])]:
        return None
    like = torch.empty((), dtype=operands.x.dtype, device=operands.x.device)
    like = tuple(like.expand(tensor.shape) for tensor in outputs.values())
    return Step(layout, launch, like, problem.gradients)


def keeps(problem: Problem) -> bool:
    """Whether the problem's backend can run a step again, and the core is there to read where its tensors are."""
    return core.MISSING is None and hasattr(BACKENDS[problem.backend], "kept")


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one is a view of the other from its first number on, which is there."""
    return a.dtype == b.dtype and a.data_ptr() == b.data_ptr() != 0 and a.numel() > 0


def reach(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first number to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.itemsize * (1 + sum((n - 1) * stride for n, stride in steps))


def variables() -> tuple:
    """Those of the environment, in the bytes that os.environ keeps: to look for one that is not set raises and catches
    an exception else, at every step."""
    environ = os.environ
    if type(environ) is not os._Environ:
        return environ.get("SOBOLEV_ISA"), environ.get("SOBOLEV_BACKEND")
    return environ._data.get(ISA), environ._data.get(BACKEND)


def surroundings() -> tuple:
    """What else a step depends on."""
    return torch.get_num_threads(), *variables()


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
ONCE: set[int] = set()  # what was computed, by hash


def again(problem: Problem, operands: Operands, empty_like: Callable) -> list[torch.Tensor] | None:
    """Outputs and gradients by a step that is kept for such operands, if one is."""
    tensors = reads_of(operands)
    for step in STEPS.get(likeness(problem, operands), ()):
        addresses = step.layout.addresses(tensors)
        if addresses is not None:
            made = step.make(empty_like, operands.parameters)
            step.run(addresses, made, told(operands.seed))
            return made
    return None


def keep(problem: Problem, operands: Operands, outputs: dict, gradients: list[torch.Tensor]) -> None:
    """Keep a backward's step; of a forward that of a second one like it, since weights may be others each time."""
    alike = likeness(problem, operands)
    if len(ONCE) >= 16 * STEPS.most:
        ONCE.clear()
    if problem.result not in BACKWARDS and hash(alike) not in ONCE:
        ONCE.add(hash(alike))
        return
    step = step_of(problem, operands, reads_of(operands), outputs, gradients)
    if step is not None:
        STEPS.put(alike, step)


def likeness(problem: Problem, operands: Operands) -> tuple:
    there = tuple([tensor is None for tensor in optional_of(operands)])
    return problem, tuple(operands.weights), there, operands.x.shape, *surroundings()

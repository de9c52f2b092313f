"""A step as launches that are known already: for tensors that lie alike only their addresses and the seed are new.

Triton's JIT looks at every argument of every launch to find the variant that it compiled. All that it looks at follows
from the Problem and from how the tensors lie, but for one thing: whether addresses are multiples of 16. So a script
goes through the JIT once for each pattern of those, keeps what the JIT gives, and launches that from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime import driver

from ...math.directions import told
from ...problem import Operands, Problem

ALIGNED = 256  # bytes: where an array in the room of a step may begin
# Operands beside x and the parameters that need not be there.
READ = ("given", "values", "derivative", "second", "sample_weight", "output_weight", "derivative_weight")


class At(NamedTuple):
    """In the arguments of a script's launches, what comes with each call: one of its arrays, or a part of its seed."""

    index: int


# Its numbers, or an address in a device's memory where they are, and whether they are there
SEED, IN_MEMORY, KEY, PLACE = At(-4), At(-3), At(-2), At(-1)


def number(i: int) -> At:
    """The i-th of the numbers that come with a call, which are float32 to a kernel."""
    return At(-5 - i)


class Launch:
    """A kernel, found by its name in a module, with its grid and all its arguments, some of which are an At."""

    def __init__(self, module: ModuleType, name: str, grid: Sequence[int], values: Sequence, named: dict[str, Any]):
        self.module, self.name, self.grid = module, name, (*grid, 1, 1)[:3]
        self.values, self.named, kernel = values, named, getattr(module, name)
        parameters = getattr(kernel, "params", ())  # the interpreter has none, and the machines of ptx/
        self.flat = [*values, *(named[p.name] for p in parameters[len(values) :])]
        self.holes = [(i, v.index) for i, v in enumerate(values) if type(v) is At]
        self.tuples = [(i, v) for i, v in enumerate(values) if type(v) is not At and isinstance(v, tuple)]
        excluded = {i for i, p in enumerate(parameters) if p.do_not_specialize_on_alignment}
        self.specialised = {index for i, index in self.holes if i not in excluded}
        self.specialised |= {member.index for _, members in self.tuples for member in members if type(member) is At}

    def by_jit(self, arrays: list) -> object:
        """What the JIT launched; None where another than the JIT stands for it."""
        values = [bound(value, arrays) for value in self.values]
        return getattr(self.module, self.name)[self.grid](*values, **self.named)

    def again(self, compiled, addresses: list[int], stream: int) -> None:
        values = self.flat.copy()
        for i, index in self.holes:
            values[i] = addresses[index]
        for i, members in self.tuples:
            values[i] = tuple([addresses[m.index] if type(m) is At else m for m in members])
        compiled.run(*self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *values)


def bound(value, arrays: list):
    if type(value) is At:
        return arrays[value.index]
    if isinstance(value, tuple):
        members = [bound(member, arrays) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    return value


@dataclass(frozen=True)
class Placed:
    """All that Triton's JIT asks of a tensor."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


class Script:
    """The launches of a step, and between them operations of PyTorch; no tensor is held. Two threads may run it.

    Its arrays are those that come with a call, and rooms, which are allocated for it: one block of memory.
    """

    def __init__(self, device: torch.device, came: int, copies: Sequence[int] = ()):
        self.device, self.came, self.copies = device, came, copies  # copies: which reads must be made contiguous first
        self.actions: list[Launch | tuple[Callable, tuple[At, ...]]] = []
        self.rooms: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.offsets, self.bytes = [], 0
        self.specialised: set[int] = set()
        self.compiled: dict[tuple, list] = {}  # by which addresses are no multiples of 16

    def room(self, *shape: int, dtype: torch.dtype = torch.float32) -> At:
        self.rooms.append((shape, dtype))
        self.offsets.append(self.bytes)
        self.bytes += -(-prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED
        return At(self.came + len(self.rooms) - 1)

    def launch(self, module: ModuleType, name: str, grid: Sequence[int], *values, **named) -> None:
        self.actions.append(Launch(module, name, grid, values, named))
        self.specialised |= {i for i in self.actions[-1].specialised if i >= 0}

    def do(self, function: Callable, *places: At) -> None:
        """A function of PyTorch of these arrays, the last of which it fills."""
        self.actions.append((function, places))

    @property
    def needs_addresses_alone(self) -> bool:
        return not self.copies and all(isinstance(action, Launch) for action in self.actions)

    def run(
        self, reads: list[torch.Tensor], made: list[torch.Tensor], seed: torch.Tensor | None,
        numbers: Sequence[float] = (),
    ) -> None:  # fmt: skip
        """Fill what was made, from tensors that lie as those lay that the script was written for."""
        for i in self.copies:
            reads[i] = reads[i].contiguous()
        came = [*reads, *made]
        key, place, *at = told(seed)
        seed_at = at[0] if at else 0
        addresses = [t.data_ptr() for t in reads], [t.data_ptr() for t in made]
        if not self.again(*addresses, key, place, seed_at, came, numbers):
            with on_device(self.device):
                self.by_jit(came, key, place, seed if seed_at else None, numbers)

    def fill(self, reads: list[int], made: list[torch.Tensor], key: int, place: int, seed_at: int = 0) -> None:
        """The same, told where it reads, and its seed."""
        if not self.again(reads, [t.data_ptr() for t in made], key, place, seed_at):
            came = [*[Placed(address, torch.float32) for address in reads], *made]
            with on_device(self.device):
                self.by_jit(came, key, place, Placed(seed_at, torch.int64) if seed_at else None)

    def again(
        self, reads: list[int], writes: list[int], key: int, place: int, seed_at: int = 0,
        came: list[torch.Tensor] | None = None, numbers: Sequence[float] = (),
    ) -> bool:  # fmt: skip
        """The launches of a step like one before, on the device's current stream, told where it reads and writes.

        False, and nothing is done, if for such addresses nothing is compiled, or someone wants to be told by the JIT.
        """
        came_at = reads + writes
        pattern = tuple([i for i in self.specialised if i < self.came and came_at[i] & 15])
        compiled = self.compiled.get(pattern)
        if compiled is None or hooked():
            return False
        room = torch.empty(self.bytes, dtype=torch.uint8, device=self.device)
        base = room.data_ptr()
        addresses = came_at + [base + offset for offset in self.offsets]
        addresses += (*reversed(numbers), seed_at, int(seed_at != 0), key, place)
        with on_device(self.device):
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            for action, done in zip(self.actions, compiled, strict=True):
                if done is not None:
                    action.again(done, addresses, stream)
                else:
                    function, places = action
                    function(*[self.tensor(came, room, place.index) for place in places])
        return True

    def tensor(self, came: list[torch.Tensor], room: torch.Tensor, index: int) -> torch.Tensor:
        if index < self.came:
            return came[index]
        (shape, dtype), offset = self.rooms[index - self.came], self.offsets[index - self.came]
        return room[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def by_jit(
        self, came: list[torch.Tensor], key: int, place: int, seed: torch.Tensor | None, numbers: Sequence[float] = ()
    ) -> None:  # fmt: skip
        """The same by the JIT, each room by itself, so that what strays from one is seen; kept if it may be."""
        rooms = [empty(shape, dtype=dtype, device=self.device) for shape, dtype in self.rooms]
        where = torch.empty(2, dtype=torch.int64, device=self.device) if seed is None else seed  # read if it is there
        arrays, compiled = [*came, *rooms, *reversed(numbers), where, int(seed is not None), key, place], []
        for action in self.actions:
            if isinstance(action, Launch):
                compiled.append(action.by_jit(arrays))
            else:
                function, places = action
                function(*[arrays[place.index] for place in places])
                compiled.append(None)
        pattern = tuple([i for i in self.specialised if arrays[i].data_ptr() & 15])
        launched = [done for done, action in zip(compiled, self.actions, strict=True) if isinstance(action, Launch)]
        if all(done is not None for done in launched):
            self.compiled[pattern] = compiled


def on_device(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    return torch.cuda.device(device) if several else nullcontext()


def reads_of(operands: Operands) -> list[torch.Tensor]:
    """The tensors that a step reads beside its seed, in the order in which its script knows them."""
    optional = [getattr(operands, name) for name in READ]
    return [operands.x, *operands.parameters, *[tensor for tensor in optional if tensor is not None]]


def places(operands: Operands, outputs: dict, gradients: list) -> tuple[Operands, dict, list]:
    """Where a script finds the operands, the outputs and the gradients."""
    numbers = map(At, count())
    x, parameters = next(numbers), [next(numbers) for _ in operands.parameters]
    there = {name: next(numbers) for name in READ if getattr(operands, name) is not None}
    at = Operands(x, parameters, **there)
    return at, {name: next(numbers) for name in outputs}, [next(numbers) for _ in gradients]


def by_layer(problem: Problem, each: Sequence) -> list[tuple]:
    """Of each linear layer what belongs to its weight and to its bias, or None."""
    cursor = iter(each)
    return [(next(cursor), next(cursor) if has_bias else None) for has_bias in problem.biases]


def likeness(problem: Problem, operands: Operands, reads: list[torch.Tensor], outputs: tuple[str, ...]) -> tuple:
    """All that a script depends on."""
    there = tuple([getattr(operands, name) is None for name in READ])
    strides = tuple([tensor.stride() for tensor in reads])
    x = operands.x
    return problem, tuple(operands.weights), x.shape, x.device, there, outputs, strides


empty = torch.empty  # the tests replace it by one that returns NaN


def hooked() -> bool:
    """Whether someone, as a profiler does, wants to be told of each launch by the JIT."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)

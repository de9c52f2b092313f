"""What is known of an MLP's streams from a call before, so that the next one like it looks at little but tensors: what
kept.py is to `sobolev_loss`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from .. import kept
from ..backends import core
from ..boundary import PLAIN
from ..modules import RULES
from ..steps import Layout, Shelf, layout_of, surroundings
from ..student import Student
from .fused import Call, as_read
from .launched import Launched, products_of_torch
from .layers import directions_of, results_of
from .plan import Streams

if TYPE_CHECKING:
    from ..backends.triton.script import Script

WHOLE = torch.float32, torch.float64


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """Streams of a student at inputs of one shape, but for where tensors lie."""

    call: Call
    silent: Call
    layout: Layout | None  # None of tensors that are not told from others by it
    directions: torch.Tensor
    told: tuple  # the plan, the instruction set, N, samples of a tile, threads, in place
    strides: tuple[tuple[int, ...], ...]  # of x and the parameters
    dense: bool  # whether the parameters are without gaps
    way: ClassVar[str] = "cpu"

    def call_of(self, tensors: Sequence[torch.Tensor]) -> Call:
        """What takes the streams of these tensors: it keeps something for their gradients if they may be asked for."""
        return self.call if is_asking(tensors) else self.silent

    def compute(
        self, addresses: Sequence[int], gradients: Sequence[torch.Tensor], dx: torch.Tensor | None, told: Sequence
    ) -> None:  # fmt: skip
        """A loss that is `told` to the core, with gradients of the parameters or none."""
        x, *pairs = [(address, *strides) for address, strides in zip(addresses, self.strides, strict=True)]
        v = self.directions
        strides = v.stride() if v.dim() == 3 else (v.stride(0), 0, v.stride(1))
        along = (v.data_ptr(), *strides) if len(v) else None
        places = self.call.with_gaps(gradient.data_ptr() for gradient in gradients)
        dx = None if dx is None else dx.data_ptr()
        core._C.mlp_jets_loss(*self.told, x, along, self.call.with_gaps(pairs), places, dx, None, *told)


@dataclass(frozen=True, eq=False, slots=True)
class LaunchedFrame:
    """The same of Triton's kernels: what keeps what a backward reads, and what keeps nothing."""

    call: Launched
    silent: Launched
    layout: Layout | None
    directions: torch.Tensor
    dense: bool
    scripts: dict[tuple, Script]  # of losses
    way: ClassVar[str] = "triton"

    def call_of(self, tensors: Sequence[torch.Tensor]) -> Launched:
        return self.call if is_asking(tensors) else self.silent


def is_asking(tensors: Sequence[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])


@dataclass(eq=False, slots=True)
class Found:
    """A frame, the tensors of this call, and where they are."""

    frame: Frame | LaunchedFrame
    x: torch.Tensor
    parameters: Sequence[torch.Tensor]
    addresses: list[int]
    held: list[torch.Tensor]  # copies that are read in the place of some


FRAMES: Shelf[Frame | LaunchedFrame] = Shelf()


def found_again(student: object, x: torch.Tensor, of: tuple) -> Found | None:
    """Of a call like one before, in which `of` is asked for; None of one that is looked at from the start."""
    if torch.compiler.is_compiling() or type(x) not in PLAIN or core.MISSING is not None:
        return None
    if not (x.is_cpu or x.is_cuda):
        return None
    kinds, parameters = [], []
    if x.is_nested or kept.watched(x.device.type) or not core._C.read(student, RULES, kinds, parameters):
        return None
    tensors = [x, *parameters]
    for frame in FRAMES.get((tuple(kinds), of, *around()), ()):
        addresses = frame.layout.addresses(tensors)
        if addresses is not None:
            return Found(frame, x, parameters, addresses, [])
    return None


def found_first(streams: Streams, student: Student, x: torch.Tensor, directions: torch.Tensor | None = None) -> Found:
    """Of a student who was looked at, and who the core can read; along the streams' own directions, or given ones."""
    read = as_read([x, *student.parameters])
    directions = directions_of(streams, x) if directions is None else as_read([directions])[0]
    call, silent = (Call(streams, student, results_of, keeping) for keeping in (True, False))
    strides = tuple(tensor.stride() for tensor in read)
    frame = Frame(call, silent, None, directions, call.shared_out(len(x), x.dtype), strides,
                  all(t.is_contiguous() for t in read[1:]))  # fmt: skip
    return Found(frame, x, student.parameters, [tensor.data_ptr() for tensor in read], read)


def launched_first(streams: Streams, student: Student, x: torch.Tensor) -> Found:
    """Of a student whose streams Triton takes."""
    from ..backends.triton import jets

    x_read, *read = as_read([x, *student.parameters])
    read = [x_read, *jets.read(read)]
    calls = (Launched(streams, student, results_of, products_of_torch(), keeping) for keeping in (True, False))
    frame = LaunchedFrame(*calls, None, directions_of(streams, x), all(t.is_contiguous() for t in read[1:]), {})
    return Found(frame, x, student.parameters, [tensor.data_ptr() for tensor in read], read)


FIRST = {"cpu": found_first, "triton": launched_first}


def around() -> tuple:
    """What else a frame depends on."""
    return *surroundings(), products_of_torch()


def keep(found: Found, module: object, of: tuple) -> None:
    """For calls like it, if it is of a module that the core reads, and its tensors are that module's and x."""
    kinds, parameters = [], []
    if core.MISSING is not None or kept.watched(found.x.device.type):
        return
    if not core._C.read(module, RULES, kinds, parameters):
        return
    tensors = [found.x, *parameters]
    if [*map(id, parameters)] != [*map(id, found.parameters)] or not all(type(t) in PLAIN for t in tensors):
        return
    layout = layout_of(tensors)
    if layout is None or layout.addresses(tensors) != found.addresses:
        return
    frame = found.frame
    FRAMES.put((tuple(kinds), of, *around()), replace(frame, layout=layout))

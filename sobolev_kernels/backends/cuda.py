"""The CUDA kernel (csrc/cuda): a whole step of order 1 or 2 on tensor cores, whose streams live in registers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch

from .. import planner
from ..enums import DENSE
from ..math.directions import is_dependent, told
from ..math.losses import is_coupled
from ..problem import LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Plan, Problem
from . import constant_while_traced, core, triton

CHOSEN = 1  # as many samples of a tile as suit a step (csrc/cuda/registers.h)
TILE = CHOSEN  # or 16 to 128, which tests and measurements ask for
MOST_SCRATCH = 1 << 31  # bytes; of a student with more layers fewer blocks go at a time
MISSING = core.MISSING
if MISSING is None and not hasattr(core._C, "cuda_step_at"):
    MISSING = "the compiled core was built without CUDA (SOBOLEV_CUDA=on, and nvcc)"


def supports(problem: Problem) -> str | None:
    reasons = {
        problem.unrecognised: problem.unrecognised,
        f"tensors are on {problem.device}, not on an NVIDIA GPU": problem.device != "cuda",
        MISSING or "": MISSING,
        "PyTorch is built for AMD GPUs": torch.version.hip,
        "PyTorch finds no GPU that it can use": not torch.cuda.is_available(),
        f"dtype {problem.dtype} is not float32": problem.dtype != "float32",
        f"a head, {problem.head}": problem.head,
        f"order {problem.order}, above 2": problem.order > 2,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return reason or refusal_while_traced(problem.to_string(), torch.cuda.current_device())


@constant_while_traced
def refusal_while_traced(text: str, device: int) -> str | None:
    return refusal(Problem.from_string(text), device)


@lru_cache(maxsize=256)
def refusal(problem: Problem, device: int) -> str | None:
    """What the kernel does not compute, or why the student does not fit on the device."""
    losses = [loss for loss in (problem.value_loss, problem.derivative_loss) if loss is not None]
    reasons = {
        "only the loss is computed": problem.result not in (LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS),
        f"{problem.projection} that require grad, which a dense target is projected on": (
            problem.given_gradient and problem.derivative_target == DENSE
        ),
        "the directions of a sample depend on each other": is_dependent(problem.distribution),
        "order 2 with a loss that couples a sample's numbers": problem.order == 2 and any(map(is_coupled, losses)),
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        return reason
    try:
        layout_on(problem, device)
    except ValueError as error:
        return str(error)
    return None


def gives_way(problem: Problem) -> str | None:
    """Why Triton's kernels are the better choice: a block has its arrays in the second-level cache, which no GPU has
    timed (docs/cuda.md)."""
    if triton.supports(problem) is not None:
        return None
    return gives_way_while_traced(problem.to_string(), torch.cuda.current_device())


@constant_while_traced
def gives_way_while_traced(text: str, device: int) -> str | None:
    problem = Problem.from_string(text)
    if not is_roomy(layout_on(problem, device)):
        return None
    on_chip = "hidden layers' arrays are more than a block has room for on chip"
    why = "order 2 has its arrays in the second-level cache" if problem.order == 2 else on_chip
    return f"{why}, and no GPU has timed that beside Triton"


def is_roomy(layout: dict) -> bool:
    """Whether a block has arrays and sums of gradients in its slot (csrc/cuda/registers.h)."""
    return layout["way"][2] == 0


@lru_cache(maxsize=64)
def hardware(device: int) -> tuple[int, int]:
    """Bytes of shared memory that a block may have, and multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin, properties.multi_processor_count


def layout_on(problem: Problem, device: int) -> dict:
    """How a block of the device goes about it.

    Raises:
        ValueError: it does not fit.
    """
    if problem.result == PER_SAMPLE:  # the backward of the same call has to fit too
        problem = replace(problem, result=PER_SAMPLE_GRADIENTS, gradients=True)
    return layout(problem, planner.side(problem), hardware(device)[0], TILE)


@lru_cache(maxsize=256)
def layout(problem: Problem, side: str, limit: int, tile: int = CHOSEN, N: int = 1) -> dict:
    """How a block goes about it, from shapes alone."""
    step = core.step_of_shapes(problem, N)
    core.set_plan(step, side, tile)
    return core._C.cuda_layout(step, precision(problem), limit)


def precision(problem: Problem) -> int:
    return core.CODES["Precision"][problem.precision]


def plan(problem: Problem, N: int) -> Plan:
    side = planner.side(problem)
    chosen = layout(problem, side, hardware(torch.cuda.current_device())[0], TILE, N)
    choices = (("precision", problem.precision), ("side", side), ("tile", chosen["samples"]))
    where = "arrays in the second-level cache" if is_roomy(chosen) else "streams in registers"
    return Plan("cuda", f"one launch, {where}", choices)


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    launch, reads, writes = kept(problem, operands, outputs, gradients)
    launch.at(reads, writes, *told(operands.seed))


def kept(
    problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[Launch, list[int], list[int]]:
    """What launches such a step again, told where it reads and writes, and its seed; and where this one does."""
    step = core.step_of(problem, operands, outputs, gradients)
    core.set_plan(step, planner.side(problem), TILE)
    return launch_of(step, precision(problem), operands.x.device), *step.addresses()


class Launch(NamedTuple):
    """A step that is told but where its numbers lie, and how it goes to its device."""

    step: object
    precision: int
    limit: int  # bytes of shared memory that a block may have
    blocks: int
    device: torch.device
    scratch: int  # bytes

    def __call__(self, reads: list[int], made: list[torch.Tensor], *seed: int) -> None:
        self.at(reads, [tensor.data_ptr() for tensor in made], *seed)

    def at(self, reads: list[int], writes: list[int], key: int, place: int, seed_at: int = 0) -> None:
        """Pack, step and finish, on the device's current stream. Scratch comes from torch, so a CUDA graph can capture
        it."""
        scratch = torch.empty(self.scratch, dtype=torch.uint8, device=self.device)
        start(self, (reads, writes, key, place, seed_at), scratch)


def start(launch: Launch, where: tuple[list[int], list[int], int, int, int], scratch: torch.Tensor) -> None:
    """What the tests replace that have no GPU."""
    device = launch.device.index
    stream = torch._C._cuda_getCurrentRawStream(device)
    core._C.cuda_step_at(*launch[:4], device, *where, scratch.data_ptr(), stream)


@lru_cache(maxsize=256)
def blocks_at_a_time(precision: int, way: tuple[int, ...], shared: int, device: int) -> int:
    return core._C.cuda_blocks(precision, way, shared, device)


def launch_of(step, precision: int, device: torch.device) -> Launch:
    limit, processors = hardware(device.index)
    chosen = core._C.cuda_layout(step, precision, limit)
    most = processors * blocks_at_a_time(precision, chosen["way"], chosen["shared"], device.index)
    blocks = max(1, min(chosen["tiles"], most, MOST_SCRATCH // chosen["slot"]))
    return Launch(step, precision, limit, blocks, device, chosen["table"] + blocks * chosen["slot"])

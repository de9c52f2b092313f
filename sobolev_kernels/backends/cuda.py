"""The CUDA kernel (csrc/cuda): a whole step of order 1 in one launch on tensor cores, for students that fit on chip."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from .. import planner
from ..math.directions import is_dependent
from ..math.losses import is_coupled
from ..problem import LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Plan, Problem
from . import constant_while_traced, core
from .finish import finish

MOST_LAYERS = 16
MISSING = core.MISSING
if MISSING is None and not hasattr(core._C, "cuda_step"):
    MISSING = "the compiled core was built without CUDA (SOBOLEV_CUDA=on, and nvcc)"


def supports(problem: Problem) -> str | None:
    reasons = {
        problem.unrecognised: problem.unrecognised,
        f"tensors are on {problem.device}, not on an NVIDIA GPU": problem.device != "cuda",
        MISSING or "": MISSING,
        "PyTorch is built for AMD GPUs": torch.version.hip,
        "PyTorch finds no GPU that it can use": not torch.cuda.is_available(),
        f"dtype {problem.dtype} is not float32": problem.dtype != "float32",
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
        "order 2": problem.order == 2,
        "the directions of a sample depend on each other": is_dependent(problem.distribution),
        "a loss that couples a sample's numbers": any(map(is_coupled, losses)),
        f"{len(problem.biases)} linear layers are more than {MOST_LAYERS}": len(problem.biases) > MOST_LAYERS,
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        return reason
    if problem.result == PER_SAMPLE:  # the backward of the same call has to fit too
        problem = replace(problem, result=PER_SAMPLE_GRADIENTS, gradients=True)
    try:
        layout(problem, planner.side(problem), hardware(device)[0])
    except ValueError as error:
        return str(error)
    return None


@lru_cache(maxsize=64)
def hardware(device: int) -> tuple[int, int]:
    """Bytes of shared memory that a block may have, and multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin, properties.multi_processor_count


@lru_cache(maxsize=256)
def layout(problem: Problem, side: str, limit: int) -> dict:
    """How a block goes about it, from shapes alone."""
    step = core.step_of_shapes(problem, 1)
    core.set_plan(step, side)
    return core._C.cuda_layout(step, precision(problem), limit)


def precision(problem: Problem) -> int:
    return core.CODES["Precision"][problem.precision]


def plan(problem: Problem, N: int) -> Plan:
    side = planner.side(problem)
    chosen = layout(problem, side, hardware(torch.cuda.current_device())[0])
    where = lambda name: "on chip" if chosen[name] or not chosen["slot"] else "in L2"  # noqa: E731
    choices = (
        ("precision", problem.precision), ("side", side), ("tile", chosen["samples"]),
        ("parameters", where("parameters")), ("gradients", where("gradients")),
    )  # fmt: skip
    return Plan("cuda", "one launch", choices)


@torch.no_grad()
def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    terms = operands.x.new_empty(2, operands.x.shape[0])
    step = core.step_of(problem, operands, gradients, per_sample=True)
    dx = outputs["dx"].data_ptr() if "dx" in outputs else None
    step.outputs(problem.gradients, None, None, None, None, terms.data_ptr(), dx)
    core.set_plan(step, planner.side(problem))
    launch(step, precision(problem), terms)
    if problem.result != PER_SAMPLE_GRADIENTS:
        for name, result in zip(("loss", "terms"), finish(problem, operands.weights, terms), strict=True):
            outputs[name].copy_(result)


@lru_cache(maxsize=256)
def blocks_at_a_time(precision: int, shared: int, device: int) -> int:
    return core._C.cuda_blocks(precision, shared, device)


def launch(step, precision: int, terms: torch.Tensor) -> None:
    """On the device of `terms` and its current stream; scratch comes from torch, so a CUDA graph can capture it."""
    device = terms.device
    limit, processors = hardware(device.index)
    chosen = core._C.cuda_layout(step, precision, limit)
    most = processors * blocks_at_a_time(precision, chosen["shared"], device.index)
    blocks = max(1, min(chosen["tiles"], most))
    scratch = torch.empty(chosen["packed"] + blocks * chosen["slot"], dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    core._C.cuda_step(step, precision, limit, scratch.data_ptr(), blocks, device.index, stream)

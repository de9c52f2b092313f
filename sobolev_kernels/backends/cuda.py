"""The CUDA kernel (csrc/cuda): a whole step of order 1 in one launch on tensor cores, for students that fit on chip."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from .. import planner
from ..math.losses import is_coupled
from ..problem import LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, PRECISIONS, Operands, Plan, Problem
from . import cpu

MOST_LAYERS = 16
MISSING = cpu.MISSING
if MISSING is None and not hasattr(cpu._C, "cuda_step"):
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


@torch.compiler.assume_constant_result
def refusal_while_traced(text: str, device: int) -> str | None:
    return refusal(Problem.from_string(text), device)


@lru_cache(maxsize=256)
def refusal(problem: Problem, device: int) -> str | None:
    """What the kernel does not compute, or why the student does not fit on the device."""
    losses = [loss for loss in (problem.value_loss, problem.derivative_loss) if loss is not None]
    reasons = {
        "only the loss is computed": problem.result not in (LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS),
        "order 2": problem.order == 2,
        "orthonormal directions depend on each other": problem.distribution == "orthonormal",
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
    some = (1, 0, 0, 0)
    step = cpu.step_of(problem, 1)
    parameters = [some] * (len(problem.biases) + sum(problem.biases))
    cpu.set_layers(step, problem, parameters, [1] * len(parameters) if problem.gradients else [])
    drawn = problem.distribution != "given"
    cpu.set_directions(step, problem, None, torch.zeros(2, dtype=torch.int64) if drawn else None)
    kind = cpu.TARGETS.index(problem.derivative_target)
    step.residuals(1, [(1, some), (kind, some)], None, None)
    step.outputs(problem.gradients, *[None] * 6)
    step.plan(cpu.SIDES.index(side), 1, 1)
    return cpu._C.cuda_layout(step, precision(problem), limit)


def precision(problem: Problem) -> int:
    return PRECISIONS.index(problem.precision)


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
    x, parameters, given, seed, values, derivative, _, sample_weight, output_weight, weights = operands
    N = x.shape[0]
    terms = x.new_empty(2, N)
    step = cpu.step_of(problem, N)
    cpu.set_layers(step, problem, [cpu.strided(p) for p in parameters], [g.data_ptr() for g in gradients])
    step.input(cpu.strided(x))
    cpu.set_directions(step, problem, given, seed)
    targets = [(1, cpu.strided(values)), (cpu.TARGETS.index(problem.derivative_target), cpu.strided(derivative))]
    step.residuals(1, targets, cpu.strided(sample_weight), cpu.strided(output_weight))
    step.loss(cpu.terms_of(problem, N, tuple(weights)), True)
    dx = outputs["dx"].data_ptr() if "dx" in outputs else None
    step.outputs(problem.gradients, None, None, None, None, terms.data_ptr(), dx)
    step.plan(cpu.SIDES.index(planner.side(problem)), 1, 1)
    launch(step, precision(problem), terms)
    if problem.result != PER_SAMPLE_GRADIENTS:
        loss = sum((w * term for w, term in zip(weights, terms, strict=True) if w), terms.new_zeros(N))
        per_sample = problem.result == PER_SAMPLE
        outputs["loss"].copy_(loss if per_sample else loss.sum())
        outputs["terms"].copy_(terms if per_sample else terms.sum(1))


@lru_cache(maxsize=256)
def blocks_at_a_time(precision: int, shared: int, device: int) -> int:
    return cpu._C.cuda_blocks(precision, shared, device)


def launch(step, precision: int, terms: torch.Tensor) -> None:
    """On the device of `terms` and its current stream; scratch comes from torch, so a CUDA graph can capture it."""
    device = terms.device
    limit, processors = hardware(device.index)
    chosen = cpu._C.cuda_layout(step, precision, limit)
    most = processors * blocks_at_a_time(precision, chosen["shared"], device.index)
    blocks = max(1, min(chosen["tiles"], most))
    scratch = torch.empty(chosen["packed"] + blocks * chosen["slot"], dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    cpu._C.cuda_step(step, precision, limit, scratch.data_ptr(), blocks, device.index, stream)

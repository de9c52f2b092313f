"""The fused CPU kernels of the C++ core (csrc/cpu), tile by tile, one call for the whole step."""

from __future__ import annotations

from functools import lru_cache

import torch

from .. import planner
from ..enums import DTYPES
from ..problem import PER_SAMPLE, Operands, Plan, Problem
from . import core

MOST_LAYERS = 64

# Samples of a tile by the widest layer, from a sweep of 32 to 256 on two cores with 1 MiB of second-level cache each:
# a tile's arrays should stay there, but above 256 the weights leave it anyway and want more samples for each read.
TILES = ((256, 64), (float("inf"), 128))


def supports(problem: Problem) -> str | None:
    if core.MISSING:
        return core.MISSING
    if problem.unrecognised:
        return problem.unrecognised
    if problem.device != "cpu":
        return f"tensors are on {problem.device}"
    if problem.dtype not in DTYPES:
        return f"dtype {problem.dtype} is not one of {', '.join(DTYPES)}"
    if len(problem.widths) - 1 > MOST_LAYERS:
        return f"{len(problem.widths) - 1} linear layers are more than {MOST_LAYERS}"
    return None


def plan(problem: Problem, N: int) -> Plan:
    return _plan(max(problem.widths), planner.side(problem), N, torch.get_num_threads(), core.instruction_set())


@lru_cache(maxsize=256)
def _plan(width: int, side: str, N: int, threads: int, isa: str) -> Plan:
    most = next(tile for limit, tile in TILES if width <= limit)
    each = max(1, -(-N // threads))
    tile = -(-each // -(-each // most))
    lanes = dict(core._C.instruction_sets()).get(isa, 16) // 4
    tile = min(most, -(-tile // lanes) * lanes)
    return Plan("cpu", "fused, tile-local", (("side", side), ("isa", isa), ("tile", tile), ("threads", threads)))


def set_plan(step, problem: Problem, N: int) -> str:
    """The instruction set to run on."""
    choices = dict(plan(problem, N).choices)
    core.set_plan(step, choices["side"], choices["tile"], choices["threads"])
    return choices["isa"]


def step_of(
    problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[object, str]:
    """The whole of a step, and the instruction set to run it on."""
    step = core.step_of(problem, operands, gradients, problem.result == PER_SAMPLE)
    names = ("y", "derivatives", "second", "loss", "terms", "dx")
    step.outputs(problem.gradients, *(outputs[name].data_ptr() if name in outputs else None for name in names))
    return step, set_plan(step, problem, operands.x.shape[0])


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Fill `outputs` (those of `ops.outputs_of`) and `gradients`, one for each parameter."""
    core._C.mlp_sobolev(*step_of(problem, operands, outputs, gradients))


def working_memory(problem: Problem, N: int) -> int:
    """Bytes that one call takes besides its inputs and outputs, and its thread keeps for the next."""
    step = core.step_of_shapes(problem, N)
    return core._C.working_memory(step, set_plan(step, problem, N))

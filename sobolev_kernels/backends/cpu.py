"""The fused CPU kernels of the C++ core (csrc/cpu), tile by tile, one call for the whole step."""

from __future__ import annotations

from functools import lru_cache

import torch

from .. import planner
from ..enums import DIRECTIONS, DTYPES, GRADIENTS
from ..problem import PER_SAMPLE, Operands, Plan, Problem
from . import core

MOST_LAYERS = 64

# Samples of a tile by the widest layer, from a sweep of 32 to 256 on two cores with 1 MiB of second-level cache each:
# a tile's arrays should stay there, but above 256 the weights leave it anyway and want more samples for each read.
# Beside them the samples times directions (or cotangents) that are carried side by side: a few directions of few samples
# fill the registers, and a gradient is read and written once for all of them, until their arrays leave the cache
# too. Two threads, Xeon with AVX-512, ms by columns:
#
#     case                              tile     16     32     64    160    320
#     32, 100→256×3→50, P=10              16   2.08                  1.47
TILES = ((256, 64, 160), (float("inf"), 128, 256))


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
    side = planner.side(problem)
    alone = problem.collapsed or (side == GRADIENTS and problem.projection == DIRECTIONS)
    streams = 1 if alone else max(1, problem.P)
    return _plan(max(problem.widths), streams, side, N, torch.get_num_threads(), core.instruction_set())


@lru_cache(maxsize=256)
def _plan(width: int, streams: int, side: str, N: int, threads: int, isa: str) -> Plan:
    most, columns = next(row for limit, *row in TILES if width <= limit)
    each = max(1, -(-N // threads))
    tile = -(-each // -(-each // most))
    lanes = dict(core._C.instruction_sets()).get(isa, 16) // 4
    tile = min(most, -(-tile // lanes) * lanes)
    group = -(-streams // -(-streams // max(1, columns // tile)))
    together = (("group", group),) if group > 1 else ()
    choices = ("side", side), ("isa", isa), ("tile", tile), *together, ("threads", threads)
    return Plan("cpu", "fused, tile-local", choices)


def set_plan(step, problem: Problem, N: int) -> str:
    """The instruction set to run on."""
    choices = dict(plan(problem, N).choices)
    core.set_plan(step, choices["side"], choices["tile"], choices.get("group", 1), choices["threads"])
    return choices["isa"]


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Fill `outputs` (those of `ops.outputs_of`) and `gradients`, one for each parameter."""
    step = core.step_of(problem, operands, gradients, problem.result == PER_SAMPLE)
    names = ("y", "derivatives", "second", "loss", "terms", "dx")
    step.outputs(problem.gradients, *(outputs[name].data_ptr() if name in outputs else None for name in names))
    core._C.mlp_sobolev(step, set_plan(step, problem, operands.x.shape[0]))


def working_memory(problem: Problem, N: int) -> int:
    """Bytes that one call takes besides its inputs and outputs, and its thread keeps for the next."""
    step = core.step_of_shapes(problem, N)
    return core._C.working_memory(step, set_plan(step, problem, N))

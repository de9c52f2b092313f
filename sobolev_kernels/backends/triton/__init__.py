"""The Triton backend: NVIDIA and AMD GPUs, no compiler needed; on the CPU in Triton's interpreter, for tests.

Narrow students take the whole step in one launch (`one_launch.py`), all others go layer by layer (`layerwise.py`).
"""

from __future__ import annotations

import importlib.util

import torch

from ... import planner
from ...enums import COTANGENTS, TANGENTS
from ...problem import Operands, Plan, Problem
from .. import constant_while_traced, on_device_of

MISSING = None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


@constant_while_traced
def interpreting() -> bool:
    from triton import knobs

    return knobs.runtime.interpret


def supports(problem: Problem) -> str | None:
    if MISSING or problem.unrecognised:
        return MISSING or problem.unrecognised
    if problem.device != "cuda" and not (problem.device == "cpu" and interpreting()):
        return f"tensors are on {problem.device}, not on a GPU (TRITON_INTERPRET=1 interprets the kernels there)"
    if problem.dtype != "float32":
        return f"dtype {problem.dtype} is not float32"
    return None


def plan(problem: Problem, N: int) -> Plan:
    from . import launches, one_launch

    reason = one_launch.refusal(problem)
    side = planner.side(problem) if reason is None or problem.projection == COTANGENTS else TANGENTS
    choices = (("precision", problem.precision), ("side", side))
    if reason is None:
        row = launches.launch_of(problem)
        tile = (("tile", "in cache" if row.layers is None else "on chip"), ("samples of a tile", row.block))
        return Plan("triton", "one launch", (*choices, *tile, ("warps", row.warps)))
    multiply = "own" if max(problem.widths) <= launches.FUSED_UP_TO else "torch's"
    return Plan("triton", f"layer-wise, {multiply} multiply", (*choices, ("since", reason)))


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    from . import layerwise, one_launch

    path = layerwise if one_launch.refusal(problem) else one_launch
    weights = (operands.sample_weight, operands.output_weight)
    samples, of_outputs = (w if w is None else w.contiguous() for w in weights)
    operands = operands._replace(sample_weight=samples, output_weight=of_outputs)
    # Triton launches on the current device, which need not be that of the tensors
    with on_device_of(operands.x):
        path.run(problem, operands, outputs, gradients)

"""The Triton backend: NVIDIA and AMD GPUs, no compiler needed; on the CPU in Triton's interpreter, for tests.

Narrow students take the whole step in one launch (`one_launch.py`), all others go layer by layer (`layerwise.py`).
"""

from __future__ import annotations

import importlib.util

import torch

from ...problem import Operands, Plan, Problem

MISSING = None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


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
    from . import one_launch

    reason = one_launch.refusal(problem)
    if reason is None:
        return Plan("triton", "one launch", (("precision", problem.precision),))
    return Plan("triton", "layer-wise, torch's multiply", (("precision", problem.precision), ("since", reason)))


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    from . import layerwise, one_launch

    path = layerwise if one_launch.refusal(problem) else one_launch
    path.run(problem, operands, outputs, gradients)

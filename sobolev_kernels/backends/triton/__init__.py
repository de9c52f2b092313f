"""The Triton backend: NVIDIA and AMD GPUs, no compiler needed; on the CPU in Triton's interpreter, for tests.

Narrow students take the whole step in one launch (`one_launch.py`), or all layers in one each way (`chained.py`), all
others go layer by layer (`layerwise.py`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ... import planner
from ...enums import COTANGENTS, TANGENTS
from ...problem import Operands, Plan, Problem
from .. import constant_while_traced, on_device_of
from .written import SCRIPTS, keep

if TYPE_CHECKING:
    from .script import Script

STARTED: list[bool] = []  # Triton's driver, by this process

MISSING = None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


@constant_while_traced
def interpreting() -> bool:
    from triton import knobs

    return knobs.runtime.interpret


@constant_while_traced
def unable() -> str | None:
    """Why Triton does not start on this GPU: what launches its kernels it builds itself, with a C compiler."""
    if not STARTED:
        try:
            from triton.runtime import driver

            driver.active.get_current_device()
        except Exception as error:
            return f"triton does not start here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        STARTED.append(True)
    return None


def supports(problem: Problem) -> str | None:
    if problem.unrecognised and not MISSING:
        return problem.unrecognised
    reason = refusal(problem.device, problem.dtype)
    return f"a head, {problem.head}" if reason is None and problem.head is not None else reason


def refusal(device: str, dtype: str) -> str | None:
    """Why it takes no tensors like these."""
    if MISSING:
        return MISSING
    if device != "cuda" and not (device == "cpu" and interpreting()):
        return f"tensors are on {device}, not on a GPU (TRITON_INTERPRET=1 interprets the kernels there)"
    if dtype != "float32":
        return f"dtype {dtype} is not float32"
    return unable() if device == "cuda" else None


def plan(problem: Problem, N: int) -> Plan:
    from . import chained, launches, one_launch

    if problem.order > 2:
        multiply = "own" if launches.fuses(problem, launches.JETS_FUSED_UP_TO) else "torch's"
        return Plan("triton", f"streams of all orders, {multiply} multiply", (("precision", problem.precision),))
    reason = one_launch.refusal(problem)
    side = planner.side(problem) if reason is None or problem.projection == COTANGENTS else TANGENTS
    choices = (("precision", problem.precision), ("side", side))
    if reason is None:
        row = launches.launch_of(problem)
        tile = (("tile", "in cache" if row.layers is None else "on chip"), ("samples of a tile", row.block))
        return Plan("triton", "one launch", (*choices, *tile, ("warps", row.warps)))
    collapsed = chained.takes(problem, N)
    multiply = "own" if launches.fuses(problem, *[launches.JETS_FUSED_UP_TO] * collapsed) else "torch's"
    path = f"{'collapsed streams, ' * collapsed}layer-wise, {multiply} multiply"
    if collapsed and chained.fits(problem, N):
        path = "all layers in one launch each way"
    return Plan("triton", path, (*choices, ("since", reason)))


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    from .layerwise import drawn_before
    from .script import reads_of

    operands = drawn_before(problem, operands)
    reads = reads_of(operands)
    script = script_of(problem, operands, reads, outputs, gradients)
    script.run(reads, [*outputs.values(), *gradients], operands.seed)


def kept(
    problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[Callable[..., None] | None, list[int], list[int]]:
    """What runs such a step again, told where it reads, what it fills, and its seed; and the addresses of this one.

    Nothing of one that needs more than addresses: vectors that are drawn before, copies, PyTorch's multiplies; nor of
    one that is interpreted.
    """
    from .layerwise import drawn_before
    from .script import reads_of

    reads = reads_of(operands)
    script = drawn_before(problem, operands) is operands and script_of(problem, operands, reads, outputs, gradients)
    if not script or not script.compiled or not script.needs_addresses_alone:
        return None, [], []
    writes = [*outputs.values(), *gradients]
    return script.fill, [tensor.data_ptr() for tensor in reads], [tensor.data_ptr() for tensor in writes]


def script_of(problem: Problem, operands: Operands, reads: list, outputs: dict, gradients: list) -> Script:
    """The launches that fill such outputs and gradients from operands that lie like these, written once."""
    from .script import likeness

    key = likeness(problem, operands, reads, tuple(outputs))
    script = SCRIPTS.get(key)
    if script is None:
        with on_device_of(operands.x):  # the rows of launches.py are those of the current device
            script = written(problem, operands, outputs, gradients)
        if next(iter(outputs), None) == "loss" and "terms" not in outputs:  # by the same kernels as one that gives them
            with_terms = SCRIPTS.get(likeness(problem, operands, reads, ("loss", "terms", *[*outputs][1:])))
            script.compiled = script.compiled if with_terms is None else with_terms.compiled
        keep(key, script)
    return script


def written(problem: Problem, operands: Operands, outputs: dict, gradients: list) -> Script:
    from . import chained, layerwise, one_launch
    from .script import Script, places, reads_of

    path = one_launch
    if one_launch.refusal(problem):
        path = chained if chained.takes(problem, len(operands.x)) else layerwise
    readable = path.readable(problem, operands)
    pairs = zip(reads_of(operands), reads_of(readable), strict=True)
    script = Script(
        operands.x.device,
        len(reads_of(operands)) + len(outputs) + len(gradients),
        [i for i, (a, b) in enumerate(pairs) if a is not b],
    )
    path.write(script, problem, readable, *places(operands, outputs, gradients))
    return script

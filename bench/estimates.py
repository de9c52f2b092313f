"""Estimated times of the Triton backend on an A100 and an H100: `python -m bench.estimates [--markdown]`.

**Nothing here was measured on a GPU.** A time is a roofline: the largest of FLOPs over peak, bytes of memory over its
bandwidth and bytes of the second-level cache over its own; true times are longer, ± 50 % to rank ways, no more. Eager
PyTorch is `backend="reference"`, each of its operations counted with the bytes of its tensors, 2.5 µs a launch.

The one launch's traffic in the cache is counted from `backends/triton/chains.py`: of each tile and hidden layer 10
arrays for the values, 12 for a direction and 13 for a gradient (written or read once in a phase), the weights twice and
the slot once for each stream. Layer by layer seven arrays [N, H] of each stream and layer go through memory.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

import sobolev_kernels as sk
from sobolev_kernels import planner

from .cases import CASES, FIRST, Case, make_data, make_student

ARRAYS = {planner.TANGENTS: 12, planner.GRADIENTS: 13}
OF_VALUES = 10
LAYERWISE = 7
LAUNCH = 2.5e-6  # s, of an eager operation
COUNTED = 256  # samples, of which eager's bytes are counted


@dataclass(frozen=True)
class Gpu:
    """TFLOP/s by precision, TB/s of the memory and of the second-level cache (an assumption)."""

    name: str
    peak: dict[str, float]
    memory: float
    cache: float


GPUS = (
    Gpu("A100", {"ieee": 19.5, "tf32": 156, "bf16": 312, "fp16": 312}, 2.0, 4.0),
    Gpu("H100", {"ieee": 67, "tf32": 495, "bf16": 989, "fp16": 989}, 3.35, 5.5),
)


class Traffic(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of their tensors."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        returns = function._schema.returns
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            flat = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.kernels += 1
            self.bytes += sum(t.numel() * t.element_size() for t in flat if isinstance(t, torch.Tensor))
        return result


def eager(case: Case) -> tuple[int, float]:
    """Kernels and bytes of a step, counted with fewer samples."""
    few = replace(case, N=min(case.N, COUNTED))
    student, data = make_student(few), make_data(few)
    targets = sk.Targets(values=data.y, jacobian=data.jacobian)
    with Traffic() as traffic:
        directions = sk.Directions.given(data.directions)
        sk.sobolev_loss(student, data.x, targets, directions=directions, backend="reference").backward()
    return traffic.kernels, traffic.bytes * case.N / few.N


def ours(case: Case) -> dict[str, float]:
    """FLOPs, and bytes of memory and of the second-level cache."""
    from sobolev_kernels.backends.triton import launches, one_launch

    problem, N = case.problem, case.N
    work = {"flops": planner.flops(problem, N), "memory": problem.bytes(N), "cache": 0, "path": "one launch"}
    if one_launch.refusal(problem):
        work["flops"] = planner.flops(problem, N, problem.P)
        work["memory"] += 4 * LAYERWISE * (1 + problem.P) * N * sum(problem.widths[1:-1])
        return work | {"path": "layer-wise"}
    side = planner.side(problem)
    D, H, O = (one_launch.padded(n) for n in (problem.D, problem.widths[1], problem.O))
    L, streams = len(problem.widths) - 2, planner.chains(problem)[side]
    tiles, block = math.ceil(N / launches.one_launch(H, "ieee").block), launches.one_launch(H, "ieee").block
    numbers = L * block * H * (OF_VALUES + streams * ARRAYS[side])
    weights = 3 * (1 + streams) * (H * D + (L - 1) * H * H + O * H)
    return work | {"cache": 4 * tiles * (numbers + weights)}


def bound(work: dict[str, float], gpu: Gpu, precision: str) -> float:
    """Microseconds that a step cannot be faster than."""
    return 1e-6 * max(work["flops"] / gpu.peak[precision], work["memory"] / gpu.memory, work["cache"] / gpu.cache)


def rows(cases: Sequence[Case]) -> list[dict[str, object]]:
    result = []
    for case in cases:
        work, (kernels, moved) = ours(case), eager(case)
        row = {"case": str(case), "path": work["path"], "GFLOP": work["flops"] / 1e9}
        row |= {"MB": work["memory"] / 1e6, "MB in cache": work["cache"] / 1e6}
        row |= {"eager kernels": kernels, "eager MB": moved / 1e6}
        for gpu in GPUS:
            flops = planner.flops(case.problem, case.N, case.P)
            theirs = 1e6 * max(flops / gpu.peak["ieee"] / 1e12, moved / gpu.memory / 1e12, kernels * LAUNCH)
            row |= {f"{gpu.name} {p}": bound(work, gpu, p) for p in ("ieee", "bf16")} | {f"{gpu.name} eager": theirs}
        result.append(row)
    return result


def cells(row: dict[str, object]) -> list[str]:
    return [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.estimates", description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    table = rows([case for case in CASES if case.kind == FIRST])
    if options.markdown:
        lines = [list(table[0]), ["---"] * len(table[0]), *map(cells, table)]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return 0
    drawn = Table(title="ESTIMATES from a roofline, not measured: µs of a step", title_justify="left")
    for heading in table[0]:
        drawn.add_column(heading)
    for row in table:
        drawn.add_row(*cells(row))
    Console(width=200).print(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())

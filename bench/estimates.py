"""Estimated times of both GPU backends on an A100: `python -m bench.estimates [--markdown]`.

**Nothing here was measured on a GPU**, as an H100 was (docs/gpu/README.md). For students that go in one launch, the
compiled kernel is executed on the PTX machine (docs/ptx.md) for one tile and for two. The difference, exact for sm_80's
PTX, is what a tile takes: instructions to issue, tensor-core operations, float32 arithmetic, passes of shared memory
and bytes asked of the second-level cache. A multiprocessor does its tiles one after the other; the resource that is
busy longest gives the time, beside the step's bytes through memory. True times are longer: nothing waits for anything
here, and machine code is not PTX. ± 50 % to rank ways, no more.

Layer by layer (eight arrays [N, H] of each stream through memory for a layer) and eager PyTorch (`backend="reference"`,
each operation with the bytes of its tensors) are rooflines of FLOPs, bytes and launches, 2.5 µs each. Launches are
counted inside of a backend's `run`, its own and PyTorch's; autograd has two more of its own.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.testing.speed.cases import CASES, FIRST, SECOND, Case, make_data, make_student

from .sweep import forced

LAYERWISE = 8
LAUNCH = 2.5e-6  # s, of a kernel launched alone
COUNTED = 256  # samples, of which eager's bytes are counted
PRECISIONS = ("ieee", "bf16")
MMA = re.compile(r"mma\S*m(\d+)n(\d+)k(\d+)")
FLOAT = re.compile(r"(fma|add|sub|mul|min|max|neg|abs|setp|selp)\S*f32")
PARAMETER = re.compile(r"(ld|st)\.param")  # constants and registers in machine code
SPECIAL = re.compile(r"(ex2|lg2|rcp|rsqrt|sqrt|sin|cos|tanh|div)\S*f32")


@dataclass(frozen=True)
class Gpu:
    """TFLOP/s by precision, TB/s of memory and of the second-level cache (an assumption); of a multiprocessor, lanes
    for float32 and bytes of shared memory that a block may have. A multiprocessor issues four instructions in a cycle,
    has 16 lanes for special functions, gets 64 bytes from the cache at most, and makes a pass of shared memory."""

    name: str
    target: str
    processors: int
    clock: float  # GHz
    peak: dict[str, float]
    memory: float
    cache: float
    lanes: int
    shared: int


GPUS = (Gpu("A100", "sm_80", 108, 1.41, {"ieee": 19.5, "bf16": 312}, 2.0, 4.0, 64, 163 << 10),)


class Traffic(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of their tensors."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        returns, empty = function._schema.returns, "empty" in function._schema.name
        if not empty and not any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            flat = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.kernels += 1
            self.bytes += sum(t.numel() * t.element_size() for t in flat if isinstance(t, torch.Tensor))
        return result


def eager(case: Case) -> tuple[int, float]:
    """Kernels and bytes of a step, counted with fewer samples."""
    few = replace(case, N=min(case.N, COUNTED))
    with Traffic() as traffic:
        step(few, "reference", "ieee")
    return traffic.kernels, traffic.bytes * case.N / few.N


def step(case: Case, backend: str, precision: str) -> None:
    student, data = make_student(case), make_data(case)
    targets, directions = sk.Targets(values=data.y, jacobian=data.jacobian), sk.Directions.sphere(case.P, seed=1)
    if case.kind == SECOND:
        targets = sk.Targets(values=data.y, tangents=data.tangents, seconds=data.seconds)
        directions = sk.Directions.given(data.directions)
    options = {"directions": directions, "backend": backend, "precision": precision, "order": case.problem.order}
    sk.sobolev_loss(student, data.x, targets, **options).backward()


# ---- One launch, counted on the PTX machine ----


def counts(result) -> dict[str, float]:
    """What a launch took of each resource, in the units of `cycles`."""
    work = {"issue": 0, "tensor": 0, "float32": 0, "special": 0, "shared": result.total("passes")}
    for opcode, n in result.instructions.items():
        work["issue"] += 0 if PARAMETER.match(opcode) else n
        if shape := MMA.match(opcode):
            # of what tensor cores do with 16-bit numbers: TF32 goes half as fast
            work["tensor"] += (4 if "tf32" in opcode else 2) * n * math.prod(map(int, shape.groups()))
        work["float32"] += n * bool(FLOAT.match(opcode))
        work["special"] += n * bool(SPECIAL.match(opcode))
    return work | {"cache": result.bytes_read + result.bytes_written}


@contextmanager
def within(backend: ModuleType) -> Iterator[Traffic]:
    """Counts what PyTorch launches inside of a backend's `run`."""
    traffic, run = Traffic(), backend.run

    def counted(*arguments) -> None:
        with traffic:
            run(*arguments)

    with forced(backend, run=counted):
        yield traffic


def triton_launches(case: Case, precision: str) -> int:
    """Of a step, by the Triton backend's kernels and by PyTorch."""
    from ptx import triton_on_ptx
    from sobolev_kernels.backends.triton import layers

    one = {"into": lambda out, *factors: out.zero_()}  # a multiply, which on a GPU casts nothing
    with triton_on_ptx.recorded() as launches, within(triton_on_ptx.backend) as traffic, forced(layers, **one):
        step(replace(case, N=min(case.N, COUNTED)), "triton", precision)
    return len(launches) + traffic.kernels


def triton_tile(case: Case, gpu: Gpu, precision: str) -> tuple[int, str, dict[str, float]] | None:
    """Samples of a tile, where it is, and what it takes; None where the Triton backend goes layer by layer."""
    from ptx import triton_on_ptx
    from sobolev_kernels.backends.triton import launches, one_launch

    if one_launch.refusal(case.problem):
        return None
    with forced(launches, target_of=lambda device: gpu.target), forced(one_launch, count_programs=lambda *_: 1):
        row = launches.launch_of(replace(case.problem, precision=precision))
        with triton_on_ptx.on_ptx() as results:
            for tiles in (1, 2):
                step(replace(case, N=tiles * row.block), "triton", precision)
    place = "in cache" if row.layers is None else "on chip"
    steps = [counts(result) for result in results if result.kernel == "step_kernel"]
    return row.block, place, difference(*steps)


def tile_of(case: Case, gpu: Gpu, precision: str) -> int:
    """Samples of a tile as all of the case's would be gone about."""
    from sobolev_kernels.backends import cuda

    problem = replace(case.problem, precision=precision)
    try:
        return cuda.layout(problem, planner.side(problem), gpu.shared, N=case.N)["samples"]
    except ValueError:  # it is refused
        return cuda.CHOSEN


def cuda_tile(case: Case, gpu: Gpu, precision: str) -> tuple[int, str, dict[str, float]] | None:
    """The same of the CUDA backend; None where it refuses."""
    from ptx import cuda_on_ptx

    taken, problem = [], replace(case.problem, precision=precision)
    with cuda_on_ptx.on_ptx(limit=gpu.shared, blocks=1, tile=tile_of(case, gpu, precision)) as backend:
        if cuda_on_ptx.cuda.refusal(problem, 0):
            return None
        step(replace(case, N=1), "cuda", precision)
        chosen = backend.layout
        for tiles in (1, 2):
            with within(backend) as traffic:
                step(replace(case, N=tiles * chosen["samples"]), "cuda", precision)
            taken.append(counts(backend.results["step"]))
    return chosen["samples"], "in registers", difference(*taken) | {"launches": len(backend.results) + traffic.kernels}


def difference(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    return {name: two[name] - one[name] for name in one}


def seconds(work: dict[str, float], gpu: Gpu, busy: int) -> dict[str, float]:
    """Of one multiprocessor, of which so many are busy, by what it waits for."""
    hertz = 1e9 * gpu.clock
    cycles = {
        "issue": work["issue"] / 4, "float32": work["float32"] * 32 / gpu.lanes, "special": 2 * work["special"],
        "shared": work["shared"],
        "tensor": work["tensor"] * gpu.processors * hertz / (1e12 * gpu.peak["bf16"]),
        "cache": work["cache"] * max(busy * hertz / (1e12 * gpu.cache), 1 / 64),
    }  # fmt: skip
    return {name: c / hertz for name, c in cycles.items()}


def bound(case: Case, gpu: Gpu, tile: tuple[int, str, dict[str, float]]) -> tuple[float, str]:
    """Microseconds that the kernel cannot be faster than, and what it waits for."""
    samples, _, work = tile
    tiles = math.ceil(case.N / samples)
    rounds = math.ceil(tiles / gpu.processors)
    times = {name: rounds * t for name, t in seconds(work, gpu, min(tiles, gpu.processors)).items()}
    times |= {"memory": case.problem.bytes(case.N) / (1e12 * gpu.memory)}
    longest = max(times, key=times.__getitem__)
    return 1e6 * times[longest], longest


def layerwise(case: Case, gpu: Gpu, precision: str, launches: int) -> tuple[float, str]:
    flops = planner.flops(case.problem, case.N, case.P) / (1e12 * gpu.peak[precision])
    arrays = 4 * LAYERWISE * (1 + case.P) * case.N * sum(case.problem.widths[1:-1])
    memory = (case.problem.bytes(case.N) + arrays) / (1e12 * gpu.memory)
    times = {"FLOPs": flops, "memory": memory, "launches": launches * LAUNCH}
    longest = max(times, key=times.__getitem__)
    return 1e6 * times[longest], longest


def rows(cases: Sequence[Case], precisions: Sequence[str] = PRECISIONS) -> Iterator[dict[str, object]]:
    for case in cases:
        kernels, moved = eager(case)
        for gpu in GPUS:
            flops = planner.flops(case.problem, case.N, case.P)
            theirs = max(flops / gpu.peak["ieee"] / 1e12, moved / gpu.memory / 1e12, kernels * LAUNCH)
            for precision in precisions:
                row = {"case": str(case), "GPU": gpu.name, "precision": precision}
                for name, count in (("Triton", triton_tile), ("CUDA", cuda_tile)):
                    tile = count(case, gpu, precision)
                    if tile is None and name == "CUDA":
                        row |= {"CUDA µs": None, "CUDA": "refused", "CUDA launches": None}
                        continue
                    launches = triton_launches(case, precision) if name == "Triton" else tile[2]["launches"]
                    estimate = bound(case, gpu, tile) if tile else layerwise(case, gpu, precision, launches)
                    place = f"tile of {tile[0]} {tile[1]}" if tile else "layer by layer"
                    row |= {f"{name} µs": estimate[0], name: f"{place}: {estimate[1]}"}
                    row |= {f"{name} launches": launches}
                yield row | {"eager µs": 1e6 * theirs, "eager kernels": kernels, "eager MB": moved / 1e6}


def cells(row: dict[str, object]) -> list[str]:
    text = lambda value: "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)  # noqa: E731
    return [text(value) for value in row.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.estimates", description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    table = list(rows([case for case in CASES if case.kind == FIRST]))
    if options.markdown:
        lines = [list(table[0]), ["---"] * len(table[0]), *map(cells, table)]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return 0
    drawn = Table(title="ESTIMATES, not measured: µs of a step", title_justify="left")
    for heading in table[0]:
        drawn.add_column(heading)
    for row in table:
        drawn.add_row(*cells(row))
    Console(width=220).print(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())

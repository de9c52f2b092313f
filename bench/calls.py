"""Estimated times of calls of several launches of the Triton backend on an A100: `python -m bench.calls`.

**Nothing here was measured on a GPU.** Each launch of a call and its backward is executed on the PTX machine for a few
samples and for twice as many; what the second took more is what samples take, and the resource that is busy longest
gives the time of a launch, at least 2.5 µs (`bench/estimates.py` says what that leaves out). Arrays between launches
are taken to stay in the second-level cache, which holds 40 MB of them: of more samples an estimate is too short.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import prepare
from sobolev_kernels.partials.along import evaluated
from sobolev_kernels.partials.layers import directions_of
from sobolev_kernels.student import recognise

from .estimates import GPUS, LAUNCH, Gpu, counts, difference, seconds
from .sweep import forced

FEW, WIDTH, DEPTH = 64, 64, 3
SIZES = (1024, 4096, 16384)
LAYERS = "layer by layer"
WAYS = ("as chosen", LAYERS)


class Work(NamedTuple):
    """Of a launch: its kernel, what it takes of each resource, and its programs."""

    kernel: str
    taken: dict[str, float]
    programs: int


def loss_of(student: torch.nn.Module, x: torch.Tensor, **settings) -> torch.Tensor:
    second = {"hessian": torch.zeros(len(x), 1, 2, 2)} if "order" in settings else {}
    targets = sk.Targets(values=torch.zeros(len(x), 1), jacobian=torch.zeros(len(x), 1, 2), **second)
    directions = sk.Directions.sphere(2, seed=1)
    return sk.sobolev_loss(student, x, targets, directions=directions, backend="triton", **settings)


def along(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * x.numel()).reshape(2, *x.shape)


def partials_of(names: str) -> Callable:
    def call(student: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        streams = sk.Fields("x t -> u").plan(names.split(", "))
        precision = prepare.precision_of(None, "cuda")
        return evaluated(streams, recognise(student), x, directions_of(streams, x), "triton", precision).sum()

    return call


# Of a student of two inputs and one output
CALLS: dict[str, Callable] = {
    "laplacian": lambda student, x: sk.laplacian(student, x, backend="triton")[1].sum(),
    "jvp, P=2": lambda student, x: sk.jvp(student, x, along(x), backend="triton")[1].sum(),
    "jet of order 2, P=2": lambda student, x: sk.jet(student, x, along(x), backend="triton")[2].sum(),
    "loss of order 2, P=2": lambda student, x: loss_of(student, x, order=2),
    "cosine, P=2": lambda student, x: loss_of(student, x, derivative_loss="cosine"),
    "u, u_t, u_x, u_xx": partials_of("u, u_t, u_x, u_xx"),
}


@contextmanager
def with_grids() -> Iterator[tuple[list, list[int]]]:
    """Launches on the PTX machine: their results, and how many programs each had."""
    from ptx import triton_on_ptx

    programs: list[int] = []

    class Counted(triton_on_ptx.OnPtx):
        def launch(self, grid: Sequence[int], wanted) -> None:
            programs.append(math.prod(grid))
            super().launch(grid, wanted)

    with forced(triton_on_ptx, OnPtx=Counted), triton_on_ptx.on_ptx() as results:
        yield results, programs


def works(call: Callable, N: int) -> list[Work]:
    """Of each launch of a call with its backward."""
    torch.manual_seed(0)
    student, x = sk.MLP(2, 1, width=WIDTH, depth=DEPTH), torch.rand(N, 2)
    with with_grids() as (results, programs):
        call(student, x).backward()
    each = zip(results, programs, strict=True)
    return [Work(result.kernel, counts(result), n) for result, n in each]


@contextmanager
def going(way: str, precision: str) -> Iterator[None]:
    """All layers in one launch each way, or layer by layer; with a precision of all products."""
    from sobolev_kernels.backends.triton import chained, jets

    with ExitStack() as stack:
        stack.enter_context(forced(prepare, precision_of=lambda *_: precision))
        if way == LAYERS:
            stack.enter_context(forced(chained, takes=lambda problem, N: False))
            stack.enter_context(forced(jets, MOST_CHAINED=0))
        yield


def estimates(call: Callable, gpu: Gpu) -> tuple[int, list[float]]:
    """Launches, and microseconds by SIZES."""
    few, more = works(call, FEW), works(call, 2 * FEW)
    times = []
    for N in SIZES:
        total = 0.0
        for one, two in zip(few, more, strict=True):
            beyond, grown = N / FEW - 2, difference(one.taken, two.taken)
            taken = {name: two.taken[name] + beyond * of for name, of in grown.items()}
            busy = min(gpu.processors, round(two.programs + beyond * (two.programs - one.programs)))
            total += max(LAUNCH, *seconds({name: n / busy for name, n in taken.items()}, gpu, busy).values())
        times.append(1e6 * total)
    return len(few), times


def rows(names: Sequence[str], precisions: Sequence[str]) -> Iterator[list[str]]:
    for name in names:
        for precision in precisions:
            for way in WAYS:
                with going(way, precision):
                    launches, times = estimates(CALLS[name], GPUS[0])
                yield [name, precision, way, str(launches), *(f"{t:.0f}" for t in times)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=__doc__)
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--precisions", nargs="+", default=["ieee", "tf32"])
    options = parser.parse_args(arguments)
    title = f"ESTIMATES, not measured: µs of a call with gradients, 2→{WIDTH}×{DEPTH}→1, {GPUS[0].name}"
    drawn = Table(title=title, title_justify="left")
    for heading in ("call", "precision", "way", "launches", *map(str, SIZES)):
        drawn.add_column(heading)
    for row in rows(options.calls, options.precisions):
        drawn.add_row(*row)
    Console(width=160).print(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())

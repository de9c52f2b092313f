"""Named partials of a PDE residual: `python -m bench --partials`, a residual's loss with the gradients of all
parameters, by `sk.residual_loss`, by hand in PyTorch, by jet-for-pytorch and by JAX, where these are installed.

`python -m bench.partials EQUATION SHAPE WAY` prints the bytes of one step, in a process of its own.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import IN_SINGLE
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

from .equations import EQUATIONS
from .partial_ways import (
    IN_COMPILERS,
    JAX_JET,
    JAX_NESTED,
    OURS,
    WAYS,
    Step,
    Task,
    asked_of_jax,
    is_there,
    step_of,
    task_of,
    worker,
)
from .resident import ENVIRONMENT, ROOT, can_tell, peak_of

SHAPES = ((20, 5, 1024), (20, 5, 4096), (64, 4, 1024), (64, 4, 4096), (128, 4, 1024), (128, 4, 4096))
Row = dict[str, object]


def add_options(parser: ArgumentParser) -> None:
    shapes = "; ".join(f"{i}: {width}×{depth}, {N} points" for i, (width, depth, N) in enumerate(SHAPES))
    parser.add_argument("--partials", nargs="*", choices=EQUATIONS, metavar="EQUATION", help="only: named partials")
    parser.add_argument(
        "--shape", type=int, nargs="+", choices=range(len(SHAPES)), default=range(len(SHAPES)), metavar="SHAPE",
        help=f"of --partials, which. {shapes}",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --partials")
    parser.add_argument("--way", nargs="+", choices=WAYS, default=WAYS, help="of --partials, beside ours")


def steps_of(
    name: str, width: int, depth: int, N: int, ways: Sequence[str], device: str = "cpu"
) -> dict[str, Step]:  # fmt: skip
    """By way; losses and gradients are compared first."""
    task = task_of(name, EQUATIONS[name], width, depth, N, device)
    need_fused(task)
    steps = {way: step_of(way, task) for way in ways}
    expected = flat(steps[OURS]())
    for way, step in steps.items():
        for got, ours in zip(flat(step()), expected, strict=True):
            within = {"rtol": IN_SINGLE, "atol": IN_SINGLE * float(ours.abs().max())}
            torch.testing.assert_close(got, ours, **within, msg=lambda m, w=way: f"{name}, {w}: {m}")
    return steps if device == "cpu" else {way: finished(step) for way, step in steps.items()}


def finished(step: Step) -> Step:
    """The same until the GPU has done it."""
    return lambda: (step(), torch.cuda.synchronize())


def need_fused(task: Task) -> None:
    """That ours is the kernel's, and not for want of one PyTorch's operations."""
    with contextlib.redirect_stdout(io.StringIO()):
        text = sk.explain(task.student, task.x, of="partials", names=list(task.names), fields=task.fields)
    if "-> cpu" not in text and "-> triton" not in text:
        raise RuntimeError(f"no kernel computes it:\n{text}")


def flat(result: tuple) -> list[torch.Tensor]:
    loss, gradients = result
    return [loss, *gradients]


def ways_of(options: Namespace) -> tuple[str, ...]:
    chosen = (way for way in WAYS if way == OURS or way in options.way)
    return tuple(way for way in chosen if is_there(way) and not (options.no_compile and way in IN_COMPILERS))


def peak_memory(name: str, shape: int, way: str) -> int | None:
    """Bytes of one step, by a process of its own; None where it does not end well, or nobody tells."""
    if not can_tell():
        return None
    command = [sys.executable, "-m", "bench.partials", name, str(shape), way]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def print_peak(name: str, shape: str, way: str) -> None:
    width, depth, N = SHAPES[int(shape)]
    task = task_of(name, EQUATIONS[name], width, depth, N)
    if way in (JAX_JET, JAX_NESTED):
        print(worker(torch.get_num_threads()).ask("peak", *asked_of_jax(way, task)))
        return
    step_of(way, task_of(name, EQUATIONS[name], 4, 2, 2))()  # what a first call leaves behind for good
    step = step_of(way, task)
    if way in IN_COMPILERS:
        step()
    print(peak_of(step))


def measure_partials(options: Namespace, console: Console) -> None:
    """Run, print and add to partials.csv, case by case: milliseconds of each way, or megabytes."""
    what, ways = "peak MB" if options.peak else "ms", ways_of(options)
    table = Table(title=f"A residual and its gradients, {what}", title_justify="left")
    for column in ("equation", "MLP", "N", *ways, "best other ÷ ours"):
        table.add_column(column, justify="left" if column == "equation" else "right")
    for shape, name in product(options.shape, options.partials or EQUATIONS):
        width, depth, N = SHAPES[shape]
        if options.peak:
            bytes_of = {way: peak_memory(name, shape, way) for way in ways}
            found = {way: n / 1e6 for way, n in bytes_of.items() if n is not None}
        else:
            times = interleave(
                steps_of(name, width, depth, N, ways, options.device), options.rounds, options.seconds, TURN
            )
            found = {way: 1e3 * quartiles(each).median for way, each in times.items()}
        best = min((number for way, number in found.items() if way != OURS), default=None)
        ratio = best / found[OURS] if best is not None and OURS in found else None
        numbers = [f"{found[way]:.2f}" if way in found else "–" for way in ways]
        table.add_row(name, f"{width}×{depth}", str(N), *numbers, f"{ratio:.2f}" if ratio else "–")
        case = {"equation": name, "width": width, "depth": depth, "N": N, "what": what}
        keep(options.results, case | {way: found.get(way) for way in WAYS})
    console.print(table)


def keep(folder: Path, row: Row) -> None:
    """A case that is measured again has another row."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "partials.csv"
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    print_peak(*sys.argv[1:])

"""Rows of the launch table from measured times: `python -m bench.sweep`, on a GPU. It prints what it would change.

Each candidate is checked by the one rule, then timed as `bench/gpu.py` times. Each width and precision has its share of
the time, and those that are most like the row there is are tried first. The tests run it in Triton's interpreter on
tiny sizes, with a clock.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import torch
from rich.console import Console
from rich.table import Table

from sobolev_kernels.testing.compare import forget
from sobolev_kernels.testing.graphs import captured
from sobolev_kernels.testing.speed.cases import Case

from .gpu import check, host_microseconds, microseconds, step_of

GAIN = 1.03  # a smaller one is noise
BLOCKS, WARPS, CHUNKS, SLICES = (16, 32), (4, 8), (16, 32, 64, 128), (32, 64)
LAYER_WIDTHS = (64, 128, 256, 512)
TRIED = ("ieee", "tf32", "bf16")  # fp16 takes the rows of bf16
LAYERS_SHARE = 0.25  # of the time, for what goes layer by layer
OURS, TORCH = "ours", "torch's"


@contextmanager
def forced(module, **names) -> Iterator[None]:
    """Within it a module of the backend has other launch choices."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    forget()
    try:
        yield
    finally:
        vars(module).update(before)
        forget()


def timed(case: Case, precision: str, device: str, rounds: int) -> float:
    """Milliseconds of a step that is right: of its graph on a GPU, of the call in the interpreter."""
    step, student = step_of(case, "triton", precision, device)
    check(case, student, step(), precision).check(f"{case}, {precision}, ")
    if device == "cuda":
        times = microseconds(captured(step)[0].replay, rounds)
    else:
        times = host_microseconds(step, rounds, device)[1]
    return 1e-3 * times


def one_launch_rows(
    widths: Sequence[int], precisions: Sequence[str], device: str, rounds: int, N: int = 8192,
    grid: Sequence[tuple[int, int, int, int | None]] = tuple(product(BLOCKS, WARPS, CHUNKS, (*SLICES, None))),
    seconds: float = math.inf,
) -> Iterator[dict[str, object]]:  # fmt: skip
    """For each width and precision: the row there is, the best candidate, the milliseconds of both, and how many of the
    grid were tried in the time.

    grid: samples, warps, columns of a chunk, and rows of a slice on chip; None is in cache.
    """
    from sobolev_kernels.backends.triton import launches, one_launch

    pairs, began = list(product(widths, precisions)), time.monotonic()
    for k, (width, precision) in enumerate(pairs, 1):
        case = Case(N, 8, width, 3, 1, 4)
        now = launches.launch_of(replace(case.problem, precision=precision, device=device))
        times = {now: timed(case, precision, device, rounds)}
        rows = [replaced(now, candidate, case.hidden) for candidate in grid]
        for row in sorted(rows, key=lambda row: unlike(row, now)):
            if time.monotonic() - began > seconds * k / len(pairs):
                break
            with forced(one_launch, launch_of=lambda problem, row=row: row):
                try:
                    times[row] = timed(case, precision, device, rounds)
                except Exception as error:  # a candidate may take more than the device has
                    print(f"left out: {row}: {type(error).__name__}: {str(error).splitlines()[0]}")
        best = min(times, key=times.__getitem__)
        row = {"width": width, "precision": precision, "now": now, "ms": times[now], "best": best}
        yield row | {"best_ms": times[best], "tried": len(times)}


def replaced(now, candidate: tuple[int, int, int, int | None], hidden: int):
    """The row with the choices of a candidate."""
    block, warps, chunk, rows = candidate
    place = {"layers": None} if rows is None else {"layers": hidden, "slice": rows}
    return replace(now, block=block, warps=warps, chunk=chunk, **place)


def unlike(row, now) -> int:
    """In how many choices two rows differ; a slice is one on chip alone."""
    on_chip = row.layers is not None, now.layers is not None
    choices = [row.block != now.block, row.warps != now.warps, row.chunk != now.chunk, on_chip[0] != on_chip[1]]
    return sum(choices) + (all(on_chip) and row.slice != now.slice)


def layer_rows(
    widths: Sequence[int], precisions: Sequence[str], device: str, rounds: int, N: int = 8192, seconds: float = math.inf
) -> Iterator[dict[str, object]]:
    """For each width and precision: milliseconds by own multiplies and by torch's, for FUSED_UP_TO."""
    from sobolev_kernels.backends.triton import chained, layerwise, one_launch

    began = time.monotonic()
    for width, precision in product(widths, precisions):
        if time.monotonic() - began > seconds:
            return
        case, times = Case(N, 8, width, 3, 1, 4), {}
        for name in (OURS, TORCH):
            way = forced(layerwise, fuses=lambda problem, name=name: name == OURS)
            layers = forced(chained, takes=lambda problem, N: False)
            with forced(one_launch, refusal=lambda problem: "forced"), layers, way:
                try:
                    times[name] = timed(case, precision, device, rounds)
                except AssertionError as error:  # which is told; the other rows are wanted all the same
                    print(f"wrong: {name}: {error}")
                    times[name] = math.nan
        yield {"width": width, "precision": precision, **times}


def text(row) -> str:
    return f"{row.place}, {row.block} samples, {row.warps} warps, chunk {row.chunk}, slice {row.slice}"


def report(rows: list[dict], layers: list[dict], console: Console) -> list[str]:
    """Print both tables; returns the changes that are worth it."""
    table = Table(title="one launch: milliseconds of a step", title_justify="left")
    for heading in ("width", "precision", "now", "ms", "best", "ms", "gain", "tried"):
        table.add_column(heading)
    changes = []
    for row in rows:
        gain = row["ms"] / row["best_ms"]
        cells = (row["width"], row["precision"], text(row["now"]), f"{row['ms']:.3f}", text(row["best"]))
        table.add_row(*map(str, cells), f"{row['best_ms']:.3f}", f"{gain:.2f}", str(row["tried"]))
        if gain > GAIN:
            changes.append(f"{row['precision']}: {row['now']} -> {row['best']}")
    console.print(table)
    table = Table(title="layer by layer: milliseconds of a step", title_justify="left")
    for heading in ("width", "precision", OURS, TORCH):
        table.add_column(heading)
    faster: dict[str, int] = {}
    for row in layers:
        table.add_row(str(row["width"]), row["precision"], f"{row[OURS]:.3f}", f"{row[TORCH]:.3f}")
        width = row["width"] if row[OURS] < row[TORCH] else 0
        faster[row["precision"]] = max(width, faster.get(row["precision"], 0))
    console.print(table)
    if layers:
        changes.append(f"FUSED_UP_TO = {faster}, of the widths measured")
    console.print("\n".join(["what it would change in launches.py:", *(changes or ["nothing"])]))
    return changes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=270, help="that it may take, but for the one it is at")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU that PyTorch can use is here: nothing was measured")
        return 1
    last = LAYERS_SHARE * options.seconds
    rows = list(one_launch_rows((32, 64, 128), TRIED, "cuda", options.rounds, seconds=options.seconds - last))
    report(rows, list(layer_rows(LAYER_WIDTHS, TRIED, "cuda", options.rounds, seconds=last)), Console(width=160))
    return 0


if __name__ == "__main__":
    sys.exit(main())

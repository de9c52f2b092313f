"""What the experiments here have in common: data, trainings side by side, quartiles over seeds, tables and options."""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

QUARTILES = ("q25", "median", "q75")


@dataclass(frozen=True)
class Data:
    u: torch.Tensor  # [N, d]
    t: torch.Tensor  # [N, 1]
    dt: torch.Tensor  # [N, 1, d]

    def __getitem__(self, index: torch.Tensor) -> Data:
        return Data(self.u[index], self.t[index], self.dt[index])

    def epoch(self, batch: int, generator: torch.Generator) -> Iterator[Data]:
        """All of it once, in shuffled mini-batches."""
        for index in torch.randperm(len(self.u), generator=generator).split(batch):
            yield self[index]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(run: Callable, cases: Sequence, workers: int) -> Iterator:
    """`run` of each case in any order, one thread in each process: steps this small gain little from threads."""
    if workers == 1:
        torch.set_num_threads(1)
        yield from map(run, cases)
        return
    # fork would copy the locks of torch's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(run, case) for case in cases]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def quartiles_of(name: str, numbers: Sequence[float]) -> dict[str, float]:
    return dict(zip((f"{name}_{q}" for q in QUARTILES), np.percentile(numbers, (25, 50, 75)).tolist(), strict=True))


def mark_quartiles(axes, rows: list[dict], name: str, shift: float, **style) -> None:
    """The medians of a row each, with bars from the first to the third quartile."""
    low, middle, high = (np.array([row[f"{name}_{q}"] for row in rows]) for q in QUARTILES)
    bars = middle - low, high - middle
    axes.errorbar(np.arange(len(rows)) + shift, middle, bars, ms=4, lw=1, **style)
    axes.set_yscale("log")
    axes.grid(axis="y", alpha=0.3)


def write_csv(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def parser_of(description: str, seeds: int, steps: int, files: str) -> argparse.ArgumentParser:
    """Options that every experiment has; `options_of` reads them."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed and 10 steps: only to see that it runs")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"trainings for each row (default {seeds})")
    parser.add_argument("--steps", type=int, default=steps, help=f"of each training (default {steps})")
    parser.add_argument("--out", type=Path, default=Path("results"), help=f"folder of {files}.png and .csv")
    return parser


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = 1, 10
    if options.seeds < 1 or options.steps < 1:
        parser.error("--seeds and --steps must be at least 1")
    return options

"""What the experiments here have in common: trainings by `sk.fit` side by side, their table, verdicts and pictures.

Methods are compared that share data, first weights and mini-batches. The last one is that which the others are held
against. A method has one colour everywhere; two of them on one line are the ends of a dumbbell.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sobolev_kernels as sk

QUARTILES = ("q25", "median", "q75")
METHODS = {"ordinary": "ordinary", "sobolev": "Sobolev", "balanced": "balanced Sobolev"}
SHORT = {"ordinary": "ord.", "sobolev": "Sob.", "balanced": "bal."}
COLOURS = {"ordinary": "tab:orange", "sobolev": "tab:blue", "balanced": "tab:green"}
VALUES_ALONE = sk.SobolevLoss(weights=(1.0, 0.0))


@dataclass(frozen=True)
class Result:
    """Of one case: errors by (method, metric), milliseconds of a step by method, and what is to be drawn."""

    case: object
    errors: dict[tuple[str, str], float]
    ms: dict[str, float]
    drawn: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How all methods of an experiment are trained."""

    batch: int
    lr: float
    schedule: str

    def epochs(self, N: int, steps: int) -> int:
        """As few as have at least so many steps."""
        return math.ceil(steps / math.ceil(N / self.batch))

    def train(
        self, first: torch.nn.Module, losses: dict[str, sk.SobolevLoss], x: torch.Tensor, targets: sk.Targets,
        steps: int, seed: int,
    ) -> tuple[dict[str, torch.nn.Module], dict[str, float]]:  # fmt: skip
        """By method a copy of the first student that was trained, and the milliseconds of a step."""
        students, ms = {}, {}
        for name, loss in losses.items():
            history = sk.fit(
                deepcopy(first), x, targets, loss=loss, epochs=self.epochs(len(x), steps), batch_size=self.batch,
                lr=self.lr, schedule=self.schedule, progress=False, generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
            students[name], ms[name] = history.student, history.seconds / history.steps * 1e3
        return students, ms


def predictions(student: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [N] and gradients [N, D], by plain autograd: the verdict does not rest on the library."""
    x = x.clone().requires_grad_()
    y = student(x)[:, 0]
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


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


def summarise(results: Sequence[Result], keys: Sequence[dict], methods: Sequence[str], metrics: Sequence[str]):
    """One row for each key, attributes of a case: quartiles over the seeds; and of the last method, in each metric and
    against each other one, the ratio of the medians, above 1 where it is better, and how many seeds it won."""
    rows = []
    *others, best = methods
    for key in keys:
        group = [r for r in results if all(getattr(r.case, name) == value for name, value in key.items())]
        row = key | {"seeds": len(group)}
        for metric in metrics:
            errors = {method: np.array([r.errors[method, metric] for r in group]) for method in methods}
            for method in methods:
                row |= quartiles_of(f"{method}_{metric}", errors[method])
            for other in others:
                row[f"{metric}_ratio_to_{other}"] = row[f"{other}_{metric}_median"] / row[f"{best}_{metric}_median"]
                row[f"{metric}_seeds_won_against_{other}"] = int((errors[best] < errors[other]).sum())
        row |= {f"{method}_ms_per_step": float(np.median([r.ms[method] for r in group])) for method in methods}
        rows.append(row)
    return rows


def print_table(
    title: str, rows: list[dict], keys: Sequence[str], methods: Sequence[str], metrics: Sequence[str], workers: int,
    console: Console,
) -> None:  # fmt: skip
    """Medians, the least of each metric in green, and the times."""
    names = ", ".join(f"{SHORT[method]}: {METHODS[method]}" for method in methods)
    caption = (
        f"{names}; errors are medians over the seeds, relative; "
        f"ms: of a training step, Adam included, on one thread, trainings side by side: {workers}"
    )
    table = Table(box=None, padding=(0, 1, 0, 0), caption=caption, title=title)
    headers = [f"{metric}\n{SHORT[method]}" for metric in (*metrics, "ms") for method in methods]
    for name in (*keys, *headers):
        justify = "left" if name in keys and isinstance(rows[0][name], str) else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for row in rows:
        cells = [str(row[key]) for key in keys]
        for metric in metrics:
            medians = [row[f"{method}_{metric}_median"] for method in methods]
            cells += [f"[{'green' if error == min(medians) else 'default'}]{error:.2g}[/]" for error in medians]
        table.add_row(*cells, *(f"{row[f'{method}_ms_per_step']:.2f}" for method in methods))
    console.print(table)


def figure_of(size: tuple[float, float]):
    """A figure that is only ever saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.set_dpi(110)
    return figure


def bare(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)


def dumbbells(axes, rows: list[dict], labels: Sequence[str], metric: str, methods: Sequence[str], **mark) -> None:
    """The medians of a row on one line, from the worst to the best method; the first row is on top."""
    style = {"s": 34, "zorder": 2, "lw": 1.2, **mark}
    hollow = style.pop("hollow", False)
    shift = style.pop("shift", 0.0)
    places = np.arange(len(rows)) + shift
    medians = {method: np.array([row[f"{method}_{metric}_median"] for row in rows]) for method in methods}
    ends = np.array([*medians.values()])
    axes.hlines(places, ends.min(0), ends.max(0), color="0.75", lw=2, zorder=1)
    for method, numbers in medians.items():
        face = "white" if hollow else COLOURS[method]
        axes.scatter(numbers, places, facecolor=face, edgecolor=COLOURS[method], **style)
    axes.set(xscale="log", yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
    axes.margins(x=0.08)
    name_ticks(axes)
    bare(axes)


def name_ticks(axes) -> None:
    """Of a logarithmic scale from left to right."""
    low, high = axes.get_xlim()
    few = high / low < 50  # of a scale so short, 2 and 5 are named too
    axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5) if few else (1,), numticks=12)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def seeds_of(rows: list[dict]) -> str:
    n = rows[0]["seeds"]
    return f"medians of {n} seeds" if n > 1 else "one seed"


def legend_of(figure, methods: Sequence[str], marks: dict[str, bool] | None = None) -> None:
    """One for all axes: a colour for each method; whether marks by these names are hollow."""
    from matplotlib.lines import Line2D

    dot = {"ls": "", "marker": "o", "ms": 8}
    handles = [Line2D([], [], color=COLOURS[method], label=METHODS[method], **dot) for method in methods]
    for name, hollow in (marks or {}).items():
        face = "white" if hollow else "0.4"
        handles.append(Line2D([], [], markeredgecolor="0.4", markerfacecolor=face, label=name, **dot))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=12)


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
    parser.add_argument("--steps", type=int, default=steps, help=f"at least, of each training (default {steps})")
    parser.add_argument("--out", type=Path, default=Path("results"), help=f"folder of {files}.png and .csv")
    return parser


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = 1, 10
    if options.seeds < 1 or options.steps < 1:
        parser.error("--seeds and --steps must be at least 1")
    return options


def trainings(run: Callable[[object], Result], cases: Sequence, methods: int, workers: int, console: Console):
    """All results, with a progress bar, and the minutes they took."""
    start = time.perf_counter()
    with Progress(console=console) as progress:
        done = side_by_side(run, cases, workers)
        results = list(progress.track(done, len(cases), description=f"{methods * len(cases)} trainings"))
    return results, (time.perf_counter() - start) / 60


def report(
    rows: list[dict], figure, options: argparse.Namespace, name: str, said: str, console: Console
) -> None:  # fmt: skip
    """Write table and picture, and say where."""
    write_csv(rows, options.out / f"{name}.csv")
    if options.quick:
        figure.text(0.5, 0.5, "untrained: --quick", fontsize=40, color="0.6", alpha=0.6, ha="center", rotation=25)
    figure.savefig(options.out / f"{name}.png")
    console.print(said, soft_wrap=True)
    console.print(f"see {options.out / f'{name}.png'} and {options.out / f'{name}.csv'}", soft_wrap=True)

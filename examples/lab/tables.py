"""Records summarised over the seeds: rows in long form, the table that is printed, and the CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .command import Settings
from .training import STEPS, TIME

QUARTILES = ("q25", "median", "q75")
BUDGETS = {STEPS: "equal steps", TIME: "equal time"}
# What a method is called; one that is not here is called by its own name.
METHODS = {
    "ordinary": "ordinary", "sobolev": "Sobolev", "balanced": "balanced Sobolev", "gamma": "balanced with gamma",
    "gradients": "gradients alone",
    "next": "next states too", "pixel-ordinary": "of pixels: ordinary", "pixel-sobolev": "of pixels: Sobolev",
}  # fmt: skip


def summarise(records: Sequence[dict], by: Sequence[str], metrics: Sequence[str]) -> list[dict]:
    """One row for each method and budget of each group of cases, in the order of the records: how many seeds, medians
    of steps and ms, and the quartiles of each metric. A metric that is None, or is not there, does not count."""
    names = (*by, "method", "budget")
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    rows = []
    for key, group in groups.items():
        row = dict(zip(names, key, strict=True)) | {"seeds": len(group)}
        row |= {name: float(np.median([record[name] for record in group])) for name in ("steps", "ms")}
        for metric in metrics:
            numbers = [record[metric] for record in group if record.get(metric) is not None]
            quartiles = np.percentile(numbers, (25, 50, 75)).tolist() if numbers else [None] * 3
            row |= dict(zip((f"{metric}_{q}" for q in QUARTILES), quartiles, strict=True))
        rows.append(row)
    first = {tuple(row[name] for name in by): i for i, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: (first[tuple(row[name] for name in by)], [*BUDGETS].index(row["budget"])))


def rows_of(rows: Sequence[dict], **wanted: object) -> list[dict]:
    """Those whose entries are these."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def number(x: float | None) -> str:
    """Two digits, without an exponent where that is as short."""
    if x is None:
        return "-"
    return f"{x:.2g}" if abs(x) < 100 else f"{x:.0f}"


def said_of_seeds(rows: Sequence[dict]) -> str:
    few, many = min(row["seeds"] for row in rows), max(row["seeds"] for row in rows)
    if many == 1:
        return "one seed"
    return f"medians of {few} seeds" if few == many else f"medians of {few} to {many} seeds"


def print_table(
    title: str, rows: Sequence[dict], by: Sequence[str], metrics: Sequence[str], console: Console, settings: Settings,
    note: str = "", higher: Sequence[str] = (),
) -> None:  # fmt: skip
    """Medians, first at equal steps, then at equal time: a line for each group and budget, the best in green.

    Args:
        higher: metrics of which more is better.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    said = f"{said_of_seeds(rows)}; ms: of a training step on one thread; equal time: steps in thousands in brackets"
    caption = "; ".join(part for part in (settings.remark, said, note) if part)
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, caption=caption, caption_justify="left")
    for name in (*by, "budget"):
        table.add_column(name, justify="right" if isinstance(rows[0].get(name), (int, float)) else "left", no_wrap=True)
    for metric in (*metrics, "ms"):
        for method in methods:
            table.add_column(f"{metric}\n{METHODS.get(method, method)}", justify="right")
    for key, group in groupby(rows, key=lambda row: tuple(row[name] for name in (*by, "budget"))):
        of = {row["method"]: row for row in group}
        cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in key[:-1]] + [BUDGETS[key[-1]]]
        for metric in metrics:
            medians = [of[method][f"{metric}_median"] if method in of else None for method in methods]
            there = [m for m in medians if m is not None and not math.isnan(m)]
            best = (max if metric in higher else min)(there) if there else None
            cells += [f"[{'green' if m is not None and m == best else 'default'}]{number(m)}[/]" for m in medians]
        for method in methods:
            ms, steps = (of[method]["ms"], of[method]["steps"]) if method in of else (None, None)
            cells.append("-" if ms is None else f"{ms:.2f} ({steps / 1e3:.2g})" if key[-1] == TIME else f"{ms:.2f}")
        table.add_row(*cells)
    console.print(table)


def write_csv(rows: Sequence[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def report(rows: Sequence[dict], figure, settings: Settings, name: str, console: Console) -> None:
    """Write table and picture, and say where."""
    write_csv(rows, settings.out / f"{name}.csv")
    if settings.remark:
        below = 0.17 / figure.get_figheight()  # a line of its own
        figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
        figure.text(0.995, 0.003, settings.remark, fontsize=9, color="tab:red", ha="right", va="bottom")
    figure.savefig(settings.out / f"{name}.png")
    console.print(f"see {settings.out / f'{name}.png'} and {settings.out / f'{name}.csv'}", soft_wrap=True)

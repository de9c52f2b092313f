"""A table with a line for each method, for experiments with many of them; and the times of steps, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from .command import Settings
from .tables import METHODS, number, rows_of, said_of_seeds, write_csv
from .training import STEPS, TIME

WARM, SLICE = 20, 0.02


def print_by_method(
    title: str, rows: Sequence[dict], by: str, metrics: Sequence[str], console: Console, settings: Settings,
    note: str = "", higher: Sequence[str] = (),
) -> None:  # fmt: skip
    """Medians at equal steps and at equal time side by side, with the quartiles of the first metric; the best of each
    group in green.

    Args:
        by: what a group has in common, as "N".
        higher: metrics of which more is better.
    """
    said = f"{said_of_seeds(rows)}; brackets: lower and upper quartile; ms: of a step on one thread"
    caption = "; ".join(part for part in (settings.remark, said, note) if part)
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, caption=caption, caption_justify="left")
    for name in (by, "method"):
        table.add_column(name, justify="left", no_wrap=True)
    for name in (*metrics, "ms", *(f"{metric}\nequal time" for metric in metrics), "steps"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in dict.fromkeys(row[by] for row in rows):
        there = rows_of(rows, **{by: group})
        for method in dict.fromkeys(row["method"] for row in there):
            cells = [f"{group:,}" if isinstance(group, int) else str(group), METHODS.get(method, method)]
            for budget in (STEPS, TIME):
                of_budget = rows_of(there, budget=budget)
                row = next((row for row in of_budget if row["method"] == method), None)
                cells += [cell(row, of_budget, metric, metric in higher, metric == metrics[0]) for metric in metrics]
                cells += ["-" if row is None else f"{row['ms']:.2f}" if budget == STEPS else f"{row['steps']:,.0f}"]
            table.add_row(*cells)
        table.add_section()
    console.print(table)


def cell(row: dict | None, others: Sequence[dict], metric: str, higher: bool, quartiles: bool) -> str:
    median = f"{metric}_median"
    if row is None or row[median] is None:
        return "-"
    best = (max if higher else min)(other[median] for other in others if other[median] is not None)
    text = number(row[median])
    if quartiles and row["seeds"] > 1:
        text += f" [{number(row[f'{metric}_q25'])}, {number(row[f'{metric}_q75'])}]".replace("[", r"\[")
    return f"[green]{text}[/]" if row[median] == best else text


def interleaved(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median milliseconds of each step, of the processor's time: a slice of each in turn, so many rounds."""
    counts = {}
    for name, step in steps.items():
        start = time.process_time()
        for _ in range(WARM):
            step()
        counts[name] = max(int(SLICE * WARM / max(time.process_time() - start, 1e-6)), 1)
    slices = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(counts[name]):
                step()
            slices[name].append((time.process_time() - start) / counts[name] * 1e3)
    return {name: statistics.median(found) for name, found in slices.items()}


def report_times(rows: Sequence[dict], settings: Settings, name: str, console: Console) -> None:
    """The times of steps as a table and as NAME_times.csv, with how many times as long others take as the fused one."""
    table = Table(box=None, padding=(0, 1, 0, 0), title="Loss and backward of a batch, ms on one thread")
    rows = [row | {f"{n} ÷ fused": row[f"{n} ms"] / row["fused ms"] for n in ("reference", "by hand")} for row in rows]
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    write_csv(rows, settings.out / f"{name}_times.csv")
    console.print(f"see {settings.out / f'{name}_times.csv'}", soft_wrap=True)

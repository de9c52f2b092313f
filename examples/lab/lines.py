"""Summarised rows as a table of many methods and metrics: a line for each method, both budgets side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from .command import Settings
from .tables import BUDGETS, METHODS, number, said_of_seeds
from .training import STEPS, TIME

SEEDS = "of a training step on one thread; steps: as many as equal time has"


class Cell(NamedTuple):
    text: str
    best: bool = False
    number: bool = True


def keys_of(rows: Sequence[dict]) -> list[str]:
    """What rows are summarised by: the columns before the method."""
    names = list(rows[0])
    return names[: names.index("method")]


def header_of(rows: Sequence[dict], metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Of each column its name, and the budget that it belongs to or nothing."""
    columns = [(key, "") for key in (*keys_of(rows), "method")]
    columns += [(metric, BUDGETS[budget]) for budget in (STEPS, TIME) for metric in metrics]
    return [*columns, ("ms", ""), ("steps", "")]


def lines_of(rows: Sequence[dict], metrics: Sequence[str], higher: Sequence[str] = ()) -> list[list[list[Cell]]]:
    """For each group of rows its lines, one a method: medians, the best of a group marked.

    Args:
        higher: metrics of which more is better.
    """
    keys = keys_of(rows)
    groups = []
    for key, group in groupby(rows, key=lambda row: tuple(row[name] for name in keys)):
        of = {(row["method"], row["budget"]): row for row in group}
        columns = []
        for budget in (STEPS, TIME):
            for metric in metrics:
                medians = {m: row[f"{metric}_median"] for (m, b), row in of.items() if b == budget}
                there = [median for median in medians.values() if median is not None and not math.isnan(median)]
                best = (max if metric in higher else min)(there) if there else None
                columns.append({m: Cell(number(median), median == best) for m, median in medians.items()})
        lines = []
        for method in dict.fromkeys(method for method, _ in of):
            line = [
                Cell(f"{part:,}" if isinstance(part, int) else str(part), number=type(part) is not str) for part in key
            ]
            line.append(Cell(METHODS.get(method, method), number=False))
            line += [column.get(method, Cell("-")) for column in columns]
            equal, timed = of.get((method, STEPS)), of.get((method, TIME))
            line.append(Cell(f"{equal['ms']:.2f}" if equal else "-"))
            line.append(Cell(f"{timed['steps']:,.0f}" if timed else "-"))
            lines.append(line)
        groups.append(lines)
    return groups


def print_lines(
    title: str, rows: Sequence[dict], metrics: Sequence[str], console: Console, settings: Settings, note: str = "",
    higher: Sequence[str] = (),
) -> None:  # fmt: skip
    """The table on a console, the best in green."""
    said = f"{said_of_seeds(rows)}; ms: {SEEDS}"
    caption = "; ".join(part for part in (settings.remark, said, note) if part)
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, caption=caption, caption_justify="left")
    groups = lines_of(rows, metrics, higher)
    for (name, budget), cell in zip(header_of(rows, metrics), groups[0][0], strict=True):
        header = f"{name}\n{budget.replace(' ', chr(10))}" if budget else name
        table.add_column(header, justify="right" if cell.number else "left", no_wrap=True)
    keys = len(keys_of(rows))
    for lines in groups:
        for i, line in enumerate(lines):
            cells = [f"[green]{cell.text}[/]" if cell.best else cell.text for cell in line]
            cells[:keys] = cells[:keys] if i == 0 else [""] * keys
            table.add_row(*cells, end_section=i == len(lines) - 1)
    console.print(table)

"""A table and a picture with a line for each method, for experiments with many of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .command import Settings
from .pictures import bare, colour_of, name_ticks
from .tables import METHODS, QUARTILES, number, rows_of, said_of_seeds
from .training import STEPS, TIME


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


def lines(axes, rows: Sequence[dict], metric: str, methods: Sequence[str], log: bool = True) -> None:
    """A line for each method: a mark for the median, full at equal steps and hollow at equal time, and a bar from the
    lower to the upper quartile."""
    for place, method in enumerate(methods):
        for budget, shift in ((STEPS, -0.16), (TIME, 0.16)):
            for row in rows_of(rows, method=method, budget=budget):
                low, middle, high = (row[f"{metric}_{q}"] for q in QUARTILES)
                if middle is None:
                    continue
                colour = colour_of(method)
                axes.hlines(place + shift, low, high, color=colour, lw=1.5, zorder=1)
                face = colour if budget == STEPS else "white"
                axes.scatter(middle, place + shift, s=40, lw=1.4, zorder=2, facecolor=face, edgecolor=colour)
    axes.set(yticks=range(len(methods)), yticklabels=[METHODS.get(method, method) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    if log:
        axes.set_xscale("log")
        name_ticks(axes.xaxis)
    bare(axes)


def marks_of(figure) -> None:
    """What marks and bars are."""
    from matplotlib.lines import Line2D

    dot = {"ls": "", "marker": "o", "ms": 7, "markeredgecolor": "0.3"}
    handles = [
        Line2D([], [], markerfacecolor="0.3", label="median at equal steps", **dot),
        Line2D([], [], markerfacecolor="white", label="at equal time", **dot),
        Line2D([], [], color="0.3", lw=1.5, label="lower to upper quartile"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=11)

"""A picture with a line for each method, for experiments with many of them."""

from __future__ import annotations

from collections.abc import Sequence

from .pictures import bare, colour_of, name_ticks
from .tables import METHODS, QUARTILES, rows_of
from .training import STEPS, TIME


def dots(
    axes, rows: Sequence[dict], metric: str, methods: Sequence[str], log: bool = True,
    names: dict[str, str] | None = None, joined: Sequence[str] = (),
) -> None:  # fmt: skip
    """A line for each method: a mark for the median, full at equal steps and hollow at equal time, and a bar from the
    lower to the upper quartile; `names` are other ones than elsewhere. Those that
    are joined, ordinary and Sobolev training, have a grey line from median to median at equal steps."""
    ends = [(row[f"{metric}_median"], methods.index(m) - 0.16) for m in joined
            for row in rows_of(rows, method=m, budget=STEPS) if row[f"{metric}_median"] is not None]  # fmt: skip
    if len(ends) > 1:
        axes.plot(*zip(*ends, strict=True), color="0.75", lw=2, zorder=0)
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
    axes.set(yticks=range(len(methods)), yticklabels=[{**METHODS, **(names or {})}.get(m, m) for m in methods])
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

"""The one style of all pictures: a colour for each method, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .tables import METHODS, rows_of
from .training import STEPS

COLOURS = {
    "ordinary": "tab:orange", "sobolev": "tab:blue", "balanced": "tab:green", "backprop": "black",
    "shuffled": "tab:red", "no-prop": "tab:gray", "direct": "tab:brown", "critic": "tab:orange",
    "gamma": "tab:purple", "gradients": "tab:cyan",
}  # fmt: skip
SPARE = ("tab:purple", "tab:cyan", "tab:olive", "tab:pink", "tab:green", "tab:brown")


def colour_of(method: str) -> str:
    """A method that has none gets the next one for good."""
    if method not in COLOURS:
        COLOURS[method] = next((c for c in SPARE if c not in COLOURS.values()), SPARE[len(COLOURS) % len(SPARE)])
    return COLOURS[method]


def figure_of(size: tuple[float, float]):
    """A figure that is only ever saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.set_dpi(110)
    return figure


def bare(axes, grid: str = "x") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)


def dumbbells(
    axes, rows: Sequence[dict], groups: Sequence[dict], labels: Sequence[str], metric: str, methods: Sequence[str],
    budget: str = STEPS, hollow: bool = False, shift: float = 0.0, size: float = 34,
) -> None:  # fmt: skip
    """The medians of each group on one line, from the worst to the best method; the first group is on top.

    Args:
        groups: what the rows of a line have in common, `{"function": "Booth", "N": 100}`.
        hollow, shift: of marks of a second kind, beside those of the first.
    """
    for place, group in enumerate(groups):
        found = {row["method"]: row[f"{metric}_median"] for row in rows_of(rows, budget=budget, **group)}
        medians = {method: found[method] for method in methods if found.get(method) is not None}
        if not medians:
            continue
        axes.hlines(place + shift, min(medians.values()), max(medians.values()), color="0.75", lw=2, zorder=1)
        for method, median in medians.items():
            colour = colour_of(method)
            face = "white" if hollow else colour
            axes.scatter(median, place + shift, s=size, lw=1.2, zorder=2, facecolor=face, edgecolor=colour)
    axes.set(xscale="log", yticks=range(len(groups)), yticklabels=labels, ylim=(len(groups) - 0.5, -0.5))
    axes.margins(x=0.08)
    name_ticks(axes.xaxis)
    bare(axes)


def curves(
    axes, rows: Sequence[dict], along: str, metric: str, methods: Sequence[str], budget: str = STEPS, style: str = "-"
) -> None:
    """Medians along a number, with a band from the lower to the upper quartile."""
    for method in methods:
        line = sorted(rows_of(rows, method=method, budget=budget), key=lambda row: row[along])
        line = [row for row in line if row[f"{metric}_median"] is not None]
        places = [row[along] for row in line]
        low, middle, high = ([row[f"{metric}_{q}"] for row in line] for q in ("q25", "median", "q75"))
        axes.plot(places, middle, style, color=colour_of(method), marker="o", ms=4)
        axes.fill_between(places, low, high, color=colour_of(method), alpha=0.15, lw=0)
    axes.set(xscale="log", yscale="log", xlabel=along)
    places = sorted({row[along] for row in rows})
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    name_ticks(axes.yaxis)
    bare(axes, "both")


def bars(axes, rows: Sequence[dict], metric: str, methods: Sequence[str], budget: str = STEPS) -> None:
    """A median for each method, and a line from the lower to the upper quartile."""
    for place, method in enumerate(methods):
        for row in rows_of(rows, method=method, budget=budget):
            low, middle, high = (row[f"{metric}_{q}"] for q in ("q25", "median", "q75"))
            axes.bar(place, middle, color=colour_of(method), width=0.7)
            axes.vlines(place, low, high, color="0.2", lw=1.5)
    axes.set_xticks(range(len(methods)), [METHODS.get(method, method) for method in methods])
    bare(axes, "y")


def maps(figure, axes: Sequence, errors: dict[str, np.ndarray], extent: Sequence[float], label="|error|") -> None:
    """Errors [height, width] by name, side by side in one scale of colours, which 1 in 100 of the first exceeds."""
    largest = np.percentile(next(iter(errors.values())), 99)
    style = {"cmap": "magma", "vmin": 0, "vmax": largest, "extent": extent, "origin": "lower", "aspect": "auto"}
    for axis, (name, error) in zip(axes, errors.items(), strict=True):
        shown = axis.imshow(error, **style)
        axis.set(title=f"{label}, {METHODS.get(name, name)}")
    figure.colorbar(shown, ax=list(axes), extend="max")


def name_ticks(axis) -> None:
    """Of a logarithmic scale, an `xaxis` or `yaxis`, as numbers that do not overlap."""
    low, high = axis.get_view_interval()
    few = high / low < 50  # of a scale so short, 2 and 5 are named too
    axis.get_major_locator().set_params(subs=(1, 2, 5) if few else (1,), numticks=12)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def legend_of(figure, methods: Sequence[str], marks: dict[str, bool] | None = None) -> None:
    """One for all axes: a colour for each method; whether marks by these names are hollow."""
    from matplotlib.lines import Line2D

    dot = {"ls": "", "marker": "o", "ms": 8}
    handles = [Line2D([], [], color=colour_of(method), label=METHODS.get(method, method), **dot) for method in methods]
    for name, hollow in (marks or {}).items():
        face = "white" if hollow else "0.4"
        handles.append(Line2D([], [], markeredgecolor="0.4", markerfacecolor=face, label=name, **dot))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=12)

"""The pictures of `regression.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from examples.lab import bare, dumbbells, figure_of, legend_of, maps, name_ticks, rows_of, said_of_seeds
from examples.lab.training import STEPS
from examples.regression.functions import FUNCTIONS
from examples.regression.said import median_of, values_of

GRID = 121
PAIR = ("ordinary", "sobolev")
LINES = {"tanh": "-", "relu": "--"}


def grid() -> torch.Tensor:
    """Points of the square [-1, 1]² [GRID, GRID, 2]."""
    axis = torch.linspace(-1, 1, GRID, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)


def draw(rows: Sequence[dict], shown: tuple[str, str, int], drawn: dict[str, np.ndarray]):
    """Above a function, and how far either student is from it; below the errors of all functions."""
    figure = figure_of((12.4, 8.2))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_maps(above, shown, drawn)
    rows = rows_of(rows, longer=False)
    sizes = sorted(values_of(rows, "N"))
    axes = below.subplots(1, len(sizes), sharex=True, squeeze=False)[0]
    for axis, N in zip(axes, sizes, strict=True):
        for activation, shift in (("tanh", -0.16), ("relu", 0.16)):
            groups = [{"function": f, "activation": activation, "N": N} for f in FUNCTIONS]
            dumbbells(axis, rows, groups, list(FUNCTIONS), "value", PAIR, hollow=activation == "relu", shift=shift)
        axis.set(title=f"error in value, {N:,} points")
        if N != sizes[0]:
            axis.set_yticklabels([])
    for axis in axes:
        name_ticks(axis.xaxis)
    said = f"{said_of_seeds(rows)}, equal steps; relative: 1 is as bad as the mean; further left is better"
    below.supxlabel(said, fontsize=11)
    legend_of(figure, PAIR, {"tanh": False, "ReLU": True})
    return figure


def draw_maps(figure, shown: tuple[str, str, int], drawn: dict[str, np.ndarray]) -> None:
    """The function in grey with the points, then |error| of both students in one scale of colours."""
    name, activation, N = shown
    function = FUNCTIONS[name]
    x = np.asarray(function.lower) + (grid().numpy() + 1) / 2 * np.subtract(function.upper, function.lower)
    truth = function.formula(torch.from_numpy(x)).numpy()
    extent = (x[..., 0].min(), x[..., 0].max(), x[..., 1].min(), x[..., 1].max())
    axes = figure.subplots(1, 3)
    image = axes[0].imshow(truth.T, cmap="Greys", extent=extent, origin="lower", aspect="auto")
    axes[0].scatter(*drawn["points"].T, color="black", s=6)
    axes[0].set(title=f"{name}, {N} known points")
    figure.colorbar(image, ax=axes[0])
    maps(figure, axes[1:], {student: np.abs(drawn[student] - truth).T for student in PAIR}, extent)
    for axis in axes[1:]:
        axis.set_title(f"{axis.get_title()} ({activation})")


def draw_why(rows: Sequence[dict], measured: dict[tuple[str, int], dict[str, float]], lost: Sequence[str]):
    """What gradients say of what lies between samples, and what a weight of them does where they say little."""
    figure = figure_of((13, 4.7))
    axes = figure.subplots(1, 1 + len(lost))
    draw_agreement(axes[0], measured, lost)
    rows = rows_of(rows, longer=False)
    for axis, function in zip(axes[1:], lost, strict=True):
        draw_weights(axis, rows_of(rows, function=function))
        axis.set(title=f"{function}: error in value", xlabel="weight of the derivatives (0: ordinary)")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    said = f"{said_of_seeds(rows)}; trained on four fifths of the points; lines: tanh, dashed: ReLU"
    figure.supxlabel(said, fontsize=10)
    return figure


def draw_agreement(axis, measured: dict[tuple[str, int], dict[str, float]], lost: Sequence[str]) -> None:
    sizes = sorted({N for _, N in measured})
    colours = dict(zip(lost, ("tab:red", "tab:purple"), strict=True))
    for function in dict.fromkeys(name for name, _ in measured):
        numbers = [measured[function, N]["agreement"] for N in sizes]
        axis.plot(sizes, numbers, "o-", ms=4, color=colours.get(function, "0.7"), zorder=2 if function in lost else 1)
        if function in lost:
            axis.annotate(function, (sizes[-1], numbers[-1]), color=colours[function], ha="right", va="top")
    axis.set(xscale="log", xlabel="points", title="how far a sample's gradient\nagrees with its neighbour's")
    axis.set_xticks(sizes, [f"{N:,}" for N in sizes])
    axis.tick_params(axis="x", which="minor", bottom=False)
    bare(axis, "both")


def draw_weights(axis, rows: Sequence[dict]) -> None:
    """Error against weight, at evenly spaced places: a line for each number of points and activation."""
    methods = [method for method in values_of(rows, "method") if method.startswith("weight ")]
    sizes = sorted(values_of(rows, "N"))
    for i, N in enumerate(sizes):
        colour = str(0.75 * (1 - (i + 1) / len(sizes)))
        for activation, line in LINES.items():
            of = {"N": N, "activation": activation, "budget": STEPS}
            errors = [median_of(rows, method=method, **of) for method in methods]
            label = f"{N:,} points" if activation == "tanh" else None
            axis.plot(range(len(methods)), errors, line, marker="o", ms=4, color=colour, label=label)
    axis.set(yscale="log")
    axis.set_xticks(range(len(methods)), [method.removeprefix("weight ") for method in methods])
    name_ticks(axis.yaxis)
    bare(axis, "y")

"""What `synthetic_gradients.py` shows: the rates that tuning found, the verdict, the picture, the times of a step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import sobolev_kernels as sk
from examples.lab import Effort, Settings, dots, figure_of, interleaved, marks_of, number, rows_of, said_of_seeds
from examples.synthetic_gradients.decoupled import LOSSES, METHODS, PREDICTING, WIDTH, fitting_loss, predictors_of
from examples.synthetic_gradients.tuning import LADDER, Tuned

# Not for all experiments: a page of all of them is written by one process.
NAMES = {"sobolev": "Sobolev critic"}
# Recalled, not read again: CIFAR-10 with three modules, per cent of the test that is classified wrongly.
PAPER = {"no-prop": 45.5, "direct": 20.8, "critic": 6.8, "sobolev": 6.5, "backprop": 5.7}
SURE = 0.8


def name_of(method: str) -> str:
    return NAMES.get(method, method)


def rows_of_tuning(data: str, tuned: dict[str, Tuned]) -> list[dict]:
    """All that was tried on the grids."""
    return [
        {
            "data": data, "method": method, "module_rate": LADDER[place[0]],
            "predictor_rate": LADDER[place[1]] if len(place) > 1 else None, "validation_error": score[0],
            "cross_entropy": score[1], "best": place == found.place, "inside": found.inside, "widened": found.rounds,
        }
        for method, found in tuned.items() for place, score in sorted(found.tried.items())
    ]  # fmt: skip


def print_tuning(rows: list[dict], console: Console, settings: Settings) -> None:
    title = "Learning rates, chosen on validation data"
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, caption=settings.remark)
    for name in ("data", "method", "modules", "predictors", "error %", "tried", "inside the grid"):
        table.add_column(name, justify="left" if name in ("data", "method") else "right", no_wrap=True)
    for row in rows_of(rows, best=True):
        tried = len(rows_of(rows, data=row["data"], method=row["method"]))
        rate = "-" if row["predictor_rate"] is None else f"{row['predictor_rate']:g}"
        inside = "yes" if row["inside"] else "[red]no, at its edge[/]"
        inside += f", widened {row['widened']} times" if row["widened"] else ""
        error = f"{row['validation_error']:.1f}"
        table.add_row(row["data"], name_of(row["method"]), f"{row['module_rate']:g}", rate, error, str(tried), inside)
    console.print(table)


def verdict(records: Sequence[dict], rows: Sequence[dict], console: Console) -> None:
    """The order that came out, and in how many seeds each step of the paper's order did."""
    for data in dict.fromkeys(row["data"] for row in rows):
        for budget in ("steps", "time"):
            medians = {row["method"]: row["error_median"] for row in rows_of(rows, data=data, budget=budget)}
            order = sorted(medians, key=medians.get, reverse=True)
            errors = {
                method: np.array([r["error"] for r in rows_of(records, data=data, budget=budget, method=method)])
                for method in METHODS
            }
            came, did_not = [], []
            for worse, better in pairwise(METHODS):
                won, seeds = int((errors[better] < errors[worse]).sum()), len(errors[better])
                said = f"{name_of(better)} better than {name_of(worse)} ({won} of {seeds} seeds)"
                (came if won >= SURE * seeds else did_not).append(said)
            console.print(
                f"{data}, equal {budget}: {', '.join(f'{name_of(m)} {number(medians[m])}' for m in order)} % wrong. "
                f"Of the paper's order came out: {'; '.join(came) or 'nothing'}. Not, or not in four seeds of five: "
                f"{'; '.join(did_not) or 'nothing'}.",
                soft_wrap=True,
            )
    paper = ", ".join(f"{name_of(method)} {error}" for method, error in PAPER.items())
    console.print(f"The paper's, as it is remembered (CIFAR-10, three modules): {paper} % wrong.", soft_wrap=True)


def draw_grid(axes, rows: Sequence[dict]) -> None:
    """Validation errors of all rates that were tried, and which were taken."""
    places = {value: i for i, value in LADDER.items()}
    x, y = ([places[row[name]] for row in rows] for name in ("predictor_rate", "module_rate"))
    grid = np.full((max(y) - min(y) + 1, max(x) - min(x) + 1), np.nan)
    for i, j, row in zip(y, x, rows, strict=True):
        grid[i - min(y), j - min(x)] = row["validation_error"]
    axes.imshow(grid, cmap="viridis_r", origin="lower", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for i, j, row in zip(y, x, rows, strict=True):
        error = row["validation_error"]
        mark = {"weight": "bold", "bbox": {"fc": "white", "ec": "black", "pad": 2}} if row["best"] else {}
        # White where the colour map is dark.
        colour = "black" if row["best"] or error < middle else "white"
        axes.text(j - min(x), i - min(y), f"{error:.1f}", ha="center", va="center", fontsize=8, color=colour, **mark)
    for axis, some in ((axes.xaxis, x), (axes.yaxis, y)):
        ladder = range(min(some), max(some) + 1)
        axis.set_ticks(range(len(ladder)), [f"{LADDER[i]:g}" for i in ladder], fontsize=8)
    axes.set(title=name_of(rows[0]["method"]), xlabel="rate of the predictors", ylabel="rate of the modules")


def draw(rows: Sequence[dict], tuning: Sequence[dict]):
    """For each data set the errors of all methods, and the grids of those with predictors."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = figure_of((14, 0.6 + 3.0 * len(names)))
    axes = figure.subplots(len(names), 1 + len(PREDICTING), squeeze=False, width_ratios=(1.7, 1, 1, 1))
    for (first, *others), data in zip(axes, names, strict=True):
        dots(first, rows_of(rows, data=data), "error", METHODS, names=NAMES, joined=("critic", "sobolev"))
        first.set(title=f"{data}: wrong in the test, %")
        for axis, method in zip(others, PREDICTING, strict=True):
            draw_grid(axis, rows_of(tuning, data=data, method=method))
    note = "right: per cent wrong of the validation data, of all rates tried; framed: those taken"
    figure.supxlabel(f"left: {said_of_seeds(rows)}; {note}", fontsize=10)
    marks_of(figure)
    return figure


def by_hand(method: str, critic: torch.nn.Module, seen: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor):
    """What `fitting_loss` gives, as one writes it in PyTorch."""
    if method == "critic":
        return F.mse_loss(critic(seen), loss)
    place = seen.detach().requires_grad_()
    predicted = critic(place)
    (slope,) = torch.autograd.grad(predicted.sum(), place, create_graph=True)
    return F.mse_loss(predicted, loss) + (slope[:, :WIDTH] - gradient).square().sum(1).mean()


def by_reference(method: str, critic: torch.nn.Module, seen: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor):
    jacobian = gradient[:, None] if method == "sobolev" else None
    targets = sk.Targets(values=loss, jacobian=jacobian)
    return sk.sobolev_loss(critic, seen, targets, backend="reference", **LOSSES[method])


def times_of_steps(settings: Settings, N: int, classes: int = 10) -> list[dict]:
    """Loss and backward of one critic on a batch, fused, by the reference, and by hand, interleaved."""
    torch.manual_seed(0)
    seen, loss, gradient = torch.randn(N, WIDTH + classes), torch.rand(N, 1), torch.randn(N, WIDTH)
    rows = []
    for method in LOSSES:
        critic = predictors_of(method, classes)[0]
        steps = {
            name: lambda f=f, method=method, critic=critic: f(method, critic, seen, loss, gradient).backward()
            for name, f in (("fused", fitting_loss), ("reference", by_reference), ("by hand", by_hand))
        }
        found = interleaved(steps, rounds=3 if settings.effort == Effort.tiny else 40)
        rows.append({"step": name_of(method), "N": N, **{f"{name} ms": ms for name, ms in found.items()}})
    return rows

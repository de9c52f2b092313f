"""Differential machine learning: price, deltas and gammas of a basket option, learnt from one path per input.

The setting of Huge and Savine, "Differential Machine Learning" (2020, arXiv:2005.02347). The inputs are the spots x of
d assets one year from today; the option pays max(0, a·S - K) another year later, on the basket a·S of the assets. The
assets are Gaussian (Bachelier) with random correlations, volatilities and basket weights, scaled to a basket
volatility of 0.2; all spots are 1 today, the strike is 1.1 and the interest rate 0. The volatility of the first year is
multiplied by 1.5, for more inputs in the wings. Of each input one path is simulated; the labels that it gives, and the
truth in closed form that no student sees, are in `baskets.py`.

Four students, softplus MLPs of 4 x 20 with the same first weights, are trained for the same epochs of Adam on the same
mini-batches of 256, with one cycle of the learning rate up to 1e-2 and down to 0:

    ordinary             values alone
    Sobolev              values and deltas, weights (1, 1)
    balanced             the same in the balance of Huge and Savine
    balanced with gamma  the same, and the second derivative along each axis: the diagonal of the gammas (order 2)

As in the paper u = (x - mean x) / std x and t = (y - mean y) / std y, hence ∂t/∂u_j = (std x_j / std y) ∂y/∂x_j, which
is what `sobolev_kernels.Scaler` does. The balance measures every derivative in units of its own size, λ_j =
1 / rms(∂t/∂u_j), and weighs the means of the squared errors with 1 / (1 + d) and d / (1 + d). The gammas are measured
in λ_j² and in their own mean square, and have 0.3 of the weight of the deltas. That and the steps were chosen with
seeds below 1000; those of a run begin there.

What is reported, on 4,096 held-out inputs: the root mean square of the error of the price, of the deltas and of all
gammas, also those that are not on the diagonal, over that of their deviation from the mean. So 1 is as bad as
predicting the mean. A seed draws everything anew: market, paths, first weights and held-out inputs. The number of steps
is about the best one for the ordinary student: with more of them, as at equal time, it fits the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

import sobolev_kernels as sk
from examples.differential_ml.baskets import Greeks, Market
from examples.lab import (
    COLOURS,
    METHODS,
    Effort,
    Method,
    Outcome,
    Plan,
    Settings,
    bare,
    compare,
    dumbbells,
    figure_of,
    legend_of,
    report,
    rows_of,
    said_of_seeds,
    summarise,
    trials,
)
from examples.lab.lines import print_lines
from examples.lab.times import report_times
from examples.lab.training import STEPS, TIME, VALUES_ALONE
from examples.lab.ways import times_of_ways

NAME = "differential_ml"
STUDENTS = ("ordinary", "sobolev", "balanced", "gamma")
METRICS = Greeks._fields
ASSETS, SIZES = (1, 5, 20), (1024, 8192)
WIDTH, DEPTH, TEST, DRAWN, FIRST_SEED = 20, 4, 4096, 500, 1000
GAMMA = 0.3
PLAN = Plan(batch=256, lr=1e-2, schedule="one-cycle")


@dataclass(frozen=True)
class Case:
    """One market, and on it one training of each student."""

    d: int
    N: int
    seed: int
    steps: int
    drawn: bool = False


def labels(x: torch.Tensor, paths: Greeks) -> tuple[sk.Scaler, torch.Tensor, sk.Targets]:
    """The units of one path from each x [N, d], and what a student sees of it, in float32."""
    targets = sk.Targets(values=paths.price[:, None], jacobian=paths.delta[:, None])
    scaler = sk.Scaler().fit(x, targets)
    u, targets = scaler.transform(x, targets)
    return scaler, u.float(), targets.float()


def with_gamma(scaler: sk.Scaler, targets: sk.Targets, gamma: torch.Tensor) -> Method:
    """Deltas, and gammas [N, d, d], along the axes, each in units λ of its delta."""
    d = gamma.shape[1]
    units = 1 / targets.jacobian.square().mean((0, 1)).sqrt()  # [d]
    of_axes = units.double() * scaler.x_scale
    tangents = (targets.jacobian * units).permute(2, 0, 1)  # [d, N, 1]
    seconds = gamma.diagonal(dim1=1, dim2=2) * of_axes**2 / scaler.y_scale
    seconds = seconds.T[..., None].float()  # [d, N, 1]
    share = d / (1 + d)
    weights = 1 / (1 + d), share, GAMMA * share / seconds.square().mean().item()
    axes = sk.Directions.given(torch.diag(units))
    seen = sk.Targets(values=targets.values, tangents=tangents, seconds=seconds, directions=axes)
    return Method({"order": 2, "weights": weights}, targets=seen)


def methods_of(scaler: sk.Scaler, targets: sk.Targets, paths: Greeks) -> dict[str, Method]:
    return {
        "ordinary": VALUES_ALONE,
        "sobolev": Method({"derivatives": "exact"}),
        "balanced": Method({"derivatives": "exact", "weights": "differential-ml"}),
        "gamma": with_gamma(scaler, targets, paths.gamma),
    }


def greeks_of(scaler: sk.Scaler, student: torch.nn.Module, x: torch.Tensor) -> Greeks:
    """A student's, by plain autograd: the verdict does not rest on the library."""
    u = scaler.transform(x).float().requires_grad_()
    t = student(u)
    (slope,) = torch.autograd.grad(t.sum(), u, create_graph=True)
    columns = [torch.autograd.grad(slope[:, j].sum(), u, retain_graph=True)[0] for j in range(x.shape[1])]
    bend, unit = torch.stack(columns, 2).double(), scaler.x_scale
    price = t.detach()[:, 0].double() * scaler.y_scale + scaler.y_mean
    delta = slope.detach().double() * scaler.y_scale / unit
    return Greeks(price, delta, bend * scaler.y_scale / (unit[:, None] * unit))


def relative_errors(found: Greeks, truth: Greeks) -> dict[str, float]:
    """Rms of the error over rms of the deviation from the mean."""
    pairs = zip(METRICS, found, truth, strict=True)
    return {metric: ((f - t).norm() / (t - t.mean(0)).norm()).item() for metric, f, t in pairs}


def run_case(case: Case) -> Outcome:
    generator = torch.Generator().manual_seed(case.seed)
    market = Market.random(case.d, generator)
    held_out, x = market.spots(TEST, generator), market.spots(case.N, generator)
    paths = market.paths(x, market.noise(case.N, generator))
    scaler, u, targets = labels(x, paths)
    torch.manual_seed(case.seed)
    first = sk.MLP(case.d, 1, width=WIDTH, depth=DEPTH, activation="softplus")
    truth, records = market.truth(held_out), []
    shown = {"truth": truth}
    for trained in compare(first, methods_of(scaler, targets, paths), u, targets, PLAN, case.steps, case.seed):
        found = greeks_of(scaler, trained.student, held_out)
        records.append(trained.record(**relative_errors(found, truth)))
        if trained.budget == STEPS:
            shown[trained.method] = found
    if not case.drawn:
        return Outcome(records)
    j = market.basket.argmax()
    lines = {
        name: torch.stack([g.price, g.delta[:, j], g.gamma[:, j, j]])[:, :DRAWN].numpy() for name, g in shown.items()
    }
    return Outcome(records, lines | {"basket": (held_out @ market.basket)[:DRAWN].numpy()})


def print_verdict(rows: list[dict], console: Console) -> None:
    """What balance buys, and what gamma adds to it: ratios of medians over all rows, at both budgets."""
    for better, worse in (("balanced", "ordinary"), ("gamma", "balanced")):
        for budget, said in ((STEPS, "equal steps"), (TIME, "equal time")):
            parts = []
            for metric in METRICS:
                medians = [
                    [row[f"{metric}_median"] for row in rows_of(rows, budget=budget, method=method)]
                    for method in (worse, better)
                ]
                ratios = np.divide(*medians)
                parts.append(f"{metric} {np.exp(np.log(ratios).mean()):.2f} ({(ratios > 1).sum()} of {len(ratios)})")
            console.print(
                f"Error of {METHODS[worse]} over that of {METHODS[better]}, at {said}, geometric mean of the rows "
                f"(rows in which it is above 1): {', '.join(parts)}.", soft_wrap=True,
            )  # fmt: skip


def draw_predictions(axes, drawn: dict[str, np.ndarray], student: str, i: int) -> None:
    """A student's price, delta or gamma of one asset at held-out inputs: points around the true line."""
    order = drawn["basket"].argsort()
    axes.scatter(drawn["basket"], drawn[student][i], s=6, color=COLOURS[student], lw=0)
    axes.plot(drawn["basket"][order], drawn["truth"][i][order], color="black", lw=1)
    axes.set(xlabel="basket" if i == len(METRICS) - 1 else None, ylabel=METRICS[i] if student == STUDENTS[0] else None)
    bare(axes)


def draw(rows: list[dict], case: Case, drawn: dict[str, np.ndarray]):
    figure = figure_of((12.5, 8))
    axes = figure.subplots(3, 5, width_ratios=(1, 1, 1, 1, 1.4))
    groups = list({(row["d"], row["N"]): {"d": row["d"], "N": row["N"]} for row in rows}.values())
    names = [f"{g['d']} asset{'s' if g['d'] > 1 else ''}\n{g['N']:,} paths" for g in groups]
    for i, metric in enumerate(METRICS):
        for axis, student in zip(axes[i], STUDENTS, strict=False):
            axis.sharey(axes[i, 0])
            axis.set_title(METHODS[student])
            draw_predictions(axis, drawn, student, i)
        dumbbells(axes[i, 4], rows, groups, names, metric, STUDENTS)
        axes[i, 4].set(title=f"{metric} error")
        axes[i, 4].tick_params(axis="y", labelsize=9)
    left = f"left: a seed of {case.d} assets, {case.N:,} paths, one asset's delta and gamma, black: closed form"
    right = f"right: equal steps, {said_of_seeds(rows)}, relative: 1 is as bad as the mean"
    figure.supxlabel(f"{left}; {right}", fontsize=11)
    legend_of(figure, STUDENTS)
    return figure


def cases_of(settings: Settings) -> list[Case]:
    assets, sizes, steps = (ASSETS, SIZES, 300) if settings.effort != Effort.tiny else ((1, 3), (256,), 8)
    seeds = range(FIRST_SEED, FIRST_SEED + settings.seeds)
    last = assets[-1], sizes[-1], FIRST_SEED
    return [Case(d, N, seed, steps, (d, N, seed) == last) for seed, d, N in product(seeds, assets, sizes)]


def by_hand(student: torch.nn.Module, u: torch.Tensor, targets: sk.Targets) -> torch.Tensor:
    """The loss of values and exact deltas, by PyTorch's double backward."""
    u = u.detach().requires_grad_()
    t = student(u)
    (slope,) = torch.autograd.grad(t.sum(), u, create_graph=True)
    return (t - targets.values).square().mean() + (slope - targets.jacobian[:, 0]).square().mean()


def by_hand_twice(student: torch.nn.Module, u: torch.Tensor, method: Method) -> torch.Tensor:
    """The loss with gammas in the same way, one more backward for each axis."""
    seen, units = method.targets, method.targets.directions.values.diagonal()
    u = u.detach().requires_grad_()
    t = student(u)
    (slope,) = torch.autograd.grad(t.sum(), u, create_graph=True)
    bends = [torch.autograd.grad(slope[:, j].sum(), u, create_graph=True)[0][:, j] for j in range(u.shape[1])]
    found = t, (slope * units).T[..., None], (torch.stack(bends, 1) * units**2).T[..., None]
    pairs = zip(method.settings["weights"], found, (seen.values, seen.tangents, seen.seconds), strict=True)
    return sum(weight * (f - wanted).square().mean() for weight, f, wanted in pairs)


def times(settings: Settings, console: Console) -> None:
    """Of a step with deltas, and with gammas."""
    rows, once = [], Method({"derivatives": "exact"})
    for d in ASSETS:
        generator = torch.Generator().manual_seed(0)
        market = Market.random(d, generator)
        x = market.spots(PLAN.batch, generator)
        paths = market.paths(x, market.noise(PLAN.batch, generator))
        scaler, u, targets = labels(x, paths)
        twice = with_gamma(scaler, targets, paths.gamma)
        first = sk.MLP(d, 1, width=WIDTH, depth=DEPTH, activation="softplus")
        for name, method, hand in (
            ("deltas", once, partial(by_hand, u=u, targets=targets)),
            ("deltas and gammas", twice, partial(by_hand_twice, u=u, method=twice)),
        ):
            step = f"{PLAN.batch} paths of {d} asset{'s' * (d > 1)}, {name}"
            rows.append({"step": step, **times_of_ways(first, method, u, targets, hand)})
    report_times(rows, settings, NAME, console)


def main(
    settings: Settings, only_times: Annotated[bool, typer.Option("--times", help="Only the times of a step.")] = False
) -> None:
    console = Console()
    if only_times:
        return times(settings, console)
    cases = cases_of(settings)
    records, drawn = trials(run_case, cases, settings, NAME, console)
    rows = summarise(records, ("d", "N"), METRICS)
    title = "Basket call, learnt from one path per input"
    print_lines(title, rows, METRICS, console, settings, "relative: 1 is as bad as the mean")
    print_verdict(rows, console)
    case, lines = next(iter(drawn.items()))
    report(rows, draw(rows, case, lines), settings, NAME, console)
    return None

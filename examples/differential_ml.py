"""Differential machine learning: the price and the deltas of a basket option, learnt from one path per input.

The setting of Huge and Savine, "Differential Machine Learning" (2020, arXiv:2005.02347). The inputs are the spots x of
d assets one year from today; the option pays max(0, a·S - K) another year later, on the basket a·S of the assets. Of
each input one path is simulated. Its label is the payoff of this path, an unbiased but very noisy sample of the price
of x; its derivative label is the pathwise derivative ∂y/∂x, a sample of the deltas, from the same path at no cost.

The assets are Gaussian (Bachelier) with random correlations, volatilities and basket weights, scaled to a basket
volatility of 0.2; all spots are 1 today, the strike is 1.1 and the interest rate 0, so that the discount factor is 1.
The volatility of the first year is multiplied by 1.5, for more inputs in the wings. The basket being one normal
variable, price and deltas have a closed form: the truth of the tests, which no student sees.

Three students, softplus MLPs of 4 x 20 with the same first weights, are trained by `sobolev_kernels.fit`, for the same
epochs of Adam on the same mini-batches of 256, with one cycle of the learning rate up to 1e-2 and down to 0:

    ordinary    values alone
    Sobolev     values and derivatives, weights (1, 1)
    balanced    the same in the balance of Huge and Savine

As in the paper u = (x - mean x) / std x and t = (y - mean y) / std y, hence ∂t/∂u_j = (std x_j / std y) ∂y/∂x_j, which
is what `sobolev_kernels.Scaler` does. The balance measures every derivative in units of its own size, λ_j =
1 / rms(∂t/∂u_j), and weighs the means of the squared errors with 1 / (1 + d) and d / (1 + d). This is
`weights="differential-ml"`, for which `fit` takes the λ of the whole training set, as the paper does.

What is reported, on 4,096 held-out inputs: the root mean square (rms) of the error of the price over the standard
deviation of the price, and the rms length of the error of the deltas over that of their deviation from the mean. So 1
is as bad as predicting the mean. A seed draws everything anew: market, paths, first weights and held-out inputs. The
number of steps is about the best one for the ordinary student, over all rows; with more of them it fits the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from experiment import (
    COLOURS,
    METHODS,
    VALUES_ALONE,
    Plan,
    Result,
    bare,
    cores,
    dumbbells,
    figure_of,
    legend_of,
    options_of,
    parser_of,
    predictions,
    print_table,
    report,
    summarise,
    trainings,
)
from rich.console import Console

import sobolev_kernels as sk

STUDENTS = ("ordinary", "sobolev", "balanced")
METRICS = ("price", "delta")
ASSETS = (1, 5, 20)
SIZES = (1024, 8192)
STRIKE, VOLATILITY, WINGS = 1.1, 0.2, 1.5
WIDTH, DEPTH, TEST, DRAWN = 20, 4, 4096, 500
PLAN = Plan(batch=256, lr=1e-2, schedule="one-cycle")
LOSSES = {
    "ordinary": VALUES_ALONE,
    "sobolev": sk.SobolevLoss(derivatives="exact"),
    "balanced": sk.SobolevLoss(derivatives="exact", weights="differential-ml"),
}


@dataclass(frozen=True)
class Case:
    """One market, and on it one training of each student."""

    d: int
    N: int
    seed: int
    steps: int


# The d and N whose predictions are drawn, at the first seed.
SHOWN = (20, 8192)


@dataclass(frozen=True)
class Market:
    """Gaussian assets, 1 today, and a call on their basket."""

    basket: torch.Tensor  # weights a [d], of sum 1
    factor: torch.Tensor  # Cholesky factor [d, d] of the covariance of the spots over a year

    @classmethod
    def random(cls, d: int, generator: torch.Generator) -> Market:
        """As Huge and Savine draw it: weights 1 to 10 and volatilities 5 to 50, before they are scaled."""

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        mixing, basket, volatility = uniform(-1, 1, 2 * d, d), uniform(1, 10, d), uniform(5, 50, d)
        basket = basket / basket.sum()
        mixing = mixing / mixing.norm(dim=0) * volatility
        covariance = mixing.T @ mixing
        covariance = covariance * VOLATILITY**2 / (basket @ covariance @ basket)
        return cls(basket, torch.linalg.cholesky(covariance))

    def noise(self, N: int, generator: torch.Generator) -> torch.Tensor:
        """Standard normal numbers [N, d], enough for a year of N paths."""
        return torch.randn(N, len(self.basket), generator=generator, dtype=torch.float64)

    def spots(self, N: int, generator: torch.Generator) -> torch.Tensor:
        """Inputs [N, d]: the spots of a year from today."""
        return 1 + WINGS * self.noise(N, generator) @ self.factor.T

    def payoffs(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One path from each x [N, d], driven by noise [N, d]: payoffs [N] and pathwise derivatives [N, d]."""
        gain = (x + noise @ self.factor.T) @ self.basket - STRIKE
        return gain.clamp(min=0), (gain > 0)[:, None] * self.basket

    def prices(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The closed form at x [N, d]: prices [N] and deltas [N, d]."""
        k = (x @ self.basket - STRIKE) / VOLATILITY
        probability = torch.special.ndtr(k)
        density = torch.exp(-(k**2) / 2) / math.sqrt(2 * math.pi)
        return VOLATILITY * (k * probability + density), probability[:, None] * self.basket


def labels(x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor) -> tuple[sk.Scaler, torch.Tensor, sk.Targets]:
    """The units of paths with payoffs y [N] and pathwise derivatives dy [N, d], and what a student sees, in float32."""
    targets = sk.Targets(values=y[:, None], jacobian=dy[:, None, :])
    scaler = sk.Scaler().fit(x, targets)
    u, targets = scaler.transform(x, targets)
    return scaler, u.float(), targets.float()


def prices_of(scaler: sk.Scaler, student: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A student's prices [N] and deltas [N, d]."""
    t, dt = predictions(student, scaler.transform(x).float())
    return t.double() * scaler.y_scale + scaler.y_mean, dt * scaler.y_scale / scaler.x_scale


def relative_errors(
    prediction: tuple[torch.Tensor, torch.Tensor], truth: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    """Of prices [N] and deltas [N, d]: rms of the error over rms of the deviation from the mean."""
    pairs = zip(METRICS, prediction, truth, strict=True)
    return {metric: ((p - t).norm() / (t - t.mean(0)).norm()).item() for metric, p, t in pairs}


def run_case(case: Case) -> Result:
    generator = torch.Generator().manual_seed(case.seed)
    market = Market.random(case.d, generator)
    held_out, x = market.spots(TEST, generator), market.spots(case.N, generator)
    scaler, u, targets = labels(x, *market.payoffs(x, market.noise(case.N, generator)))
    torch.manual_seed(case.seed)
    first = sk.MLP(case.d, 1, width=WIDTH, depth=DEPTH, activation="softplus")
    students, ms = PLAN.train(first, LOSSES, u, targets, case.steps, case.seed)
    truth = market.prices(held_out)
    answers = {name: prices_of(scaler, student, held_out) for name, student in students.items()}
    errors = {(name, m): e for name, answer in answers.items() for m, e in relative_errors(answer, truth).items()}
    drawn = {}
    if (case.d, case.N, case.seed) == (*SHOWN, 0):
        asset = market.basket.argmax()
        for name, (prices, deltas) in {**answers, "truth": truth}.items():
            drawn[name] = torch.stack([prices, deltas[:, asset]])[:, :DRAWN].numpy()  # [2, DRAWN]
        drawn["basket"] = (held_out @ market.basket)[:DRAWN].numpy()
    return Result(case, errors, ms, drawn)


def print_verdict(rows: list[dict], console: Console) -> None:
    """What balance buys, or does not: ratios of the medians for each N, and trainings that balance won."""
    for d, metric in product(ASSETS, METRICS):
        some = [row for row in rows if row["d"] == d]
        seeds = sum(row["seeds"] for row in some)
        parts = []
        for other in STUDENTS[:-1]:
            ratios = ", ".join(f"{row[f'{metric}_ratio_to_{other}']:.2f}" for row in some)
            won = sum(row[f"{metric}_seeds_won_against_{other}"] for row in some)
            parts.append(f"{METHODS[other]} {ratios} (lost {won} of {seeds})")
        console.print(f"d = {d}, {metric} error over that of balanced: {'; '.join(parts)}", soft_wrap=True)


def draw_predictions(axes, drawn: dict[str, np.ndarray], student: str, metric: str) -> None:
    """A student's prices, or deltas with respect to one asset, at held-out inputs: points around the true line."""
    i = METRICS.index(metric)
    order = drawn["basket"].argsort()
    axes.scatter(drawn["basket"], drawn[student][i], s=6, color=COLOURS[student], lw=0)
    axes.plot(drawn["basket"][order], drawn["truth"][i][order], color="black", lw=1)
    axes.set(xlabel="basket", ylabel=metric if student == "ordinary" else None)
    bare(axes)


def draw(rows: list[dict], drawn: dict[str, np.ndarray]):
    figure = figure_of((13, 6.5))
    axes = figure.subplots(2, 4, width_ratios=(1, 1, 1, 1.4))
    cases = [f"{row['d']} asset{'s' if row['d'] > 1 else ''}\n{row['N']:,} paths" for row in rows]
    for i, metric in enumerate(METRICS):
        for axis, student in zip(axes[i], STUDENTS, strict=False):
            axis.sharey(axes[i, 0])
            axis.set_title(METHODS[student])
            draw_predictions(axis, drawn, student, metric)
        dumbbells(axes[i, 3], rows, cases, metric, STUDENTS)
        axes[i, 3].set(title=f"{metric} error, relative; medians of {rows[0]['seeds']} seeds")
        axes[i, 3].tick_params(axis="y", labelsize=9)
    figure.supxlabel(f"left: {SHOWN[0]} assets, {SHOWN[1]:,} paths; black: closed form. right: 1 is as bad as the mean")
    legend_of(figure, STUDENTS)
    return figure


def main() -> None:
    options = options_of(parser_of(__doc__, seeds=10, steps=300, files="differential_ml"))
    console, workers = Console(), 1 if options.quick else cores()
    cases = [Case(d, N, seed, options.steps) for seed, d, N in product(range(options.seeds), ASSETS, SIZES)]
    results, minutes = trainings(run_case, cases, len(STUDENTS), workers, console)
    keys = [{"d": d, "N": N} for d, N in product(ASSETS, SIZES)]
    rows = summarise(results, keys, STUDENTS, METRICS)
    title = "Basket call, learnt from one path per input"
    print_table(title, rows, ("d", "N"), STUDENTS, METRICS, workers, console)
    print_verdict(rows, console)
    figure = draw(rows, next(result.drawn for result in results if result.drawn))
    said = f"{len(STUDENTS) * len(cases)} trainings of {options.steps} steps or a little more in {minutes:.1f} min"
    report(rows, figure, options, "differential_ml", said, console)


if __name__ == "__main__":
    main()

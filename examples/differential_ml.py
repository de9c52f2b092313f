"""Differential machine learning: the price and the deltas of a basket option, learnt from one path per input.

The setting of Huge and Savine, "Differential Machine Learning" (2020, arXiv:2005.02347). The inputs are the spots x of
d assets one year from today; the option pays max(0, a·S - K) another year later, on the basket a·S of the assets. Of
each input one path is simulated. Its label is the payoff of this path, an unbiased but very noisy sample of the price
of x; its derivative label is the pathwise derivative ∂y/∂x, a sample of the deltas, from the same path at no cost.

The assets are Gaussian (Bachelier) with random correlations, volatilities and basket weights, scaled to a basket
volatility of 0.2; all spots are 1 today, the strike is 1.1 and the interest rate 0, so that the discount factor is 1.
The volatility of the first year is multiplied by 1.5, for more inputs in the wings. The basket being one normal
variable, price and deltas have a closed form: the truth of the tests, which no student sees.

Three students, softplus MLPs of 4 x 20 with the same first weights, take the same number of Adam steps on the same
mini-batches of 256, with one cycle of the learning rate up to 1e-2 and down to 0:

    ordinary    values alone, with plain PyTorch
    Sobolev     values and derivatives with `sobolev_kernels`, weights (1, 1)
    balanced    the same in the balance of Huge and Savine

As in the paper u = (x - mean x) / std x and t = (y - mean y) / std y, hence ∂t/∂u_j = (std x_j / std y) ∂y/∂x_j. The
balance measures every derivative in units of its own size, λ_j = 1 / rms(∂t/∂u_j), and weighs the means of the
squared errors with 1 / (1 + d) and d / (1 + d). This is `weights="differential-ml"`, but for λ being that of the whole
training set, not of the mini-batch: it goes in as `input_scale`.

What is reported, on 4,096 held-out inputs: the root mean square (rms) of the error of the price over the standard
deviation of the price, and the rms length of the error of the deltas over that of their deviation from the mean. So 1
is as bad as predicting the mean. A seed draws everything anew: market, paths, first weights and held-out inputs. The
number of steps is about the best one for the ordinary student, over all rows; with more of them it fits the noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from experiment import Data, cores, mark_quartiles, options_of, parser_of, quartiles_of, side_by_side, write_csv
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sobolev_kernels as sk

STUDENTS = {"ordinary": "ordinary", "sobolev": "Sobolev", "balanced": "balanced Sobolev"}
OTHERS = ("ordinary", "sobolev")
METRICS = ("price", "delta")
ASSETS = (1, 5, 20)
SIZES = (1024, 8192)
STRIKE, VOLATILITY, WINGS = 1.1, 0.2, 1.5
WIDTH, DEPTH, BATCH, TEST, DRAWN = 20, 4, 256, 4096, 500
LEARNING_RATE = 1e-2

Loss = Callable[[torch.nn.Module, Data], torch.Tensor]


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
class Result:
    """Of one case: the errors and the time of a step by student, and the predictions if they are to be drawn."""

    case: Case
    errors: dict[tuple[str, str], float]
    ms: dict[str, float]
    predictions: dict[str, np.ndarray]


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


@dataclass(frozen=True)
class Scaling:
    """The normalisation of the docstring above."""

    x_mean: torch.Tensor  # [d]
    x_std: torch.Tensor  # [d]
    y_mean: torch.Tensor
    y_std: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> Scaling:
        return cls(x.mean(0), x.std(0), y.mean(), y.std())

    def data(self, x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor) -> Data:
        """What a student sees of inputs [N, d], payoffs [N] and pathwise derivatives [N, d], in float32."""
        u = (x - self.x_mean) / self.x_std
        t = (y - self.y_mean) / self.y_std
        dt = dy * self.x_std / self.y_std
        return Data(u.float(), t[:, None].float(), dt[:, None, :].float())

    def prices(self, student: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A student's prices [N] and deltas [N, d], by plain autograd: the verdict does not rest on the library."""
        u = ((x - self.x_mean) / self.x_std).float().requires_grad_()
        t = student(u)[:, 0]
        dt = torch.autograd.grad(t.sum(), u)[0]
        return t.detach().double() * self.y_std + self.y_mean, dt * self.y_std / self.x_std


def losses(data: Data) -> dict[str, Loss]:
    """The loss of each student; the ordinary one is plain PyTorch, whose step is the faster one at this size."""
    d = data.u.shape[1]
    rms = data.dt.square().mean((0, 1)).sqrt()  # [d]
    unbalanced = sk.SobolevLoss(derivatives="exact", weights=(1.0, 1.0))
    balanced = sk.SobolevLoss(derivatives="exact", weights=(1 / (1 + d), d / (1 + d)), input_scale=1 / rms)

    def sobolev(loss: sk.SobolevLoss) -> Loss:
        return lambda student, batch: loss(student, batch.u, sk.Targets(values=batch.t, jacobian=batch.dt))

    return {
        "ordinary": lambda student, batch: torch.nn.functional.mse_loss(student(batch.u), batch.t),
        "sobolev": sobolev(unbalanced),
        "balanced": sobolev(balanced),
    }


def batches(data: Data, generator: torch.Generator) -> Iterator[Data]:
    """Without end, epoch after epoch of shuffled mini-batches."""
    while True:
        yield from data.epoch(BATCH, generator)


def train(student: torch.nn.Module, loss_of: Loss, data: Data, steps: int, seed: int) -> float:
    """Fit the student in place; milliseconds per step."""
    optimizer = torch.optim.Adam(student.parameters(), LEARNING_RATE, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, cycle_momentum=False)
    source = batches(data, torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(student, next(source)).backward()
        optimizer.step()
        cycle.step()
    return (time.perf_counter() - start) / steps * 1e3


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
    y, dy = market.payoffs(x, market.noise(case.N, generator))
    scaling = Scaling.of(x, y)
    data = scaling.data(x, y, dy)
    torch.manual_seed(case.seed)
    first = sk.MLP(case.d, 1, width=WIDTH, depth=DEPTH, activation="softplus")
    ms, answers = {}, {"truth": market.prices(held_out)}
    for name, loss_of in losses(data).items():
        student = deepcopy(first)
        ms[name] = train(student, loss_of, data, case.steps, case.seed)
        answers[name] = scaling.prices(student, held_out)
    errors = {}
    for name in STUDENTS:
        errors |= {(name, m): error for m, error in relative_errors(answers[name], answers["truth"]).items()}
    predictions = {}
    if (case.d, case.N, case.seed) == (*SHOWN, 0):
        asset = market.basket.argmax()
        for name, (prices, deltas) in answers.items():
            predictions[name] = torch.stack([prices, deltas[:, asset]])[:, :DRAWN].numpy()  # [2, DRAWN]
        predictions["basket"] = (held_out @ market.basket)[:DRAWN].numpy()
    return Result(case, errors, ms, predictions)


def summarise(results: list[Result]) -> list[dict]:
    """One row for each d and N: quartiles over the seeds, and how many seeds the balanced student won."""
    rows = []
    for d, N in product(ASSETS, SIZES):
        group = [result for result in results if (result.case.d, result.case.N) == (d, N)]
        row = {"d": d, "N": N, "seeds": len(group)}
        for metric in METRICS:
            errors = {s: np.array([r.errors[s, metric] for r in group]) for s in STUDENTS}
            for student in STUDENTS:
                row |= quartiles_of(f"{student}_{metric}", errors[student])
            for other in OTHERS:
                row[f"{metric}_seeds_won_against_{other}"] = int((errors["balanced"] < errors[other]).sum())
        row |= {f"{s}_ms_per_step": float(np.median([r.ms[s] for r in group])) for s in STUDENTS}
        rows.append(row)
    return rows


def print_table(rows: list[dict], workers: int, console: Console) -> None:
    caption = (
        "ord.: ordinary, Sob.: Sobolev, bal.: balanced Sobolev; errors are medians relative to the spread; "
        f"ms: of a training step, Adam included, on one thread, trainings side by side: {workers}"
    )
    table = Table(box=None, padding=(0, 1, 0, 0), caption=caption, title="Basket call, learnt from one path per input")
    groups = product(("price", "delta", "ms"), ("ord.", "Sob.", "bal."))
    for header in ("d", "N", *map("\n".join, groups)):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row["d"]), str(row["N"])]
        for metric in METRICS:
            medians = [row[f"{student}_{metric}_median"] for student in STUDENTS]
            cells += [f"[{'green' if error == min(medians) else 'default'}]{error:.3f}[/]" for error in medians]
        cells += [f"{row[f'{student}_ms_per_step']:.2f}" for student in STUDENTS]
        table.add_row(*cells)
    console.print(table)


def print_verdict(rows: list[dict], console: Console) -> None:
    """What balance buys, or does not: ratios of the medians for each N, and trainings that balance won."""
    for d, metric in product(ASSETS, METRICS):
        some = [row for row in rows if row["d"] == d]
        seeds = sum(row["seeds"] for row in some)
        parts = []
        for other in OTHERS:
            ratios = (row[f"{other}_{metric}_median"] / row[f"balanced_{metric}_median"] for row in some)
            won = sum(row[f"{metric}_seeds_won_against_{other}"] for row in some)
            parts.append(f"{STUDENTS[other]} {', '.join(f'{ratio:.2f}' for ratio in ratios)} (lost {won} of {seeds})")
        console.print(f"d = {d}, {metric} error over that of balanced: {'; '.join(parts)}", soft_wrap=True)


STYLE = {"ordinary": "tab:orange", "sobolev": "tab:green", "balanced": "tab:blue"}


def draw_predictions(axes, predictions: dict[str, np.ndarray], student: str, metric: str) -> None:
    """A student's prices, or deltas with respect to one asset, at held-out inputs: points around the true line."""
    i = METRICS.index(metric)
    order = predictions["basket"].argsort()
    axes.scatter(predictions["basket"], predictions[student][i], s=4, color=STYLE[student], lw=0)
    axes.plot(predictions["basket"][order], predictions["truth"][i][order], color="black", lw=1)
    axes.set(xlabel="basket", ylabel=metric if student == "ordinary" else None)
    axes.grid(alpha=0.3)


def draw_errors(axes, rows: list[dict], metric: str) -> None:
    """Medians, with bars from the first to the third quartile: three marks for each d and N."""
    for i, student in enumerate(STUDENTS):
        style = {"fmt": "o", "color": STYLE[student], "label": STUDENTS[student]}
        mark_quartiles(axes, rows, f"{student}_{metric}", (i - 1) * 0.2, **style)
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(range(len(rows)), [f"{row['d']}\n{row['N']}" for row in rows], fontsize=8)
    axes.set(xlabel="assets, paths", title=f"{metric} error, relative")


def draw(rows: list[dict], predictions: dict[str, np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained", width_ratios=(1, 1, 1, 1.3))
    for i, metric in enumerate(METRICS):
        for axis, student in zip(axes[i], STUDENTS, strict=False):
            axis.sharey(axes[i, 0])
            axis.set_title(STUDENTS[student])
            draw_predictions(axis, predictions, student, metric)
        draw_errors(axes[i, 3], rows, metric)
    axes[1, 3].legend(fontsize=7, loc="upper left")
    figure.suptitle(f"Basket call on {SHOWN[0]} assets, learnt from {SHOWN[1]:,} paths; black: closed form")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    options = options_of(parser_of(__doc__, seeds=10, steps=300, files="differential_ml"))
    console = Console()
    start = time.perf_counter()
    cases = [Case(d, N, seed, options.steps) for seed, d, N in product(range(options.seeds), ASSETS, SIZES)]
    trainings = len(STUDENTS) * len(cases)
    workers = 1 if options.quick else cores()
    with Progress(console=console) as progress:
        results = list(
            progress.track(side_by_side(run_case, cases, workers), len(cases), description=f"{trainings} trainings")
        )
    rows = summarise(results)
    print_table(rows, workers, console)
    print_verdict(rows, console)
    write_csv(rows, options.out / "differential_ml.csv")
    draw(rows, next(r.predictions for r in results if r.predictions), options.out / "differential_ml.png")
    minutes = (time.perf_counter() - start) / 60
    console.print(f"{trainings} trainings of {options.steps} steps in {minutes:.1f} min", soft_wrap=True)
    files = " and ".join(str(options.out / f"differential_ml.{kind}") for kind in ("png", "csv"))
    console.print(f"see {files}", soft_wrap=True)


if __name__ == "__main__":
    main()

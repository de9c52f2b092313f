"""Values alone against values and gradients: the paper's regression experiment on seven functions.

This is `make demo`. Two students, the same MLP 2 -> 256 -> 256 -> 1 with the same first weights, see the same
random points of a function's box. The ordinary one fits the values; the Sobolev one fits values and gradient. Both are
trained by `sobolev_kernels.fit`, with the same number of Adam steps, the learning rate falling from 1e-3 to 0 along a
cosine, on all the points at once, or on mini-batches of 100 where there are 1,000.

What is scaled: with c and h the centre and the half widths of the box, mu and s the mean and the standard deviation
of the training values, the students learn t(u) = (f(c + h u) - mu) / s on u in [-1, 1]², and the gradients follow
both scalings: ∂t/∂u_d = (h_d / s) ∂f/∂x_d. The loss is mean (m - t)² + mean (∂m/∂u_d - ∂t/∂u_d)², the second mean
over the samples and both axes, with the weights 1 and 1 for every function.

What is reported, on 4,096 held-out points of the box: the root mean square (rms) of the error in t over the standard
deviation of t, and the rms length of the error in ∂t/∂u over the rms length of ∂t/∂u. So 1 is as bad as predicting
the mean, or a zero gradient. The table has medians over the seeds; the CSV and the picture have the quartiles too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from experiment import (
    VALUES_ALONE,
    Plan,
    Result,
    cores,
    dumbbells,
    figure_of,
    legend_of,
    name_ticks,
    options_of,
    parser_of,
    predictions,
    print_table,
    report,
    seeds_of,
    summarise,
    trainings,
)
from functions import FUNCTIONS, Function
from rich.console import Console

import sobolev_kernels as sk

ACTIVATIONS = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
DIRECTIONS = {"basis": sk.Directions.basis(), "sphere": sk.Directions.sphere(1)}
STUDENTS = ("ordinary", "sobolev")
METRICS = ("value", "gradient")
SIZES = (20, 100, 1000)
WIDTH, TEST, GRID = 256, 4096, 121
PLAN = Plan(batch=100, lr=1e-3, schedule="cosine")
TEST_SEED = 2**40


@dataclass(frozen=True)
class Pair:
    """Two trainings, one for each student, that share points, first weights and mini-batches."""

    function: str
    activation: str
    N: int
    seed: int
    steps: int
    directions: str


# The pair whose errors are drawn as maps, at the first seed.
SHOWN = ("Styblinski-Tang", "tanh", 100)


def scaler_of(function: Function, x: torch.Tensor) -> sk.Scaler:
    """The scalings of the docstring above: of the box, and of the values at x."""
    lower, upper = torch.tensor((function.lower, function.upper), dtype=torch.float64)
    scaler = sk.Scaler().fit(x, sk.Targets(values=function.formula(x)))
    scaler.x_mean, scaler.x_scale = (upper + lower) / 2, (upper - lower) / 2
    return scaler


def data_of(scaler: sk.Scaler, function: Function, x: torch.Tensor) -> tuple[torch.Tensor, sk.Targets]:
    """What a student sees at x [N, 2], in float32."""
    y, dy = function.values_and_gradients(x)
    u, targets = scaler.transform(x, sk.Targets(values=y[:, None], jacobian=dy[:, None, :]))
    return u.float(), targets.float()


def make_student(activation: str) -> torch.nn.Sequential:
    sigma = ACTIVATIONS[activation]
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(2, WIDTH), sigma(), linear(WIDTH, WIDTH), sigma(), linear(WIDTH, 1))


def root_mean_square(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_errors(student: torch.nn.Module, u: torch.Tensor, targets: sk.Targets) -> dict[str, float]:
    y, dy = predictions(student, u)
    t, dt = targets.values[:, 0], targets.jacobian[:, 0]
    return {
        "value": root_mean_square(y - t) / t.std().item(),
        "gradient": root_mean_square((dy - dt).norm(dim=1)) / root_mean_square(dt.norm(dim=1)),
    }


def grid() -> torch.Tensor:
    """Points of the square [-1, 1]² [GRID, GRID, 2]."""
    axis = torch.linspace(-1, 1, GRID, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)


def run_pair(pair: Pair) -> Result:
    function = FUNCTIONS[pair.function]
    generator = torch.Generator().manual_seed(TEST_SEED)
    held_out = function.sample(TEST, generator)
    torch.manual_seed(pair.seed)
    x = function.sample(pair.N)
    scaler = scaler_of(function, x)
    test = data_of(scaler, function, held_out)
    losses = {"ordinary": VALUES_ALONE, "sobolev": sk.SobolevLoss(directions=DIRECTIONS[pair.directions])}
    first = make_student(pair.activation)
    students, ms = PLAN.train(first, losses, *data_of(scaler, function, x), pair.steps, pair.seed)
    errors = {(name, m): error for name, s in students.items() for m, error in test_errors(s, *test).items()}
    drawn = {}
    if (pair.function, pair.activation, pair.N) == SHOWN and pair.seed == 0:
        with torch.no_grad():
            drawn = {name: student(grid().float())[..., 0].numpy() for name, student in students.items()}
        drawn = {name: surface * scaler.y_scale.item() + scaler.y_mean.item() for name, surface in drawn.items()}
        drawn["points"] = x.numpy()
    return Result(pair, errors, ms, drawn)


def print_verdict(rows: list[dict], console: Console) -> None:
    """Who won, for each N, and where Sobolev training lost."""
    for N, metric in product(SIZES, METRICS):
        some = [row for row in rows if row["N"] == N]
        won = sum(row[f"{metric}_seeds_won_against_ordinary"] for row in some)
        seeds = sum(row["seeds"] for row in some)
        lost = [f"{row['function']} {row['activation']}" for row in some if not row[f"{metric}_ratio_to_ordinary"] > 1]
        line = f"N = {N}, {metric}: Sobolev wins {len(some) - len(lost)} of {len(some)} rows, {won} of {seeds} pairs"
        console.print(line + (f"; loses {', '.join(lost)}" if lost else ""), soft_wrap=True)


def draw_maps(figure, axes, drawn: dict[str, np.ndarray]) -> None:
    """The function, and how far either student is from it, in one scale of colours."""
    name, activation, N = SHOWN
    function = FUNCTIONS[name]
    x = np.asarray(function.lower) + (grid().numpy() + 1) / 2 * np.subtract(function.upper, function.lower)
    truth = function.formula(torch.from_numpy(x)).numpy()
    errors = {student: np.abs(drawn[student] - truth) for student in STUDENTS}
    box = {"extent": (x[..., 0].min(), x[..., 0].max(), x[..., 1].min(), x[..., 1].max()), "origin": "lower"}
    shown = axes[0].imshow(truth.T, cmap="Greys", **box)
    axes[0].scatter(*drawn["points"].T, color="black", s=6)
    axes[0].set(title=f"{name}, {N} points")
    figure.colorbar(shown, ax=axes[0])
    largest = np.percentile(errors["ordinary"], 99)
    for axis, student in zip(axes[1:], STUDENTS, strict=True):
        shown = axis.imshow(errors[student].T, cmap="magma", vmin=0, vmax=largest, **box)
        axis.set(title=f"|error|, {'Sobolev' if student == 'sobolev' else student} ({activation})")
    figure.colorbar(shown, ax=axes[1:], extend="max")


def draw(rows: list[dict], drawn: dict[str, np.ndarray]):
    figure = figure_of((13, 12.5))
    axes = figure.subplots(3, 3)
    draw_maps(figure, axes[0], drawn)
    for i, metric in enumerate(METRICS):
        for axis, N in zip(axes[1 + i], SIZES, strict=True):
            for activation, shift in (("tanh", -0.16), ("relu", 0.16)):
                some = [row for row in rows if (row["N"], row["activation"]) == (N, activation)]
                dumbbells(axis, some, list(FUNCTIONS), metric, STUDENTS, hollow=activation == "relu", shift=shift)
            axis.set(title=f"{metric} error, N = {N}")
            if axis is not axes[1 + i, 0]:
                axis.set_yticklabels([])
        low, high = (f(axis.get_xlim()[j] for axis in axes[1 + i]) for j, f in enumerate((min, max)))
        for axis in axes[1 + i]:
            axis.set_xlim(low, high)
            name_ticks(axis)
    figure.supxlabel(f"{seeds_of(rows)}, relative: 1 is as bad as the mean, or a gradient of 0")
    legend_of(figure, STUDENTS, {"tanh": False, "relu": True})
    return figure


def main() -> None:
    parser = parser_of(__doc__, seeds=5, steps=1500, files="demo")
    parser.add_argument("--directions", choices=DIRECTIONS, default="basis", help="exact, or one random projection")
    options, console, workers = options_of(parser), Console(), cores()
    # Longest first, so that no worker is left with a long one at the end; the functions in turn.
    keys = product(reversed(SIZES), range(options.seeds), FUNCTIONS, ACTIVATIONS)
    pairs = [Pair(f, a, N, seed, options.steps, options.directions) for N, seed, f, a in keys]
    results, minutes = trainings(run_pair, pairs, len(STUDENTS), workers, console)
    names = ("function", "activation", "N")
    keys = [dict(zip(names, key, strict=True)) for key in product(FUNCTIONS, ACTIVATIONS, SIZES)]
    rows = summarise(results, keys, STUDENTS, METRICS)
    print_table("Ordinary and Sobolev training", rows, names, STUDENTS, METRICS, workers, console)
    print_verdict(rows, console)
    figure = draw(rows, next(result.drawn for result in results if result.drawn))
    said = f"{len(STUDENTS) * len(pairs)} trainings of {options.steps} steps in {minutes:.1f} min"
    report(rows, figure, options, "demo", said, console)


if __name__ == "__main__":
    main()

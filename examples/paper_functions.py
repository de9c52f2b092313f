"""Values alone against values and gradients: the paper's regression experiment on seven functions.

This is `make demo`. Two students, the same MLP 2 -> 256 -> 256 -> 1 with the same first weights, see the same
random points of a function's box. The ordinary one fits the values with plain PyTorch; the Sobolev one fits values
and gradient with `sobolev_kernels.SobolevLoss`. Both take the same number of Adam steps, the learning rate falling
from 1e-3 to 0 along a cosine, on all the points at once, or on mini-batches of 100 where there are 1,000.

What is scaled: with c and h the centre and the half widths of the box, mu and s the mean and the standard deviation
of the training values, the students learn t(u) = (f(c + h u) - mu) / s on u in [-1, 1]², and the gradients follow
both scalings: ∂t/∂u_d = (h_d / s) ∂f/∂x_d. The loss is mean (m - t)² + mean (∂m/∂u_d - ∂t/∂u_d)², the second mean
over the samples and both axes, with the weights 1 and 1 for every function.

What is reported, on 4,096 held-out points of the box: the root mean square (rms) of the error in t over the standard
deviation of t, and the rms length of the error in ∂t/∂u over the rms length of ∂t/∂u. So 1 is as bad as predicting
the mean, or a zero gradient. The table has medians over the seeds; the CSV and the picture have the quartiles too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from experiment import Data, cores, mark_quartiles, options_of, parser_of, quartiles_of, side_by_side, write_csv
from functions import FUNCTIONS, Function
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sobolev_kernels as sk

ACTIVATIONS = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
DIRECTIONS = {"basis": sk.Directions.basis(), "sphere": sk.Directions.sphere(1)}
STUDENTS = ("ordinary", "sobolev")
METRICS = ("value", "gradient")
SIZES = (20, 100, 1000)
WIDTH, BATCH, TEST, GRID = 256, 100, 4096, 61
LEARNING_RATE = 1e-3
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


# The pair whose surfaces are drawn, at the first seed.
SHOWN = ("Styblinski-Tang", "tanh", 100)


@dataclass(frozen=True)
class Result:
    """Of one pair: the errors and the time of a step by student, and the learnt surfaces if they are to be drawn."""

    pair: Pair
    errors: dict[tuple[str, str], float]
    ms: dict[str, float]
    surfaces: dict[str, np.ndarray]


@dataclass(frozen=True)
class Scaling:
    """The scalings of the docstring above."""

    centre: torch.Tensor  # [2]
    half: torch.Tensor  # [2]
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, function: Function, x: torch.Tensor) -> Scaling:
        lower, upper = torch.tensor((function.lower, function.upper), dtype=torch.float64)
        y = function.formula(x)
        return cls((upper + lower) / 2, (upper - lower) / 2, y.mean(), y.std())

    def data(self, function: Function, x: torch.Tensor) -> Data:
        """What a student sees at x [N, 2], in float32."""
        y, dy = function.values_and_gradients(x)
        u = (x - self.centre) / self.half
        t = (y - self.mean) / self.std
        dt = dy * self.half / self.std
        return Data(u.float(), t[:, None].float(), dt[:, None, :].float())


def make_student(activation: str) -> torch.nn.Sequential:
    sigma = ACTIVATIONS[activation]
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(2, WIDTH), sigma(), linear(WIDTH, WIDTH), sigma(), linear(WIDTH, 1))


def batches(data: Data, generator: torch.Generator) -> Iterator[Data]:
    """Without end: all the data if there is little, else epoch after epoch of shuffled mini-batches."""
    while len(data.u) <= BATCH:
        yield data
    while True:
        yield from data.epoch(BATCH, generator)


def train(student: torch.nn.Module, loss_of, data: Data, steps: int, seed: int) -> float:
    """Fit the student in place; milliseconds per step."""
    optimizer = torch.optim.Adam(student.parameters(), LEARNING_RATE, fused=True)
    source = batches(data, torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * i / steps))
        optimizer.zero_grad()
        loss_of(student, next(source)).backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps * 1e3


def losses(directions: str) -> dict:
    """The loss of each student; the ordinary one is plain PyTorch, whose step is the faster one at this size."""
    sobolev = sk.SobolevLoss(directions=DIRECTIONS[directions], weights=(1.0, 1.0))
    return {
        "ordinary": lambda student, batch: torch.nn.functional.mse_loss(student(batch.u), batch.t),
        "sobolev": lambda student, batch: sobolev(student, batch.u, sk.Targets(values=batch.t, jacobian=batch.dt)),
    }


def root_mean_square(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_errors(student: torch.nn.Module, test: Data) -> dict[str, float]:
    """By plain autograd, so that the verdict does not rest on the library."""
    u = test.u.clone().requires_grad_()
    y = student(u)  # [N, 1]
    dy = torch.autograd.grad(y.sum(), u)[0]  # [N, 2]
    dt = test.dt[:, 0, :]
    return {
        "value": root_mean_square(y.detach() - test.t) / test.t.std().item(),
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
    scaling = Scaling.of(function, x)
    data, test = scaling.data(function, x), scaling.data(function, held_out)
    first = make_student(pair.activation)
    errors, ms, surfaces = {}, {}, {}
    for name, loss_of in losses(pair.directions).items():
        student = deepcopy(first)
        ms[name] = train(student, loss_of, data, pair.steps, pair.seed)
        errors |= {(name, metric): error for metric, error in test_errors(student, test).items()}
        if (pair.function, pair.activation, pair.N) == SHOWN and pair.seed == 0:
            with torch.no_grad():
                surface = student(grid().float()).squeeze(-1)  # [GRID, GRID]
            surfaces[name] = (surface * scaling.std + scaling.mean).numpy()
    if surfaces:
        surfaces["points"] = torch.cat([x, function.formula(x)[:, None]], 1).numpy()  # [N, 3]
    return Result(pair, errors, ms, surfaces)


def summarise(results: list[Result]) -> list[dict]:
    """One row for each function, activation and N: quartiles over the seeds, ratio of the medians, seeds won."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault((result.pair.function, result.pair.activation, result.pair.N), []).append(result)
    rows = []
    for key in product(FUNCTIONS, ACTIVATIONS, SIZES):
        group = groups[key]
        row = dict(zip(("function", "activation", "N"), key, strict=True)) | {"seeds": len(group)}
        for metric in METRICS:
            errors = {s: np.array([r.errors[s, metric] for r in group]) for s in STUDENTS}
            for student in STUDENTS:
                row |= quartiles_of(f"{student}_{metric}", errors[student])
            # of the medians, above 1 where Sobolev training is better
            row[f"{metric}_ratio"] = row[f"ordinary_{metric}_median"] / row[f"sobolev_{metric}_median"]
            row[f"{metric}_seeds_won"] = int((errors["sobolev"] < errors["ordinary"]).sum())
        row |= {f"{s}_ms_per_step": float(np.median([r.ms[s] for r in group])) for s in STUDENTS}
        rows.append(row)
    return rows


def print_table(rows: list[dict], workers: int, console: Console) -> None:
    caption = (
        "ord.: ordinary, Sob.: Sobolev; errors are medians relative to the test set; ratio: ord. / Sob.; "
        f"ms: of a training step, Adam included, on one thread, {workers} trainings side by side"
    )
    table = Table(box=None, padding=(0, 1, 0, 0), caption=caption, title="Ordinary and Sobolev training")
    headers = [f"{metric}\n{column}" for metric in ("value", "grad.") for column in ("ord.", "Sob.", "ratio")]
    for header in ("function", "", "N", *headers, "ms\nord.", "ms\nSob."):
        table.add_column(header, justify="left" if header in ("function", "") else "right", no_wrap=True)
    for row in rows:
        cells = [row["function"], row["activation"], str(row["N"])]
        for metric in METRICS:
            cells += [f"{row[f'{student}_{metric}_median']:.2g}" for student in STUDENTS]
            ratio = row[f"{metric}_ratio"]
            cells.append(f"[{'green' if ratio > 1 else 'red'}]{ratio:.2f}[/]")
        cells += [f"{row[f'{student}_ms_per_step']:.2f}" for student in STUDENTS]
        table.add_row(*cells)
    console.print(table)


def print_verdict(rows: list[dict], console: Console) -> None:
    """Who won, for each N, and where Sobolev training lost."""
    for N, metric in product(SIZES, METRICS):
        some = [row for row in rows if row["N"] == N]
        won = sum(row[f"{metric}_seeds_won"] for row in some)
        trainings = sum(row["seeds"] for row in some)
        lost = [f"{row['function']} {row['activation']}" for row in some if not row[f"{metric}_ratio"] > 1]
        line = (
            f"N = {N}, {metric}: Sobolev wins {len(some) - len(lost)} of {len(some)} rows, {won} of {trainings} pairs"
        )
        console.print(line + (f"; loses {', '.join(lost)}" if lost else ""), soft_wrap=True)


def draw_surfaces(figure, surfaces: dict[str, np.ndarray]) -> None:
    name, activation, N = SHOWN
    function = FUNCTIONS[name]
    x = np.asarray(function.lower) + (grid().numpy() + 1) / 2 * np.subtract(function.upper, function.lower)
    truth = function.formula(torch.from_numpy(x)).numpy()
    titles = {
        "truth": f"{name}, {N} points",
        "ordinary": f"ordinary ({activation})",
        "sobolev": f"Sobolev ({activation})",
    }
    for i, (student, title) in enumerate(titles.items()):
        z = truth if student == "truth" else surfaces[student]
        axes = figure.add_subplot(3, 3, i + 1, projection="3d", computed_zorder=False)
        axes.plot_surface(x[..., 0], x[..., 1], z, cmap="viridis", vmin=truth.min(), vmax=truth.max(), lw=0)
        if student == "truth":
            axes.scatter(*surfaces["points"].T, color="black", s=4)
        axes.set(title=title, zlim=(truth.min(), truth.max()), xlabel="$x_1$", ylabel="$x_2$")


def draw_errors(axes, rows: list[dict], metric: str) -> None:
    """Medians, with bars from the first to the third quartile: four marks for each function."""
    style = {"ordinary": "tab:orange", "sobolev": "tab:blue"}
    marks = {"relu": "^", "tanh": "o"}
    for i, (activation, student) in enumerate(product(ACTIVATIONS, STUDENTS)):
        some = [row for row in rows if row["activation"] == activation]
        look = {"fmt": marks[activation], "color": style[student], "label": f"{student}, {activation}"}
        mark_quartiles(axes, some, f"{student}_{metric}", (i - 1.5) * 0.17, **look)
    axes.set_xticks(range(len(FUNCTIONS)), FUNCTIONS, rotation=40, ha="right", fontsize=8)
    axes.set(title=f"N = {rows[0]['N']}", ylabel=f"{metric} error, relative")


def draw(rows: list[dict], surfaces: dict[str, np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13, 13), layout="constrained")
    draw_surfaces(figure, surfaces)
    first = {}
    for place, (metric, N) in enumerate(product(METRICS, SIZES), start=4):
        row_of_axes = first.get(metric)
        axes = figure.add_subplot(3, 3, place, sharey=row_of_axes)
        first.setdefault(metric, axes)
        draw_errors(axes, [row for row in rows if row["N"] == N], metric)
    first["value"].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = parser_of(__doc__, seeds=5, steps=1500, files="demo")
    parser.add_argument("--directions", choices=DIRECTIONS, default="basis", help="exact, or one random projection")
    options = options_of(parser)
    console = Console()
    start = time.perf_counter()
    # Longest first, so that no worker is left with a long one at the end; the functions in turn.
    keys = product(reversed(SIZES), range(options.seeds), FUNCTIONS, ACTIVATIONS)
    pairs = [Pair(f, a, N, seed, options.steps, options.directions) for N, seed, f, a in keys]
    workers = cores()
    with Progress(*Progress.get_default_columns(), console=console) as progress:
        trained = side_by_side(run_pair, pairs, workers)
        results = list(progress.track(trained, len(pairs), description=f"{2 * len(pairs)} trainings"))
    rows = summarise(results)
    print_table(rows, workers, console)
    print_verdict(rows, console)
    write_csv(rows, options.out / "demo.csv")
    draw(rows, next(r.surfaces for r in results if r.surfaces), options.out / "demo.png")
    minutes = (time.perf_counter() - start) / 60
    console.print(f"{2 * len(pairs)} trainings of {options.steps} steps in {minutes:.1f} min", soft_wrap=True)
    console.print(f"see {options.out / 'demo.png'} and {options.out / 'demo.csv'}", soft_wrap=True)


if __name__ == "__main__":
    main()

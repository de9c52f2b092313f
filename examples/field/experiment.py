"""An implicit field: a picture learnt from few of its pixels, from values, from image gradients, and from both.

The student is a SIREN (Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions", 2020,
arXiv:2006.09661): layers of sin(ω z) with the initialization of that paper, from the coordinates of a pixel in [-1, 1]²
to its brightness. The picture is the cameraman that scikit-image ships, 512 x 512, smoothed by a Gaussian of 4 pixels:
so values and gradients, by the derivative of the same Gaussian, are those of one field, and pixels between those that
were learnt say how well it is known. Four methods with the same first weights and mini-batches:

    ordinary         values alone
    Sobolev          values and gradients, weights (1, 1)
    balanced         the same with `weights="differential-ml"`: gradients in units of their own size
    gradients alone  no values at all: the picture comes out but for a constant

What is reported, on pixels that no student saw: the root mean square of the error of the brightness over the deviation
of the picture, once its mean is taken off, which gradients alone cannot know; of the gradient over its own size; and
the first as a peak signal-to-noise ratio in decibels (PSNR, more is better). A seed draws pixels and first weights.
Width, frequency and learning rate were chosen with seeds below 1000; those of a run begin there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

import sobolev_kernels as sk
from examples.lab import (
    METHODS,
    Effort,
    Method,
    Outcome,
    Plan,
    Settings,
    compare,
    curves,
    figure_of,
    legend_of,
    maps,
    predictions,
    report,
    root_mean_square,
    rows_of,
    said_of_seeds,
    summarise,
    trials,
)
from examples.lab.lines import print_lines
from examples.lab.times import report_times
from examples.lab.training import STEPS, TIME, VALUES_ALONE
from examples.lab.ways import times_of_ways

NAME = "field"
STUDENTS = ("ordinary", "sobolev", "balanced", "gradients")
METRICS = ("value", "gradient", "psnr")
SIZES = (1024, 4096, 16384)
BLUR, TEST, FIRST_SEED = 4.0, 8192, 1000
WIDTH, DEPTH, OMEGA = 64, 3, 15.0
PLAN = Plan(batch=512, lr=2e-3, schedule="cosine")
COARSE = 4  # of the picture every fourth pixel is drawn


@dataclass(frozen=True)
class Case:
    """One choice of N pixels, and on it one training of each student."""

    N: int
    seed: int
    steps: int
    drawn: bool = False


class Picture(NamedTuple):
    """All pixels of a picture of n x n, in units of its deviation.

    Attributes:
        x: coordinates [n², 2] in [-1, 1], rows first.
        y: brightness [n², 1], of mean 0 and deviation 1.
        dy: its gradient [n², 2] with respect to x.
        peak: the largest brightness there can be less the least.
    """

    x: torch.Tensor
    y: torch.Tensor
    dy: torch.Tensor
    peak: float

    @property
    def side(self) -> int:
        return math.isqrt(len(self.x))


@lru_cache(maxsize=1)
def picture() -> Picture:
    try:
        from scipy.ndimage import gaussian_filter
        from skimage.data import camera
    except ImportError as error:
        raise SystemExit(f"The picture needs {error.name}: pip install 'sobolev_kernels[examples]'") from None
    pixels = camera().astype(float)
    n = len(pixels)
    values = gaussian_filter(pixels, BLUR)
    slopes = [gaussian_filter(pixels, BLUR, order=order) for order in ((1, 0), (0, 1))]
    side = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 / n) - 1
    x = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).flatten(0, 1)
    y = torch.from_numpy(values).flatten()[:, None]
    # a pixel is 2 / n wide
    dy = torch.from_numpy(np.stack(slopes, -1)).flatten(0, 1) * (n / 2)
    deviation = y.std(correction=0)
    return Picture(x.float(), ((y - y.mean()) / deviation).float(), (dy / deviation).float(), 255 / deviation.item())


def siren(seed: int) -> sk.MLP:
    """The first weights of a SIREN: of its first layer up to 1 / D, of others up to √(6 / n) / ω, which ω undoes."""
    generator = torch.Generator().manual_seed(seed)
    student = sk.MLP(2, 1, width=WIDTH, depth=DEPTH, activation=("sin", OMEGA))
    layers = [module for module in student if isinstance(module, nn.Linear)]
    for i, layer in enumerate(layers):
        largest = 1 / layer.in_features if i == 0 else math.sqrt(6 / layer.in_features) / OMEGA
        for parameter, bound in ((layer.weight, largest), (layer.bias, 1 / math.sqrt(layer.in_features))):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return student


def methods_of(dy: torch.Tensor) -> dict[str, Method]:
    exact = {"derivatives": "exact"}
    return {
        "ordinary": VALUES_ALONE,
        "sobolev": Method(exact),
        "balanced": Method(exact | {"weights": "differential-ml"}),
        "gradients": Method(exact | {"weights": (0.0, 1 / dy.square().mean().item())}),
    }


def split(seed: int, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels are for the test, and which N to learn from."""
    order = torch.randperm(len(picture().x), generator=torch.Generator().manual_seed(seed))
    return order[:TEST], order[TEST : TEST + N]


def errors(student: nn.Module, pixels: torch.Tensor) -> dict[str, float]:
    field = picture()
    y, dy = predictions(student, field.x[pixels])
    wrong = y - field.y[pixels, 0]
    value = root_mean_square(wrong - wrong.mean())
    gradient = root_mean_square(dy - field.dy[pixels]) / root_mean_square(field.dy[pixels])
    return {"value": value, "gradient": gradient, "psnr": 20 * math.log10(field.peak / value)}


def run_case(case: Case) -> Outcome:
    field = picture()
    test, pixels = split(case.seed, case.N)
    x, dy = field.x[pixels], field.dy[pixels]
    targets = sk.Targets(values=field.y[pixels], jacobian=dy[:, None])
    trainings = compare(siren(case.seed), methods_of(dy), x, targets, PLAN, case.steps, case.seed)
    records = [trained.record(**errors(trained.student, test)) for trained in trainings]
    if not case.drawn:
        return Outcome(records)
    shown = {t.method: predictions(t.student, coarse(field.x))[0] for t in trainings if t.budget == STEPS}
    shown["truth"] = coarse(field.y)[:, 0]
    side = math.isqrt(len(shown["truth"]))
    return Outcome(records, {name: (y - y.mean()).view(side, side).numpy() for name, y in shown.items()})


def coarse(pixels: torch.Tensor) -> torch.Tensor:
    """Every fourth pixel in both directions of [n², …]."""
    side = picture().side
    return pixels.view(side, side, -1)[::COARSE, ::COARSE].flatten(0, 1)


def print_verdict(rows: list[dict], console: Console) -> None:
    for budget, said in ((STEPS, "equal steps"), (TIME, "equal time")):
        parts = []
        for N in dict.fromkeys(row["N"] for row in rows):
            value, gradient = (
                {row["method"]: row[f"{metric}_median"] for row in rows_of(rows, N=N, budget=budget)}
                for metric in ("value", "gradient")
            )
            ratios = (found["ordinary"] / found["balanced"] for found in (value, gradient))
            parts.append("{:,} pixels: {:.2f} and {:.2f}".format(N, *ratios))
        console.print(
            f"Error of {METHODS['ordinary']} over that of {METHODS['balanced']}, at {said}, values and gradients: "
            f"{'; '.join(parts)}.", soft_wrap=True,
        )  # fmt: skip
    last = rows_of(rows, method="gradients", budget=STEPS)[-1]
    console.print(
        f"From the gradients of {last['N']:,} pixels alone the picture comes out within {last['value_median']:.1%} of "
        f"its deviation, {last['psnr_median']:.1f} dB, once its mean is given.", soft_wrap=True,
    )  # fmt: skip


def draw(rows: list[dict], case: Case, drawn: dict[str, np.ndarray]):
    figure = figure_of((12, 6.6))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    axes = above.subplots(1, 5)
    truth = drawn["truth"]
    bright = {"cmap": "gray", "vmin": truth.min(), "vmax": truth.max()}
    for axis, name, title in zip(axes, ("truth", "gradients"), ("the picture", "from gradients alone"), strict=False):
        axis.imshow(drawn[name], **bright)
        axis.set_title(title)
    wrong = {name: abs(drawn[name] - truth)[::-2, ::2] for name in ("ordinary", "balanced", "gradients")}
    maps(above, axes[2:], wrong, (-1, 1, -1, 1))
    for axis in axes:
        axis.set(xticks=[], yticks=[], aspect="equal")
    for axis, metric in zip(below.subplots(1, 2), ("value", "gradient"), strict=True):
        for budget, style in ((STEPS, "-"), (TIME, ":")):
            curves(axis, rows, "N", metric, STUDENTS, budget, style)
        axis.set(xlabel="pixels", ylabel=f"{metric} error, relative")
    below.supxlabel(
        f"above: one seed, {case.N:,} of {len(picture().x):,} pixels, equal steps, the mean taken off\nbelow: "
        f"{said_of_seeds(rows)}, bands between quartiles; solid: equal steps, dotted: equal time", fontsize=11,
    )  # fmt: skip
    legend_of(figure, STUDENTS)
    return figure


def by_hand(student: nn.Module, x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """The loss of values and gradients, by PyTorch's double backward."""
    x = x.detach().requires_grad_()
    found = student(x)
    (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    return (found - y).square().mean() + (slope - dy).square().mean()


def times(settings: Settings, console: Console) -> None:
    field = picture()
    _, pixels = split(0, PLAN.batch)
    x, y, dy = field.x[pixels], field.y[pixels], field.dy[pixels]
    targets, hand = sk.Targets(values=y, jacobian=dy[:, None]), partial(by_hand, x=x, y=y, dy=dy)
    step = f"{PLAN.batch} pixels, 2 -> {WIDTH} x {DEPTH} -> 1"
    found = times_of_ways(siren(0), Method({"derivatives": "exact"}), x, targets, hand)
    report_times([{"step": step, **found}], settings, NAME, console)


def cases_of(settings: Settings) -> list[Case]:
    sizes, steps = {Effort.full: (SIZES, 1500), Effort.short: (SIZES, 600), Effort.tiny: ((512,), 5)}[settings.effort]
    seeds = range(FIRST_SEED, FIRST_SEED + settings.seeds)
    shown = sizes[-1], FIRST_SEED
    return [Case(N, seed, steps, (N, seed) == shown) for seed, N in product(seeds, sizes)]


def main(
    settings: Settings, only_times: Annotated[bool, typer.Option("--times", help="Only the times of a step.")] = False
) -> None:
    console = Console()
    picture()  # or else what it needs
    if only_times:
        return times(settings, console)
    records, drawn = trials(run_case, cases_of(settings), settings, NAME, console)
    rows = summarise(records, ("N",), METRICS)
    note = "relative, the mean taken off; psnr: decibels, more is better"
    print_lines("A picture from N of its pixels", rows, METRICS, console, settings, note, higher=("psnr",))
    print_verdict(rows, console)
    case, pictures = next(iter(drawn.items()))
    report(rows, draw(rows, case, pictures), settings, NAME, console)
    return None

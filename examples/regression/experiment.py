"""Values alone against values and gradients: the paper's regression experiment on seven functions.

The short run of this is `make demo`. Students, the same MLP 2 -> 64 -> 64 -> 1 with the same first weights, see the
same random points of a function's box and learn from

    ordinary     the values
    Sobolev      values and gradient, exactly
    P = 1, 2     values and gradient, projected on so many random directions for each sample and step
    order 2      values, gradient and the second derivatives along both axes (tanh alone: of ReLU they are 0)
    shuffled     values and the gradients of other samples: a control, which must not help
    huber        as Sobolev, but errors of the gradient above 0.3 count linearly (derivative_loss=("huber", 0.3))
    balanced     as Sobolev, weighed and in the units of Huge and Savine (weights="differential-ml")
    validated    as Sobolev, with the weight of the derivatives, 0, 0.01, 0.1 or 1, that has the least error of values
                 on a fifth of the points, when trained on the others; then trained again on all

All are trained by `sobolev_kernels.fit` with Adam, the learning rate falling from 3e-3 to 0 along a cosine, on all the
points at once, or on mini-batches of 100 where there are more. At equal steps all have as many; at equal time as many
as fit into the time that Sobolev takes for them.

What is scaled: with c and h the centre and the half widths of the box, mu and s the mean and the standard deviation
of the training values, the students learn t(u) = (f(c + h u) - mu) / s on u in [-1, 1]², and the gradients follow
both scalings: ∂t/∂u_d = (h_d / s) ∂f/∂x_d. The loss is mean (m - t)² + mean (∂m/∂u_d - ∂t/∂u_d)², the second mean
over the samples and both axes, with the weights 1 and 1 for every function (and 0.1 of second derivatives).

What is reported, on 4,096 held-out points of the box: the root mean square (rms) of the error in t over the standard
deviation of t, and the rms length of the error in ∂t/∂u over the rms length of ∂t/∂u. So 1 is as bad as predicting
the mean, or a zero gradient. Tables have medians over the seeds; the CSV has the quartiles too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated

import torch
import typer
from rich.console import Console

import sobolev_kernels as sk
from examples.lab import (
    Effort,
    Method,
    Outcome,
    Plan,
    Settings,
    Trained,
    compare,
    predictions,
    report,
    root_mean_square,
    summarise,
    trials,
)
from examples.lab.training import STEPS, TIME, VALUES_ALONE, timed
from examples.regression.drawn import draw, draw_why, grid
from examples.regression.functions import FUNCTIONS, Function
from examples.regression.said import METRICS, measures_of, samples_table, say
from examples.regression.times import times

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
EXACT = {"derivatives": "exact"}
LOSSES = {
    "ordinary": VALUES_ALONE,
    "sobolev": Method(EXACT),
    "P = 1": Method({"directions": sk.Directions.sphere(1)}),
    "P = 2": Method({"directions": sk.Directions.sphere(2)}),
}
CURVED = {"directions": sk.Directions.basis(), "order": 2, "weights": (1.0, 1.0, 0.1)}
SIZES = (20, 100, 1000, 10_000)
WEIGHTS = (0.0, 0.01, 0.1, 1.0)
LOST = ("Ackley", "Bukin N.6")
# These are trained ten times longer too, where points are many, by as many seeds as that takes no hour.
LONGER, LONGER_SIZES, LONGER_SEEDS = (*LOST, "Styblinski-Tang"), (10_000, 1000), 3
WIDTH, TEST, TEST_SEED = 64, 4096, 2**40
PLAN = Plan(batch=100, lr=3e-3, schedule="cosine")
# What is drawn as maps of errors, at the first seed.
SHOWN = ("Styblinski-Tang", "tanh", 100)


@dataclass(frozen=True)
class Case:
    """All trainings that share points, first weights and mini-batches. Longer ones are of two methods."""

    function: str
    activation: str
    N: int
    seed: int
    steps: int
    longer: bool = False
    validated: bool = True


def scaler_of(function: Function, x: torch.Tensor) -> sk.Scaler:
    """The scalings of the docstring above: of the box, and of the values at x."""
    lower, upper = torch.tensor((function.lower, function.upper), dtype=torch.float64)
    scaler = sk.Scaler().fit(x, sk.Targets(values=function.formula(x)))
    scaler.x_mean, scaler.x_scale = (upper + lower) / 2, (upper - lower) / 2
    return scaler


def data_of(
    scaler: sk.Scaler, function: Function, x: torch.Tensor, order: int = 1
) -> tuple[torch.Tensor, sk.Targets]:  # fmt: skip
    """What a student sees at x [N, 2], in float32."""
    y, dy = function.values_and_gradients(x)
    hessian = function.hessians(x)[:, None] if order == 2 else None
    u, targets = scaler.transform(x, sk.Targets(values=y[:, None], jacobian=dy[:, None, :], hessian=hessian))
    return u.float(), targets.float()


def make_student(activation: str, width: int = WIDTH) -> torch.nn.Sequential:
    sigma, linear = ACTIVATIONS[activation], torch.nn.Linear
    return torch.nn.Sequential(linear(2, width), sigma(), linear(width, width), sigma(), linear(width, 1))


def test_errors(student: torch.nn.Module, u: torch.Tensor, targets: sk.Targets) -> dict[str, float]:
    y, dy = predictions(student, u)
    t, dt = targets.values[:, 0], targets.jacobian[:, 0]
    return {
        "value": root_mean_square(y - t) / t.std().item(),
        "gradient": root_mean_square((dy - dt).norm(dim=1)) / root_mean_square(dt.norm(dim=1)),
    }


@dataclass(frozen=True)
class Start:
    """What all trainings of a case begin with."""

    case: Case
    first: torch.nn.Module
    u: torch.Tensor
    targets: sk.Targets

    def train(self, name: str, method: Method, of: slice | torch.Tensor = slice(None)) -> Trained:
        u, targets, case = self.u[of], self.targets[of], self.case
        return timed(name, STEPS, self.first, method, u, targets, PLAN, case.steps, case.seed)

    def weighted(self, weight: float, of: slice | torch.Tensor = slice(None)) -> Trained:
        return self.train(f"weight {weight:g}", Method({**EXACT, "weights": (1.0, weight)}), of)


def run_case(case: Case) -> Outcome:
    function = FUNCTIONS[case.function]
    held_out = function.sample(TEST, torch.Generator().manual_seed(TEST_SEED))
    torch.manual_seed(case.seed)
    x = function.sample(case.N)
    scaler = scaler_of(function, x)
    test = data_of(scaler, function, held_out)
    start = Start(case, make_student(case.activation), *data_of(scaler, function, x))
    methods = dict(LOSSES)
    if case.longer:
        methods = {name: methods[name] for name in ("ordinary", "sobolev")}
    elif case.activation == "tanh":
        methods["order 2"] = Method(CURVED, targets=data_of(scaler, function, x, order=2)[1])
    trained = compare(start.first, methods, start.u, start.targets, PLAN, case.steps, case.seed, pace="sobolev")
    trained += like_sobolev(start)
    weights = {}
    if case.validated and not case.longer:
        more, weights = validated(start, trained)
        trained += more
    records = [t.record(**test_errors(t.student, *test), weight=weights.get(t.method)) for t in trained]
    return Outcome(records, drawn_of(case, scaler, x, trained))


def like_sobolev(start: Start) -> list[Trained]:
    """Methods whose step is the same as that of Sobolev, so that equal steps are equal time."""
    methods = {"huber": Method({**EXACT, "derivative_loss": ("huber", 0.3)})}
    if not start.case.longer:
        others = torch.randperm(start.case.N, generator=torch.Generator().manual_seed(start.case.seed))
        wrong = sk.Targets(values=start.targets.values, jacobian=start.targets.jacobian[others])
        methods["shuffled"] = Method(EXACT, wrong)
        methods["balanced"] = Method({**EXACT, "weights": "differential-ml"})
    trained = [start.train(name, method) for name, method in methods.items()]
    return [replace(t, budget=budget) for t in trained for budget in (STEPS, TIME)]


def validated(start: Start, trained: list[Trained]) -> tuple[list[Trained], dict[str, float]]:
    """Trainings on four fifths of the points with each weight, then one on all of them with that of the least error of
    values on the last fifth; and the weights by the names of the methods."""
    order = torch.randperm(start.case.N, generator=torch.Generator().manual_seed(start.case.seed))
    held, rest = order[: start.case.N // 5], order[start.case.N // 5 :]
    tried = {weight: start.weighted(weight, rest) for weight in WEIGHTS}
    u, values = start.u[held], start.targets.values[held]
    with torch.no_grad():
        errors = {weight: root_mean_square(t.student(u) - values) for weight, t in tried.items()}
    chosen = min(errors, key=errors.get)
    there = {0.0: "ordinary", 1.0: "sobolev"}.get(chosen)
    again = None if there else start.weighted(chosen)
    final = [again or next(t for t in trained if (t.method, t.budget) == (there, b)) for b in (STEPS, TIME)]
    named = [replace(t, method="validated", budget=budget) for t, budget in zip(final, (STEPS, TIME), strict=True)]
    return [*named, *tried.values()], {"validated": chosen}


def drawn_of(case: Case, scaler: sk.Scaler, x: torch.Tensor, trained: list[Trained]) -> dict:
    """The surfaces of the students that are shown, and the points they saw."""
    if (case.function, case.activation, case.N) != SHOWN or case.seed != 0 or case.longer:
        return {}
    with torch.no_grad():
        surfaces = {t.method: t.student(grid().float())[..., 0].numpy() for t in trained if t.budget == STEPS}
    y_scale, y_mean = scaler.y_scale.item(), scaler.y_mean.item()
    shown = {name: surfaces[name] * y_scale + y_mean for name in ("ordinary", "sobolev")}
    return shown | {"points": x.numpy()}


def sizes_of(settings: Settings) -> tuple[int, ...]:
    return {Effort.full: SIZES, Effort.short: SIZES[:3], Effort.tiny: SIZES[1:2]}[settings.effort]


def functions_of(settings: Settings) -> tuple[str, ...]:
    return LONGER if settings.effort == Effort.tiny else tuple(FUNCTIONS)


def cases_of(settings: Settings) -> list[Case]:
    """Seed by seed, so that a run that is stopped has all of some seeds; at last the longer ones."""
    effort, steps = settings.effort, 5 if settings.effort == Effort.tiny else 1000
    cases = []
    for seed, N in product(range(settings.seeds), reversed(sizes_of(settings))):
        for f, a in product(functions_of(settings), ACTIVATIONS):
            cases.append(Case(f, a, N, seed, steps, validated=effort == Effort.full or f in LOST))
    if effort == Effort.full:
        for seed in range(min(settings.seeds, LONGER_SEEDS)):
            keys = product(LONGER_SIZES, LONGER, ACTIVATIONS)
            cases += [Case(f, a, N, seed, 10 * steps, longer=True) for N, f, a in keys]
    return cases


OnlyTimes = Annotated[bool, typer.Option("--times", help="Time a step, and nothing else.")]


def main(settings: Settings, only_times: OnlyTimes = False) -> None:
    console = Console()
    console.width = max(console.width, 112 if settings.effort == Effort.full else 90)
    if only_times:
        named = {name: LOSSES[name] for name in ("ordinary", "sobolev", "P = 1")}
        times(make_student, {**named, "order 2": Method(CURVED)}, settings, console)
        return
    cases = cases_of(settings)
    records, drawn = trials(run_case, cases, settings, "regression", console)
    rows = summarise(records, ("function", "activation", "N", "longer"), (*METRICS, "weight"))
    keys = product(functions_of(settings), sizes_of(settings))
    measured = {(name, N): measures(FUNCTIONS[name], N) for name, N in keys}
    say(records, rows, measured, LOST, settings, console)
    report(samples_table(measured), draw_why(rows, measured, LOST), settings, "regression_why", console)
    report(rows, draw(rows, SHOWN, next(iter(drawn.values()))), settings, "regression", console)


def measures(function: Function, N: int) -> dict[str, float]:
    """What the gradients at N points are like: medians of five draws."""
    found = []
    for seed in range(5):
        x = function.sample(N, torch.Generator().manual_seed(seed))
        u, targets = data_of(scaler_of(function, x), function, x)
        found.append(measures_of(u, targets.jacobian[:, 0]))
    return {name: statistics.median(numbers[name] for numbers in found) for name in found[0]}

"""The examples: each runs, takes up what is there and goes on when it was interrupted; and what they learn is right.

An example is a row of `EXPERIMENTS`: it is run at `--effort tiny`, in this process.
"""

import csv
import importlib
import json
import math
import re
import runpy
import sys
from dataclasses import replace

import pytest
import torch

import sobolev_kernels as sk
from examples.differential_ml import experiment as differential_ml
from examples.differential_ml.baskets import STRIKE, VOLATILITY, WINGS, Greeks, Market
from examples.differential_ml.experiment import (
    ASSETS,
    GAMMA,
    by_hand_twice,
    greeks_of,
    labels,
    relative_errors,
    with_gamma,
)
from examples.field.experiment import OMEGA, picture, siren
from examples.lab import Effort, Method, Settings, fused
from examples.regression.experiment import CURVED, LOSSES, PLAN, SIZES, Case, Start, data_of, scaler_of, validated
from examples.regression.experiment import make_student as regression_student
from examples.regression.functions import FUNCTIONS
from examples.regression.said import measures_of, verdict
from examples.regression.times import by_hand as regression_by_hand
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE, ROUNDED_WITHIN

# How many trials a tiny run has; and how many trainings, at equal steps and at equal time, its table speaks of.
EXPERIMENTS = {
    "differential_ml": (2, 16),
    "field": (1, 8),
    "forces": (1, 14),
    "pde": (5, 16),
    "regression": (6, 114),
}
WITHIN = ROUNDED_WITHIN["rtol"]
LOOSE = CLOSE_IN_SINGLE

# Box, a global minimiser and the minimum there: Jamil and Yang, "A literature survey of benchmark functions" (2013);
# the boxes are the paper's.
LITERATURE = {
    "Styblinski-Tang": ((-5, 5), (-5, 5), (-2.903534, -2.903534), -78.332331),
    "Ackley": ((-5, 5), (-5, 5), (0, 0), 0),
    "Beale": ((-4.5, 4.5), (-4.5, 4.5), (3, 0.5), 0),
    "Booth": ((-10, 10), (-10, 10), (1, 3), 0),
    "Bukin N.6": ((-15, -5), (-3, 3), (-10, 1), 0),
    "McCormick": ((-1.5, 4), (-3, 4), (-0.547198, -1.547198), -1.913223),
    "Rosenbrock": ((-2, 2), (-2, 2), (1, 1), 0),
}
# Their minimum is a kink, where the gradient does not exist.
KINKED = ("Ackley", "Bukin N.6")


@pytest.fixture
def run_cases(monkeypatch) -> list:
    """The cases that were not there yet."""
    module, ran = importlib.import_module("examples.lab.trials"), []
    run = module.side_by_side

    def counting(function, cases, workers):
        for case, outcome in run(function, cases, workers):
            ran.append(case)
            yield case, outcome

    monkeypatch.setattr(module, "side_by_side", counting)
    return ran


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_from_its_beginning_again_and_interrupted(name, tmp_path, run_cases, capsys):
    example, settings = (
        importlib.import_module(f"examples.{name}.experiment"),
        Settings(Effort.tiny, 1, tmp_path, workers=1),
    )
    trials, trainings = EXPERIMENTS[name]
    kept, table, drawn = tmp_path / name / "trials.jsonl", tmp_path / f"{name}.csv", tmp_path / f"{name}.png"

    def rows_of_a_run() -> list[dict]:
        for path in (table, drawn):
            path.unlink(missing_ok=True)
        run_cases.clear()
        example.main(settings)
        said = capsys.readouterr().out
        assert "tiny run (--effort tiny)" in " ".join(said.split()) and str(table) in said.replace("\n", "")
        assert drawn.read_bytes().startswith(b"\x89PNG")
        with table.open() as file:
            rows = list(csv.DictReader(file))
        numbers = [float(v) for row in rows for key, v in row.items() if key.endswith("_median") and v]
        assert len(rows) == trainings and numbers and all(map(math.isfinite, numbers))
        assert {row["budget"] for row in rows} == {"steps", "time"}
        return rows

    first = rows_of_a_run()
    assert len(run_cases) == trials == len(kept.read_text().splitlines())
    assert rows_of_a_run() == first and not run_cases
    whole = kept.read_text()
    kept.write_text(whole[:-20])
    again = rows_of_a_run()
    assert len(run_cases) == 1 and [json.loads(line)["case"] for line in kept.read_text().splitlines()] == [
        json.loads(line)["case"] for line in whole.splitlines()
    ]
    assert [row["method"] for row in again] == [row["method"] for row in first]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_says_what_it_takes(name, monkeypatch, capsys):
    """In another process it would import torch once more."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"examples.{name}", run_name="__main__")
    said = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0 and re.search(r"On two cores: full \d+ (minutes|s), short \d+ (minute|s)", said)
    assert all(option in said for option in ("--effort", "--seeds", "--out", "--workers", "--fresh", "--times"))


@pytest.mark.long
def test_cases_side_by_side(tmp_path, capsys):
    """In two processes, which find the example by its name."""
    differential_ml.main(Settings(Effort.tiny, 1, tmp_path, workers=2))
    assert (tmp_path / "differential_ml.csv").exists() and "2 side by side" in capsys.readouterr().out


def float64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def points(name: str, N: int = 200) -> torch.Tensor:
    """Random points of the box, those of Bukin's function away from its curve."""
    x = FUNCTIONS[name].sample(2 * N, torch.Generator().manual_seed(5))
    if name == "Bukin N.6":
        x = x[(x[:, 1] - 0.01 * x[:, 0] ** 2).abs() > 0.05]
    return x[:N]


def finite_differences(f, x: torch.Tensor, step: float) -> torch.Tensor:
    """Central differences of fourth order [N, 2] of f, [N, 2] to [N]."""
    columns = []
    for axis in step * torch.eye(2, dtype=x.dtype):
        near, far = f(x + axis) - f(x - axis), f(x + 2 * axis) - f(x - 2 * axis)
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns, 1)


def test_the_paper_has_seven_functions():
    assert FUNCTIONS.keys() == LITERATURE.keys()


@pytest.mark.parametrize("name", LITERATURE)
def test_boxes_and_samples(name):
    first, second, _, _ = LITERATURE[name]
    function = FUNCTIONS[name]
    assert tuple(zip(function.lower, function.upper, strict=True)) == (first, second)
    x = function.sample(10_000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float64
    for column, (low, high) in zip(x.T, (first, second), strict=True):
        margin = 1e-3 * (high - low)
        assert low <= column.min() < low + margin and high - margin < column.max() <= high


def test_boxes_are_per_axis():
    """One box for both axes is how an earlier re-implementation went wrong."""
    differ = {name for name, f in FUNCTIONS.items() if (f.lower[0], f.upper[0]) != (f.lower[1], f.upper[1])}
    assert differ == {"Bukin N.6", "McCormick"}


@pytest.mark.parametrize("name", LITERATURE)
def test_known_minimum(name):
    *_, minimiser, minimum = LITERATURE[name]
    function = FUNCTIONS[name]
    x = float64(minimiser)
    torch.testing.assert_close(function.formula(x), float64(minimum), rtol=0, atol=1e-6)
    assert (function.formula(points(name)) > minimum).all()
    if name not in KINKED:
        gradient = function.values_and_gradients(x)[1]
        torch.testing.assert_close(gradient, torch.zeros_like(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LITERATURE)
def test_gradients_against_finite_differences(name):
    function, x = FUNCTIONS[name], points(name)
    y, dy = function.values_and_gradients(x)
    assert y.dtype == dy.dtype == torch.float64 and y.shape == (len(x),) and dy.shape == x.shape
    torch.testing.assert_close(y, function.formula(x))
    torch.testing.assert_close(dy, finite_differences(function.formula, x, 1e-4), rtol=1e-7, atol=1e-7)
    columns = [finite_differences(lambda x, d=d: function.values_and_gradients(x)[1][:, d], x, 1e-4) for d in range(2)]
    torch.testing.assert_close(function.hessians(x), torch.stack(columns, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LITERATURE)
def test_scaling_is_consistent(name):
    """Values of mean 0 and variance 1 on [-1, 1]², and gradients that are the slopes of just these values."""
    function, x = FUNCTIONS[name], points(name)
    scaler = scaler_of(function, x)
    u, targets = data_of(scaler, function, x)
    corners = torch.tensor((function.lower, function.upper), dtype=torch.float64)
    torch.testing.assert_close(scaler.transform(corners), float64(-1, -1, 1, 1).view(2, 2))
    torch.testing.assert_close(targets.values.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(targets.values.std(correction=0), torch.tensor(1.0))

    def t_of(u):
        return (function.formula(scaler.x_mean + scaler.x_scale * u) - scaler.y_mean) / scaler.y_scale

    slopes = finite_differences(t_of, scaler.transform(x), 1e-5).float()
    torch.testing.assert_close(targets.jacobian, slopes[:, None, :], **CLOSE_IN_SINGLE)
    assert u.dtype == targets.values.dtype == torch.float32


@pytest.mark.parametrize("N", SIZES)
def test_epochs_have_at_least_the_steps(N):
    for steps in (1, 10, 1500):
        a_epoch = -(-N // PLAN.batch)
        assert (PLAN.epochs(N, steps) - 1) * a_epoch < steps <= PLAN.epochs(N, steps) * a_epoch


def start_of(gradients_of_others: bool) -> Start:
    """Booth's function at 60 points."""
    function = FUNCTIONS["Booth"]
    x = function.sample(60, torch.Generator().manual_seed(0))
    u, targets = data_of(scaler_of(function, x), function, x)
    if gradients_of_others:
        targets = sk.Targets(values=targets.values, jacobian=10 * targets.jacobian.roll(7, 0))
    torch.manual_seed(0)
    return Start(Case("Booth", "tanh", 60, seed=0, steps=60), regression_student("tanh"), u, targets)


def test_weight_is_chosen_by_what_was_not_trained_on():
    """None of large derivatives of other samples, and some of right ones."""
    for wrong in (True, False):
        start = start_of(wrong)
        there = [start.train(name, LOSSES[name]) for name in ("ordinary", "sobolev")]
        trained = [replace(t, budget=budget) for t in there for budget in ("steps", "time")]
        more, weights = validated(start, trained)
        (weight,) = weights.values()
        assert (weight == 0) is wrong
        final = next(t for t in more if (t.method, t.budget) == ("validated", "steps"))
        assert weight in (0.01, 0.1) or final.student is trained[0 if wrong else 2].student


@pytest.mark.parametrize("name", ["ordinary", "sobolev", "order 2"])
def test_loss_by_hand_is_that_of_the_regression(name):
    method = {**LOSSES, "order 2": Method(CURVED)}[name]
    function = FUNCTIONS["McCormick"]
    x = function.sample(30, torch.Generator().manual_seed(0))
    u, targets = data_of(scaler_of(function, x), function, x, order=2 if name == "order 2" else 1)
    student = regression_student("tanh")
    loss = sk.SobolevLoss(**method.settings)(student, u, targets)
    assert loss.item() == pytest.approx(regression_by_hand(student, method, u, targets).item(), rel=WITHIN)


def test_measures_tell_gradients_that_agree_from_those_that_do_not():
    u = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    smooth, random = (
        measures_of(u, 2 * u),
        measures_of(u, torch.randn(500, 2, generator=torch.Generator().manual_seed(1))),
    )
    assert smooth["agreement"] > 0.95 and abs(random["agreement"]) < 0.2
    one = torch.zeros(500, 2)
    one[3] = 1.0
    assert measures_of(u, one)["largest"] == 1 and measures_of(u, one)["term"] == pytest.approx(1 / 500)


def test_verdict_is_what_the_medians_say():
    """Ordinary 0.2; Sobolev 0.1, and 0.4 of Ackley."""
    rows = [
        {"function": f, "activation": "tanh", "N": 100, "longer": False, "method": method, "budget": budget, "steps": 9}
        | {"value_median": 0.2 if method == "ordinary" else 0.4 if f == "Ackley" else 0.1}
        for f in FUNCTIONS for method in ("ordinary", "sobolev") for budget in ("steps", "time")
    ]  # fmt: skip
    steps, time, paper = verdict(rows)
    assert all("6 of 7 (not Ackley) at 100" in line for line in (steps, time)) and "0.50× at 100" in paper


def draw(d: int, N: int) -> tuple[Market, torch.Tensor, torch.Tensor]:
    """A market, spots x [N, d] and the noise [N, d] of their paths."""
    generator = torch.Generator().manual_seed(3)
    market = Market.random(d, generator)
    return market, market.spots(N, generator), market.noise(N, generator)


@pytest.mark.parametrize("d", ASSETS)
def test_market(d):
    """Basket weights of sum 1, the basket's volatility over the second year, and the wider one over the first."""
    market, x, noise = draw(d, 50_000)
    assert market.basket.shape == (d,) and (market.basket > 0).all()
    torch.testing.assert_close(market.basket.sum().item(), 1.0)
    for moves, volatility in ((noise @ market.factor.T, VOLATILITY), (x - 1, WINGS * VOLATILITY)):
        assert abs((moves @ market.basket).std().item() / volatility - 1) < 0.01


@pytest.mark.parametrize("d", ASSETS)
def test_labels_of_paths_are_right_on_average(d):
    """Means of payoffs, pathwise deltas and likelihood-ratio gammas over many paths, within four standard errors of
    the closed form; far in the money, at it and out of it."""
    market, _, noise = draw(d, 20_000)
    for basket in (0.8, 1.0, 1.1, 1.3):
        x = torch.full((1, d), basket, dtype=torch.float64)
        for samples, truth in zip(market.paths(x.expand_as(noise), noise), market.truth(x), strict=True):
            assert samples.shape[1:] == truth.shape[1:] and truth.dtype == torch.float64
            error = 4 * samples.std(0) / math.sqrt(len(samples))
            assert ((samples.mean(0) - truth[0]).abs() <= error + 1e-12).all()


@pytest.mark.parametrize("d", ASSETS)
def test_greeks_of_truth_are_derivatives_of_its_price_and_deltas_those_of_a_path(d):
    market, x, noise = draw(d, 100)
    x.requires_grad_()
    truth = market.truth(x)
    torch.testing.assert_close(torch.autograd.grad(truth.price.sum(), x, retain_graph=True)[0], truth.delta)
    rows = [torch.autograd.grad(truth.delta[:, j].sum(), x, retain_graph=True)[0] for j in range(d)]
    torch.testing.assert_close(torch.stack(rows, 1), truth.gamma)
    paths = market.paths(x, noise)
    assert 0 < (paths.price > 0).sum() < 100
    gain = (x + noise @ market.factor.T) @ market.basket - STRIKE
    torch.testing.assert_close(paths.price, gain.clamp(min=0))
    torch.testing.assert_close(torch.autograd.grad(paths.price.sum(), x)[0], paths.delta)


def test_scaling_is_consistent_both_ways():
    """Labels of mean 0 and variance 1; and of a student that is t(u) = u·w + (u·v)² the Greeks in the units of x."""
    d = 5
    market, x, noise = draw(d, 1000)
    scaler, u, targets = labels(x, market.paths(x, noise))
    assert u.shape == (1000, d) and targets.values.shape == (1000, 1) and targets.jacobian.shape == (1000, 1, d)
    for tensor in (u, targets.values):
        torch.testing.assert_close(tensor.mean(0), torch.zeros(tensor.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(tensor.std(0, correction=0), torch.ones(tensor.shape[1]))
    w, v = torch.randn(2, d, generator=torch.Generator().manual_seed(0))
    price, delta, gamma = greeks_of(scaler, lambda u: (u @ w + (u @ v) ** 2)[:, None], x)
    slopes, bend = w.double() * scaler.y_scale / scaler.x_scale, v.double() / scaler.x_scale
    moves = x - scaler.x_mean
    torch.testing.assert_close(price, moves @ slopes + scaler.y_scale * (moves @ bend) ** 2 + scaler.y_mean, **LOOSE)
    torch.testing.assert_close(delta, slopes + 2 * scaler.y_scale * (moves @ bend)[:, None] * bend, **LOOSE)
    expected = (2 * scaler.y_scale * bend[:, None] * bend).expand_as(gamma)
    torch.testing.assert_close(gamma, expected, **LOOSE)


@pytest.mark.parametrize("d", ASSETS)
def test_gamma_adds_to_the_balance_of_differential_ml(d):
    """Its first two terms are those of `weights="differential-ml"`, the third is the gammas' share; and the loss is
    what PyTorch makes of it by hand."""
    market, x, noise = draw(d, 256)
    paths = market.paths(x, noise)
    scaler, u, targets = labels(x, paths)
    method = with_gamma(scaler, targets, paths.gamma)
    student = sk.MLP(d, 1, width=20, depth=4, activation="softplus")
    assert fused(student, u, method.targets.directions, **method.settings) == "cpu"
    terms = sk.SobolevLoss(**method.settings, return_terms=True)(student, u, method.targets)
    balanced = sk.SobolevLoss(derivatives="exact", weights="differential-ml")(student, u, targets)
    w = method.settings["weights"]
    assert (w[0] * terms.value + w[1] * terms.derivative).item() == pytest.approx(balanced.item(), rel=WITHIN)
    assert w[2] * method.targets.seconds.square().mean() == pytest.approx(GAMMA * d / (1 + d), rel=WITHIN)
    assert terms.loss.item() == pytest.approx(by_hand_twice(student, u, method).item(), rel=WITHIN)


def test_relative_errors_are_one_for_the_mean():
    market, x, _ = draw(5, 1000)
    truth = market.truth(x)
    means = Greeks(*(greek.mean(0).expand_as(greek) for greek in truth))
    assert relative_errors(means, truth) == pytest.approx({"price": 1, "delta": 1, "gamma": 1})
    assert relative_errors(truth, truth) == {"price": 0, "delta": 0, "gamma": 0}


def test_picture_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(SystemExit, match=r"skimage.data: pip install .*examples"):
        picture.__wrapped__()


def test_picture_and_siren():
    """The picture's gradients are the slopes of its values; and of a SIREN the first layer's sines and all deeper ones
    are as wide as the paper says, by its initialization: inputs to sines of deviation about 1, whatever the width."""
    field = picture()
    n = field.side
    assert len(field.x) == n * n == 512 * 512 and field.x.abs().max() < 1
    torch.testing.assert_close(field.y.std(correction=0), torch.tensor(1.0))
    y, dy = field.y.view(n, n), field.dy.view(n, n, 2)
    for axis, columns in enumerate((y, y.T)):
        slopes = (columns[2:] - columns[:-2]) / (4 / n)
        wanted = (dy[..., axis] if axis == 0 else dy[..., axis].T)[1:-1]
        assert (slopes - wanted).norm() < 0.02 * wanted.norm()
    student = siren(0)
    z, deviations = field.x[:: n // 2 + 7], []
    for module in student[:-1]:
        if isinstance(module, torch.nn.Linear):
            z = module(z)
            deviations.append(OMEGA * z.std().item())
        else:
            z = module(z)
    assert deviations[0] > 2 and all(0.5 < deviation < 1.5 for deviation in deviations[1:])

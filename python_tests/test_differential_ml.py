"""Differential machine learning: the closed form, the pathwise derivatives, the balance, and a quick run."""

import copy
import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE, ROUNDED_WITHIN

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from differential_ml import (  # noqa: E402
    ASSETS,
    LOSSES,
    PLAN,
    SIZES,
    STRIKE,
    VOLATILITY,
    WINGS,
    Market,
    labels,
    prices_of,
    relative_errors,
)

WITHIN = ROUNDED_WITHIN["rtol"]


def draw(d: int, N: int) -> tuple[Market, torch.Tensor, torch.Tensor]:
    """A market, spots x [N, d] and the noise [N, d] of their paths."""
    generator = torch.Generator().manual_seed(3)
    market = Market.random(d, generator)
    return market, market.spots(N, generator), market.noise(N, generator)


def labelled(d: int, N: int):
    market, x, noise = draw(d, N)
    return labels(x, *market.payoffs(x, noise))


@pytest.mark.parametrize("d", ASSETS)
def test_market(d):
    """Basket weights of sum 1, the basket's volatility over the second year, and the wider one over the first."""
    market, x, noise = draw(d, 50_000)
    assert market.basket.shape == (d,) and (market.basket > 0).all()
    torch.testing.assert_close(market.basket.sum().item(), 1.0)
    for moves, volatility in ((noise @ market.factor.T, VOLATILITY), (x - 1, WINGS * VOLATILITY)):
        assert abs((moves @ market.basket).std().item() / volatility - 1) < 0.01


@pytest.mark.parametrize("d", ASSETS)
def test_closed_form_against_simulation(d):
    """Means of payoffs and pathwise derivatives over many paths, within four standard errors."""
    market, x, noise = draw(d, 50_000)
    generator = torch.Generator().manual_seed(4)
    x = torch.cat([torch.ones_like(x[:1]), market.spots(4, generator)])
    prices, deltas = market.prices(x)
    assert prices.shape == (5,) and deltas.shape == (5, d) and prices.dtype == torch.float64
    for spots, price, delta in zip(x, prices, deltas, strict=True):
        for samples, truth in zip(market.payoffs(spots, noise), (price, delta), strict=True):
            assert ((samples.mean(0) - truth).abs() <= 4 * samples.std(0) / math.sqrt(len(samples))).all()


@pytest.mark.parametrize("d", ASSETS)
def test_deltas_are_the_slopes_of_the_price(d):
    market, x, _ = draw(d, 100)
    x.requires_grad_()
    prices, deltas = market.prices(x)
    torch.testing.assert_close(torch.autograd.grad(prices.sum(), x)[0], deltas)


@pytest.mark.parametrize("d", ASSETS)
def test_pathwise_derivatives_on_fixed_noise(d):
    """Against autograd, and against central differences of the payoffs away from the strike."""
    market, x, noise = draw(d, 500)
    y, dy = market.payoffs(x, noise)
    assert y.shape == (500,) and dy.shape == (500, d) and 0 < (y > 0).sum() < 500
    assert torch.equal(y, (((x + noise @ market.factor.T) @ market.basket) - STRIKE).clamp(min=0))
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(market.payoffs(leaf, noise)[0].sum(), leaf)[0], dy)
    step = 1e-6
    columns = [
        (market.payoffs(x + axis, noise)[0] - market.payoffs(x - axis, noise)[0]) / (2 * step)
        for axis in step * torch.eye(d, dtype=x.dtype)
    ]
    smooth = ((x + noise @ market.factor.T) @ market.basket - STRIKE).abs() > 2 * step
    torch.testing.assert_close(torch.stack(columns, 1)[smooth], dy[smooth], rtol=0, atol=1e-8)


def test_scaling_is_consistent_both_ways():
    """Labels of mean 0 and variance 1, and a student that is linear in u has these slopes in the units of x."""
    d = 5
    market, x, noise = draw(d, 1000)
    scaler, u, targets = labels(x, *market.payoffs(x, noise))
    assert u.shape == (1000, d) and targets.values.shape == (1000, 1) and targets.jacobian.shape == (1000, 1, d)
    for tensor in (u, targets.values):
        torch.testing.assert_close(tensor.mean(0), torch.zeros(tensor.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(tensor.std(0, correction=0), torch.ones(tensor.shape[1]))
    student = sk.MLP(d, 1, depth=0)
    prices, deltas = prices_of(scaler, student, x)
    slopes = student[0].weight.detach().double() * scaler.y_scale / scaler.x_scale
    torch.testing.assert_close(deltas, slopes.expand_as(deltas))
    torch.testing.assert_close(prices - prices[0], (x - x[0]) @ slopes[0], **CLOSE_IN_SINGLE)


@pytest.mark.parametrize("d", ASSETS)
def test_balance_is_that_of_differential_ml(d):
    """An epoch of one batch has the loss of `weights="differential-ml"`; of several λ is that of the whole set."""
    _, u, targets = labelled(d, 512)
    first = sk.MLP(d, 1, width=20, depth=4, activation="softplus")

    def trained(x, targets, loss, batch):
        history = sk.fit(
            copy.deepcopy(first), x, targets, loss=loss, epochs=1, batch_size=batch, progress=False,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return history["loss"][0]

    balanced = LOSSES["balanced"]
    assert trained(u, targets, balanced, None) == pytest.approx(balanced(first, u, targets).item(), rel=WITHIN)
    scale = 1 / targets.jacobian.square().mean((0, 1)).sqrt()
    by_hand = sk.SobolevLoss(derivatives="exact", weights=(1 / (1 + d), d / (1 + d)), input_scale=scale)
    assert trained(u, targets, balanced, 64) == pytest.approx(trained(u, targets, by_hand, 64), rel=WITHIN)
    assert PLAN.epochs(8192, 300) == 10


def test_relative_errors_are_one_for_the_mean():
    market, x, _ = draw(5, 1000)
    prices, deltas = market.prices(x)
    means = prices.mean().expand_as(prices), deltas.mean(0).expand_as(deltas)
    assert relative_errors(means, (prices, deltas)) == pytest.approx({"price": 1, "delta": 1})
    assert relative_errors((prices, deltas), (prices, deltas)) == {"price": 0, "delta": 0}


@pytest.mark.long
def test_quick_run_gives_table_picture_and_csv(tmp_path):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "differential_ml.py"), "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for d in ASSETS:
        assert f"d = {d}, price error over that of balanced" in run.stdout
    assert (tmp_path / "differential_ml.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "differential_ml.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert {(row["d"], row["N"]) for row in rows} == {(d, N) for d in ASSETS for N in SIZES} and len(rows) == 6
    assert torch.tensor([list(row.values()) for row in rows]).isfinite().all()

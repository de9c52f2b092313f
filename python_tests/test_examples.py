"""The demo: its seven functions against the literature, its scaling, and that a quick run writes what it promises."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import why  # noqa: E402
from functions import FUNCTIONS  # noqa: E402
from paper_functions import PLAN, SIZES, data_of, scaler_of  # noqa: E402

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


@pytest.mark.long
def test_quick_demo_gives_table_picture_and_csv(tmp_path):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "paper_functions.py"), "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for name in FUNCTIONS:
        assert name in run.stdout
    for N in SIZES:
        assert f"N = {N}, value: Sobolev wins" in run.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "demo.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["function"], row["activation"], row["N"]) for row in rows}) == len(rows) == 7 * 2 * 3
    numbers = [float(value) for row in rows for key, value in row.items() if key not in ("function", "activation")]
    assert torch.tensor(numbers).isfinite().all()


def test_the_picture_of_why(tmp_path, monkeypatch):
    """With a fifth of its steps: five points with slopes say more than without."""
    monkeypatch.setattr(why, "EPOCHS", 300)
    why.draw(tmp_path / "why.png")
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    _, students = why.trained()
    line = torch.linspace(-1.8, 1.8, 101)[:, None]
    errors = {name: (student(line) - why.f(line)).square().mean().sqrt().item() for name, student in students.items()}
    assert errors["sobolev"] < 0.7 * errors["ordinary"], errors

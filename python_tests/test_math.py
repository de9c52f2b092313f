"""The tables of formulas against autograd and torch's own functions, in float64; and the header printed from them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import sobolev_kernels as sk
from sobolev_kernels.math.activations import DERIVATIVES, activation_jet
from sobolev_kernels.math.curves import CURVES, curve_of
from sobolev_kernels.math.losses import residual
from sobolev_kernels.math.table import choose
from sobolev_kernels.modules import to_module
from sobolev_kernels.testing import assert_within_rule

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = [*sk.ACTIVATIONS, ("leaky_relu", 0.3), ("elu", 0.6), ("softplus", 2.5, 4.0), ("sin", 30.0)]


def points():
    # none at 0 or at ±1, where relu and huber have their kinks
    return torch.linspace(-6.03, 6.0, 1001, dtype=torch.float64)


@pytest.mark.parametrize("activation", PARAMETERS, ids=str)
def test_activation_derivatives(activation):
    formula = choose(sk.ACTIVATIONS, "activation", activation)
    z = points().requires_grad_()
    value, *rest = (torch.as_tensor(d, dtype=z.dtype).expand_as(z) for d in activation_jet(formula, z, DERIVATIVES))
    assert_within_rule("value", value, to_module(formula)(z))
    for order, derivative in enumerate(rest, start=1):
        expected = torch.zeros_like(z)
        if value.requires_grad:
            (expected,) = torch.autograd.grad(value.sum(), z, create_graph=True, allow_unused=True)
            expected = torch.zeros_like(z) if expected is None else expected
        assert_within_rule(f"derivative {order}", derivative, expected)
        value = derivative


TORCH_LOSSES = {
    "mse": lambda r: r**2,
    "l1": torch.abs,
    "huber": lambda r: F.huber_loss(r, torch.zeros_like(r), reduction="none"),
    "log_cosh": lambda r: torch.log(torch.cosh(r)),
}


@pytest.mark.parametrize("loss", sk.LOSSES)
def test_losses(loss):
    r = points().requires_grad_()
    rho, slope = residual(choose(sk.LOSSES, "loss", loss), r)
    expected = TORCH_LOSSES[loss](r)
    assert_within_rule("value", rho, expected)
    assert_within_rule("slope", slope, torch.autograd.grad(expected.sum(), r)[0])


# one float32 operation after the other, none of which cancels: an epsilon for each
ROUNDINGS = 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_small_residuals_of_log_cosh(backend):
    """Half a square, which log(2 cosh r) - log 2 would lose below 1e-3."""
    r = torch.logspace(-6, 0.5, 131)
    r = torch.cat([r, -r])
    student = sk.MLP(1, 1, depth=0)
    for parameter in student.parameters():
        torch.nn.init.zeros_(parameter)
    targets = sk.Targets(values=-r[:, None])
    settings = {"value_loss": "log_cosh", "weights": (1, 0), "reduction": "none", "backend": backend}
    expected = 0.5 * torch.log1p(torch.sinh(r.double()) ** 2)
    relative = sk.sobolev_loss(student, torch.zeros(len(r), 1), targets, **settings).detach() / expected - 1
    assert relative.abs().max() < ROUNDINGS


def test_log_cosh_differentiated_twice():
    """The reference goes through the branch that is not taken too."""
    r = torch.tensor([0.0, -0.5, 0.5, -2.0, 2.0, 100.0], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(residual(choose(sk.LOSSES, "loss", "log_cosh"), r)[0].sum(), r, create_graph=True)[0]
    assert_within_rule("slope", slope, r.tanh())
    assert_within_rule("curvature", torch.autograd.grad(slope.sum(), r)[0], 1 - r.tanh() ** 2)


def test_huber_with_its_parameter():
    r = points()
    rho, _ = residual(choose(sk.LOSSES, "loss", ("huber", 0.25)), r)
    assert_within_rule("value", rho, F.huber_loss(r, torch.zeros_like(r), reduction="none", delta=0.25))


def test_the_generated_header_is_fresh():
    command = [sys.executable, str(ROOT / "csrc" / "math" / "generate.py"), "--check"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("activation", [*CURVES, ("leaky_relu", 0.3), ("elu", 0.6), ("softplus", 2.5, 30.0)], ids=str)
def test_derivatives_as_functions_of_the_value(activation):
    formula = choose(sk.ACTIVATIONS, "activation", activation)
    assert CURVES[formula.name].defaults == sk.ACTIVATIONS[formula.name].defaults
    value, *expected = (torch.as_tensor(d).expand(1001) for d in activation_jet(formula, points(), 2))
    derivatives = curve_of(formula).derivatives(value)
    for order, (got, right) in enumerate(zip(derivatives, expected, strict=True), start=1):
        assert_within_rule(f"derivative {order}", got, right.double())


@pytest.mark.parametrize(
    "activation", [("leaky_relu", -0.5), ("elu", -0.5), ("elu", 0.0), ("softplus", 2.5, 4.0), "silu"], ids=str
)
def test_derivatives_that_are_no_functions_of_the_value(activation):
    assert curve_of(choose(sk.ACTIVATIONS, "activation", activation)) is None

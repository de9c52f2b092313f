"""`fit` on derivatives of orders 3 and 4: validation, rules of weights, units, teachers, L-BFGS."""

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

NAMES = ("value_error", "derivative_error", "second_error", "third_error", "fourth_error")


def function(x):
    return torch.sin(2 * x[:, :1]) * x[:, 1:]


def targets_at(x, order, P=2):
    v = nn.functional.normalize(torch.randn(P, *x.shape), dim=-1)
    y, *jets = sk.jet(function, x, v, order=order)
    return sk.Targets(values=y.detach(), jets=[jet.detach() for jet in jets], directions=v)


def fitted(order, student=None, epochs=2, **more):
    torch.manual_seed(0)
    x, held = torch.rand(24, 2), torch.rand(12, 2)
    targets, right = targets_at(x, order), targets_at(held, order)
    student = sk.MLP(2, 1, width=8) if student is None else student
    options = {"loss": sk.SobolevLoss(order=order), "validation": (held, right), "progress": False}
    return sk.fit(student, x, targets, epochs=epochs, **options | more), held, right


@pytest.mark.parametrize("order", [3, 4])
def test_errors_on_held_out_data(order):
    history, x, right = fitted(order)
    assert history.best_epoch == len(history)
    found = sk.jet(history.student, x, right.directions.values, order=order)
    wanted = [right.values, *right.jets]
    usual = [right.values.mean(), *[0.0] * order]
    for name, got, target, mean in zip(NAMES, found, wanted, usual, strict=False):
        error = (got - target).square().mean().sqrt() / (target - mean).square().mean().sqrt()
        torch.testing.assert_close(history[name][-1], error.item(), **CLOSE_IN_SINGLE)
    assert [name for name in NAMES if name in history.columns] == [*NAMES[: 1 + order]]


def test_some_of_the_data_is_held_out():
    history, *_ = fitted(3, validation=0.25)
    assert history["third_error"][-1] > 0
    assert history.plot().axes[1].get_legend() is not None


def test_rules_have_a_weight_for_each_order():
    history, *_ = fitted(3, weights=sk.GradNorm())
    assert history["weight_third"][-1] > 0 and "weight_fourth" not in history.columns
    fitted(4, weights=sk.Uncertainty(5))
    with pytest.raises(ValueError, match=r"weights: expected Uncertainty\(terms=4\), got Uncertainty\(terms=2\)"):
        fitted(3, weights=sk.Uncertainty())
    with pytest.raises(ValueError, match="terms: expected 2 to 5"):
        sk.Uncertainty(6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_second_optimizer_goes_along_the_directions_of_the_data(order):
    more = {}
    if order < 3:
        torch.manual_seed(0)
        x = torch.rand(24, 2)
        v = torch.randn(2, 24, 2)
        _, *jets = sk.jet(function, x, v, order=2)
        named = dict(zip(("tangents", "seconds")[:order], jets, strict=False))
        targets = sk.Targets(values=function(x), directions=v, **named)
        history = sk.fit(
            sk.MLP(2, 1, width=8), x, targets, loss=sk.SobolevLoss(order=order), epochs=2, finish=2, progress=False
        )
    else:
        history, *_ = fitted(order, finish=2, **more)
    assert history["loss"][-1] < 0.7 * history["loss"][0]


def test_units_of_the_data():
    history, x, right = fitted(3, scale=True)
    assert isinstance(history.student, sk.Scaled)
    scaler = history.student.scaler
    z, scaled = scaler.transform(x, right)
    again = sk.jet(lambda z: scaler_free(scaler, z), z, scaled.directions.values, order=3)
    for k in range(3):
        torch.testing.assert_close(scaled.jets[k], again[1 + k], **CLOSE_IN_SINGLE)


def scaler_free(scaler, z):
    """The function in the scaler's units."""
    return (function(z * scaler.x_scale + scaler.x_mean) - scaler.y_mean) / scaler.y_scale


def test_a_teacher_is_asked_along_directions_of_each_step():
    torch.manual_seed(0)
    loss = sk.SobolevLoss(order=3, directions=sk.Directions.sphere(2))
    options = {"loss": loss, "epochs": 2, "validation": 0.25, "progress": False}
    history = sk.fit(sk.MLP(2, 1, width=8), torch.rand(24, 2), sk.Targets(teacher=function), **options)
    assert history["third_error"][-1] > 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(self.norm(h + h.square()))


def test_residuals_of_a_student_that_is_no_mlp_and_the_second_optimizer():
    torch.manual_seed(0)
    heat = sk.Residual(lambda p: p.u_t - p.u_xx, "x t -> u", name="heat")
    start = sk.Residual(lambda p: p.u, "x t -> u", name="start")
    points = [sk.Points(heat, torch.rand(12, 2)), sk.Points(start, torch.rand(8, 2), target=lambda x: x[:, :1].sin())]
    history = sk.fit(Residual(), residuals=points, epochs=2, finish=2, progress=False)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    history, *_ = fitted(3, Residual())
    assert history["third_error"][-1] > 0

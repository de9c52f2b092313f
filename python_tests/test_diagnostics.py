"""Diagnostics: errors of derivatives against autograd, planted faults of targets that are told and good ones that are
not, gradients of terms against autograd."""

import sys

import numpy as np
import pytest
import torch

import sobolev_kernels as sk
from examples.regression.functions import FUNCTIONS
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCE

EXACTLY = ANOTHER_WAY["rtol"]

N, D = 400, 3  # enough for differences between neighbours in three columns
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, D, dtype=torch.float64, generator=GENERATOR)
ORDER = torch.randperm(N, generator=GENERATOR)
SIZES = torch.tensor([1.0, 2.0, -0.7], dtype=torch.float64)


def smooth(x):
    """Two outputs of three columns that weigh differently."""
    z = x * SIZES.to(x)
    return torch.stack(
        [torch.sin(z).sum(1) + z[:, 0] * z[:, 1], (z**2 * torch.tensor([0.3, -0.4, 0.6]).to(x)).sum(1)], 1
    )


def kinked(x):
    return torch.relu(x @ SIZES.to(x))[:, None] + (x[:, 1] - x[:, 2]).abs()[:, None] + smooth(x)


def jacobian_of(f, x=X):
    return torch.func.vmap(torch.func.jacrev(lambda one: f(one[None])[0]))(x).detach()


Y, J = smooth(X), jacobian_of(smooth)


def changed(column, factor):
    return J * torch.where(torch.arange(D) == column, factor, 1.0)


FAULTS = {
    "columns 0 and 1 are in each other's place": J[..., [1, 0, 2]],
    "columns 1 and 2 are in each other's place": J[..., [0, 2, 1]],
    "column 1 has the other sign": changed(1, -1.0),
    "column 2 is in another unit: they would fit times 0.01|fit times 0.00": changed(2, 100.0),
    "column 0 is in another unit: they would fit times 1|fit times 9.": changed(0, 0.1),
    "all derivatives are in another unit: they would fit times 0.5|fit times 0.49": 2 * J,
    "all derivatives have the other sign": -J,
    "rows of the derivatives are one too late": J.roll(1, 0),
    "rows of the derivatives are one too early": J.roll(-1, 0),
    "rows of the derivatives are in the opposite order": J.flip(0),
    "outputs 0 and 1 of the derivatives are in each other's place": J[:, [1, 0]],
    "nothing to do with the values|not those of the function": J[ORDER],
    "column 1 has nothing to do with the values": torch.where(torch.arange(D) == 1, J[ORDER], J),
    "column 1 has derivatives of 0, and the values change with it": changed(1, 0.0),
}


@pytest.mark.parametrize("values", [Y, smooth], ids=["values", "function"])
@pytest.mark.parametrize("fault, jacobian", FAULTS.items(), ids=FAULTS)
def test_planted_faults_are_named(fault, jacobian, values):
    check = sk.check_targets(X, values, jacobian)
    assert check.ok is False
    assert len(check.faults) == 1
    (said,) = check.faults
    assert any(part in said for part in fault.split("|"))
    assert said in str(check) and check.verdict == said


def test_samples_at_one_place_and_values_that_do_not_vary():
    x, values, jacobian = (t.repeat_interleave(20, 0) for t in (X, Y, J))
    assert sk.check_targets(x, values, jacobian).ok
    assert sk.check_targets(x, values, jacobian[..., [1, 0, 2]]).ok is False
    assert "the values are the same everywhere" in sk.check_targets(X, 0 * Y, J).verdict


def test_two_faults_at_once():
    jacobian = changed(2, -1.0)[..., [1, 0, 2]]
    assert set(sk.check_targets(X, Y, jacobian).faults) == {
        "columns 0 and 1 are in each other's place", "column 2 has the other sign",
    }  # fmt: skip


def ripples(x):
    """Whose derivatives are right, and too fast for differences between these samples."""
    return smooth(x) + 0.05 * torch.sin(200 * x).sum(1, keepdim=True)


GOOD = {
    "smooth": (Y, J, True),
    "kinked": (kinked(X), jacobian_of(kinked), True),
    "a little noise": (Y + 0.05 * torch.randn(Y.shape, generator=GENERATOR), J, True),
    "linear": (X[:, 0] + 2 * X[:, 1], torch.tensor([1.0, 2.0, 0.0]).expand(N, D), True),
    "of float32": (Y.float(), J.float(), True),
    "missing rows": (torch.where(torch.arange(N)[:, None] % 5 == 0, torch.nan, Y), J, True),
    "much noise": (Y + 3 * torch.randn(Y.shape, generator=GENERATOR), J, None),
    "constant": (0 * Y + 1, 0 * J, True),
    "ripples": (ripples(X), jacobian_of(ripples), None),
}


@pytest.mark.parametrize("values, jacobian, ok", GOOD.values(), ids=GOOD)
def test_what_is_right_is_no_alarm(values, jacobian, ok):
    check = sk.check_targets(X, values, jacobian)
    assert check.ok is ok and check.faults == ()


# Few samples of steep functions, and kinks with infinite slopes: between far samples the values change by less than
# the derivatives say.
STEEP = [("Styblinski-Tang", 20), ("Beale", 20), ("Beale", 100), ("Bukin N.6", 100), ("Rosenbrock", 20)]


@pytest.mark.parametrize("name, N", STEEP)
def test_steep_functions_are_no_alarm(name, N):
    for seed in range(3):
        x = FUNCTIONS[name].sample(N, torch.Generator().manual_seed(seed))
        check = sk.check_targets(x, *FUNCTIONS[name].values_and_gradients(x))
        assert check.ok is not False, check
        assert N == 20 or check.ok
        if check.ok:
            y, dy = FUNCTIONS[name].values_and_gradients(x)
            assert sk.check_targets(x, y, dy.flip(1)).ok is False


def test_ripples_between_samples_are_not_told():
    """With one sample a ripple the derivatives say nothing of what is between; with ten they do."""
    ackley = FUNCTIONS["Ackley"]
    for N, ok in ((100, None), (1000, True)):
        x = ackley.sample(N, torch.Generator().manual_seed(0))
        check = sk.check_targets(x, *ackley.values_and_gradients(x))
        assert check.ok is ok and ("change so fast" in str(check)) is (ok is None)


@pytest.mark.parametrize("function", [smooth, kinked, ripples])
def test_right_derivatives_of_a_function(function):
    assert sk.check_targets(X, function, jacobian_of(function)).ok
    assert sk.check_targets(X.float(), function, jacobian_of(function).float()).ok


def test_samples_in_many_dimensions_are_no_alarm():
    x = torch.randn(300, 30, generator=GENERATOR)
    f = lambda x: torch.sin(3 * x).sum(1)  # noqa: E731
    assert not sk.check_targets(x, f(x), 3 * torch.cos(3 * x)).faults


def test_what_is_checked_may_come_in_many_ways():
    for check in (
        sk.check_targets(X, sk.Targets(Y, J)),
        sk.check_targets(X.numpy(), Y.numpy(), J.numpy()),
        sk.check_targets(X.unflatten(1, (1, D)), Y, J.unflatten(2, (1, D))),
        sk.check_targets(X, Y[:, 0], J[:, 0]),
    ):
        assert check.ok and [row.verdict for row in check.columns] == ["fits"] * D
        np.testing.assert_allclose([row.slope for row in check.columns], 1.0, atol=0.05)


REFUSED = {
    "jacobian: expected [400, O, 3] or [400, 3], of all columns": lambda: sk.check_targets(X, Y, J[..., :2]),
    "values: expected [400, 2]": lambda: sk.check_targets(X, Y[:, 0], J),
    "values: expected targets with a jacobian": lambda: sk.check_targets(X, sk.Targets(Y)),
    "values: expected a function to [N, 2]": lambda: sk.check_targets(X, lambda x: x, J),
    "x: expected floating inputs": lambda: sk.check_targets(X.long(), Y, J),
    "at least three samples": lambda: sk.check_targets(X[:2], Y[:2], J[:2]),
    "targets: expected a sobolev_kernels.Targets, or a teacher": lambda: sk.derivative_error(smooth, Y, X),
    "values: expected [400, 1], as the student's": lambda: sk.derivative_error(lambda x: x[:, :1], smooth, X),
    "order: expected None, 1 or 2": lambda: sk.derivative_error(smooth, smooth, X, order=3),
    "targets: expected those of 400 samples": lambda: sk.derivative_error(smooth, sk.Targets(Y[:5], J[:5]), X),
    "directions: expected those that": lambda: sk.derivative_error(smooth, sk.Targets(Y, tangents=Y[None]), X),
    "parameters: expected at least one": lambda: sk.term_gradients(torch.nn.Tanh(), X, sk.Targets(X, J)),
    "either a SobolevLoss or its keywords": lambda: sk.term_gradients(
        sk.MLP(3, 2), X, sk.Targets(Y, J), loss=sk.SobolevLoss(), order=1
    ),
    "did you mean 'reduction'": lambda: sk.term_gradients(sk.MLP(3, 2), X, sk.Targets(Y, J), reductoin="sum"),
}  # fmt: skip


@pytest.mark.parametrize("message, call", REFUSED.items(), ids=REFUSED)
def test_refused_in_words(message, call):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert message in str(caught.value)


STUDENT = sk.MLP(D, 2, width=8).double()


def relative(a, t):
    return float((a - t).norm() / t.norm())


TARGETS = {
    "teacher": smooth,
    "jacobian and hessian": sk.Targets.from_teacher(smooth, X, order=2),
    "values of another": sk.Targets(Y, teacher=smooth),
}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_errors_are_those_of_autograd(targets):
    error = sk.derivative_error(STUDENT, targets, X)
    student = jacobian_of(STUDENT)
    assert error["value"].error == pytest.approx(relative(STUDENT(X).detach(), Y), rel=EXACTLY)
    assert error["gradient"].error == pytest.approx(relative(student, J), rel=EXACTLY)
    found = {(row.kind, row.output, row.column): row for row in error.rows}
    assert found["gradient", 1, None].error == pytest.approx(relative(student[:, 1], J[:, 1]), rel=EXACTLY)
    of_column = found["gradient", None, 2]
    assert of_column.error == pytest.approx(relative(student[..., 2], J[..., 2]), rel=EXACTLY)
    r = np.corrcoef(student[..., 2].flatten(), J[..., 2].flatten())[0, 1]
    assert of_column.correlation == pytest.approx(r, rel=EXACTLY)
    assert error.entries["gradient"][1, 2] == pytest.approx(relative(student[:, 1, 2], J[:, 1, 2]), rel=EXACTLY)
    v = sk.Directions.sphere(1, seed=0).tensor(X)[0]
    hessians = [
        torch.func.vmap(torch.func.hessian(lambda one, f=f: f(one[None])[0]))(X).detach() for f in (STUDENT, smooth)
    ]
    curves = [torch.einsum("nodw,nw->nod", hessian, v) for hessian in hessians]
    assert error["Hessian-vector"].error == pytest.approx(relative(*curves), rel=BY_DIFFERENCE["atol"])
    assert error.log() == {kind: error[kind].error for kind in ("value", "gradient", "Hessian-vector")}


SEEDED, UP = sk.Directions.sphere(2, seed=1), sk.Cotangents.sphere(2, seed=1)
PROJECTED = {
    "tangents": ({"directions": SEEDED}, ["value", "tangent"]),
    "order 2": ({"directions": SEEDED, "order": 2}, ["value", "tangent", "second"]),
    "vjps": ({"cotangents": UP}, ["value", "vjp"]),
    "columns": ({"wrt": [2, 0]}, ["value", "gradient"]),
    "head": ({"head": "softmax"}, ["value", "gradient"]),
}


@pytest.mark.parametrize("settings, kinds", PROJECTED.values(), ids=PROJECTED)
def test_errors_of_other_targets(settings, kinds):
    targets = sk.Targets.from_teacher(smooth, X, **settings)
    kept = {name: value for name, value in settings.items() if name in ("wrt", "head")}
    error, none = (sk.derivative_error(f, targets, X, **kept) for f in (STUDENT, smooth))
    assert error.kinds == none.kinds == kinds
    assert all(row.error < 1e-7 and row.correlation > 1 - 1e-7 for row in none.rows)
    own = sk.Targets.from_teacher(STUDENT, X, **settings)
    first = targets.derivative, own.derivative
    assert error[kinds[1]].error == pytest.approx(relative(first[1], first[0]), rel=EXACTLY)


def test_what_cannot_be_compared_is_left_out():
    relu = torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    error = sk.derivative_error(relu, smooth, X)
    assert error.kinds == ["value", "gradient"] and "Hessian-vector products: " in str(error)
    with pytest.raises(NotImplementedError):
        sk.derivative_error(relu, smooth, X, order=2)
    assert sk.derivative_error(relu, smooth, X, order=1).notes == ()
    missing = torch.where(torch.arange(N)[:, None] < 5, torch.nan, Y)
    error = sk.derivative_error(STUDENT, sk.Targets(missing, J), X)
    assert error["value"].error == pytest.approx(relative(STUDENT(X).detach()[5:], Y[5:]))
    zeros = sk.derivative_error(STUDENT, sk.Targets(0 * Y, J), X)["value"]
    assert zeros.error == float("inf") and np.isnan(zeros.correlation)


def test_errors_of_inputs_of_any_shape():
    x = X.unflatten(1, (1, D))
    student, teacher = (torch.nn.Sequential(torch.nn.Flatten(), m) for m in (STUDENT, sk.MLP(D, 2, width=4).double()))
    shaped, flat = sk.derivative_error(student, teacher, x), sk.derivative_error(STUDENT, teacher[1], X)
    assert [row.error for row in shaped.rows] == pytest.approx([row.error for row in flat.rows])


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_of_terms(order):
    targets = sk.Targets.from_teacher(smooth, X, order=2)
    settings = {"directions": sk.Directions.sphere(2, seed=1), "order": order}
    balance = sk.term_gradients(STUDENT, X, targets, **settings)
    same = sk.term_gradients(STUDENT, X, targets, loss=sk.SobolevLoss(**settings))
    assert balance == same and len(balance.names) == 1 + order
    assert all(p.grad is None for p in STUDENT.parameters())
    flat = []
    for place in range(1 + order):
        weights = [float(i == place) for i in range(1 + order)]
        loss = sk.sobolev_loss(STUDENT, X, targets, weights=weights, **settings)
        flat.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(STUDENT.parameters()))]))
    norms = [float(g.norm()) for g in flat]
    assert balance.norms == pytest.approx(norms)
    assert balance.cosines[0][1] == pytest.approx(float(flat[0] @ flat[1]) / norms[0] / norms[1])
    assert [w * n for w, n in zip(balance.weights, norms, strict=True)] == pytest.approx([norms[0]] * (1 + order))
    sk.sobolev_loss(STUDENT, X, targets, weights=balance.weights, **settings)


def test_a_term_without_a_target():
    balance = sk.term_gradients(STUDENT, X, sk.Targets(Y), weights=(1, 0))
    assert balance.weights == (1.0, 0.0) and np.isnan(balance.norms[1]) and "derivative" in str(balance)


REPORTS = {
    "error": lambda: sk.derivative_error(STUDENT, smooth, X[:50]),
    "check": lambda: sk.check_targets(X, Y, J[..., [1, 0, 2]]),
    "balance": lambda: sk.term_gradients(STUDENT, X, sk.Targets(Y, J)),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_pictures(report, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    report = report()
    axes = report.plot()
    assert report.plot(axes) is axes and axes.get_yticklabels()
    pyplot.close(axes.figure)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="plot: expected matplotlib, which is not installed"):
        report.plot()

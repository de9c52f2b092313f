"""`Scaler` and `Scaled`: units by the chain rule, and a student of them that is an MLP in the data's."""

import copy

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels import call
from sobolev_kernels.testing.rule import ANOTHER_WAY, CLOSE_IN_SINGLE

torch.manual_seed(0)
X = torch.rand(40, 3, dtype=torch.float64) * torch.tensor([1.0, 100.0, 1e-3]) + torch.tensor([2000.0, -30.0, 0.0])


def function(x):
    u = (x - X.mean(0)) / X.std(0)
    return torch.stack([1e4 * (u[:, 0] * u[:, 1]).sin() + 7e4, u[:, 2] ** 2 + u[:, 0]], 1)


def data(kind):
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda x: function(x[None])[0]))(X)
    hessian = torch.func.vmap(torch.func.hessian(lambda x: function(x[None])[0]))(X)
    v, u = torch.randn(2, 40, 3, dtype=torch.float64), torch.randn(2, 40, 2, dtype=torch.float64)
    tangents, vjps = torch.einsum("nod,pnd->pno", jacobian, v), torch.einsum("nod,pno->pnd", jacobian, u)
    seconds = torch.einsum("node,pnd,pne->pno", hessian, v, v)
    return sk.Targets(
        values=function(X),
        **{
            "jacobian": {"jacobian": jacobian},
            "hessian": {"jacobian": jacobian, "hessian": hessian},
            "seconds": {"tangents": tangents, "seconds": seconds, "directions": v},
            "vjps": {"vjps": vjps, "cotangents": u},
        }[kind],
    )


@pytest.mark.parametrize("kind", ["jacobian", "hessian", "seconds", "vjps"])
def test_all_units_belong_together(kind):
    """What is transformed is what the transformed function has at the transformed inputs; and back."""
    targets = data(kind)
    scaler = sk.Scaler().fit(X, targets)
    u, t = scaler.transform(X, targets)
    assert_numbers(u.mean(0), torch.zeros(3)), assert_numbers(u.std(0, correction=0), torch.ones(3))
    assert_numbers(t.values.std(0, correction=0), torch.ones(2))

    def moved(u):
        return (function(u * scaler.x_scale + scaler.x_mean) - scaler.y_mean) / scaler.y_scale

    loss = sk.sobolev_loss(moved, u, t, order=2 if kind in ("hessian", "seconds") else 1)
    assert loss < 1e-12
    back, original = scaler.inverse(u, t)
    assert_numbers(back, X)
    for name, tensor in targets.tensors().items():
        assert_numbers(getattr(original, name), tensor)
    for name, projections in targets.asked().items():
        assert_numbers(original.asked()[name].values, projections.values)


def assert_numbers(a, b):
    torch.testing.assert_close(a.double(), b.double(), **ANOTHER_WAY)


def test_columns_that_are_chosen_and_one_output():
    """∂y/∂x of the columns that `wrt` names, in its order; targets without a dimension for the one output."""
    whole = data("jacobian")
    targets = sk.Targets(values=whole.values[:, 0], jacobian=whole.jacobian[:, 0, [2, 0]])
    scaler = sk.Scaler().fit(X, targets, wrt=[2, 0])
    _, t = scaler.transform(X, targets, wrt=[2, 0])
    expected = whole.jacobian[:, 0] * scaler.x_scale / scaler.y_scale
    assert_numbers(t.jacobian, expected[:, [2, 0]])
    assert t.values.shape == (40,)


def test_what_is_constant_has_no_size():
    x = torch.stack([torch.full((9,), 0.1), torch.rand(9)], 1)
    y = torch.full((9, 1), 3.0)
    dy = torch.full((9, 1, 2), 4.0)
    scaler = sk.Scaler().fit(x, sk.Targets(values=y, jacobian=dy))
    assert scaler.x_scale[0] == 1 and scaler.x_mean[0] == x[0, 0]
    rms = (16 + (4 * scaler.x_scale[1]) ** 2).sqrt()
    torch.testing.assert_close(scaler.y_scale, rms[None])
    u, t = scaler.transform(x, sk.Targets(values=y, jacobian=dy))
    assert torch.equal(u[:, 0], torch.zeros(9)) and torch.equal(t.values, torch.zeros(9, 1))
    without = sk.Scaler().fit(x, sk.Targets(values=y))
    assert without.y_scale == 1


def test_images_and_a_teacher():
    x = torch.rand(12, 1, 4, 4) * 255
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    scaler = sk.Scaler().fit(x, sk.Targets(teacher=teacher))
    assert scaler.x_scale.shape == (1, 4, 4)
    jacobian = torch.ones(12, 2, 1, 4, 4)
    u, t = scaler.transform(x, sk.Targets(teacher=teacher, values=teacher(x).detach()))
    torch.testing.assert_close(t.teacher(u), t.values, **CLOSE_IN_SINGLE)
    _, t = scaler.transform(x, sk.Targets(jacobian=jacobian))
    torch.testing.assert_close(t.jacobian[3, 1], scaler.x_scale / scaler.y_scale[1])


STUDENTS = {
    "linear last": lambda: sk.MLP(3, 2, width=8),
    "no bias": lambda: sk.MLP(3, 2, width=8, bias=False),
    "one layer": lambda: sk.MLP(3, 2, depth=0),
    "curved last": lambda: sk.MLP(3, 2, width=8, last_activation="softplus"),
    "no MLP": lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)),
}
WAYS = {
    "loss": lambda s, x, t: (sk.sobolev_loss(s, x, t, directions=sk.Directions.basis()),),
    "terms": lambda s, x, t: sk.sobolev_loss(s, x, t, derivatives="exact", return_terms=True)[:3],
    "none": lambda s, x, t: (sk.sobolev_loss(s, x, t, derivatives="exact", reduction="none").sum(),),
    "jvp": lambda s, x, t: [y.square().sum() for y in sk.jvp(s, x, x[None])],
    "wrt": lambda s, x, t: (
        sk.sobolev_loss(s, x, sk.Targets(values=t.values, jacobian=t.jacobian[..., :1]), wrt=[0], derivatives="exact"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STUDENTS)
def test_a_scaled_student_is_what_its_forward_says(name, way):
    """Values, gradients of inputs and of parameters, against the plain module by the reference; called thrice, since
    what is kept goes another way."""
    targets = data("jacobian")
    student = sk.Scaled(STUDENTS[name]().double(), sk.Scaler().fit(X, targets))

    def numbers(function, way):
        results = []
        for _ in range(3):
            x = X.clone().requires_grad_()
            losses = WAYS[way](function, x, targets)
            gradients = torch.autograd.grad(sum(losses), [x, *student.parameters()], allow_unused=True)
            results = [*losses, *gradients]
        return [r for r in results if r is not None]

    within = ANOTHER_WAY["rtol"]
    for ours, theirs in zip(numbers(student, way), numbers(lambda x: student(x), way), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=within, atol=within * float(theirs.detach().abs().max()))


def test_gradients_come_to_the_parameters_and_half_frozen_ones_stay():
    targets = data("jacobian")
    student = sk.Scaled(sk.MLP(3, 2, width=8).double(), sk.Scaler().fit(X, targets))
    student.student[0].weight.requires_grad_(False)
    for _ in range(3):
        student.zero_grad()
        sk.sobolev_loss(student, X, targets, derivatives="exact").backward()
        assert student.student[0].weight.grad is None
        assert all(p.grad is not None for p in list(student.parameters())[1:])
    with torch.no_grad():
        assert torch.isfinite(sk.sobolev_loss(student, X, targets, derivatives="exact"))


def test_it_is_recognised(capsys):
    targets = data("jacobian")
    student = sk.Scaled(sk.MLP(3, 2, width=8), sk.Scaler().fit(X.float(), targets))
    assert "-> cpu" in sk.explain(student, X.float()) and "3 -> 8 -> 8 -> 2" in capsys.readouterr().out
    assert "-> streams" in sk.explain(student.bfloat16(), X.bfloat16())
    student.float().register_forward_hook(lambda *_: None)
    assert "3 -> 8" not in sk.explain(student, X.float())


def test_inputs_far_from_0_keep_their_digits():
    """Against float64, no worse than the plain module by much: the mean is subtracted, not put into a bias."""
    x = torch.rand(64, 2) + 4000
    targets = sk.Targets(values=x.sum(1, keepdim=True) - 8000, jacobian=torch.ones(64, 1, 2))
    student = sk.Scaled(sk.MLP(2, 1, width=16), sk.Scaler().fit(x, targets))
    exact = copy.deepcopy(student).double()(x.double())
    ours = call.evaluate("derivatives", student, x, *settings())[0][0]
    plain = student(x)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6


def settings():
    from sobolev_kernels.settings import settings_with

    return settings_with(directions=sk.Directions.basis()), None


def test_a_scaler_is_saved_and_loaded(tmp_path):
    targets = data("jacobian")
    student = sk.Scaled(sk.MLP(3, 2, width=8).double(), sk.Scaler().fit(X, targets))
    torch.save(student.state_dict(), tmp_path / "student.pt")
    other = sk.Scaled(sk.MLP(3, 2, width=8).double(), sk.Scaler())
    other.load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))
    assert torch.equal(other(X), student(X))
    assert "not fit" in repr(sk.Scaler()) and "not fit" not in repr(other)


REFUSED = {
    "values: expected numbers with a unit": lambda s: s.fit(X, sk.Targets(values=torch.zeros(40, dtype=torch.int64))),
    "directions in targets: expected given": lambda s: s.transform(
        X, sk.Targets(tangents=X[None, :, :2], directions=sk.Directions.sphere(1))
    ),
    "values: expected finite": lambda s: s.fit(X, sk.Targets(values=X / 0)),
    "x: expected floating": lambda s: s.transform(X[:, :2]),
    "scaler: expected one that was fit": lambda s: sk.Scaler().transform(X),
    "jacobian: expected": lambda s: s.transform(X, sk.Targets(jacobian=X[:, None, :2])),
    "values: expected": lambda s: s.transform(X, sk.Targets(values=X[:30, :2])),
    "wrt: expected columns": lambda s: s.transform(X, sk.Targets(jacobian=X[:, None, :1]), wrt=[5]),
    "targets: expected a sobolev_kernels.Targets": lambda s: s.fit(X, X),
    "x: expected a tensor": lambda s: s.fit(X.numpy(), data("jacobian")),
    "scaler: expected a sobolev_kernels.Scaler": lambda s: sk.Scaled(sk.MLP(3, 2), s.x_mean),
    "student: expected a torch.nn.Module": lambda s: sk.Scaled(lambda x: x, s),
    "Scaler.fit: expected an instance": lambda s: sk.Scaler.fit(X, data("jacobian"), wrt=None),
    "hessian: expected": lambda s: s.transform(X, sk.Targets(hessian=torch.zeros(40, 2, 3, 2, dtype=torch.float64))),
    "vjps: expected": lambda s: s.transform(X, sk.Targets(vjps=X[None, :, :2])),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(words):
    with pytest.raises((ValueError, TypeError), match=words):
        REFUSED[words](sk.Scaler().fit(X, data("jacobian")))

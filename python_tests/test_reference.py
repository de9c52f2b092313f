"""The reference itself against torch.func in float64; and that it can be differentiated again."""

import copy

import pytest
import torch
from test_math import TORCH_LOSSES
from torch import nn
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap

import sobolev_kernels as sk
from sobolev_kernels.backends import functions, reference, residuals, running
from sobolev_kernels.math.losses import choose_loss
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.problems import CURVED, Shape, data

SHAPE = Shape(6, 3, 7, 2, 2, 4, "small and odd")


def random_vectors(P, n):
    return torch.randn(P, SHAPE.N, n, dtype=torch.float64)


@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_form_against_nested_torch_func(activation):
    """The written-out streams and those by autograd, against Jacobian and Hessian in forward and reverse mode."""
    numbers = data(SHAPE, activation, last=activation).to(torch.float64)
    student, x = numbers.student, numbers.x
    layers, v, u = recognise(student), random_vectors(4, SHAPE.D), random_vectors(5, SHAPE.O)
    parameters = list(layers.parameters)
    by_rows, by_columns = (vmap(jacobian(student))(x) for jacobian in (jacrev, jacfwd))
    assert_within_rule("jacobian", by_rows, by_columns)
    tangents, gradients = residuals.project(by_columns, v), residuals.pull(by_rows, u)
    second = residuals.project_twice(vmap(hessian(student))(x), v)
    for form, y, *got in (
        ("mlp_vjp", *reference.mlp_vjp(layers, parameters, x, u)),
        ("function_vjp", *functions.vjps(running.with_graph(student, x), u)),
    ):
        assert_within_rule(f"y of {form}", y, student(x))
        assert_within_rule(form, *got, gradients)
    for form, jet in (
        ("mlp_jet", lambda order: reference.mlp_jet(layers, parameters, x, v, order)),
        ("function_jet", lambda order: functions.function_jet(running.with_graph(student, x), v, order)),
    ):
        y, first, none = jet(1)
        assert none is None
        assert_within_rule(f"y of {form}", y, student(x))
        assert_within_rule(form, first, tangents)
        y, first, both = jet(2)
        assert_within_rule(f"y of {form}", y, student(x))
        assert_within_rule(f"{form}, first", first, tangents)
        assert_within_rule(f"{form}, second", both, second)


def test_projections_of_a_dense_target():
    """One by one, as they are defined."""
    jacobian, curvature = torch.randn(6, 2, 3).double(), torch.randn(6, 2, 3, 3).double()
    v, u = random_vectors(4, 3), random_vectors(5, 2)
    for n in range(6):
        for p in range(4):
            assert_within_rule("project", residuals.project(jacobian, v)[p, n], jacobian[n] @ v[p, n])
            twice = torch.stack([v[p, n] @ curvature[n, o] @ v[p, n] for o in range(2)])
            assert_within_rule("project_twice", residuals.project_twice(curvature, v)[p, n], twice)
        for r in range(5):
            assert_within_rule("pull", residuals.pull(jacobian, u)[r, n], jacobian[n].T @ u[r, n])


def test_no_projections_at_all():
    student, x = data(SHAPE).to(torch.float64).student, torch.randn(6, 3, dtype=torch.float64)
    layers = recognise(student)
    v, u = random_vectors(0, SHAPE.D), random_vectors(0, SHAPE.O)
    for order in (1, 2):
        for _, *derivatives in (
            reference.mlp_jet(layers, list(layers.parameters), x, v, order),
            functions.function_jet(running.with_graph(student, x), v, order),
        ):
            assert all(t.shape == (0, SHAPE.N, SHAPE.O) for t in derivatives[:order])
    for _, gradients in (
        reference.mlp_vjp(layers, list(layers.parameters), x, u),
        functions.vjps(running.with_graph(student, x), u),
    ):
        assert gradients.shape == (0, SHAPE.N, SHAPE.D)


@pytest.mark.parametrize("function", [lambda x: x[:, :2] * 0 + 1, lambda x: torch.ones(6, 2).double(), lambda x: x @ A])
def test_functions_without_a_derivative_have_zeros(function):
    x = torch.randn(6, 3, dtype=torch.float64)
    y, first, second = functions.function_jet(running.with_graph(function, x), random_vectors(4, 3), 2)
    assert not second.any() and second.shape == (4, 6, 2)
    assert first.any() == y.detach().std().gt(0)


A = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)


# Each loss of a sample's numbers [n], or of many samples' [N, n], with a weight for each number.
WRITTEN = {name: lambda a, t, w, rho=rho: (w * rho(a - t)).mean(-1) for name, rho in TORCH_LOSSES.items()} | {
    "relative_mse": lambda a, t, w: (w * (a - t) ** 2).sum(-1) / ((w * t**2).sum(-1) + 1e-8),
    "cosine": lambda a, t, w: 1 - (w * a * t).sum(-1) / ((w * a**2).sum(-1) * (w * t**2).sum(-1) + 1e-12).sqrt(),
}


@pytest.mark.parametrize("dims", [(6, 2), (4, 6, 2)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [*sk.LOSSES, *sk.COUPLED])
def test_terms_sample_by_sample(loss, weighted, dims):
    """A coupled loss of all the numbers of a sample, a pointwise one the mean over them."""
    a, t = torch.randn(2, *dims, dtype=torch.float64)
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64) if weighted else torch.ones(2, dtype=torch.float64)
    got = residuals.term(choose_loss("loss", loss), a, t, weight if weighted else None)
    for n in range(6):
        numbers = (tensor[..., n, :].flatten() for tensor in (a, t, weight.expand(dims)))
        expected = WRITTEN[loss](*numbers)
        eps = torch.finfo(torch.float64).eps  # of the 1 or log 2 that the loss is a difference to
        assert_within_rule(f"sample {n}", got[n], expected, expected + 2 * eps)


def written_out(student, x, y, jacobian, v, weights):
    """The loss as the issue of the paper states it, by autograd: one backward for each output."""
    prediction = student(x)
    rows = [torch.autograd.grad(prediction[:, o].sum(), x, create_graph=True)[0] for o in range(y.shape[1])]
    difference = torch.stack(rows, 1) - jacobian  # [N, O, D]
    slopes = torch.einsum("nod,pnd->pno", difference, v)
    return weights[0] * (prediction - y).square().mean() + weights[1] * slopes.square().mean()


@pytest.mark.parametrize("distribution", ["sphere", "basis"])
def test_loss_against_double_backward(distribution):
    numbers = data(SHAPE, "silu").to(torch.float64)
    directions = sk.Directions.basis() if distribution == "basis" else sk.Directions.sphere(3, seed=1)
    x = numbers.x.requires_grad_()
    inputs = (x, *numbers.student.parameters())
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    options = {"directions": directions, "weights": (0.7, 1.9), "backend": "reference"}
    loss = sk.sobolev_loss(numbers.student, x, targets, **options)
    expected = written_out(numbers.student, x, numbers.y, numbers.jacobian, directions.tensor(x), (0.7, 1.9))
    assert_within_rule("loss", loss, expected)
    got, wanted = (torch.autograd.grad(f, inputs) for f in (loss, expected))
    for i, (g, w) in enumerate(zip(got, wanted, strict=True)):
        assert_within_rule(f"gradient {i}", g, w)


def by_nested_torch_func(student, x, y, jacobian, curvature, v, weights):
    """The loss of order 2 from the whole Hessian, as a function that torch.func differentiates again."""

    def loss(x, parameters):
        one = lambda x: functional_call(student, parameters, x[None])[0]  # noqa: E731
        value, slope, bend = vmap(one)(x) - y, vmap(jacrev(one))(x) - jacobian, vmap(hessian(one))(x) - curvature
        terms = value, torch.einsum("nod,pnd->pno", slope, v), torch.einsum("node,pnd,pne->pno", bend, v, v)
        return sum(w * term.square().mean() for w, term in zip(weights, terms, strict=True))

    return loss(x, dict(student.named_parameters()))


@pytest.mark.parametrize("activation", CURVED)
def test_gradients_of_order_2_against_nested_torch_func(activation):
    numbers = data(SHAPE, activation).to(torch.float64)
    student, x, v, weights = numbers.student, numbers.x.requires_grad_(), random_vectors(3, SHAPE.D), (0.7, 1.9, 0.4)
    inputs = (x, *student.parameters())
    expected = by_nested_torch_func(student, x, numbers.y, numbers.jacobian, numbers.hessian, v, weights)
    wanted = torch.autograd.grad(expected, inputs)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=numbers.hessian)
    for form in (student, lambda x: student(x)):
        got = sk.sobolev_loss(
            form, x, targets, directions=sk.Directions.given(v), order=2, weights=weights, backend="reference"
        )
        assert_within_rule("loss", got, expected)
        for i, (g, w) in enumerate(zip(torch.autograd.grad(got, inputs), wanted, strict=True)):
            assert_within_rule(f"gradient {i}", g, w)


@pytest.mark.parametrize("loss", ["mse", *sk.COUPLED])
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_gradients_of_cotangents_against_nested_torch_func(activation, loss):
    numbers = data(SHAPE, activation).to(torch.float64)
    student, x, u = numbers.student, numbers.x.requires_grad_(), random_vectors(3, SHAPE.O)
    inputs = (x, *student.parameters())
    jacobians = vmap(jacrev(student))(x), numbers.jacobian
    prediction, target = (torch.einsum("nod,rno->nrd", jacobian, u).flatten(1) for jacobian in jacobians)
    expected = (student(x) - numbers.y).square().mean() + WRITTEN[loss](prediction, target, 1.0).mean()
    wanted = torch.autograd.grad(expected, inputs)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, cotangents=u)
    for form in (student, lambda x: student(x)):
        got = sk.sobolev_loss(form, x, targets, derivative_loss=loss, backend="reference")
        assert_within_rule("loss", got, expected)
        for i, (g, w) in enumerate(zip(torch.autograd.grad(got, inputs), wanted, strict=True)):
            assert_within_rule(f"gradient {i}", g, w)


def test_the_reference_can_be_differentiated_again():
    numbers = data(Shape(3, 2, 4, 1, 1, 2, "tiny: gradgradcheck"), "tanh").to(torch.float64)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    x = numbers.x.requires_grad_()

    def loss(x, *_):
        return sk.sobolev_loss(
            numbers.student, x, targets, directions=sk.Directions.normal(2, seed=1), backend="reference"
        )

    assert torch.autograd.gradgradcheck(loss, (x, *numbers.student.parameters()))


@pytest.mark.parametrize("mode", ["order 2", "cotangents", "exact", "relative_mse", "cosine"])
def test_every_mode_can_be_differentiated_again(mode):
    numbers = data(Shape(2, 2, 3, 1, 2, 2, "tiny: gradgradcheck"), "tanh").to(torch.float64)
    settings = {
        "order 2": {"order": 2, "directions": sk.Directions.normal(2, seed=1)},
        "cotangents": {"cotangents": sk.Cotangents.normal(2, seed=1)},
        "exact": {"derivatives": "exact"},
    }.get(mode, {"derivatives": "exact", "derivative_loss": mode})
    targets = sk.Targets(
        values=numbers.y, jacobian=numbers.jacobian, hessian=numbers.hessian if mode == "order 2" else None
    )
    x = numbers.x.requires_grad_()

    def loss(x, *_):
        return sk.sobolev_loss(numbers.student, x, targets, backend="reference", **settings)

    assert torch.autograd.gradgradcheck(loss, (x, *numbers.student.parameters()))


@pytest.mark.parametrize("function", ["jvp", "vjp", "jet", "laplacian", "hvp"])
def test_derivatives_can_be_differentiated_again(function):
    numbers = data(Shape(2, 2, 3, 1, 2, 2, "tiny: gradgradcheck"), "tanh").to(torch.float64)
    one, two = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    vectors = {"laplacian": [], "hvp": [one, two]}.get(function, [one])
    x = numbers.x.requires_grad_()

    def derivatives(x, *_):
        return getattr(sk, function)(numbers.student, x, *vectors, backend="reference")

    inputs = (x, *numbers.student.parameters())
    assert torch.autograd.gradcheck(derivatives, inputs)
    assert torch.autograd.gradgradcheck(derivatives, inputs)


FROZEN = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2), nn.Tanh()).requires_grad_(False)
TRAINED = copy.deepcopy(FROZEN).requires_grad_()
ASKING = [
    ("a function of x alone", lambda x: x[:, :2].sin(), False), ("a frozen module", FROZEN, False),
    ("a frozen module, enclosed", lambda x: FROZEN(x), False), ("a module", TRAINED, True),
    ("a module, enclosed", lambda x: TRAINED(x) + x[:, :2], True), ("no path to x", lambda x: TRAINED(0 * x), True),
]  # fmt: skip


@pytest.mark.parametrize("student, asks", [row[1:] for row in ASKING], ids=[row[0] for row in ASKING])
def test_results_ask_for_a_gradient_where_something_of_theirs_does(student, asks):
    x = torch.rand(4, 3)
    v, targets = torch.rand(2, 4, 3), sk.Targets(values=torch.rand(4, 2), jacobian=torch.rand(4, 2, 3))
    calls = {
        "loss": lambda x: sk.sobolev_loss(student, x, targets, derivatives="exact", return_terms=True)[:3],
        "none": lambda x: (sk.sobolev_loss(student, x, targets, derivatives="exact", reduction="none"),),
        "jvp": lambda x: sk.jvp(student, x, v), "vjp": lambda x: sk.vjp(student, x, sk.Cotangents.basis()),
        "jet": lambda x: sk.jet(student, x, v), "laplacian": lambda x: sk.laplacian(student, x),
        "hvp": lambda x: sk.hvp(student, x, v, v.flip(0)),
    }  # fmt: skip
    for name, call in calls.items():
        assert any(result.requires_grad for result in call(x)) == asks, name
        assert any(result.requires_grad for result in call(x.clone().requires_grad_())), name
        assert asks or all(result.numpy() is not None for result in call(x))


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("depth", [0, 1])
def test_what_is_not_used_gets_zeros_from_every_backend(depth, activation):
    """As the last bias where only derivatives are compared: not None, with which an optimizer steps differently."""
    student, x = sk.MLP(3, 2, width=4, depth=depth, activation=activation).double(), torch.rand(4, 3).double()
    v, targets = torch.rand(2, 4, 3).double(), sk.Targets(values=x[:, :2], jacobian=torch.rand(4, 2, 3).double())
    calls = [
        lambda x, b, w=w, r=r: sk.sobolev_loss(
            student, x, targets, weights=w, reduction=r, derivatives="exact", backend=b
        ).sum()
        for w in ((0, 1), (1, 0), (0, 0))
        for r in ("mean", "none")
    ]
    calls += [lambda x, b, i=i: sk.jvp(student, x, v, backend=b)[i].sum() for i in (0, 1)]
    calls += [lambda x, b: sk.vjp(student, x, sk.Cotangents.basis(), backend=b)[1].sum()]
    if activation == "tanh":
        calls += [lambda x, b, i=i: sk.jet(student, x, v, backend=b)[i].sum() for i in (1, 2)]
        calls += [lambda x, b: sk.laplacian(student, x, backend=b)[1].sum()]
    for call in calls:
        gradients = []
        for backend in ("cpu", "reference"):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(call(leaf, backend), (leaf, *student.parameters()), allow_unused=True))
        for fused, reference_s in zip(*gradients, strict=True):
            assert_within_rule("gradient", reference_s, fused)

"""Derivatives as outputs (jvp, vjp, jet, laplacian, hvp), and their gradients, against the reference and torch.func."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev, vmap

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import Comparison, computed_from, gradient, gradients, ramp
from sobolev_kernels.testing.problems import (
    CURVED,
    DTYPES,
    SHAPES,
    SMALL,
    TINY,
    Shape,
    as_dtype,
    data,
    random,
    threads,
    threads_for,
)
from sobolev_kernels.testing.rule import ROUNDED_WITHIN

# The function, and what it takes after student and inputs, for a shape.
CALLS = {
    "jvp": (sk.jvp, lambda s: [random(s.P, s.N, s.D)]),
    "jvp, drawn": (sk.jvp, lambda s: [sk.Directions.sphere(s.P, seed=3)]),
    "jvp, by gradients": (sk.jvp, lambda s: [random(s.O + 2, s.N, s.D)]),
    "jet of order 1": (partial(sk.jet, order=1), lambda s: [random(s.P, s.N, s.D)]),
    "vjp": (sk.vjp, lambda s: [random(s.P, s.N, s.O)]),
    "vjp, drawn": (sk.vjp, lambda s: [sk.Cotangents.normal(s.P, seed=3)]),
    "vjp, shared": (sk.vjp, lambda s: [sk.Cotangents.given(random(s.P, s.O))]),
    "vjp, basis": (sk.vjp, lambda s: [sk.Cotangents.basis()]),
}
OF_ORDER_2 = {
    "jet": (sk.jet, lambda s: [random(s.P, s.N, s.D)]),
    "jet, drawn": (sk.jet, lambda s: [sk.Directions.orthonormal(min(s.P, s.D), seed=3)]),
    "laplacian": (sk.laplacian, lambda s: []),
    "laplacian, given": (sk.laplacian, lambda s: [random(s.P, s.D)]),
    "laplacian, estimated": (sk.laplacian, lambda s: [sk.Directions.rademacher(s.P, seed=3)]),
    "laplacian, unbiased": (sk.laplacian, lambda s: [sk.Directions.sphere(s.P, seed=3, unbiased=True)]),
    "hvp": (sk.hvp, lambda s: [random(s.P, s.N, s.D), random(s.P + 1, s.N, s.D)[1:]]),
    "hvp, shared": (sk.hvp, lambda s: [sk.Directions.given(v) for v in (random(s.P, s.D), random(s.P + 1, s.D)[1:])]),
}
CALLS |= OF_ORDER_2


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield


def evaluate(name, numbers, shape, backend):
    function, vectors = CALLS[name]
    dtype = numbers.x.dtype
    return function(numbers.student, numbers.x, *(as_dtype(v, dtype) for v in vectors(shape)), backend=backend)


def side_of(name):
    return "gradients" if name.endswith("by gradients") else "tangents"


def of_all(outputs):
    """Something of every number, and products of numbers of two outputs."""
    single = sum((ramp(output) * output.sin()).sum() for output in outputs)
    return single + sum((output.sum(-1) * outputs[0].sum(-1)).sum() for output in outputs[1:])


def compare(name, numbers, shape, loss=of_all):
    """Outputs, and gradients of a loss of one's own on top of them."""
    dtype = numbers.x.dtype

    def run(backend, dtype):
        n = numbers.to(dtype)
        n.x = n.x.detach().requires_grad_()
        n.student.zero_grad(set_to_none=True)
        with computed_from(side_of(name)), threads(threads_for(shape.N, backend)):
            outputs = evaluate(name, n, shape, backend)
            assert all(output.dtype == dtype for output in outputs)
            loss(outputs).backward()
        tensors = [*(output.detach() for output in outputs), gradient(n.x), *gradients(n.student).values()]
        return {f"{name}, tensor {i}": tensor for i, tensor in enumerate(tensors)}

    again = lambda: run("reference", torch.float64)  # noqa: E731
    baseline = run("reference", dtype) if dtype != torch.float64 else {}
    Comparison(run("cpu", dtype), again(), baseline, again=again).check()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_shape(name, shape):
    for dtype in DTYPES:
        for bias in (True, False):
            compare(name, data(shape, "silu", bias, last="identity" if bias else "tanh").to(dtype), shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_activation(activation, dtype):
    for name in CALLS:
        if name not in OF_ORDER_2 or activation in (*CURVED, "identity"):
            compare(name, data(SMALL, activation).to(dtype), SMALL)


@pytest.mark.parametrize("P", range(1, 6))
def test_number_of_vectors(P):
    shape = Shape(45, 3, 19, 2, 2, P, "P from 1 to 5")
    for name in ("vjp", "jet", "laplacian, given", "hvp"):
        compare(name, data(shape), shape)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_some_of_the_outputs(used, dtype):
    """Those that are not used have no cotangent at all."""
    for name in ("jvp", "vjp", "jet", "laplacian", "hvp"):
        outputs = 3 if name == "jet" else 2
        if max(used) < outputs:
            compare(name, data(SMALL).to(dtype), SMALL, lambda results: sum(results[i].sin().sum() for i in used))


@pytest.mark.parametrize("name", CALLS)
def test_any_layout(name):
    """Inputs and vectors transposed in memory; and the cotangents that come back, expanded and transposed."""
    function, vectors = CALLS[name]
    numbers = data(SMALL, "silu")
    transposed = lambda t: t.mT.contiguous().mT if isinstance(t, torch.Tensor) else t  # noqa: E731
    results = []
    for layout in (lambda t: t, transposed):
        x = layout(numbers.x.detach()).requires_grad_()
        numbers.student.zero_grad(set_to_none=True)
        outputs = function(numbers.student, x, *map(layout, vectors(SMALL)), backend="cpu")
        cotangents = [layout(torch.tensor(2.0 + i).expand_as(output)) for i, output in enumerate(outputs)]
        torch.autograd.backward(outputs, cotangents)
        results.append([*outputs, x.grad, *gradients(numbers.student).values()])
    assert all(map(torch.equal, *results))


def by_einsum(jacobian, curvature, v, w, u):
    """What each function computes from the whole derivatives, and the vectors that it takes if these are not v."""
    expected = {
        "jvp": torch.einsum("nod,pnd->pno", jacobian, v),
        "vjp": torch.einsum("nod,rno->rnd", jacobian, u),
        "jet": torch.einsum("node,pnd,pne->pno", curvature, v, v),
        "laplacian": torch.einsum("nodd->no", curvature),
        "hvp": torch.einsum("node,pnd,pne->pno", curvature, v, w),
    }
    return expected, {"vjp": [u], "laplacian": [], "hvp": [v, w]}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", [*CURVED, "identity"])
def test_values_against_torch_func(activation, backend):
    numbers = data(SMALL, activation, last=activation).to(torch.float64)
    student, x = numbers.student, numbers.x
    jacobian, curvature = vmap(jacrev(student))(x), vmap(hessian(student))(x)
    v, w, u = (random(4, SMALL.N, n).double() for n in (3, 3, 2))
    w = w + 1
    expected, vectors = by_einsum(jacobian, curvature, v, w, u)
    for name, derivative in expected.items():
        y, *_, last = getattr(sk, name)(student, x, *vectors.get(name, [v]), backend=backend)
        assert_within_rule("values", y, student(x))
        assert_within_rule(name, last, derivative)
    assert_within_rule("of order 1 in a jet", sk.jet(student, x, v, backend=backend)[1], expected["jvp"])
    assert len(sk.jet(student, x, v, order=1, backend=backend)) == 2


@pytest.mark.parametrize(("backend", "recognised"), [("cpu", True), ("reference", True), ("reference", False)])
@pytest.mark.parametrize("wrt", [[0, 1], [2, 0], [1], [2, 1, 0]], ids=str)
def test_columns_against_torch_func(wrt, backend, recognised):
    """Values, and the gradients of a loss on them, in the columns' order; the other columns are inputs all the same."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    mlp, x, W = numbers.student, numbers.x.requires_grad_(), len(wrt)
    student = mlp if recognised else lambda x: mlp(x)
    jacobian = vmap(jacrev(mlp))(x)[..., wrt]
    curvature = vmap(hessian(mlp))(x)[..., wrt, :][..., wrt]
    v, w, u = (random(4, SMALL.N, n).double() for n in (W, W + 2, 2))
    w = w[..., 2:]
    expected, vectors = by_einsum(jacobian, curvature, v, w, u)
    inputs = (x, *mlp.parameters())
    for name, derivative in expected.items():
        y, *_, last = getattr(sk, name)(student, x, *vectors.get(name, [v]), wrt=wrt, backend=backend)
        assert_within_rule("values", y, mlp(x))
        assert_within_rule(name, last, derivative)
        losses = ((ramp(y) * y.sin()).sum() + (ramp(t) * t.square()).sum() for t in (last, derivative))
        got, by_torch = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in losses)
        for i, (g, e) in enumerate(zip(got, by_torch, strict=True)):
            assert_within_rule(f"{name}, gradient {i}", g, e)
    drawn = sk.Directions.normal(2, seed=5)
    _, tangents = sk.jvp(student, x, drawn, wrt=wrt, backend=backend)
    assert_within_rule("drawn", tangents, torch.einsum("nod,pnd->pno", jacobian, drawn.tensor(x[:, wrt])))


def laplacian_of(numbers):
    return torch.einsum("nodd->no", vmap(hessian(numbers.student))(numbers.x)).detach()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_laplacians_that_are_exact(backend):
    """A whole frame gives the trace, whatever frame; and given directions are summed."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    expected = laplacian_of(numbers)
    for v in (
        None,
        torch.eye(3, dtype=torch.float64),
        sk.Directions.basis(),
        sk.Directions.basis(unbiased=True),
        sk.Directions.orthonormal(3, seed=1, unbiased=True),
    ):
        assert_within_rule("laplacian", sk.laplacian(numbers.student, numbers.x, v, backend=backend)[1], expected)


@pytest.mark.parametrize("P", [1, 2])
@pytest.mark.parametrize("distribution", ["sphere", "normal", "rademacher", "coordinate", "orthonormal"])
def test_laplacian_estimates_by_convergence(distribution, P):
    """Their mean goes to the Laplacian within five standard errors, at ever more samples of one point."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    numbers.x = numbers.x[:1]
    expected = laplacian_of(numbers)[0]
    directions = getattr(sk.Directions, distribution)(P, seed=1, unbiased=True)
    for N in (1_000, 30_000):
        estimates = sk.laplacian(numbers.student, numbers.x.expand(N, -1), directions)[1].detach()
        standard_error = estimates.std(0) / N**0.5
        assert ((estimates.mean(0) - expected).abs() < 5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("function", [sk.jvp, sk.vjp, sk.jet, sk.laplacian], ids=lambda f: f.__name__)
def test_a_linear_layer_is_a_student(function):
    layer, x = nn.Linear(3, 2), torch.randn(5, 3)
    vectors = {sk.vjp: [torch.ones(1, 5, 2)], sk.laplacian: []}.get(function, [torch.ones(1, 5, 3)])
    got, expected = (function(student, x, *vectors) for student in (layer, nn.Sequential(layer)))
    assert all(map(torch.equal, got, expected))
    if function in (sk.jet, sk.laplacian):
        assert not got[-1].any()


@pytest.mark.parametrize("name", CALLS)
def test_a_student_that_is_not_recognised(name):
    numbers = data(SMALL, "tanh").to(torch.float64)
    function, vectors = CALLS[name]
    made = [as_dtype(v, torch.float64) for v in vectors(SMALL)]
    expected = function(numbers.student, numbers.x, *made, backend="cpu")
    got = function(lambda x: numbers.student(x), numbers.x, *made)
    for i, (tensor, reference) in enumerate(zip(got, expected, strict=True)):
        assert_within_rule(f"output {i}", tensor, reference)


@pytest.mark.parametrize("name", CALLS)
def test_gradcheck(name):
    numbers = data(TINY, "tanh").to(torch.float64)
    numbers.x.requires_grad_()
    inputs = (numbers.x, *numbers.student.parameters())
    with computed_from(side_of(name)):
        assert torch.autograd.gradcheck(lambda *_: evaluate(name, numbers, TINY, "cpu"), inputs)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CALLS)
def test_half_precision_is_rounded_once_and_last(name, dtype, backend):
    """Also after the sum and the difference of hvp, and after the mean of an estimated Laplacian."""
    function, vectors = CALLS[name]
    half = data(SMALL).to(dtype)
    made = [as_dtype(v, dtype) for v in vectors(SMALL)]
    results = []
    for numbers, kept in ((half, dtype), (half.to(torch.float32), torch.float32)):
        numbers.x.requires_grad_()
        outputs = function(numbers.student, numbers.x, *(as_dtype(v, kept) for v in made), backend=backend)
        results.append([*outputs, *torch.autograd.grad(outputs[-1].float().sum(), numbers.x)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_autocast_rounds_no_product_of_ours(name, backend):
    """The kernels of the CPU multiply in float32, and so does the reference; a student's own forward is rounded."""
    numbers = data(SMALL)
    expected = evaluate(name, numbers, SMALL, backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate(name, numbers, SMALL, backend)
        assert numbers.student(numbers.x).dtype == torch.bfloat16
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(
    ("projections", "compiled"),
    [("directions", False), ("directions", True), ("cotangents", False), ("order 2", False)],
)
def test_autocast_rounds_no_target(projections, compiled):
    """Projected for a function without products of its own."""
    x, u = torch.randn(9, 3), torch.randn(2, 9, 3)
    targets = sk.Targets(values=x, jacobian=torch.randn(9, 3, 3), hessian=torch.randn(9, 3, 3, 3))
    order = 2 if projections == "order 2" else 1
    vectors = {"cotangents": sk.Cotangents.given(u)} if order == 1 else {}
    vectors = vectors if projections == "cotangents" else {"directions": sk.Directions.given(u)}
    loss = lambda x: sk.sobolev_loss(lambda x: x.sin(), x, targets, order=order, **vectors)  # noqa: E731
    expected = loss(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = (torch.compile(loss, fullgraph=True, backend="eager") if compiled else loss)(x)
    # compiled, and of order 2, by another way than without autocast
    another_way = compiled or order == 2
    torch.testing.assert_close(got, expected, **(ROUNDED_WITHIN if another_way else {"rtol": 0, "atol": 0}))


def test_a_mean_that_float16_has_room_for():
    """A sum over directions that it has no room for."""
    student = sk.MLP(1, 1, depth=1, width=1, activation="sin", bias=False, dtype=torch.float16)
    for weight in student.parameters():
        torch.nn.init.constant_(weight, 30.0)
    x, v = torch.full((1, 1), -0.5, dtype=torch.float16), sk.Directions.rademacher(64, seed=0)
    (expected,) = sk.laplacian(student.float(), x.float())[1]
    most = torch.finfo(torch.float16).max
    assert most > expected.abs() > most / 64
    assert sk.laplacian(student.half(), x, v)[1].item() == expected.half().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_a_function_that_rounds_nothing_else_is_rounded(dtype):
    """Its numbers are exact in half precision; sums, projections, losses and weights of them are not."""
    x = (8 * torch.randn(300, 2)).round().clamp(-16, 16).to(dtype)
    student = lambda x: x * x  # noqa: E731
    total = sk.laplacian(
        student, x, sk.Directions.given(torch.tensor([[0.5, 1.0], [2.0, 16.0], [0.25, 64.0]]).to(dtype))
    )
    assert torch.equal(total[1].float(), (2 * torch.tensor([4.3125, 4353.0])).to(dtype).float().expand(300, 2))
    values, jacobian = torch.randn(300, 2).to(dtype), torch.randn(300, 2, 2).to(dtype)
    weight = torch.rand(300).to(dtype)
    options = {"derivatives": "exact", "sample_weight": weight, "return_terms": True}
    got = sk.sobolev_loss(student, x, sk.Targets(values=values, jacobian=jacobian), **options)
    exact, w = torch.diag_embed(2 * x.double()), weight.double()
    expected = [
        (w[:, None] * (x.double() ** 2 - values.double()) ** 2).mean(),
        (w[:, None, None] * (exact - jacobian.double()) ** 2).mean(),
    ]
    assert torch.equal(torch.stack(got[:3]), torch.stack([sum(expected), *expected]).to(dtype))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_on_every_run(name):
    numbers = data(SMALL, "gelu")
    results = []
    for _ in range(3):
        numbers.student.zero_grad(set_to_none=True)
        outputs = evaluate(name, numbers, SMALL, "cpu")
        of_all(outputs).backward()
        results.append([*outputs, *gradients(numbers.student).values()])
    for again in results[1:]:
        assert all(map(torch.equal, results[0], again))

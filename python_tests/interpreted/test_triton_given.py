"""Gradients of given vectors on Triton, beside all others, and the gradients of these."""

import pytest
import torch

import sobolev_kernels as sk
from python_tests.test_nested import network, of_all, taken
from sobolev_kernels.backends.triton import launches, layerwise, one_launch
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, forget, layer_by_layer
from sobolev_kernels.testing.problems import Shape, asking, cotangents_of, data, directions_of


def elsewhere(*_):
    raise AssertionError("another path was taken")


@pytest.fixture(params=["on chip", "in cache", "own multiply", "torch's multiply"])
def path(request, monkeypatch):
    if request.param == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    if request.param.endswith("multiply"):
        layer_by_layer(monkeypatch)
        monkeypatch.setattr(layerwise, "fuses", lambda problem: request.param == "own multiply")
    monkeypatch.setattr(layerwise if request.param in ("on chip", "in cache") else one_launch, "write", elsewhere)
    forget()
    yield request.param
    forget()


PER_SAMPLE = {"reduction": "none", "sample_weight": torch.linspace(0, 2, 20), "derivative_loss": "huber"}
CASES = {  # shape, activation, whether all samples share the vectors, settings
    "one, two tiles": (Shape(37, 3, 9, 2, 2, 1, "a tile and a part of one"), "tanh", False, {}),
    "some columns": (Shape(20, 5, 18, 1, 3, 4, "odd"), "silu", False, {"wrt": [2, 0], **PER_SAMPLE}),
    "shared, x does not ask": (Shape(9, 4, 7, 3, 1, 2, "one output"), "gelu", True, {"input_gradient": False}),
    "no weight": (Shape(5, 2, 8, 1, 2, 2, "all 0"), "softplus", False, {"weights": (1.0, 0.0)}),
}


@pytest.mark.parametrize("kind", ["directions", "cotangents"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_beside_a_loss(path, case, kind):
    shape, activation, shared, settings = CASES[case]
    vectors = cotangents_of("given", shape) if kind == "cotangents" else directions_of("given", shape)
    values = vectors.values[:, 0] if shared else vectors.values
    if kind == "directions" and "wrt" in settings:
        values = values[..., : len(settings["wrt"])]
    targets = ("values", "tangents" if kind == "directions" else "vjps")
    compare(data(shape, activation, last="tanh"), asking(type(vectors).given(values)), targets, "triton", **settings)


@pytest.mark.parametrize("path", ["own multiply", "torch's multiply"], indirect=True)
@pytest.mark.parametrize("shared", [False, True], ids=["of each sample", "shared"])
@pytest.mark.parametrize("name", ["jvp", "vjp", "jet", "laplacian"])
def test_gradients_of_given_vectors(name, shared, path):
    def gradients(backend, dtype):
        student, n = network(widths=(8,)), 2 if name == "vjp" else 3
        torch.manual_seed(1)
        x, v = torch.randn(5, 3), torch.randn((2, n) if shared else (2, 5, n))
        x, v = (tensor.to(dtype).requires_grad_() for tensor in (x, v))
        kind = sk.Cotangents if name == "vjp" else sk.Directions
        call = lambda x, v: getattr(sk, name)(student.to(dtype), x, kind.given(v), backend=backend)  # noqa: E731
        return taken(call, (x, v), student.to(dtype).parameters())

    exact, plain = gradients("reference", torch.float64), gradients("reference", torch.float32)
    for i, (g, e, p) in enumerate(zip(gradients("triton", torch.float32), exact, plain, strict=True)):
        assert_within_rule(f"gradient {i}", g, e, p)


LOSSES = {  # along directions v
    "tangents": (lambda v: {"tangents": torch.ones(2, 5, 2).to(v)}, {}),
    "a Jacobian, of some columns": (lambda v: {"jacobian": torch.ones(5, 2, 2).to(v)}, {"wrt": [2, 0]}),
    "order 2": (lambda v: {n: torch.ones(2, 5, 2).to(v) for n in ("tangents", "seconds")}, {"order": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_given_vectors_of_a_loss(name):
    make, settings = LOSSES[name]

    def gradients(backend, dtype):
        student = network(widths=(8,)).to(dtype)
        torch.manual_seed(1)
        x, v = torch.randn(5, 3), torch.randn(2, 5, 2 if "wrt" in settings else 3)
        x, v = (tensor.to(dtype).requires_grad_() for tensor in (x, v))
        targets = sk.Targets(values=torch.zeros(5, 2).to(v), directions=sk.Directions.given(v), **make(v))
        loss = sk.sobolev_loss(student, x, targets, backend=backend, **settings)
        return [loss, *torch.autograd.grad(loss, [x, v, *student.parameters()])]

    exact, plain = gradients("reference", torch.float64), gradients("reference", torch.float32)
    for i, (g, e, p) in enumerate(zip(gradients("triton", torch.float32), exact, plain, strict=True)):
        assert_within_rule(f"number {i}", g, e, p)


NESTED = {
    "Laplacian of a Laplacian": lambda energy, x, v, **b: sk.laplacian(lambda x: sk.laplacian(energy, x, **b)[1], x),
    "tangents of forces": lambda energy, x, v, **b: sk.jvp(
        lambda x: sk.vjp(energy, x, torch.ones(1, len(x), 1).to(x), **b)[1][0], x, v
    ),
}


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("name", NESTED)
def test_fused_calls_of_fused_calls(name):
    def gradients(backend, dtype):
        energy = network(1, widths=(8,)).to(dtype)
        torch.manual_seed(1)
        x, v = (tensor.to(dtype).requires_grad_() for tensor in (torch.randn(4, 3), torch.randn(2, 4, 3)))
        results = NESTED[name](energy, x, v, backend=backend)
        asked = [x, v, *energy.parameters()]
        return [*results, *torch.autograd.grad(of_all(results), asked, materialize_grads=True)]

    exact, plain = gradients("reference", torch.float64), gradients("reference", torch.float32)
    for i, (g, e, p) in enumerate(zip(gradients("triton", torch.float32), exact, plain, strict=True)):
        assert_within_rule(f"number {i}", g, e, p)

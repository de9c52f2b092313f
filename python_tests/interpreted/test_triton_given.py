"""Gradients of given vectors on Triton, by a second fused call or a third, and the gradients of these."""

import pytest
import torch

import sobolev_kernels as sk
from python_tests.test_nested import network, of_all, taken
from sobolev_kernels.testing import assert_within_rule


@pytest.mark.parametrize("shared", [False, True], ids=["of each sample", "shared"])
@pytest.mark.parametrize("name", ["jvp", "vjp", "jet", "laplacian"])
def test_gradients_of_given_vectors(name, shared):
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

"""Gradients of given vectors on Triton, by a second fused call, and the gradients of these."""

import pytest
import torch

import sobolev_kernels as sk
from python_tests.test_nested import network, of_all, taken
from sobolev_kernels.testing import assert_within_rule


@pytest.mark.parametrize("shared", [False, True], ids=["of each sample", "shared"])
@pytest.mark.parametrize("name", ["jvp", "vjp"])
def test_gradients_of_given_vectors(name, shared):
    def gradients(backend, dtype):
        student, n = network(widths=(8,)), 3 if name == "jvp" else 2
        torch.manual_seed(1)
        x, v = torch.randn(5, 3), torch.randn((2, n) if shared else (2, 5, n))
        x, v = (tensor.to(dtype).requires_grad_() for tensor in (x, v))
        kind = sk.Directions if name == "jvp" else sk.Cotangents
        call = lambda x, v: getattr(sk, name)(student.to(dtype), x, kind.given(v), backend=backend)  # noqa: E731
        return taken(call, (x, v), student.to(dtype).parameters())

    exact, plain = gradients("reference", torch.float64), gradients("reference", torch.float32)
    for i, (g, e, p) in enumerate(zip(gradients("triton", torch.float32), exact, plain, strict=True)):
        assert_within_rule(f"gradient {i}", g, e, p)


def test_others_are_refused():
    student, x = network(dtype=torch.float32), torch.zeros(5, 3)
    directions = torch.ones(1, 5, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="directions that require grad, other than those of jvp and vjp"):
        of_all(sk.jet(student, x, directions, backend="triton"))

"""Students that turn out to be MLPs take Triton's one-pass step: loss and all gradients beside float64 autograd."""

import pytest
import torch

import sobolev_kernels as sk
from python_tests.test_chain import DRESSES, TARGETS, Both, U, V, X
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

NAMES = (
    "wrapper", "subclass of Sequential", "torch.compile", "AveragedModel", "functional", "products", "functional_call",
    "weight norm", "spectral norm", "LoRA", "shared layer", "a hook that changes", "checkpointed",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_dressed_mlp(name):
    student = DRESSES[name]()
    student, owner = (student.student, student.owner) if isinstance(student, Both) else (student, student)
    results = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        owner.to(dtype)
        x = X.to(dtype).requires_grad_()
        targets = sk.Targets(values=TARGETS.values.to(dtype), jacobian=TARGETS.jacobian.to(dtype))
        for given in (sk.Directions.given(V.to(dtype)), sk.Cotangents.given(U.to(dtype))):
            settings = {given.NAME: given, "backend": backend, "precision": "ieee"}
            loss = sk.sobolev_loss(student, x, targets, **settings)
            inputs = [x, *(p for p in owner.parameters() if p.requires_grad)]
            results.append([loss, *torch.autograd.grad(loss, inputs, materialize_grads=True)])
            assert f"-> {backend}" in sk.explain(student, x, **settings)
    for expected, got in zip(results[:2], results[2:], strict=True):
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g.double(), e, **CLOSE_IN_SINGLE)

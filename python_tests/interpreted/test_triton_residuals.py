"""Losses of polynomial residuals by one script of Triton's, interpreted, with all gradients, beside nested autograd in
float64."""

import copy

import pytest
import torch

import sobolev_kernels as sk
from bench.equations import EQUATIONS
from python_tests import test_fused_residual as of_core
from sobolev_kernels.backends.triton import jet_loss, jets
from sobolev_kernels.partials.nested import nested
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import forget


@pytest.fixture(autouse=True)
def by_triton(monkeypatch):
    """The losses that were made at once."""
    found, plain = [], jet_loss.Script.run
    monkeypatch.setenv("SOBOLEV_BACKEND", "triton")
    monkeypatch.setattr(
        jet_loss.Script, "run",
        lambda script, reads, made, seed, *numbers: found.append(numbers) or plain(script, reads, made, seed, *numbers),
    )  # fmt: skip
    forget()
    yield found
    forget()


@pytest.mark.parametrize("seed", range(200, 216))
def test_random_polynomials_beside_nested_autograd(seed, by_triton):
    """With weights, learnt ones too, masks, scales, targets that are no numbers, coordinates and coefficients."""
    of_core.compare(seed, torch.float32)
    assert [len(numbers) for numbers in by_triton] == [1]


def exact_of(student, x, equation):
    fields = sk.Fields(equation.fields)
    read = sk.Residual(lambda p: equation.residuals(p), fields).reads
    found = nested(student, x, fields.terms(read), len(fields.outputs))
    return sum(r.square().mean() for r in equation.residuals(dict(zip(read, found, strict=True))))


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("chained", [True, False])
def test_equations_of_the_benchmark(name, chained, by_triton, monkeypatch):
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * chained)
    torch.manual_seed(0)
    equation, N = EQUATIONS[name], 131
    fields = sk.Fields(equation.fields)
    residuals = sk.Residual(equation.inside or equation.residuals, fields)
    residuals = [residuals, *map(residuals.diff, equation.by)]
    student = sk.MLP(len(fields.inputs), len(fields.outputs), width=9, depth=2)
    x = torch.rand(N, len(fields.inputs)).requires_grad_()
    found = []
    for dtype in (torch.float32, torch.float64):
        own, at = copy.deepcopy(student).to(dtype), x.detach().to(dtype).requires_grad_()
        loss = sk.residual_loss(own, at, residuals) if dtype is torch.float32 else exact_of(own, at, equation)
        found.append([loss.detach(), *torch.autograd.grad(loss, [at, *own.parameters()], materialize_grads=True)])
    assert len(by_triton) == 1
    for i, pair in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"{name}, tensor {i}", *pair)

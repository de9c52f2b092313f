"""Losses of polynomial residuals by one script of Triton's, interpreted, with all gradients, beside nested autograd in
float64."""

import copy

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from bench.equations import EQUATIONS
from python_tests import test_fused_residual as of_core
from python_tests.test_residual import XT, burgers
from sobolev_kernels.backends import triton as backend
from sobolev_kernels.backends.triton import jet_loss, jet_source, jets
from sobolev_kernels.partials import residual_loss
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


@pytest.mark.parametrize("seed", range(300, 306))
def test_functions_beside_nested_autograd(seed, by_triton):
    of_core.compare(seed, torch.float32, of_core.FUNCTIONS)
    assert [len(numbers) for numbers in by_triton] == [1]


def exact_of(student, x, equation):
    fields = sk.Fields(equation.fields)
    read = sk.Residual(lambda p: equation.residuals(p), fields).reads
    found = nested(student, x, fields.terms(read), len(fields.outputs))
    return sum(r.square().mean() for r in equation.residuals(dict(zip(read, found, strict=True))))


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("multiply", ["one launch", "own", "torch's"])
def test_equations_of_the_benchmark(name, multiply, by_triton, monkeypatch):
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * (multiply == "one launch"))
    monkeypatch.setattr(jets, "is_fused", lambda asked: multiply != "torch's")
    jets.kept_by.cache_clear()
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


def gradients_of(loss, asking, **how):
    return torch.autograd.grad(loss, asking, materialize_grads=True, retain_graph=True, **how)


def everything(student, nu, x, residual):
    """Losses, terms and all kinds of gradients of them."""
    asking, terms = (
        [x, nu, *student.parameters()],
        sk.residual_loss(student, x, residual, return_terms=True, weights=BY),
    )
    twice = [gradients_of(terms.loss, asking) for _ in range(2)]
    assert all(map(torch.equal, *twice))
    of_term = gradients_of(terms.loss * 0.3 + terms.terms["residual_0"], asking)
    slopes = gradients_of(terms.loss, asking, create_graph=True)
    further = gradients_of(sum(slope.square().sum() for slope in slopes), asking)
    with torch.no_grad():
        plain = sk.residual_loss(student, x, residual, weights=BY)
    assert not plain.requires_grad
    found = [terms.loss, *terms.terms.values(), plain, *twice[0], *of_term, *slopes, *further]
    return [tensor.detach() for tensor in found]


BY = [2.0, 0.5]


def test_terms_further_derivatives_and_several_backwards(by_triton, monkeypatch):
    torch.manual_seed(0)
    nu, x = nn.Parameter(torch.tensor([[0.3]])), torch.rand(9, 2, requires_grad=True)
    student, residual = sk.MLP(2, 1, width=5), sk.Residual(lambda p: (p.x * p.u_xx + nu * p.u**3, p.u_t), XT)
    got = everything(student, nu, x, residual)
    assert len(by_triton) > 2
    monkeypatch.delenv("SOBOLEV_BACKEND")
    with monkeypatch.context() as patched:
        patched.setattr(residual_loss, "fused_loss", lambda *_: None)
        baseline = everything(student, nu, x, residual)
    student, x = student.double(), x.detach().double().requires_grad_()
    nu.data = nu.data.double()
    for i, pair in enumerate(zip(got, everything(student, nu, x, residual), baseline, strict=True)):
        assert_within_rule(f"tensor {i}", *pair)
    loss = sk.residual_loss(student, x, residual)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_students_that_change_are_looked_at_again(by_triton, monkeypatch):
    torch.manual_seed(0)
    student, x, residual = sk.MLP(2, 1, width=6), torch.rand(20, 2), sk.Residual(burgers, XT)

    def right(student, x):
        got = sk.residual_loss(student, x, residual)
        exact = copy.deepcopy(student).double()
        with monkeypatch.context() as patched:
            patched.delenv("SOBOLEV_BACKEND")
            values = residual(exact, x.double()).square().mean()
        asking = [[p for p in one.parameters() if p.requires_grad] for one in (student, exact)]
        pairs = [got, *gradients_of(got, asking[0])], [values, *gradients_of(values, asking[1])]
        for i, pair in enumerate(zip(*pairs, strict=True)):
            assert_within_rule(f"tensor {i}", *(tensor.detach() for tensor in pair))

    for _ in range(2):
        right(student, x)
    student[0].weight = nn.Parameter(torch.rand(2, 6).T)  # another one, of other strides
    right(student, x)
    student[0].weight.requires_grad_(False)
    right(student, x)
    right(student, torch.rand(40, 4)[::2, ::2])
    student[1] = nn.SiLU()
    right(student, x)
    student[2].bias = None
    right(student, x)
    assert len(by_triton) == 7
    right(sk.Scaled(sk.MLP(2, 1, width=6), sk.Scaler().fit(x, sk.Targets(values=x.sum(1)))), x)
    assert len(by_triton) == 8


def test_numbers_are_read_anew_by_the_same_kernels(by_triton):
    state, x, weight = {"nu": 0.5}, torch.rand(6, 2), torch.rand(6)
    student, residual = sk.MLP(2, 1, width=4), sk.Residual(lambda p: state["nu"] * p.u_x, XT)
    first = sk.residual_loss(student, x, residual, weights=0.7, scales=2.0, sample_weight=weight)
    scripts, written = set(backend.SCRIPTS), set(vars(jet_source.GENERATED))
    for nu, by, scale in ((1.5, 0.7, 2.0), (0.25, 0.3, 1.0), (0.0, 2.0, 3.0)):
        state["nu"] = nu
        got = sk.residual_loss(student, x, residual, weights=by, scales=scale, sample_weight=weight)
        torch.testing.assert_close(got, first * (nu / 0.5) ** 2 * by / 0.7 * (2.0 / scale) ** 2)
    assert len(by_triton) == 4 and set(backend.SCRIPTS) == scripts and set(vars(jet_source.GENERATED)) == written


NOT_AT_ONCE = {
    "no polynomial": lambda student, x: sk.residual_loss(student, x, sk.Residual(lambda p: p.u_t + p.u.atan(), XT)),
    "each sample": lambda student, x: sk.residual_loss(student, x, sk.Residual(burgers, XT), reduction="none").mean(),
}


@pytest.mark.parametrize("why", NOT_AT_ONCE)
def test_what_is_made_another_way(why, by_triton, monkeypatch):
    """The streams by Triton, the rest by PyTorch's operations."""
    student, x = sk.MLP(2, 1, width=4), torch.rand(7, 2)
    got = NOT_AT_ONCE[why](student, x)
    found = [got, *gradients_of(got, list(student.parameters()))]
    assert len(by_triton) == 2  # the results, and their gradients
    monkeypatch.delenv("SOBOLEV_BACKEND")
    exact = copy.deepcopy(student).double()
    expected = NOT_AT_ONCE[why](exact, x.double())
    for i, pair in enumerate(zip(found, [expected, *gradients_of(expected, list(exact.parameters()))], strict=True)):
        assert_within_rule(f"tensor {i}", *(tensor.detach() for tensor in pair))

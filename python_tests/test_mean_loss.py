"""The loss of a function that is known again, by the core: the reference's, with its gradients of every order."""

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels import mean_loss
from sobolev_kernels.backends import core
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D = 5, 11
f64 = torch.float64
pytestmark = pytest.mark.skipif(core.MISSING is not None, reason="the core is missing")


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def net(O):
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, O)).double()
    return Call(lambda x, net: net(x.sin()) * x[:, :1], body)


# (targets, settings) of O outputs and P vectors, one of them not contiguous
KINDS = {
    "directions": lambda O, P: sk.Targets(
        values=numbers(N, O), tangents=numbers(O, N, P, seed=1).permute(2, 1, 0), directions=numbers(P, N, D, seed=2)
    ),
    "cotangents": lambda O, P: sk.Targets(
        values=numbers(O, N).T, vjps=numbers(P, N, D, seed=1), cotangents=numbers(P, N, O, seed=2)
    ),
    "exact": lambda O, P: sk.Targets(values=numbers(N, O), jacobian=numbers(N, O, D, seed=1)),
}
SETTINGS = [
    {}, {"reduction": "sum", "weights": (0.5, 3.0)}, {"value_loss": ("huber", 0.4), "derivative_loss": "log_cosh"},
    {"value_loss": "log_cosh", "derivative_loss": "l1"},
]  # fmt: skip


BACKENDS = pytest.mark.parametrize("backend", ["reference", "streams"])


@pytest.fixture
def taken(monkeypatch):
    """How often the core computed a loss."""
    calls, compute = [], core._C.mean_loss
    monkeypatch.setattr(core._C, "mean_loss", lambda *arguments: calls.append(1) or compute(*arguments))
    return calls


@pytest.mark.parametrize("O, P", [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_gradients_is_the_reference(kind, O, P, taken):
    student, x, targets = net(O), numbers(N, D, seed=4), KINDS[kind](O, P)
    parameters = tuple(student.parameters())
    for settings in SETTINGS:
        settings = settings | ({"derivatives": "exact"} if kind == "exact" else {})
        expected = sk.sobolev_loss(student, x, targets, backend="reference", return_terms=True, **settings).loss
        expected = [expected, *torch.autograd.grad(2 * expected, parameters)]
        for backend in ("reference", "streams") if kind == "directions" else ("reference",):
            for _ in range(4):
                before = len(taken)
                loss = sk.sobolev_loss(student, x, targets, backend=backend, **settings)
                torch.testing.assert_close([loss, *torch.autograd.grad(2 * loss, parameters)], expected, **ANOTHER_WAY)
            assert len(taken) == before + 1


@BACKENDS
def test_gradients_of_gradients(backend):
    student, x, targets = net(1), numbers(N, D, seed=4), KINDS["directions"](1, 2)
    for _ in range(3):
        found = []
        for terms in (False, True):  # terms are asked for of the reference's formula alone
            x = x.detach().requires_grad_()
            loss = sk.sobolev_loss(student, x, targets, return_terms=terms, backend=backend)
            loss = loss.loss if terms else loss
            first = torch.autograd.grad(loss.sin(), [x, *student.parameters()], create_graph=True)
            size = sum(g.square().sum() for g in first)
            found.append([loss, *first, *torch.autograd.grad(size, [x, *student.parameters()], allow_unused=True)])
        torch.testing.assert_close(*found, **ANOTHER_WAY)


def test_several_cotangents_and_twice():
    student, x, targets = net(1), numbers(N, D, seed=4), KINDS["directions"](1, 2)
    for _ in range(3):
        loss = sk.sobolev_loss(student, x, targets)
    parameter = next(student.parameters())
    (once,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    (twice,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    (batch,) = torch.autograd.grad(loss, parameter, torch.tensor([1.0, 3.0], dtype=f64), is_grads_batched=True)
    torch.testing.assert_close((twice, batch[0], batch[1]), (once, once, 3 * once), **ANOTHER_WAY)


def test_targets_that_are_numbers_of_no_kind():
    """NaN and infinity are in the loss, as they are in the reference's."""
    student, x, targets = net(1), numbers(N, D, seed=4), KINDS["directions"](1, 2)
    sk.sobolev_loss(student, x, targets), sk.sobolev_loss(student, x, targets)
    for bad in (torch.nan, torch.inf):
        for tensor in (targets.values, targets.tangents):
            kept, tensor[0, 0] = tensor[0, 0].clone(), bad
            got, expected = (
                sk.sobolev_loss(student, x, targets),
                sk.sobolev_loss(student, x, targets, return_terms=True),
            )
            torch.testing.assert_close(got, expected.loss, equal_nan=True)
            tensor[0, 0] = kept


def test_much_work_is_left_to_pytorch(monkeypatch, taken):
    student, x, targets = net(1), numbers(N, D, seed=4), KINDS["directions"](1, 2)
    monkeypatch.setattr(mean_loss, "MOST", 2 * N * D - 1)
    for _ in range(3):
        sk.sobolev_loss(student, x, targets)
    assert not taken
    monkeypatch.setattr(mean_loss, "MOST", 2 * N * D)
    sk.sobolev_loss(student, x, targets)
    assert taken

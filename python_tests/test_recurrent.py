"""A GRU over all steps as one operation: of a value alone, whose gradients are differentiated, and with its tangents.

The oracle is PyTorch's own GRU in float64, which is made of single operations.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import sobolev_kernels as sk
from sobolev_kernels.backends import core
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams import recurrent as rules
from sobolev_kernels.streams.dual import Dual
from sobolev_kernels.streams.singles.recurrent import gru
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE, IN_SINGLE

f64 = torch.float64
CASES = {  # N, T, inputs, states, whether samples come first, whether there are biases
    "few samples": (5, 3, 2, 4, True, True),
    "steps first": (37, 4, 3, 5, False, True),
    "without biases": (40, 2, 18, 17, True, False),
    "one step": (3, 1, 2, 3, False, False),
}
STRAIGHT = 1, 0.0, False, False  # layers, dropout, train, bidirectional


def case_of(name, dtype):
    """Arguments of PyTorch's function before and after the weights, inputs first, and weights; all but weights in no
    order that an axis has."""
    N, T, I, H, samples_first, biased = CASES[name]
    torch.manual_seed(3)
    layer = nn.GRU(I, H, batch_first=samples_first, bias=biased)
    x, first = torch.randn((N, T, I) if samples_first else (T, N, I)), torch.randn(1, N, H)
    weights = [w.detach().to(dtype).requires_grad_() for w in layer._flat_weights]
    return x.to(dtype).requires_grad_(), first.to(dtype), weights, (biased, *STRAIGHT, samples_first)


def close(found, expected):
    for i, (got, right) in enumerate(zip(found, expected, strict=True)):
        error = (got - right).abs().max()
        assert got.shape == right.shape and error <= IN_SINGLE * right.abs().max(), f"number {i}: {error:.2g}"


def again(found, inputs):
    """One more derivative of what was found, in sums by fixed numbers: by sines of numbers up to 350, in float32, sums
    were off by as much as 5e-4, where these are by 2e-6, as PyTorch's own are."""
    whole = sum(each.flatten() @ torch.linspace(-1, 1, each.numel(), dtype=each.dtype) for each in found)
    return torch.autograd.grad(whole, inputs, materialize_grads=True)


def derivatives(function, name, dtype, third):
    """States, gradients along two cotangents, one of them of the last state too, the gradients of what all of these
    make, and one of these's own."""
    x, first, weights, after = case_of(name, dtype)
    y, last = function(x, first, weights, *after)
    u = torch.linspace(-1, 1, y.numel(), dtype=f64).to(dtype).view(y.shape).requires_grad_()
    v = u.detach().flip(0).requires_grad_()
    (g,) = torch.autograd.grad([y, last], x, [u, last.detach().cos()], create_graph=True)
    (h,) = torch.autograd.grad(y, x, v, create_graph=True)
    loss = (y.sin() * y.detach().cos()).sum() + (g * g.detach().cos()).sum() + (g * g).sum() + (h * h).sum()
    inputs = [x, u, v, *weights]
    found = torch.autograd.grad(loss, inputs, create_graph=third, materialize_grads=True)
    return [y, last, g, h, *(again(found, inputs) if third else found)]


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values(name, third):
    close(derivatives(gru, name, torch.float32, third), derivatives(torch.gru, name, f64, third))


@pytest.mark.parametrize("isa", [name for name, _ in core._C.instruction_sets()])
def test_instruction_sets_and_threads(isa, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        close(derivatives(gru, "steps first", torch.float32, False), derivatives(torch.gru, "steps first", f64, False))
        close(pairs(by_core, "without biases", torch.float32), pairs(by_double_backward, "without biases", f64))
    finally:
        torch.set_num_threads(threads)


def pairs(function, name, dtype, third=False):
    """States and three tangents of them, the gradients of what they make, or one of these's own."""
    x, first, weights, after = case_of(name, dtype)
    d = torch.randn(3, *x.shape, generator=torch.manual_seed(6), dtype=f64).to(dtype).requires_grad_()
    y, t = function(x, d, first, weights, after)
    loss = y.sin().sum() + (t * t).sum() + (t * y.detach().cos()).sum()
    inputs = [x, d, *weights]
    found = torch.autograd.grad(loss, inputs, create_graph=third)
    return [y, t, *(again(found, inputs) if third else found)]


def by_core(x, d, first, weights, after):
    y, _ = rules.of_core(Dual(x, d), first, weights, after[1], after[4], after[5])
    return y.v, y.d


def by_double_backward(x, d, first, weights, after):
    y, _ = torch.gru(x, first, weights, *after)
    u = torch.zeros_like(y, requires_grad=True)
    (g,) = torch.autograd.grad(y, x, u, create_graph=True)
    return y, torch.stack([torch.autograd.grad(g, u, each, create_graph=True)[0] for each in d])


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_pairs(name, third):
    close(pairs(by_core, name, torch.float32, third), pairs(by_double_backward, name, f64, third))


def test_several_cotangents():
    found = []
    for function, dtype in ((gru, torch.float32), (torch.gru, f64)):
        x, first, weights, after = case_of("few samples", dtype)
        y, _ = function(x, first, weights, *after)
        u = torch.randn(2, *y.shape, generator=torch.manual_seed(5), dtype=f64).to(dtype)
        rows = torch.autograd.grad(y, x, u, is_grads_batched=True, retain_graph=True)
        (g,) = torch.autograd.grad(y, x, u[0], create_graph=True)
        batch = torch.stack([g, 2 * g]).detach()
        found.append([*rows, *torch.autograd.grad(g, weights[:2], batch, is_grads_batched=True)])
    close(*found)


def test_gives_way():
    x, first, weights, after = case_of("few samples", torch.float32)
    call = lambda x=x, first=first, weights=weights, after=after: gru(x, first, weights, *after)  # noqa: E731
    assert call() is not None
    assert call(x=x.double()) is None and call(weights=[w.double() for w in weights]) is None
    assert call(x=x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()) is None, "strided"
    assert call(first=first.clone().requires_grad_()) is None, "the gradient of a first state"
    assert call(after=(True, 2, *after[2:])) is None and call(after=(*after[:4], True, True)) is None
    assert call(weights=weights[:3]) is None and call(weights=[weights[1], weights[0], *weights[2:]]) is None
    assert gru(x[0], torch.tensor([2, 1]), first, weights, True, *STRAIGHT) is None, "a packed sequence"
    ones = torch.zeros(())
    assert torch.func.vmap(lambda x: ones if call(x=x) is None else 1 / 0)(x.detach()[None]) == 0


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)
        self.state = False

    def forward(self, x):
        y, last = self.layer(x.unflatten(-1, (4, 3)))
        return self.last(last[0] if self.state else y[:, -1])


def oracle(student, x, along, target, cotangents):
    """In float64, of the student himself, since one with a parametrized weight is not to be copied."""
    x = x.double().requires_grad_()
    y = student.double()(x)
    if cotangents:
        d = torch.stack([torch.autograd.grad(y, x, u.double(), create_graph=True)[0] for u in along])
    else:
        rows = torch.stack([torch.autograd.grad(column.sum(), x, create_graph=True)[0] for column in y.unbind(1)], 1)
        d = torch.einsum("nod,pnd->pno", rows, along.double())
    loss = F.mse_loss(y, target[0].double()) + F.mse_loss(d, target[1].double())
    found = [loss, *torch.autograd.grad(loss, list(student.parameters()))]
    student.float()
    return found


@pytest.mark.parametrize("cotangents", [True, False])
def test_students_step(cotangents):
    """That it is taken, right, and that a student who changes is seen."""
    torch.manual_seed(2)
    student, x, along = Student(), torch.randn(5, 12), torch.randn(1, 5, 2 if cotangents else 12)
    target = torch.randn(5, 2), torch.randn(1, 5, 12 if cotangents else 2)
    named = {"vjps": target[1], "cotangents": along} if cotangents else {"tangents": target[1], "directions": along}
    for change in (
        lambda: None, lambda: setattr(student, "state", True), lambda: student.layer.weight_hh_l0.data.mul_(-2),
        lambda: setattr(student, "layer", nn.GRU(3, 6, batch_first=True, bidirectional=False, bias=False)),
        lambda: parametrizations.weight_norm(student.layer, "weight_hh_l0"),
        lambda: setattr(student, "layer", nn.GRU(3, 6, 2, batch_first=True)),
    ):  # fmt: skip
        change()
        expected = oracle(student, x, along, target, cotangents)
        for _ in range(6):
            loss = sk.sobolev_loss(student, x, sk.Targets(values=target[0], **named))
            found = [loss, *torch.autograd.grad(loss, list(student.parameters()))]
            for got, right in zip(found, expected, strict=True):
                torch.testing.assert_close(got.double(), right, **CLOSE_IN_SINGLE)
    if cotangents:
        student = Student()
        for _ in range(6):
            sk.sobolev_loss(student, x, sk.Targets(values=target[0], **named))
        (chains,) = known_of(student, x).graphs.chains.values()
        assert chains.singles == {1}

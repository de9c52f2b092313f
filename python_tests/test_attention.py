"""Attention as one operation of the core: of a value alone, whose gradients are differentiated, and with its tangents.

The oracle is PyTorch's own in float64, of single operations.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import sobolev_kernels as sk
from sobolev_kernels.backends import core
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams.attended import attended, attention_of
from sobolev_kernels.streams.singles.attention import attention
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE, IN_SINGLE

f64 = torch.float64
CASES = {  # q, k and v, the dims in the order in which they lie, and what else is said
    "heads": ([(3, 7, 5, 4)] * 3, (0, 2, 1, 3), {}),
    "samples within": ([(5, 4, 3, 18)] * 3, (2, 0, 1, 3), {"scale": -0.3}),
    "rows": ([(37, 2, 3), (37, 6, 3), (37, 6, 5)], (0, 1, 2), {}),
    "causal": ([(2, 3, 5, 2)] * 3, (0, 1, 2, 3), {"is_causal": True}),
    "causal, fewer keys": ([(4, 5, 2), (4, 3, 2), (4, 3, 1)], (2, 0, 1), {"is_causal": True}),
}


def drawn(shape, order, seed):
    """Numbers that lie in this order of dims."""
    there = torch.randn([shape[i] for i in order], generator=torch.manual_seed(seed), dtype=f64)
    return there.permute([order.index(i) for i in range(len(order))])


def by_torch(q, k, v, **named):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, **named)


def close(found, expected):
    for i, (got, right) in enumerate(zip(found, expected, strict=True)):
        error = (got - right).abs().max()
        assert got.shape == right.shape and error <= IN_SINGLE * right.abs().max(), f"number {i}: {error:.2g}"


def again(found, inputs):
    """One more derivative of what was found."""
    whole = sum((each * each.detach().sin()).sum() for each in found)
    return torch.autograd.grad(whole, inputs, materialize_grads=True)


def derivatives(function, name, dtype, third, of=(0, 1, 2)):
    """A value, its gradients along two cotangents, the gradients of what all of these make, and one of these's own."""
    shapes, order, named = CASES[name]
    tensors = [drawn(shape, order, i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    y = function(*tensors, **named)
    u, v = (drawn(tuple(y.shape), order, 5 + i).to(dtype).requires_grad_() for i in range(2))
    asked = [tensors[i] for i in of]
    found = [torch.autograd.grad(y, asked, bar, create_graph=True) for bar in (u, v)]
    loss = y.sin().sum() + sum((g * g.detach().cos()).sum() + (g * g).sum() for all_of in found for g in all_of)
    inputs = [*tensors, u, v]
    gradients = torch.autograd.grad(loss, inputs, create_graph=third)
    return [y, *found[0], *found[1], *(again(gradients, inputs) if third else gradients)]


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values(name, third):
    for of in ((0, 1, 2), (1,)):
        close(
            derivatives(attention, name, torch.float32, third, of), derivatives(by_torch, name, f64, third, of)
        )  # fmt: skip


def pairs(function, name, dtype, third):
    """A value and three tangents of it, the gradients of what they make, or one of these's own."""
    shapes, order, named = CASES[name]
    tensors = [drawn(shape, order, i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    along = [
        torch.stack([drawn(shape, order, 10 * i + j) for j in range(3)]).to(dtype).requires_grad_()
        for i, shape in enumerate(shapes)
    ]
    y, t = function(tensors, along, named)
    loss = y.sin().sum() + (t * t).sum() + (t * y.detach().cos()).sum()
    inputs = [*tensors, *along]
    found = torch.autograd.grad(loss, inputs, create_graph=third)
    return [y, t, *(again(found, inputs) if third else found)]


def by_core(tensors, along, named):
    return attended(attention_of(*tensors, **named), *tensors, *along)


def by_double_backward(tensors, along, named):
    y = by_torch(*tensors, **named)
    u = torch.zeros_like(y, requires_grad=True)
    found = torch.autograd.grad(y, tensors, u, create_graph=True)
    return y, torch.stack(
        [torch.autograd.grad(found, u, each, create_graph=True)[0] for each in zip(*along, strict=True)]
    )


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_pairs(name, third):
    close(pairs(by_core, name, torch.float32, third), pairs(by_double_backward, name, f64, third))


@pytest.mark.parametrize("isa", [name for name, _ in core._C.instruction_sets()])
def test_instruction_sets_and_threads(isa, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = drawn((700, 9, 8), (0, 1, 2), 4)
        with torch.no_grad():
            close([attention(*[x.float()] * 3)], [by_torch(x, x, x)])
        close(derivatives(attention, "rows", torch.float32, False), derivatives(by_torch, "rows", f64, False))
        close(pairs(by_core, "causal", torch.float32, False), pairs(by_double_backward, "causal", f64, False))
    finally:
        torch.set_num_threads(threads)


def test_large_scores():
    x = 40 * drawn((3, 4, 4), (0, 1, 2), 1)
    close([attention(*[x.float()] * 3)], [by_torch(x, x, x)])


def test_several_cotangents():
    found = []
    for function, dtype in ((attention, torch.float32), (by_torch, f64)):
        tensors = [drawn((3, 4, 2), (0, 1, 2), i).to(dtype).requires_grad_() for i in range(3)]
        y = function(*tensors)
        u = drawn((2, *y.shape), (0, 1, 2, 3), 7).to(dtype)
        rows = torch.autograd.grad(y, tensors, u, is_grads_batched=True, retain_graph=True)
        (g,) = torch.autograd.grad(y, tensors[0], u[0], create_graph=True)
        batch = torch.stack([g, 2 * g]).detach()
        found.append([*rows, *torch.autograd.grad(g, tensors, batch, is_grads_batched=True)])
    close(*found)


def test_gives_way():
    x = torch.randn(3, 4, 2)
    assert attention(x, x, x) is not None
    assert attention(*[x.double()] * 3) is None and attention(x[0], x[0], x[0]) is None
    assert attention(x, x, x, torch.zeros(4, 4)) is None and attention(x, x, x, None, 0.5) is None
    assert attention(x, x, x, enable_gqa=True) is None and attention(x, x[:1], x) is None
    assert attention(*[torch.randn(1, 40, 2)] * 3) is None, "of so many positions PyTorch's is as fast"
    ones = torch.zeros(())
    assert torch.func.vmap(lambda x: ones if attention(x, x, x) is None else 1 / 0)(x[None]) == 0


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mask = None

    def forward(self, x):
        return self.last(self.encoder(self.embed(x.unflatten(-1, (4, 3))), self.mask).mean(1))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.last = nn.Linear(3, 12), nn.Linear(16, 2)

    def forward(self, x):
        q, k, v = self.heads(x.unflatten(-1, (4, 3))).chunk(3, -1)
        return self.last(F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1))


def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def oracle(student, x, along, target, cotangents, monkeypatch):
    student, x = copy.deepcopy(student).double(), x.double().requires_grad_()
    student.mask = student.mask.double() if getattr(student, "mask", None) is not None else None
    with monkeypatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(F, "layer_norm", layer_norm)  # PyTorch's third derivative of it is wrong
        y = student(x)
    if cotangents:
        d = torch.stack([torch.autograd.grad(y, x, u.double(), create_graph=True)[0] for u in along])
    else:
        rows = torch.stack([torch.autograd.grad(column.sum(), x, create_graph=True)[0] for column in y.unbind(1)], 1)
        d = torch.einsum("nod,pnd->pno", rows, along.double())
    loss = F.mse_loss(y, target[0].double()) + F.mse_loss(d, target[1].double())
    return [loss, *torch.autograd.grad(loss, list(student.parameters()))]


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("cotangents", [True, False])
@pytest.mark.parametrize("kind", [Student, Own])
def test_students_step(kind, cotangents, monkeypatch):
    """That it is taken, right, and that a student who changes is seen."""
    from sobolev_kernels.streams.singles import attention as single

    monkeypatch.setattr(single, "PYTHON", -1e3)
    torch.manual_seed(2)
    student, x, along = kind(), torch.randn(5, 12), torch.randn(1, 5, 2 if cotangents else 12)
    target = torch.randn(5, 2), torch.randn(1, 5, 12 if cotangents else 2)
    named = {"vjps": target[1], "cotangents": along} if cotangents else {"tangents": target[1], "directions": along}
    mask = torch.full((4, 4), -math.inf).triu(1)
    for change in (lambda: None, lambda: setattr(student, "mask", mask), lambda: setattr(student, "mask", None)):
        change()
        for _ in range(6):
            loss = sk.sobolev_loss(student, x, sk.Targets(values=target[0], **named))
            found = [loss, *torch.autograd.grad(loss, list(student.parameters()))]
            for got, right in zip(
                found, oracle(student, x, along, target, cotangents, monkeypatch), strict=True
            ):  # fmt: skip
                torch.testing.assert_close(got.double(), right, **CLOSE_IN_SINGLE)
    if cotangents:
        student = kind()
        for _ in range(6):
            sk.sobolev_loss(student, x, sk.Targets(values=target[0], **named))
        (chains,) = known_of(student, x).graphs.chains.values()
        assert chains.singles

"""Students that are no MLPs in half precision and in autocast: by both ways, beside themselves in float64."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from python_tests.students import Call
from python_tests.test_streams import Blocks, Encoder, Gated, LeNet, Recurrent, chosen, numbers
from sobolev_kernels.paths import known_of
from sobolev_kernels.testing.rule import IN_HALF

N = 16
bf16, f16 = torch.bfloat16, torch.float16


class Layers(nn.Module):
    D = 12

    def __init__(self, O):
        super().__init__()
        self.layers, self.last = nn.GRU(3, 8, batch_first=True), nn.Linear(8, O)

    def forward(self, x):
        return self.last(self.layers(x.unflatten(-1, (4, 3)))[0][:, -1])


NETWORKS = {"LeNet": LeNet, "residual MLP": Blocks, "encoder": Encoder, "cells": Recurrent, "GRU": Layers}
# The student's own dtype, and that of autocast
MODES = {"bfloat16": (bf16, None), "float16": (f16, None), "autocast": (torch.float32, bf16)}


def casting(dtype):
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def assert_close(got, expected):
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        error = (g.double() - e).abs().max() / e.abs().max()
        assert error <= IN_HALF, f"number {i}: {error:.2g}"


def loss_and_gradients(student, x, P, **settings):
    O = student(x[:1]).shape[1]
    like = {"dtype": x.dtype}
    targets = sk.Targets(values=numbers(N, O, seed=5).to(**like), jacobian=numbers(N, O, x.shape[1], seed=6).to(**like))
    v = sk.Directions.given(numbers(P, N, x.shape[1], seed=3).to(bf16).to(**like))
    z = x.clone().requires_grad_()
    loss = sk.sobolev_loss(student, z, targets, directions=v, **settings)
    assert loss.dtype == x.dtype
    return [loss.detach(), *torch.autograd.grad(loss, [z, *student.parameters()])]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, mode):
    own, cast = MODES[mode]
    torch.manual_seed(1)
    student = NETWORKS[name](4).to(own)
    x = numbers(N, student.D).to(bf16).to(own)
    expected = loss_and_gradients(copy.deepcopy(student).double(), x.double(), 2, backend="reference")
    with casting(cast):
        assert chosen(student, x) == "streams"
        for backend in (None, "reference"):
            assert_close(loss_and_gradients(student, x, 2, backend=backend), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["residual MLP", "encoder", "cells"])
def test_second_derivatives(name, mode):
    """No further off than the reference, whose operations round as well."""
    own, cast = MODES[mode]
    torch.manual_seed(1)
    student = NETWORKS[name](4).to(own)
    exactly, results = copy.deepcopy(student).double(), []
    x, v = numbers(N, student.D).to(bf16).to(own), numbers(2, N, student.D, seed=1).to(bf16).to(own)
    for net, backend, dtype in ((exactly, "reference", None), (student, None, cast), (student, "reference", cast)):
        z, w = (t.to(next(net.parameters()).dtype).requires_grad_() for t in (x, v))
        with casting(dtype):
            found = [*sk.jet(net, z, w, backend=backend), sk.laplacian(net, z, w, backend=backend)[1]]
        assert {t.dtype for t in found} == {z.dtype}
        loss = sum(t.sin().sum() for t in found)
        results.append([*(t.detach() for t in found), *torch.autograd.grad(loss, [z, w, *net.parameters()])])
    for i, (e, got, plain) in enumerate(zip(*results, strict=True)):
        errors = [float((t.double() - e).abs().max() / e.abs().max()) for t in (got, plain)]
        assert errors[0] <= max(2 * errors[1], IN_HALF), f"number {i}: {errors}"
    with casting(cast):
        assert chosen(student, x, order=2) == "streams"


OPERATIONS = {
    "softmax in float32": lambda h: F.softmax(h, -1, dtype=torch.float32).to(h.dtype),
    "softmax in a place": lambda h: torch.softmax(h, -1, torch.float32).to(h.dtype),
    "rms norm of small numbers": lambda h: F.rms_norm(h / 64, (8,)),
    "variance beside a mean": lambda h: (h + 16).var(-1, keepdim=True).sqrt() * h,
    "norms": lambda h: F.layer_norm(h, (8,)) + F.group_norm(h[..., None], 2)[..., 0] + h.logsumexp(-1, True),
    "another autocast": lambda h: h + products(h.float()).to(h.dtype),
    "in place": lambda h: (h * 1).add_(WHOLE).mul_(WHOLE),
    "back and forth": lambda h: h.half().bfloat16().float().tanh().to(h.dtype),
}


WHOLE = torch.linspace(1, 2, 8)


def products(h):
    with torch.autocast("cpu", bf16):
        return h @ torch.eye(8, dtype=h.dtype)


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, mode):
    """What is a sum or a quotient is rounded once; results are of the inputs' dtype."""
    own, cast = MODES[mode]
    torch.manual_seed(0)
    student = Call(lambda x, net: OPERATIONS[name](net(x)), nn.Linear(5, 8)).to(own)
    x, v = numbers(N, 5).to(bf16).to(own), numbers(2, N, 5, seed=1).to(bf16).to(own)
    with torch.no_grad():  # beside a mean a variance has hardly a digit left if anything before it is rounded
        student.parts[0].weight.copy_(torch.eye(8)[:, :5] + torch.eye(8)[:, 3:]).mul_(2)
    with casting(cast):
        results = [sk.jvp(student, x, v, backend=backend) for backend in ("streams", "reference")]
    with torch.no_grad():
        expected = sk.jvp(copy.deepcopy(student).double(), x.double(), v.double(), backend="reference")
    for got in results:
        assert {tensor.dtype for tensor in got} == {own}
        assert_close([t.detach() for t in got], expected)


def test_in_and_out_of_autocast():
    """How pairs flow is known of each: nothing is run twice where they take turns."""
    runs = []
    student = Call(lambda x, net: runs.append(net.a(x).dtype) or net(x), Gated(3))
    x, v = numbers(N, 3).float(), numbers(2, N, 3, seed=1).float()
    for _ in range(3):
        for cast in (None, bf16):
            with casting(cast):
                sk.jvp(student, x, v, backend="streams")
    assert runs == [torch.float32, torch.float32, bf16, bf16, *[torch.float32, bf16] * 2]
    assert [flow.unfollowed for flow in known_of(student, x).flows.values()] == [None, None]


def test_an_mlp_is_computed_in_float32():
    student, x = sk.MLP(3, 2, width=4, dtype=bf16), numbers(N, 3).to(bf16)
    with pytest.raises(sk.NotProvided, match="an MLP in half precision is computed in float32"):
        sk.jvp(student, x, x[None], backend="streams")

"""Numbers that a student takes out of tensors which depend on his inputs: right or refused, never silent."""

import copy
import ctypes
import math
import pickle
import struct

import numpy
import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCE

N, D, H, O = 6, 3, 5, 2
STEP = 1e-5
WARNED = pytest.mark.filterwarnings(
    "ignore::sobolev_kernels.SobolevWarning", "ignore:.*(requires_grad|sourceTensor|grad attribute):UserWarning"
)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, V, U = numbers(N, D), numbers(4, N, D, seed=1), numbers(2, N, O, seed=2)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.LayerNorm(H), nn.Linear(H, O)).double()


def of(forward):
    return Call(forward, net())


def logging(x, net):
    net.norm = x.norm().item()
    return net(x)


REFUSED = {
    "item": lambda x, net: net(x) * x.square().sum().item(),
    "float": lambda x, net: net(x) * float(x.square().sum()),
    "tolist": lambda x, net: net(x) + torch.tensor(x[:, 0].tolist(), dtype=x.dtype)[:, None],
    "a tensor of a float": lambda x, net: net(x) * torch.tensor(float(x.mean()), dtype=x.dtype),
    "a tensor of a tensor": lambda x, net: net(x) * torch.tensor(x.mean(), dtype=x.dtype),
    "a tensor of tensors": lambda x, net: net(x) * torch.tensor([x[0, 0], x[1, 0]], dtype=x.dtype),
    "as_tensor of tensors": lambda x, net: net(x) * torch.as_tensor([x[0, 0], x[1, 0]], dtype=x.dtype),
    "math": lambda x, net: net(x) * math.sqrt(x.square().sum()),
    "new_tensor": lambda x, net: net(x) * x.new_tensor(x[:, :1]),
    "rounded": lambda x, net: net(x) * torch.tensor(x.norm().item()),
    "in a few digits": lambda x, net: net(x) * round(float(x.norm()), 6),
    "of rows": lambda x, net: net(x) * torch.tensor(x.norm(dim=1).tolist())[:, None],
    "of what is hidden": lambda x, net: net(x) / net[0](x).abs().max().item(),
    "in writing": lambda x, net: net(x) * float(f"{x.norm():.12f}"),
    "as it is printed": lambda x, net: net(x) * float(str(x.norm()).split("(")[1].split(",")[0]),
    "numbers as written by NumPy": lambda x, net: net(x) * float(numpy.array2string(numpy.float64(x.norm()))),
    "memory": lambda x, net: net(x) * struct.unpack("d", bytes(x.norm().untyped_storage()))[0],
    "memory as a tensor": lambda x, net: net(x) * x.new_empty(0).set_(x.norm().untyped_storage(), 0, (1,)),
    "an address": lambda x, net: net(x) * ctypes.c_double.from_address(x.norm().data_ptr()).value,
    "bits": lambda x, net: net(x) * x.norm().view(torch.int64).view(x.dtype),
    "pickled": lambda x, net: net(x) * pickle.loads(pickle.dumps(x.norm())),
    "a copy": lambda x, net: net(x) * copy.copy(x.norm()),
    "a tensor made by one": lambda x, net: net(x) * x.new([x[0, 0], x[1, 0]]).sum(),
    "a grid up to it": lambda x, net: net(x) * torch.linspace(0, x.norm(), N, dtype=x.dtype)[:, None],
    "drawn around it": lambda x, net: net(x) * torch.normal(x[:, :1], 0.0),
}
RIGHT = {
    "a branch": lambda x, net: net(x) if x.sum() > 0 else 2 * net(x),
    "the other branch": lambda x, net: net(x) if x.sum() < 0 else 2 * net(x),
    "a branch by a float": lambda x, net: net(x) if x.sum().item() > 0 else 2 * net(x),
    "bool": lambda x, net: net(x) if x.sum() else 2 * net(x),
    "int": lambda x, net: net(x) * int(3 * x.sum()),
    "where": lambda x, net: torch.where(x[:, :1] > 0, net(x), 2 * net(x)),
    "an index": lambda x, net: net(x) * x[0].argmax().item(),
    "as_tensor": lambda x, net: net(x) * torch.as_tensor(x[:, :1]),
    "beside constants": lambda x, net: (
        net(x) * torch.atleast_2d(x[0], torch.ones(1))[1]
        + torch.meshgrid(x[:, 0], torch.ones(O, dtype=x.dtype), indexing="ij")[0]
    ),
    "of a parameter": lambda x, net: net(x) * net[0].weight[0, 0].item() * float(net[0].bias.sum()),
    "logging": logging,
    "logging in writing": lambda x, net: (setattr(net, "log", f"{x.norm():.3f} {net[0](x)}"), net(x))[1],
    "how many": lambda x, net: net(x) * len((x > 0).nonzero()) * len(torch.unique(x.detach())),
    "a histogram": lambda x, net: net(x) * torch.histc(x, 4, -9, 9).max(),
    "the place of the largest": lambda x, net: net(x) * x.gather(1, x.argmax(1, keepdim=True)),
    "what is equal": lambda x, net: net(x) * (2 if torch.equal(x, x.clone()) and torch.allclose(x, x + 1e-9) else 1),
    "what has its kind": lambda x, net: net(x) + torch.zeros_like(x[:, :1]) + x.new_ones(N, 1) * x.element_size(),
}
CALLS = {
    "jvp": lambda student, x, **how: sk.jvp(student, x, V, **how)[1],
    "vjp": lambda student, x, **how: sk.vjp(student, x, U, **how)[1],
    "laplacian": lambda student, x, **how: sk.laplacian(student, x, **how)[1],
    "loss": lambda student, x, **how: sk.sobolev_loss(student, x, sk.Targets(teacher=net()), **how),
}
TAKES = "takes numbers out of what depends on the inputs"


@WARNED
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_number_that_matters_is_refused(name, call):
    """By whatever backend, each time, in whatever mode."""
    student = of(REFUSED[name])
    for how in ({}, {}, {"backend": "reference"}):
        with pytest.raises(sk.NotProvided, match=f"student: .* {TAKES}"):
            CALLS[call](student, X, **how)
    if call != "vjp":
        with pytest.raises(sk.NotProvided, match="streams"):
            CALLS[call](student, X, backend="streams")
    with torch.no_grad(), pytest.raises(sk.NotProvided, match=TAKES):
        CALLS[call](student, X)


@WARNED
@pytest.mark.parametrize("name", RIGHT)
def test_a_number_that_makes_no_difference_is_right(name):
    """Beside central differences, in the long and the short way."""
    student = of(RIGHT[name])
    expected = torch.stack([(student(X + STEP * v) - student(X - STEP * v)) / (2 * STEP) for v in V]).detach()
    for how in ({}, {}, {}, {"backend": "reference"}):
        torch.testing.assert_close(sk.jvp(student, X, V, **how)[1].detach(), expected, **BY_DIFFERENCE)
        gradients = sk.vjp(student, X, U, **how)[1]
        for u, gradient in zip(U, gradients, strict=True):
            along = torch.stack([(gradient * v).sum() for v in V])
            torch.testing.assert_close(along.detach(), (u * expected).sum((1, 2)), **BY_DIFFERENCE)


@WARNED
def test_a_number_that_is_taken_later():
    """In a branch that no call before has gone through, by gradients and by tangents."""
    student = of(lambda x, net: net(x) * (1.0 if x.mean() < 5 else x.max().item()))
    for call in (CALLS["vjp"], CALLS["jvp"], CALLS["loss"]):
        for _ in range(4):
            call(student, X)
        for _ in range(2):
            with pytest.raises(sk.NotProvided, match=TAKES):
                call(student, X + 9)
        call(student, X)


@WARNED
def test_a_number_that_all_there_is_depends_on():
    """Where autograd says that nothing changes; after calls of which it was not so."""

    def forward(x, net):
        scale = x.mean().item()
        return net(x) if scale < 5 else net(0 * x) * scale

    student = of(forward)
    for _ in range(3):
        sk.jvp(student, X, V)
    with pytest.raises(sk.NotProvided):
        sk.jvp(student, X + 9, V)


def test_hooks_and_students_in_inference_mode_log():
    """A hook's number has no part in what is computed; one that is taken in inference mode has none either."""
    log, student = [], net()
    student[0].register_forward_hook(lambda module, inputs, output: log.append(output.norm().item()))
    torch.testing.assert_close(sk.jvp(student, X, V)[1], sk.jvp(net(), X, V)[1], **ANOTHER_WAY)
    assert log

    def forward(x, net):
        h = net[0](x).norm()
        with torch.inference_mode():
            net.log = float(h)
        return net(x)

    torch.testing.assert_close(sk.jvp(of(forward), X, V)[1], sk.jvp(net(), X, V)[1], **ANOTHER_WAY)


@WARNED
def test_a_number_by_an_attribute_that_is_switched_is_seen_some_calls_later():
    switch = {"on": False}
    student = of(lambda x, net: net(x) * (net[0](x).norm().item() if switch["on"] else 2.0))
    for _ in range(4):
        sk.vjp(student, X, U)
    switch["on"] = True
    with pytest.raises(sk.NotProvided, match=TAKES):
        for _ in range(8):
            sk.vjp(student, X, U)
    for _ in range(3):
        with pytest.raises(sk.NotProvided, match=TAKES):
            sk.vjp(student, X, U)


@WARNED
def test_a_number_taken_in_another_place_later():
    """Of a student who has always logged one."""

    def forward(x, net):
        scale = x.mean().item()
        return net(x) * (1.0 if scale < 5 else scale)

    student = of(forward)
    for _ in range(4):
        sk.vjp(student, X, U)
    with pytest.raises(sk.NotProvided, match=TAKES):
        sk.vjp(student, X + 9, U)


@WARNED
def test_teachers_transforms_and_partials():
    student = of(REFUSED["item"])
    with pytest.raises(sk.NotProvided, match=f"teacher: item in it {TAKES}"):
        sk.sobolev_loss(net(), X, sk.Targets(teacher=student))
    with pytest.raises(sk.NotProvided, match=TAKES):
        torch.func.jvp(lambda x: sk.vjp(student, x, U)[1].sum(), (X,), (X,))
    with pytest.raises(sk.NotProvided, match=TAKES):
        sk.partials(student, X, "u_x + v_y", fields="x y z -> u v")


@WARNED
def test_a_plain_function_in_a_compiled_call():
    """Which a compiler hands to nobody."""
    student = net()
    torch._dynamo.reset()
    step = torch.compile(lambda x: sk.jvp(lambda x: student(x) * x.square().sum().item(), x, V)[1], backend="aot_eager")
    words = TAKES if torch.__version__ >= (2, 13) else "a graph break"  # at which the number is taken
    with pytest.raises(sk.NotProvided, match=f"student: .*{words}"):
        step(X)


@pytest.mark.parametrize("name", ["new_full", "full_like"])
def test_a_constant_filled_with_what_flows(name):
    """Which PyTorch itself refuses of what asks for a gradient; pairs have the value without."""
    fill = {
        "new_full": lambda x, net: net(x) * x.new_full((N, 1), x.sum()),
        "full_like": lambda x, net: net(x) * torch.full_like(x[:, :1], x.sum()),
    }[name]
    with pytest.raises(sk.NotProvided, match="streams"):
        sk.jvp(of(fill), X, V, backend="streams")
    ones = of(lambda x, net: net(x) * x.new_full((N, 1), 2.0) * torch.ones_like(x[:, :1]))
    torch.testing.assert_close(sk.jvp(ones, X, V, backend="streams")[1], 2 * sk.jvp(net(), X, V)[1], **ANOTHER_WAY)


def shared_view(x, net):
    h = torch.tanh(net[0](x))
    part = h[:, :O]
    h.mul_(2)
    return net[3](h) * part


def written_after_use(x, net):
    h = net[0](x).exp()
    squared = h.square()
    h.add_(1)
    return net[3](h * squared)


@pytest.mark.parametrize("forward", [shared_view, written_after_use])
def test_what_is_written_to_after_use_is_said_as_by_pytorch(forward):
    """Without a word of other derivatives, which the look before it would see if it computed with what was written."""
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sk.vjp(of(forward), X, U)

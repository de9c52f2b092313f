"""Operations of a value alone whose gradients are differentiated: activations, convolutions, batch norm in eval.

The oracle is the same operation of PyTorch's, in float64.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams.singles import SINGLES, activation, convolution, norms
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE, IN_SINGLE

pytestmark = pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
f64 = torch.float64
IMAGES, WEIGHT = (3, 4, 5, 6), (6, 4, 3, 2)
CASES = {  # a function of PyTorch's, the shapes of what it is differentiated by, what comes after, and its names
    **{name: (getattr(torch, name, None) or getattr(F, name), [(3, 43)], (), {}) for name in (
        "tanh", "sigmoid", "sin")},
    **{name: (getattr(F, name), [(3, 43)], (), {}) for name in ("silu", "gelu", "softplus", "elu", "softsign", "mish")},
    "softplus, steep": (F.softplus, [(3, 43)], (2.0, 4.0), {}),
    "gelu, tanh": (F.gelu, [(3, 43)], (), {"approximate": "tanh"}),
    "conv1d": (F.conv1d, [(3, 4, 9), (6, 4, 3), (6,)], (1, 1), {}),
    "conv2d": (F.conv2d, [IMAGES, WEIGHT, (6,)], (), {"padding": (1, 0), "dilation": (1, 2)}),
    "conv2d without a bias": (F.conv2d, [IMAGES, WEIGHT], (), {}),
    "conv2d in steps": (F.conv2d, [IMAGES, WEIGHT, (6,)], (None, (1, 2), 1), {}),
    "conv2d, wide margins": (F.conv2d, [IMAGES, WEIGHT], (None, 1, 3), {}),
    "conv2d in groups": (F.conv2d, [IMAGES, (6, 2, 3, 2)], (), {"groups": 2}),
    "conv2d of many channels": (F.conv2d, [IMAGES, (17, 4, 3, 2), (17,)], (), {"padding": 1}),
    "conv3d": (F.conv3d, [(2, 3, 4, 5, 4), (2, 3, 2, 2, 3), (2,)], (), {}),
    "conv_transpose2d": (F.conv_transpose2d, [IMAGES, (4, 3, 2, 2), (3,)], (2, 1), {}),
    "batch norm": (F.batch_norm, [IMAGES, (4,), (4,)], (), {"eps": 1e-3}),
    "batch norm of rows": (F.batch_norm, [(7, 4), (4,), (4,)], (), {}),
    "batch norm without weights": (F.batch_norm, [IMAGES], (), {}),
}  # fmt: skip


def case_of(name, dtype):
    """Both ways, as functions of tensors, and these."""
    function, shapes, after, named = CASES[name]
    torch.manual_seed(4)
    drawn = [torch.randn(shape, dtype=f64).to(dtype).requires_grad_() for shape in shapes]
    if function is F.batch_norm:
        known = torch.randn(4, dtype=f64).to(dtype), (torch.rand(4, dtype=f64) + 0.5).to(dtype)
        given = lambda f: lambda v, weight=None, bias=None: f(v, *known, weight, bias, **named)  # noqa: E731
    elif after and after[0] is None:  # a bias of None, whether there is one or not
        given = lambda f: lambda x, weight, *_: f(x, weight, *after, **named)  # noqa: E731
        drawn = drawn[:2]
    else:
        given = lambda f: lambda *tensors: f(*tensors, *after, **named)  # noqa: E731
    return given(SINGLES[function].made), given(function), drawn


def derivatives(function, tensors, third=False):
    """A value, its gradient, the gradients of what both make, and one of these's own."""
    y = function(*tensors)
    u = torch.linspace(-1, 1, y.numel(), dtype=f64).to(y.dtype).view(y.shape).requires_grad_()
    (g,) = torch.autograd.grad(y, tensors[0], u, create_graph=True)
    loss = (y.sin() * y.detach().cos()).sum() + (g * g.detach().cos()).sum() + (g * g).sum()
    inputs = [*tensors, u]
    found = torch.autograd.grad(loss, inputs, create_graph=third, materialize_grads=True)
    if third:
        again = sum((each * each.detach().sin()).sum() for each in found)
        found = torch.autograd.grad(again, inputs, materialize_grads=True)
    return y, g, *found


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_as_in_float64(name, third):
    single, _, tensors = case_of(name, torch.float32)
    _, function, exact = case_of(name, f64)
    found, expected = derivatives(single, tensors, third), derivatives(function, exact, third)
    for i, (got, right) in enumerate(zip(found, expected, strict=True)):
        error = (got - right).abs().max()
        assert error <= IN_SINGLE * right.abs().max(), f"number {i}: {error:.2g}"


@pytest.mark.parametrize("name", ["tanh", "conv2d", "conv2d of many channels", "batch norm"])
def test_several_cotangents(name):
    single, function, tensors = case_of(name, torch.float32)
    found = []
    for of in (single, function):
        y = of(*tensors)
        u = torch.randn(2, *y.shape, generator=torch.manual_seed(5))
        rows = torch.autograd.grad(y, tensors, u, is_grads_batched=True, retain_graph=True)
        (g,) = torch.autograd.grad(y, tensors[0], u[0], create_graph=True)
        inputs = tensors[1:] or tensors[:1]
        again = torch.autograd.grad(
            g, inputs, torch.stack([g, 2 * g]).detach(), is_grads_batched=True, allow_unused=True
        )
        found.append([*rows, *again])
    for got, right in zip(*found, strict=True):
        assert (got is None or not got.any()) if right is None else got.shape == right.shape
        if right is not None:
            assert (got - right).abs().max() <= IN_SINGLE * right.abs().max()


@pytest.mark.parametrize("name", ["tanh", "conv2d", "batch norm"])
def test_gives_way(name):
    single, _, tensors = case_of(name, f64)
    assert single(*tensors) is None, "float64"
    single, _, tensors = case_of(name, torch.float32)
    strided = tensors[0].detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    assert single(strided, *tensors[1:]) is None, "strided"
    assert (
        torch.func.vmap(lambda x: torch.zeros(()) if single(x, *tensors[1:]) is None else 1 / 0)(tensors[0][None]) == 0
    )


class Images(nn.Module):
    D = 36

    def __init__(self, O=2):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, O)
        self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 1.5)
        self.inplace = False
        self.eval()

    def forward(self, x):
        h = self.norm(self.first(x.view(-1, 1, 6, 6)))
        h = F.silu(h, inplace=True) if self.inplace else F.silu(h)
        return self.last(torch.tanh(h).mean((2, 3)))


@pytest.fixture
def all_pay(monkeypatch):
    for module in (activation, norms, convolution):
        monkeypatch.setattr(module, "PYTHON", -1e3)


def step(student, x, u, target):
    loss = sk.sobolev_loss(student, x, sk.Targets(values=target[0], vjps=target[1], cotangents=u), backend="reference")
    return [loss, *torch.autograd.grad(loss, list(student.parameters()))]


def oracle(student, x, u, target):
    student, x = copy.deepcopy(student).double(), x.double().requires_grad_()
    y = student(x)
    g = torch.stack([torch.autograd.grad(y, x, each.double(), create_graph=True)[0] for each in u])
    loss = F.mse_loss(y, target[0].double()) + F.mse_loss(g, target[1].double())
    return [loss, *torch.autograd.grad(loss, list(student.parameters()))]


def test_students_step(all_pay):
    """That it is taken, right, and that a student who changes is seen."""
    torch.manual_seed(2)
    student, x, u = Images(), torch.randn(5, 36), torch.randn(2, 5, 2)
    target = torch.randn(5, 2), torch.randn(2, 5, 36)
    for change in (
        lambda: None, lambda: setattr(student, "inplace", True), lambda: setattr(student, "inplace", False),
        lambda: setattr(student.norm, "eps", 0.3), lambda: student.norm.running_var.mul_(2),
        lambda: setattr(student, "norm", nn.Identity()),
    ):  # fmt: skip
        change()
        for _ in range(6):
            for got, right in zip(step(student, x, u, target), oracle(student, x, u, target), strict=True):
                torch.testing.assert_close(got.double(), right, **CLOSE_IN_SINGLE)
    student = Images()
    for _ in range(6):
        step(student, x, u, target)
    (chains,) = known_of(student, x).graphs.chains.values()
    assert chains.singles == {1, 2, 3, 4}

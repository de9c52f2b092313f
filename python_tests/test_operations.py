"""What is one node of autograd for a value and its tangents: activations, convolutions, norms.

The oracle is the same function written out in PyTorch's operations, in float64.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from sobolev_kernels.math.activations import ACTIVATIONS
from sobolev_kernels.math.table import Formula
from sobolev_kernels.streams import activated, convolved, images, normed, norms, pointwise, shapes
from sobolev_kernels.streams.images import Convolution
from sobolev_kernels.testing.rule import ANOTHER_WAY, CLOSE_IN_SINGLE

S = 2
ROWS = {  # v's shape, those of weight and bias; n, channels, centred, eps
    "layer norm": ((3, 5, 37), (37,), (37,), (37, 0, True, 1e-5)),
    "without a bias": ((7, 16), (16,), None, (16, 0, True, 1e-5)),
    "two dims": ((3, 4, 8), (4, 8), (4, 8), (32, 0, True, 1e-5)),
    "rms norm": ((7, 20), (20,), None, (20, 0, False, 1e-6)),
    "no weight": ((7, 33), None, None, (33, 0, True, 1e-5)),
    "channels": ((3, 4, 5, 5), (4,), (4,), (25, 4, False, 0.0)),
}
CONVOLVED = {  # of torch.nn.functional, the weight's shape, and what comes after the bias
    "conv1d": ("conv1d", (6, 4, 2), (2,), {}),
    "conv2d": ("conv2d", (6, 4, 2, 2), (), {"stride": (1, 2), "padding": (1, 0), "dilation": 2}),
    "groups": ("conv2d", (6, 2, 2, 2), (1, 1, 1, 2), {}),
    "conv3d": ("conv3d", (6, 4, 2, 2, 2), (), {"padding": 1}),
    "transposed": ("conv_transpose2d", (4, 3, 2, 2), (2, 1, 1, 2), {}),
}
CASES = [*(name for name in ACTIVATIONS if name != "identity"), *ROWS, *CONVOLVED]


def case_of(name, dtype):
    """The operation, the same by PyTorch, and tensors that both are given."""
    drawn = lambda shape: shape and torch.randn(shape, dtype=dtype, requires_grad=True)  # noqa: E731
    if name in ACTIVATIONS:
        formula = Formula(name, tuple(value for _, value in ACTIVATIONS[name].defaults))
        at = lambda of: lambda *tensors: of(formula, *tensors)  # noqa: E731
        return at(activated.activated), at(activated.in_torch), [drawn((3, 43)), drawn((S, 3, 43))]
    if name in ROWS:
        shape, weight, bias, of = ROWS[name]
        at = lambda function: lambda *tensors: function(*tensors, *of)  # noqa: E731
        return at(normed.normed), at(normed.in_torch), [drawn(s) for s in (shape, (S, *shape), weight, bias)]
    function, weight, arguments, named = CONVOLVED[name]
    dims = len(weight) - 2
    of, function = images.arguments_of(dims, "transpose" in function, *arguments, **named), getattr(F, function)

    def in_torch(v, d, weight, bias):
        t = function(d.flatten(0, 1), weight, None, *arguments, **named)
        return function(v, weight, bias, *arguments, **named), t.unflatten(0, d.shape[:2])

    shape = 3, 4, *[5] * dims
    return (
        lambda v, d, weight, bias: convolved.convolved(v, d, weight, bias, Convolution.of_tensors(v, weight, of)),
        in_torch,
        [drawn(s) for s in (shape, (S, *shape), weight, (6,))],
    )  # fmt: skip


def gradients(function, tensors, bars, **how):
    """Those of results with a `bar`."""
    each = [(y, bar) for y, bar in zip(function(*tensors), bars, strict=True) if bar is not None]
    asked = [tensor for tensor in tensors if tensor is not None]
    results, bars = zip(*each, strict=True)
    found = torch.autograd.grad(results, asked, bars, allow_unused=True, **how)
    return [torch.zeros_like(asked[i]) if g is None else g for i, g in enumerate(found)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_what_it_is_written_out(name, dtype):
    torch.manual_seed(0)
    ours, in_torch, tensors = case_of(name, dtype)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    expected, within = in_torch(*wide), ANOTHER_WAY if dtype is torch.float64 else CLOSE_IN_SINGLE
    alike = lambda a, b: torch.testing.assert_close(a.double(), b.double(), **within)  # noqa: E731
    with torch.no_grad():
        for a, b in zip(ours(*tensors), expected, strict=True):
            alike(a, b)
    bars = [torch.randn_like(y, dtype=dtype) for y in expected]
    for given in (bars, [bars[0], None], [None, bars[1]]):
        found = gradients(in_torch, wide, [None if bar is None else bar.double() for bar in given])
        for again in (False, True):
            for a, b in zip(gradients(ours, tensors, given, create_graph=again), found, strict=True):
                alike(a, b)
    many, found = [torch.stack([bar, -2 * bar]) for bar in bars], gradients(in_torch, wide, [b.double() for b in bars])
    for a, b in zip(gradients(ours, tensors, many, is_grads_batched=True), found, strict=True):
        alike(a[0], b)
        alike(a[1], -2 * b)


@pytest.mark.parametrize("of", [(16, 0, True, 1e-5), (25, 4, False, 0.0)], ids=["rows", "channels"])
def test_threads_share_many_numbers(of):
    """And add what each has of the gradients of a weight."""
    torch.manual_seed(0)
    n, channels, *_ = of
    v, d = torch.randn(1800, n, dtype=torch.float64), torch.randn(S, 1800, n, dtype=torch.float64)
    tensors = [v, d, *torch.randn(2, channels or n, dtype=torch.float64)]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    bars, before = [torch.randn_like(v), torch.randn_like(d)], torch.get_num_threads()
    tanh = Formula("tanh")

    def ours(v, d, weight, bias):
        return activated.activated(tanh, *normed.normed(v, d, weight, bias, *of))

    def in_torch(v, d, weight, bias):
        return activated.in_torch(tanh, *normed.in_torch(v, d, weight, bias, *of))

    torch.set_num_threads(2)
    try:
        found = gradients(ours, tensors, bars)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found, gradients(in_torch, tensors, bars), strict=True):
        torch.testing.assert_close(a, b, **ANOTHER_WAY)


@pytest.mark.parametrize("name", ["tanh", "gelu", "layer norm", "channels", "conv2d", "transposed"])
def test_gradients_are_differentiated_again(name):
    torch.manual_seed(0)
    ours, _, tensors = case_of(name, torch.float64)
    there = [i for i, tensor in enumerate(tensors) if tensor is not None]
    assert all(tensor is not None for tensor in tensors) and there
    assert torch.autograd.gradgradcheck(ours, tensors, fast_mode=True)


def test_a_value_that_its_tangents_depend_on_is_differentiated_again():
    torch.manual_seed(0)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    tanh = Formula("tanh")

    def of(z):
        return activated.activated(tanh, z, (z * z)[None])

    assert torch.autograd.gradcheck(of, z) and torch.autograd.gradgradcheck(of, z)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.batch, self.row, self.last = nn.BatchNorm2d(4), nn.LayerNorm(16), nn.Linear(16, 3)
        self.eval()

    def forward(self, x):
        h = F.silu(self.batch(self.first(x.view(-1, 1, 6, 6))))
        h = torch.tanh(self.second(h))
        return self.last(F.gelu(self.row(h.mean(1).flatten(1))))


def layer_norm(row, x):
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + row.eps).rsqrt() * row.weight + row.bias


def test_pairs_go_by_them(monkeypatch):
    torch.manual_seed(0)
    net, x, v = Net(), torch.randn(5, 36), torch.randn(2, 5, 36)
    met = []
    for module, name in ((pointwise, "activated"), (norms.normed, "normed"), (shapes.convolved, "convolved")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, of=function, name=name: met.append(name) or of(*a))
    targets = sk.Targets(values=torch.zeros(5, 3), tangents=torch.zeros(2, 5, 3), directions=v)
    wide = Net().double()
    wide.load_state_dict(net.state_dict())
    wide.row.forward = partial(layer_norm, wide.row)  # of which PyTorch has a wrong derivative (pytorch#196700)
    y, d = torch.func.vmap(lambda v: torch.func.jvp(wide, (x.double(),), (v,)), out_dims=(None, 0))(v.double())
    expected = torch.autograd.grad(y.square().mean() + d.square().mean(), [*wide.parameters()])
    for _ in range(3):  # the first call looks, too
        met.clear()
        found = torch.autograd.grad(sk.sobolev_loss(net, x, targets), [*net.parameters()])
        assert {*met} == {"activated", "normed", "convolved"}
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b, **CLOSE_IN_SINGLE)


def test_results_of_a_convolution_may_be_written_to():
    torch.manual_seed(0)
    net, x, v = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 2), nn.Flatten()), *torch.randn(2, 5, 6)
    for _ in range(3):
        expected = [torch.func.jvp(net, (x,), (v,))[i] for i in range(2)]
        y, d = sk.jvp(net, x, v[None])
        y.add_(1.0)
        d.mul_(2.0)
        torch.testing.assert_close(y, expected[0] + 1.0, **CLOSE_IN_SINGLE)
        torch.testing.assert_close(d[0], 2.0 * expected[1], **CLOSE_IN_SINGLE)
        found = torch.autograd.grad(y.square().mean() + d.square().mean(), [*net.parameters()])
        again = (expected[0] + 1.0).square().mean() + (2.0 * expected[1]).square().mean()
        for a, b in zip(found, torch.autograd.grad(again, [*net.parameters()]), strict=True):
            torch.testing.assert_close(a, b, **CLOSE_IN_SINGLE)

"""Derivatives by autograd beside what values change by: a path that is cut, if only in part, is no silent zero."""

import collections
import copy
import gc
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from python_tests.students import Call, Straight
from sobolev_kernels import paths

# That an operation has no rule costs time, of which another test is.
WITHOUT_RULE = "student. .* so the reference takes its derivatives"
without_rule = pytest.mark.filterwarnings(f"ignore:{WITHOUT_RULE}:sobolev_kernels.SobolevWarning")

N, D, O = 20, 3, 2
f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def numbers(*shape, dtype=f32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64).to(dtype)


def through(*modules, dtype=f32, n_in=D, width=8, n_out=O):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, width), *modules, nn.LazyLinear(n_out)).to(dtype)


def as_image(*modules):
    """Of the features as 1 × 4 × 4 pixels."""
    return [nn.Unflatten(1, (1, 4, 4)), *modules, nn.Flatten()]


def recurrent(kind):
    return Call(lambda x, rnn: rnn(x[..., None])[0][:, -1], kind(1, 4, batch_first=True))


W = numbers(D, O)
TABLE = numbers(12, O, seed=1)
attention = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
LAYERS = {
    "GELU": nn.GELU(), "Mish": nn.Mish(), "CELU": nn.CELU(), "PReLU": nn.PReLU(), "RReLU": nn.RReLU(),
    "Hardswish": nn.Hardswish(), "Hardtanh": nn.Hardtanh(), "Hardshrink": nn.Hardshrink(),
    "Softshrink": nn.Softshrink(),
    "Threshold": nn.Threshold(0.1, 20), "LogSoftmax": nn.LogSoftmax(1), "GLU": nn.GLU(), "Softmin": nn.Softmin(1),
    "LayerNorm": nn.LayerNorm(8), "GroupNorm": nn.GroupNorm(2, 8), "RMSNorm": nn.RMSNorm(8),
    "LocalResponseNorm": nn.Sequential(nn.Unflatten(1, (8, 1)), nn.LocalResponseNorm(2), nn.Flatten()),
    "Dropout": nn.Dropout(), "AlphaDropout": nn.AlphaDropout(),
    "InstanceNorm": nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
    "Bilinear": Call(lambda h, b: b(h, h), nn.Bilinear(8, 8, 4)),
    "PixelShuffle": nn.Sequential(nn.Unflatten(1, (4, 1, 2)), nn.PixelShuffle(2), nn.Flatten()),
    "MultiheadAttention": Call(
        lambda h, a: a(h.view(-1, 2, 4), h.view(-1, 2, 4), h.view(-1, 2, 4))[0].flatten(1),
        nn.MultiheadAttention(4, 2, batch_first=True)),
    "attention over the batch": Call(lambda h, a: a(h[None])[0], attention),
    "LSTM": recurrent(nn.LSTM), "GRU": recurrent(nn.GRU), "RNN": recurrent(nn.RNN),
    "EmbeddingBag": Call(lambda h, e: e((h.sigmoid() * 9).long()), nn.EmbeddingBag(10, 4)),
    "spectral_norm": nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    "weight_norm": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "MaxPool1d": nn.Sequential(nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten()),
    "max over outputs": nn.AdaptiveMaxPool1d(3),
    "CosineSimilarity": Call(lambda h, c: c(h[:, :4], h[:, 4:])[:, None], nn.CosineSimilarity()),
    "detached scale": Call(lambda h: h.relu() / 2.0),
}  # fmt: skip
IMAGES = {
    "Conv2d": [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()],
    "ConvTranspose2d": [nn.ConvTranspose2d(1, 1, 2)],
    "BatchNorm2d": [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval()],
    "pools": [nn.AvgPool2d(2), nn.LPPool2d(2, 1), nn.ReflectionPad2d(1)],
    "MaxUnpool": [Call(lambda h, a, b: b(*a(h)), nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2))],
    "Upsample": [nn.Upsample(scale_factor=2, mode="bicubic")],
    "Fold": [nn.Unfold(2), nn.Fold((4, 4), 2)],
}
KINKS = {
    "abs at 0": lambda x: (x * (x > 1)).abs()[:, :O],
    "floor": lambda x: x.floor()[:, :O],
    "floor and a slope": lambda x: (x.floor() + 0.3 * x)[:, :O],
    "fraction": lambda x: (7 * x).frac()[:, :O],
    "sign": lambda x: x.sign()[:, :O],
    "round to 4 bits": lambda x: (x * 16).round()[:, :O] / 16,
    "round to 8 bits": lambda x: (x * 256).round()[:, :O] / 256,
    "round to 12 bits": lambda x: (x * 4096).round()[:, :O] / 4096,
    "round to 15 bits": lambda x: (x * 32768).round()[:, :O] / 32768,
    "round, and a net": lambda x: (x @ W.to(x.dtype)).sin() + (x * 4).round()[:, :O] / 4,
    "argmax": lambda x: TABLE[x.argmax(1)].to(x.dtype),
    "embedding": lambda x: F.embedding((x * 3).long().clamp(-5, 5) + 5, TABLE.to(x.dtype)).sum(1),
    "embedding of one column": lambda x: TABLE.to(x.dtype)[x[:, 0].long() % 12] * (x @ W.to(x.dtype)),
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(-2, 2, 9, dtype=x.dtype))[:, :O].to(x.dtype),
    "step": lambda x: (x >= 0).to(x.dtype)[:, :O],
    "clamp": lambda x: x.clamp(-0.1, 0.1)[:, :O],
    "sort": lambda x: x.sort(1).values[:, :O],
    "median": lambda x: x.median(1, keepdim=True).values,
    "dead": lambda x: (x - 100).relu()[:, :O],
    "nearly dead": lambda x: (x - 1.5).relu()[:, :O],
    "where": lambda x: torch.where(x > 0, x.sin(), x.exp())[:, :O],
    "many kinks": lambda x: (x @ numbers(D, 300, dtype=x.dtype)).abs() @ numbers(300, O, dtype=x.dtype),
    "quantised inputs": lambda x: ((x * 8).round() / 8 @ W.to(x.dtype)).sin() + x[:, :O],
    "bytes": lambda x: ((x * 40).to(torch.int8).to(x.dtype) / 40)[:, :O],
    "constant": lambda x: torch.ones(len(x), O, dtype=x.dtype),
    "constant for N": lambda x: torch.ones(N, O, dtype=x.dtype),
    "one column each": lambda x: x[:, :O].sin(),
    "one column of three": lambda x: x[:, :1].tanh(),
    "saturated": lambda x: (1000 * x).tanh()[:, :O],
    "nearly saturated": lambda x: (8 * x).tanh()[:, :O],
    "offset": lambda x: 300 + x.sin()[:, :O],
    "large offset": lambda x: 1e5 + x.sin()[:, :O],
    "cancelled": lambda x: ((x + 1000) - 1000)[:, :O],
    "x squared": lambda x: x.square()[:, :O],
    "a power": lambda x: x.abs().pow(1.5)[:, :O],
    "periodic": lambda x: torch.cat([(2.0**k * x).sin() for k in range(10)], 1),
    "fast": lambda x: (3000 * x).sin()[:, :O],
    "logarithm": lambda x: x.log()[:, :O],
    "pole": lambda x: (1 / x)[:, :O],
    "root": lambda x: x.abs().sqrt()[:, :O],
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "small": lambda x: 1e-6 * x.sin()[:, :O],
    "wide range": lambda x: torch.stack([1e6 * x[:, 0].sin(), 1e-6 * x[:, 1]], 1),
    "many outputs": lambda x: (x @ numbers(D, 100, dtype=x.dtype)).sin(),
    "outputs of one column each": lambda x: torch.cat([x.sin(), x.cos(), x.floor(), x.relu(), x.exp()], 1),
    "neighbours": lambda x: F.grid_sample(
        torch.eye(5, dtype=x.dtype)[None, None].expand(len(x), -1, -1, -1), x[:, None, None, :2].tanh(),
        mode="nearest", align_corners=True)[:, :, 0, 0],
    "coupled": lambda x: (x - x.mean(0)).sin()[:, :O],
    "power series": lambda x: torch.stack([x**k for k in range(6)], 2).flatten(1),
    "half within": lambda x: (x.bfloat16() @ W.bfloat16()).sin().to(x.dtype),
    "refuses others": lambda x: x[:, :O].sin() if torch.equal(x, INPUTS["float64"]) else 1 / 0,
    "counts": Call(lambda x: x[:, :O].sin()),
}  # fmt: skip
INPUTS = {
    "float64": numbers(N, D, dtype=f64), "float32": numbers(N, D), "bfloat16": numbers(N, D, dtype=bf16),
    "float16": numbers(N, D, dtype=f16), "one": numbers(1, D), "origin": torch.zeros(1, D), "zeros": torch.zeros(N, D),
    "whole": numbers(N, D).round(), "many": numbers(300, D),
    "bytes": (numbers(N, D) * 60 + 128).round().clamp(0, 255),
}  # fmt: skip
UNITS = {
    "tiny": (1e-9, 0), "small": (1e-3, 0), "large": (1e6, 0), "huge": (1e12, 0), "years": (10, 2000),
    "seconds": (1e6, 1.7e9),
}  # fmt: skip


# what these round to, or cancel, is no more than the rounding of some of the inputs
COARSE = {
    "round to 8 bits": ("bfloat16", "float16"), "round to 12 bits": ("bfloat16", "float16", "bytes"),
    "round to 15 bits": ("bfloat16", "float16", "bytes"), "cancelled": ("bfloat16", "float16"),
    "half within": ("bfloat16", "float16", "bytes"), "bytes": ("bfloat16",),
    "quantised inputs": ("bfloat16",),
}  # fmt: skip
ONLY = {"constant for N": ("float64",), "refuses others": ("float64",)}


def silent(f, x, order=1):
    """Nothing is refused, nor warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", sk.SobolevWarning)
        warnings.filterwarnings("ignore", WITHOUT_RULE)
        return (sk.jet if order == 2 else sk.jvp)(f, x, sk.Directions.basis())


@pytest.mark.parametrize("name", KINKS)
def test_honest_functions(name):
    for key in ONLY.get(name, INPUTS):
        if key not in COARSE.get(name, ()):
            silent(KINKS[name], INPUTS[key], order=2 if key in ("float64", "whole") else 1)


@pytest.mark.parametrize("name", LAYERS | IMAGES)
def test_honest_layers(name, monkeypatch):
    """In train mode, of both orders, and without a trace in their buffers; where paths are looked at."""
    monkeypatch.setenv("SOBOLEV_BACKEND", "reference")
    n_in = 16 if name in IMAGES else D
    layers = as_image(*IMAGES[name]) if name in IMAGES else [nn.Linear(D, 8), LAYERS[name]]
    torch.manual_seed(0)
    student = nn.Sequential(*layers, Call(lambda h: h.flatten(1)[:, :O]))
    for x in (numbers(N, n_in), numbers(2, n_in)):
        state = {key: tensor.clone() for key, tensor in student.state_dict().items()}
        silent(student, x)
        found = paths.known_of(student, x).found[1]
        assert found.told or name == "spectral_norm"
        if name not in ("spectral_norm", "InstanceNorm"):
            assert all(torch.equal(state[key], tensor) for key, tensor in student.state_dict().items())
            if not isinstance(LAYERS.get(name), (nn.Threshold, nn.Hardtanh, nn.PReLU, nn.RReLU, nn.Hardshrink)):
                order_2_or_refused(student, x)


def order_2_or_refused(student, x):
    try:
        silent(student, x, order=2)
    except sk.NotProvided as error:
        assert "silent" not in str(error) or "almost everywhere" in str(error)
    except (RuntimeError, NotImplementedError) as error:
        assert "derivative" in str(error) or "backward" in str(error)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", [f64, f32])
def test_honest_in_other_units(unit, dtype):
    scale, mean = UNITS[unit]
    net = through(nn.Softplus(), nn.Linear(8, 8), nn.Tanh(), dtype=dtype, n_in=64)
    for count in (1, 2, N):
        x = (mean + scale * numbers(count, 64, dtype=f64)).to(dtype)
        for f in (lambda x: net((x - mean) / scale), lambda x: 1e4 * net((x - mean) / scale) + 1, lambda x: x[:, :O]):
            silent(f, x)


def of_numpy(function):
    return lambda x: torch.from_numpy(np.asarray(function(x.detach().double().numpy()))).to(x.dtype)


def without(column, x):
    """x with a column that is detached."""
    return torch.cat([x[:, :column], x[:, column : column + 1].detach(), x[:, column + 1 :]], 1)


def with_items(x):
    first = torch.tensor([[math.sin(row[0].item())] for row in x], dtype=x.dtype)
    return first + x[:, 1:].cos()


def beside_no_grad(x):
    with torch.no_grad():
        trunk = NET(x)
    return torch.stack([NET(x)[:, 0], trunk[:, 1]], 1)


NET, WIDE = through(nn.Softplus(), nn.Linear(8, 8), nn.Tanh()), through(nn.GELU(), n_in=64, n_out=40)
for net in (NET, WIDE):
    net(torch.zeros(2, net[0].in_features))
# the function, outputs and columns that are named
CUT = {
    "a column": (lambda x: net_of(x)(without(0, x)), "outputs 0, 1 change with column 0"),
    "the last column": (lambda x: net_of(x)(without(2, x)), "outputs 0, 1 change with column 2"),
    "a column by NumPy": (
        lambda x: net_of(x)(torch.cat([of_numpy(np.sin)(x[:, :1]), x[:, 1:]], 1)), "outputs 0, 1 change with column 0"),
    "a column by item": (with_items, "outputs 0, 1 change with column 0"),
    "an output": (
        lambda x: torch.stack([net_of(x)(x)[:, 0], net_of(x)(x.detach())[:, 0]], 1),
        "output 1 changes with columns 0, 1, 2"),
    "an output under no_grad": (
        lambda x: torch.cat([x.sin(), torch.no_grad()(net_of(x))(x)], 1), "outputs 3, 4 change with columns 0, 1, 2"),
    "an output by NumPy": (
        lambda x: torch.stack([x[:, 0] * x[:, 1], of_numpy(np.tanh)(x[:, 2])], 1), "output 1 changes with column 2"),
    "a skip of one column": (
        lambda x: x[:, :1] + net_of(x)(x.detach()), "outputs 0, 1 change with columns 1, 2"),
    "an offset": (lambda x: 300 + net_of(x)(x.detach()), "outputs 0, 1 change with columns 0, 1, 2"),
    "an offset and a column": (lambda x: 300 + net_of(x)(without(1, x)), "outputs 0, 1 change with column 1"),
    "few samples": (lambda x: (x.detach() - 1.5).relu().sum(1, keepdim=True), "output 0 changes with columns 0, 1, 2"),
    "few samples of a column": (lambda x: x[:, :1].sin() + (x[:, 1:2].detach() - 1).relu(), "changes with column 1"),
    "masked": (lambda x: torch.where(x.detach() > 1, x.detach().exp(), 1.0)[:, :1], "output 0 changes with column 0"),
    "sin of a detached": (lambda x: (3 * x.detach()).sin()[:, :1] * x[:, 1:2], "output 0 changes with column 0"),
    "an interaction": (lambda x: x[:, :1] * x[:, 1:2].detach(), "output 0 changes with column 1"),
    "a scalar of the batch": (lambda x: x[:, :1] + x[:, 1].mean().item() * x[:, 2:], "output 0 changes with column 1"),
    "data": (lambda x: torch.cat([x.sin()[:, :1], net_of(x)(x.data)], 1), "outputs 1, 2 change with columns 0, 1, 2"),
}  # fmt: skip


def net_of(x):
    return NETS[x.dtype]


def in_float32(f):
    return lambda x: f(x.float()).to(x.dtype)


NETS = {dtype: copy.deepcopy(NET).to(dtype) for dtype in (f64, f32, bf16, f16)}


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_is_named(name):
    """float32 is enough for it, also within a function of float64."""
    cut, named = CUT[name]
    for dtype, f in ((f64, cut), (f32, cut), (f64, in_float32(cut))):
        with pytest.raises(sk.NotProvided, match=rf"^student: .*{named} .*silent zero; look for a forward") as refused:
            sk.jvp(f, numbers(N, D, dtype=dtype), sk.Directions.basis())
        assert len(str(refused.value)) <= 600


X = INPUTS["float64"]
BASIS, ONE = sk.Directions.basis(), torch.ones(1, N, D, dtype=f64)
MLP = sk.MLP(D, O, width=4).double()
CALLS = {
    "jvp": lambda f: sk.jvp(f, X, BASIS),
    "vjp": lambda f: sk.vjp(f, X, sk.Cotangents.basis()),
    "jet": lambda f: sk.jet(f, X, sk.Directions.sphere(2)),
    "laplacian": lambda f: sk.laplacian(f, X),
    "hvp": lambda f: sk.hvp(f, X, ONE, ONE),
    "loss": lambda f: sk.sobolev_loss(f, X, sk.Targets(teacher=MLP)),
    "teacher": lambda f: sk.sobolev_loss(MLP, X, sk.Targets(teacher=f)),
    "teacher of order 2": lambda f: sk.sobolev_loss(MLP, X, sk.Targets(teacher=f), directions=BASIS, order=2),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_refuses(call, mode):
    """Each time, not only when it is looked at; and no random number is drawn by the look."""
    cut, role = lambda x: net_of(x)(without(0, x)), "teacher" if "teacher" in call else "student"
    with mode():
        for _ in range(2):
            with pytest.raises(sk.NotProvided, match=rf"^{role}: outputs 0, 1 change with column 0 "):
                CALLS[call](cut)
        CALLS[call](lambda x: net_of(x)(x) * 1)


@pytest.mark.parametrize("dtype", [f64, f32, bf16, f16])
def test_many_columns_and_outputs(dtype):
    x, net = numbers(N, 64, dtype=dtype), copy.deepcopy(WIDE).to(dtype)
    silent(Call(lambda x, net: net(x), net), x)
    with pytest.raises(sk.NotProvided, match=r"^student: outputs .* change with column 17 of"):
        silent(Call(lambda x, net: net(without(17, x)), net), x)
    with pytest.raises(sk.NotProvided, match=r"^student: output 5 changes with columns 0, 1, 2, 3,"):
        silent(Call(lambda x, net: torch.cat([net(x)[:, :5], net(x.detach())[:, :1]], 1), net), x)


IN_HALF = {
    "whole": lambda x: net_of(x)(x.detach()), "a column": lambda x: net_of(x)(without(1, x)),
    "NumPy": lambda x: of_numpy(np.tanh)(x[:, :1]), "an output": CUT["an output"][0], "an item": with_items,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [bf16, f16])
@pytest.mark.parametrize("name", IN_HALF)
def test_half_precision(name, dtype):
    """Functions, of which there is no copy in float32; of few samples and of many, in other units."""
    for x in (numbers(N, D, dtype=dtype), numbers(1, D, dtype=dtype), 5 * numbers(200, D, dtype=dtype)):
        with pytest.raises(
            sk.NotProvided, match=r"^student: (output.*silent zero; look for a forward|item in it takes numbers)"
        ):
            sk.jvp(IN_HALF[name], x, sk.Directions.basis())
        silent(lambda x: net_of(x)(x) * 1, x)


SECOND = {
    "a slope by NumPy": lambda x: NumPySlope.apply(x[:, :1]) + x[:, 1:].sin(),
    "an interaction": lambda x: Sine.apply(x)[:, :O],
}


class NumPySlope(torch.autograd.Function):
    """exp(x), of which the backward does not know that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = x.detach().exp()
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return ctx.slope * g


class Sine(torch.autograd.Function):
    """sin(x), the slope of whose first column is kept apart from the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.cat([x[:, :1].detach(), x[:, 1:]], 1).cos() * g


@without_rule
@pytest.mark.parametrize("name", SECOND)
def test_a_slope_that_is_cut_in_part(name):
    sk.jvp(SECOND[name], X, BASIS)
    for call in ("jet", "laplacian", "hvp", "teacher of order 2"):
        with pytest.raises(sk.NotProvided, match=r": the derivative of outputs? 0.* changes with column 0 "):
            CALLS[call](SECOND[name])


@without_rule
def test_what_is_cut_and_not_asked_for():
    """Other columns, other directions, other outputs: each is computed, and refused again where it is asked for."""
    student = lambda x: net_of(x)(without(0, x))  # noqa: E731
    outputs = Call(lambda x: torch.stack([net_of(x)(x)[:, 0], net_of(x)(x.detach())[:, 0]], 1))
    directions = torch.eye(D, dtype=f64)[1:]
    got = sk.jvp(student, X, sk.Directions.given(directions))[1]
    assert torch.allclose(got, sk.jvp(net_of(X), X, sk.Directions.given(directions))[1])
    assert torch.allclose(sk.jvp(student, X, BASIS, wrt=(1, 2))[1], got)
    u = torch.tensor([[1.0, 0.0]], dtype=f64)
    sk.vjp(outputs, X, sk.Cotangents.given(u))
    for refused in (
        lambda: sk.jvp(student, X, sk.Directions.given(torch.eye(D, dtype=f64))),
        lambda: sk.jvp(student, X, BASIS, wrt=(1, 0)),
        lambda: sk.vjp(outputs, X, sk.Cotangents.given(u.flip(1))),
    ):
        with pytest.raises(sk.NotProvided):
            refused()
    # without derivatives nothing of them is wrong
    sk.sobolev_loss(student, X, sk.Targets(values=X[:, :O]), weights=(1, 0))


OTHERWISE = {
    "a skip beside no_grad": lambda x: x[:, :O] + x.sum(1, keepdim=True) + net_of(x)(x.detach()),
    "a net beside NumPy": lambda x: net_of(x)(x) + of_numpy(lambda x: np.sin(x[:, :O] + x[:, 1:]))(x),
    "straight through": lambda x: Straight.apply(x)[:, :O],
    "straight through, detached": lambda x: net_of(x)(x + (x.round() - x).detach()),
    "a wrong backward": lambda x: TwiceTheSlope.apply(x)[:, :O],
}


class TwiceTheSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0].cos() * g


def warned(call):
    """What is said of derivatives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(w.category is sk.SobolevWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught if "so the reference takes its derivatives" not in str(w.message)]


@pytest.mark.parametrize("dtype", [f64, f32])
@pytest.mark.parametrize("name", OTHERWISE)
def test_other_derivatives_are_warned_of_once(name, dtype):
    x, f = numbers(N, D, dtype=dtype), Call(OTHERWISE[name])
    (text,) = warned(lambda: [sk.jvp(f, x, BASIS) for _ in range(3)])
    assert text.startswith("student: output ") and "straight-through" in text and len(text) <= 600
    assert warned(lambda: sk.vjp(f, x, sk.Cotangents.basis())) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sk.jvp(f, x, BASIS)[1].any()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.runs, self.seen = ([],), 0  # a list would be put back

    def forward(self, x):
        self.runs[0].append(len(x))
        self.seen += 1
        return x[:, :O].sin() + x[:, 1:]


def test_a_student_is_looked_at_once(monkeypatch):
    monkeypatch.setenv("SOBOLEV_BACKEND", "reference")
    student, runs = Counting(), []
    for call in [lambda: sk.jvp(student, X, BASIS)] * 3 + [lambda: sk.vjp(student, X, sk.Cotangents.basis())]:
        call()
        runs.append(len(student.runs[0]))
    assert runs[0] <= 18 and [b - a for a, b in itertools.pairwise(runs)] == [1, 1, 1]
    assert student.seen == 4
    # functions made anew of the same
    for _ in range(3):
        sk.jvp(lambda x: student(x), X, BASIS)
        runs.append(len(student.runs[0]))
    assert runs[-1] - runs[-2] == runs[-2] - runs[-3] == 1
    student.eval()
    sk.jvp(student, X, BASIS)
    assert len(student.runs[0]) > runs[-1] + 1
    student.forward = lambda x: net_of(x)(without(0, x))
    with pytest.raises(sk.NotProvided):
        sk.jvp(student, X, BASIS)


class Noting(nn.Module):
    """It writes down in lists and the like that it was run, as for a loss of its own beside the caller's."""

    def __init__(self):
        super().__init__()
        self.net, self.log, self.table, self.last = nn.Linear(D, O), [], {}, collections.deque(maxlen=2)

    def forward(self, x):
        self.log.append(len(x))
        self.last.append(len(self.log))
        self.table[len(self.log)] = len(x)
        return self.net(x).sin() * x[:, :1]


@pytest.mark.parametrize("backend", [None, "streams", "reference"])
def test_what_a_look_adds_to_lists_is_taken_away(backend):
    student = Noting().double()
    for calls in range(1, 5):
        sk.jvp(student, numbers(N, D, dtype=f64), numbers(2, N, D, dtype=f64), backend=backend)
        assert student.log == [N] * calls and list(student.table) == list(range(1, calls + 1))
        assert list(student.last) == list(range(1, calls + 1))[-2:]


def test_a_head_of_zeros_is_looked_at_again():
    """At first nothing changes with anything."""
    head = nn.Linear(O, O).double()
    nn.init.zeros_(head.weight)
    student = Call(lambda x, head: head(net_of(x)(x.detach())), head)
    assert not sk.jvp(student, X, BASIS, backend="reference")[1].any()
    nn.init.ones_(head.weight)
    with pytest.raises(sk.NotProvided):
        sk.jvp(student, X, BASIS, backend="reference")


def test_nothing_is_kept_of_what_is_gone():
    paths.KNOWN.clear()
    student = Call(lambda x: x[:, :O].sin())
    sk.jvp(student, X, BASIS)
    assert len(paths.KNOWN) == 1
    del student
    gc.collect()
    assert not paths.KNOWN


DRAWING = {
    "dropout": lambda x: nn.functional.dropout(x, training=True)[:, :O],
    "rand": lambda x: x[:, :O] * torch.rand(()),
    "NumPy": lambda x: x[:, :O] * np.random.rand(),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_teacher_who_draws_is_warned_of_once(name):
    state = torch.get_rng_state()
    paths.look(DRAWING[name], X)
    assert torch.equal(torch.get_rng_state(), state)
    teacher = sk.Targets(teacher=DRAWING[name])
    (text,) = warned(
        lambda: [sk.sobolev_loss(s, X, teacher, derivatives="exact") for s in (MLP, MLP, sk.MLP(3, 2).double())]
    )
    assert text.startswith("teacher: he gives other values for the same inputs")
    # a student who does is a matter of course
    assert warned(lambda: sk.jvp(lambda x: DRAWING[name](x) * 1, X, BASIS)) == []


def with_nan(x):
    return torch.where(x > 1, torch.nan, x)[:, :O] * 1


TEACHERS = {
    "values": with_nan,
    "derivatives": lambda x: (x - X[0, 0]).abs().sqrt()[:, :O],
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("what", TEACHERS)
def test_check_finite_looks_at_what_a_teacher_gives(what, compiled):
    call = lambda x, **more: sk.sobolev_loss(  # noqa: E731
        MLP, x, sk.Targets(teacher=TEACHERS[what]), derivatives="exact", check_finite=True, **more
    )
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=f"teacher: {what}: expected finite numbers, got [0-9]+ that are not"):
        (torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call)(X)
    if not compiled:
        # what does not count may be anything
        counting = (TEACHERS[what](X).isfinite().all(1) & (X[:, 0] != X[0, 0])).double()
        assert call(X, sample_weight=counting).isfinite()

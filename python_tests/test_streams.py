"""Pairs of value and tangents through any forward: each rule and whole networks beside differences of the forward.

The oracle knows no rule: tangents are central differences of the module in float64, and autograd differentiates these.
"""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from python_tests.students import Call, Counting, Reversed, Straight
from sobolev_kernels.backends.streams import propagated
from sobolev_kernels.paths import known_of
from sobolev_kernels.planner import SMALL
from sobolev_kernels.streams.flowing import NotFollowed, name_of
from sobolev_kernels.streams.pair import CONSTANT, LIKE
from sobolev_kernels.streams.rules import RULES
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCES

N, D = 3, 5
f64 = torch.float64


def call_of(function, *modules):
    return Call(function, *modules).double()


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def differences(function, x, v, step=1e-5):
    """Tangents [P, ...] with a graph, by a formula of fourth order."""

    def along(d):
        a, b = (function(x + h * d) - function(x - h * d) for h in (step, 2 * step))
        return (8 * a - b) / (12 * step)

    return torch.stack([along(d) for d in v])


def assert_right(function, x, v, inputs, tolerance=BY_DIFFERENCES["a rule"]):
    """Value, tangents, and the gradients of a function of both."""
    x = x.clone().requires_grad_()
    results = []
    for y, t in (propagated(function, x, v), (function(x), differences(function, x, v))):
        cy, ct = numbers(*y.shape, seed=8), numbers(*t.shape, seed=9)
        loss = (cy * y.sin()).sum() + (ct * t.sin()).sum()
        gradients = torch.autograd.grad(loss, [x, *inputs], materialize_grads=True)
        results.append([y, t, *gradients])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert got.shape == expected.shape
        error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-2)
        assert error <= (tolerance if i else ANOTHER_WAY["rtol"]), f"number {i}: {error:.2g}"  # values have no step


WEIGHT = nn.Parameter(numbers(D, 8, seed=1) / 2)
B, C = nn.Parameter(numbers(4, 4, seed=2)), numbers(4, seed=3)
MASK, INDEX = numbers(4, seed=4) > 0, torch.tensor([2, 0, 3])
KERNEL = nn.Parameter(numbers(4, 2, 2, seed=5))


def inplace(h, change):
    h = h * 1.0
    change(h)
    return h


def put(h, index, value):
    h = h.clone()
    h[index] = value
    return h


def image(h):
    return h.reshape(len(h), 2, 2, 2)


def row(name, *arguments, **named):
    """The method and the function of torch by a name."""
    return lambda h: getattr(h, name)(*arguments, **named) + getattr(torch, name)(h, *arguments, **named)


# Of h [N, 2, 4]
CASES = {
    "linear": lambda h: F.linear(h, B, C),
    "add": lambda h: h + 1 + C + (2 + h) + torch.add(h, h, alpha=3) + torch.add(C, h, alpha=2) + h.add(h[:, :1]),
    "sub": lambda h: (
        h - 1 - C - (2 - h) - torch.sub(C, h) + (C - h[:, :1]) - h.subtract(h.mean(-1, keepdim=True)) + torch.rsub(h, C)
    ),
    "mul": lambda h: 2 * h * C * h + torch.multiply(h, h[:, :1]) + C * h[..., :1],
    "div": lambda h: h / 2 / (1 + h * h) + C / (2 + h.square()) + 1 / (3 + h * h) + h.true_divide(C) + h.divide(h + 9),
    "floor division": lambda h: h + torch.div(h, 2, rounding_mode="floor"),
    "neg": lambda h: -h + h.negative().neg(),
    "reciprocal": lambda h: (2 + h * h).reciprocal(),
    "pow": lambda h: h**2 + (h * h + 1).pow(1.5) + h**0,
    "matmul": lambda h: h @ B + torch.matmul(h @ h.mT, h) + B.new_ones(2, 2) @ h + h.matmul(B),
    "bmm": lambda h: torch.bmm(h, h.transpose(1, 2)) + torch.baddbmm(h[..., :2], h, h.mT, beta=2, alpha=3),
    "mm": lambda h: h[:, 0].mm(B) + torch.addmm(C, h[:, 1], B) + h[:, 0] @ h[:2].reshape(4, 4),
    "einsum": lambda h: torch.einsum("nij,nkj->nik", h, h) @ h + torch.einsum("nij,jk->nik", h, B),
    "addcmul": lambda h: torch.addcmul(h, h, h, value=0.5) + torch.addcmul(C, h, h),
    "where": lambda h: torch.where(MASK, h, h * h) + torch.where(h > 0, h, 0.5) + h.where(MASK, C),
    "masked_fill": lambda h: h.masked_fill(MASK, 3.0) + inplace(h, lambda h: h.masked_fill_(~MASK, 0.0)),
    "clamp": lambda h: h.clamp(-0.5, 0.5) + h.clamp_min(0.1) + torch.clamp_max(h, 0.2) + h.clip(min=C),
    "maximum": lambda h: torch.maximum(h, C) + torch.minimum(h, h * h) + torch.fmax(h, C * h) + torch.fmin(C, h),
    "max": lambda h: (
        h.max(-1, keepdim=True)[0]
        + h.min(1)[0][:, None]
        + h.max()
        + torch.amin(h, 2, True)
        + h.amax(-1, keepdim=True)
        + torch.max(h, C + 0 * h)
    ),
    "transpose": lambda h: (h.transpose(1, 2).mT + torch.swapaxes(h, -1, -2).swapdims(1, 2))[:, 0].T.t().sin(),
    "permute": lambda h: (
        h.permute(0, 2, 1).reshape(len(h), -1) + torch.permute(h, (2, 0, -2)).sum(0).flatten(1).repeat(1, 4)
    ),
    "views": lambda h: h.view(len(h), -1).unflatten(1, (4, 2)).reshape_as(h).view_as(h.sin()).ravel().reshape(h.shape),
    "squeeze": lambda h: h[:, :1].squeeze(1).unsqueeze(-1).squeeze().unsqueeze(0)[0],
    "expand": lambda h: (
        h[:, :1].expand(-1, 2, -1).contiguous() * h[:, :1].expand_as(h) + torch.broadcast_to(h[:, :1], h.shape)
    ),
    "to": lambda h: h.to(f64).double().type_as(C).clone() + h.float().half().bfloat16().to(h.dtype).clone() * 0,
    "sum": lambda h: (
        h.sum() + h.sum(-1, keepdim=True) + h.mean((1, 2), True) + h.mean(dim=-1)[..., None] + torch.sum(h, (0, 1))
    ),
    "unbind": lambda h: torch.stack([a * b for a, b in zip(h.unbind(1), [*h.transpose(0, 1)], strict=True)], -1),
    "split": lambda h: torch.cat(
        [*h.split(2, -1), *torch.split(h, [1, 3], -1), *h.tensor_split(2, -1), *h.split_with_sizes([2, 2], 2)], -1
    ),
    "chunk": lambda h: (
        torch.concat([a * a for a in h.chunk(2, -1)], axis=-1) + torch.concatenate([h[..., :2], h[..., 2:]], -1)
    ),
    "select": lambda h: h.narrow(2, 1, 2) * h.select(1, 1)[:, None, :2] * h.select(-1, 0)[..., None],
    "cumsum": lambda h: h.cumsum(-1) + torch.cumsum(h, 1),
    "flip": lambda h: h.flip(1) + h.flip([-1]) + h.roll(1, -1) + h.roll(1),
    "mapped": lambda h: h.movedim(1, 2).moveaxis(-1, 1) + h.repeat(1, 1, 2)[..., ::2] + torch.tile(h, (1, 2))[..., :4],
    "diagonal": lambda h: (
        (h @ h.mT).diagonal(dim1=1, dim2=2).diag_embed() @ h + (h.tril() + h.triu(1)).rot90(2, (1, 2))
    ),
    "gather": lambda h: (
        h.index_select(2, INDEX)
        + h.gather(2, INDEX.expand(len(h), 2, 3))
        + h.take_along_dim(INDEX[None, None], 2)
        + h.repeat_interleave(2, -1)[..., :3]
        + h.unfold(2, 2, 1)[..., 0]
    ),
    "getitem": lambda h: (
        h[:, 1, None, INDEX] * h[..., MASK][..., :1] + h[:, [0, 1, 1], [3, 2, 0]][:, None] + h[0, 0, 0]
    ),
    "setitem": lambda h: put(h, (slice(None), 0), 2.0) + put(h, (..., INDEX), h[..., :3] ** 2) + put(h, (0, 0), C),
    "in place": lambda h: (
        inplace(h, lambda h: h.add_(1).mul_(2).sub_(C).div_(2).relu_())
        + inplace(h, lambda h: h.clamp_(0, 1))
        + F.leaky_relu(h * 1, 0.1, inplace=True)
        + F.relu(h + 1, inplace=True) * (h * 2).tanh_()
    ),
    "in place by operators": lambda h: inplace(h, lambda h: h.__iadd__(C).__imul__(2).__isub__(C).__itruediv__(3)),
    "pad": lambda h: F.pad(h, (1, 2)) + F.pad(h, (0, 3), value=2.0) + F.pad(h, (2, 1), mode="reflect"),
    "conv1d": lambda h: (
        F.conv1d(h, KERNEL, C, padding=1) + F.conv1d(h, KERNEL[:, :1], groups=2, padding="valid").sum(-1, keepdim=True)
    ),
    "conv2d": lambda h: (
        F.conv2d(image(h), KERNEL[..., None], C).flatten(1)
        + F.conv_transpose2d(image(h), KERNEL[:2, :, :, None]).flatten(1)[:, :8]
    ),
    "conv3d": lambda h: (
        F.conv3d(image(h)[:, :, :, None], KERNEL[..., None, None], padding=1).flatten(1)[:, :8]
        + F.conv_transpose3d(image(h)[:, :, :, None], KERNEL[:2, :, :, None, None]).flatten(1)[:, :8]
        + F.conv_transpose1d(h, KERNEL[:2]).flatten(1)[:, :8]
    ),
    "pools": lambda h: (
        F.avg_pool2d(image(h), 2)
        + F.max_pool2d(image(h), 2)
        + F.adaptive_avg_pool2d(image(h), 1)
        + F.adaptive_max_pool2d(image(h), 1)
        + F.max_pool1d(h, 2).sum(-1)[..., None, None]
        + F.avg_pool1d(h, 2)[..., :1, None]
        + F.adaptive_avg_pool1d(h, 1)[..., None]
        + F.adaptive_max_pool1d(h, 1)[..., None]
        + F.max_pool2d(image(h), 2, return_indices=True)[0]
    ),
    "pools of volumes": lambda h: (
        F.avg_pool3d(image(h)[:, None], 2) * F.max_pool3d(image(h)[:, None], 2)
        + F.adaptive_avg_pool3d(image(h)[:, None], 1)
        + F.adaptive_max_pool3d(image(h)[:, None], 1)
    ),
    "shuffle": lambda h: (
        F.pixel_unshuffle(F.pixel_shuffle(h.reshape(len(h), 4, 2, 1), 2), 2).flatten(1)
        + F.pixel_shuffle(h.reshape(len(h), 4, 2, 1), 2).flatten(1)
    ),
    "interpolate": lambda h: F.interpolate(image(h), scale_factor=2, mode="bilinear") + F.interpolate(image(h), size=4),
    "unfold": lambda h: F.fold(F.unfold(image(h), 2), (2, 2), 2) + image(h),
    "dropout in eval": lambda h: (
        F.dropout(h, 0.5, training=False) + F.alpha_dropout(h) + F.dropout2d(image(h), 0.5, False).reshape(h.shape)
    ),
    "layer norm": lambda h: F.layer_norm(h, (4,), C + 2, C) + torch.layer_norm(h, (2, 4)) + F.rms_norm(h, (4,), C),
    "group norm": lambda h: F.group_norm(h, 2, C[:2], C[2:]) + F.instance_norm(h) + torch.group_norm(h, 1),
    "batch norm": lambda h: (
        F.batch_norm(h, C[:2], C[2:].square() + 1, C[:2] + 2, C[2:]) + F.batch_norm(h[:, 0], C, C * C + 1)[:, None]
    ),
    "softmax": lambda h: (
        h.softmax(-1) + F.softmax(h, 1) + F.log_softmax(h, -1) + h.log_softmax(1) + h.logsumexp(-1, True)
    ),
    "attention": lambda h: (
        F.scaled_dot_product_attention(h, h.sin(), h.cos())
        + F.scaled_dot_product_attention(h, h, h, is_causal=True, scale=0.3)
        + F.scaled_dot_product_attention(h, h * 2, h, attn_mask=torch.ones(2, 2).tril().bool())
    ),
    "norms": lambda h: (
        h.norm(dim=-1, keepdim=True)
        + torch.linalg.vector_norm(h)
        + F.normalize(h, dim=-1)
        + torch.norm(h, dim=1, keepdim=True)
    ),
    "variance": lambda h: h.var(-1, keepdim=True) + torch.std(h, dim=(1, 2), unbiased=False)[:, None, None],
    "glu": lambda h: F.glu(h) + F.prelu(h, C[:2]).sum(-1, keepdim=True) + F.prelu(h, C[:1])[..., :2],
    "constants": lambda h: (
        h * (h > 0)
        + h.sign() * h
        + h.argmax(-1).unsqueeze(-1) * h
        + h.new_zeros(4)
        + h.size(2) * h / len(h)
        + h.floor()
        + torch.ones_like(h) * h.shape[1]
    ),
    "embedded": lambda h: F.embedding((h[:, 0] > 0).long(), B) + h[:, :1],
    "python's own": lambda h: (
        F.hardsigmoid(h) + F.tanhshrink(h) + F.softmin(h, -1) + F.threshold(h, 0.1, 0.2) + F.relu6(3 * h)
    ),
    "gru cell": lambda h: torch.gru_cell(
        h[:, 0], h[:, 1], B.repeat(3, 1), B.repeat(3, 1) / 2, C.repeat(3), C.repeat(3)
    ),
    "lstm cell": lambda h: torch.cat(
        torch.lstm_cell(h[:, 0], (h[:, 1], h[:, 0]), B.repeat(4, 1), B.repeat(4, 1) / 2, C.repeat(4), C.repeat(4)), -1
    ),
    "written": lambda h: (
        inplace(h, lambda a: a.copy_(h[:, :1] ** 2))
        + inplace(h, lambda a: a[:, 0].shape and a.fill_(0.3))
        + inplace(h, lambda a: a.zero_())
        + inplace(h, lambda a: a.pow_(3).neg_()) * inplace(h, lambda a: a.sign_())
        + put(h, (INDEX[:2], slice(None), INDEX[:2]), h[:2, 0, :2] ** 2)
        + put(h, (..., INDEX[:2] // 2, INDEX[1:]), h[..., 0])
    ),
    "index_put": lambda h: (
        h.index_put((INDEX[:2] * 0,), h[0] ** 2, accumulate=True)
        + h.index_put((INDEX % 2, INDEX % 2), C)
        + inplace(h, lambda a: a.index_put_((INDEX * 0, INDEX * 0), h[:, 0] ** 2, accumulate=True))
    ),
    "weights that depend on the inputs": lambda h: (
        F.linear(h, h[0] ** 2, h[0, 0, :2]).repeat(1, 1, 2) + F.linear(C.expand_as(h), h[0].mT @ h[0], h[0, 1])
    ),
    "limits that depend on the inputs": lambda h: (
        h.clamp(h.sin() - 0.1, h.cos())
        + torch.clamp(C.expand_as(h), max=h)
        + h.masked_fill(MASK, h.sum())
        + C.expand_as(h).clamp_min(h[:, :1])
    ),
    "numbers multiplied": lambda h: (
        h.prod(1, True)
        + torch.prod(h)
        + h.prod(-1)[..., None]
        + h.cumprod(-1)
        + torch.cumprod(h, 1)
        + put(h, (..., 0), 0.0).prod(-1, True)
        + put(h, (..., 1), 0.0).cumprod(-1)
    ),
    "powers of numbers below 0": lambda h: h ** torch.tensor(2) + h.pow(torch.tensor([1.0, 2, 3, 0], dtype=f64)),
    "equal numbers": lambda h: (
        torch.maximum(h, h * 1)
        + torch.min(h, h.clone())
        + torch.cat([h, h], -1).amax(-1, True)
        + torch.stack([h * h, h.square()]).max()
        + torch.stack([h, 2 * h - h]).amin((0, -1))[..., None]
    ),
    "distances": lambda h: (
        torch.cdist(h, h + 1).repeat(1, 1, 2)
        + torch.dist(h[0], h[1])
        + torch.linalg.matrix_norm(h)[:, None, None]
        + torch.cdist(h, C.expand(1, 2, 4), 1.0).repeat(1, 1, 2)
    ),
    "einsum without names": lambda h: (
        torch.einsum("n...,n...->n...", h, h.sin())
        + torch.einsum("nij,nkj", h, h).sum()
        + torch.einsum("...j,kj", h, B)
        + torch.einsum("n i ..., ... -> ... i n", h, h[0, 0]).mT.sum()
    ),
    "without their dim": lambda h: (
        torch.stack([F.conv1d(a, KERNEL[:2], padding=1)[:, :4] + F.max_pool1d(a, 3, 1, 1) for a in h])
        + torch.stack([F.avg_pool1d(a, 3, 1, 1) for a in h])
    ),
    "grouped attention": lambda h: F.scaled_dot_product_attention(
        torch.stack([h, h.sin()], 1), h[:, None], h[:, None].cos(), enable_gqa=True
    ).sum(1),
    "keys that are all masked": lambda h: (
        F.scaled_dot_product_attention(h, h.sin(), h, attn_mask=torch.tensor([[False, False], [True, False]]))
        + F.scaled_dot_product_attention(h, h, h, torch.tensor([[0.0, 1], [-math.inf, -math.inf]], dtype=f64))
    ),
    "other places": lambda h: (
        h.cpu().type(f64).fliplr().flipud()
        + (h @ B).adjoint().mH
        + F.channel_shuffle(image(h), 2).reshape(h.shape)
        + (h @ h.mT).mT.matmul(h)
        + h[:, 0].diag()[0]
        + torch.linalg.diagonal(h @ h.mT)[..., None]
        + torch.linalg.matmul(h, B)
        + torch.constant_pad_nd(h, (1, 0), 2.0)[..., :4]
    ),
    "over several dims": lambda h: (
        h.logsumexp((1, 2), True)
        + torch.logsumexp(h, (0, 2))[:, None]
        + h.var(False)
        + h.std(True)
        + h.amin((1, 2), True)
    ),
    "single numbers": lambda h: (
        h
        * (
            h.sum().softmax(0)
            + h.sum().log_softmax(0)
            + h.sum().logsumexp(0)
            + h.sum().norm()
            + torch.dist(h.sum(), C[0])
            + torch.linalg.vector_norm(h.sum(), 2, ())
            + F.cosine_similarity(h.sum(), C[0], 0)
        )
    ),
    "over dims of which none is named": lambda h: h * h.norm(dim=()) * torch.std(h, correction=None),
    "cosines": lambda h: (
        F.cosine_similarity(h[:, :1], h, 1) * F.cosine_similarity(h, C.expand(2, 4), 2).sum()
        + F.cosine_similarity(h, C[:1], -1)[:, :1]
    ),
    "beside products of constants": lambda h: (
        torch.addmm(h[0], B[:2], B) + torch.addcmul(h, C, C) + torch.clamp(C.expand_as(h), C - 1, h)
    ),
    "running statistics": lambda h: F.instance_norm(h, C[:2], C[2:].square() + 1, C[:2] + 2, C[2:], False),
    "rnn cell": lambda h: torch.rnn_tanh_cell(h[:, 0], h[:, 1], B, B / 2, C, C),
}
POSITIVE = ("sqrt", "rsqrt", "log", "log1p", "log2", "log10", "lgamma")
INSIDE = ("asin", "acos", "atanh", "erfinv", "logit", "arcsin", "arccos", "arctanh")
POINTWISE = sorted({name_of(function) for function in RULES} & {
    *"relu tanh sigmoid exp sin cos square sqrt rsqrt log abs gelu silu softplus elu selu celu leaky_relu mish".split(),
    *"softsign logsigmoid hardswish hardsigmoid hardtanh relu6 softshrink hardshrink tanhshrink log1p expm1".split(),
    *"log2 log10 exp2 tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv sinc expit logit lgamma".split(),
    *"nan_to_num arctan arcsin arccos arcsinh arctanh".split(),
})  # fmt: skip


def pointwise(name):
    function = getattr(torch, name, None) or getattr(F, name, None) or getattr(torch.special, name)
    if name in POSITIVE:
        return lambda h: function(h * h + 0.5)
    if name in INSIDE:
        return lambda h: function(h.sigmoid() * 0.8 + 0.1)
    return (lambda h: function(h * h + 1.5)) if "acosh" in name else function


CASES |= {name: pointwise(name) for name in POINTWISE}


def around(case):
    return lambda x: CASES[case]((x @ WEIGHT).view(len(x), 2, 4)).reshape(len(x), -1)


@pytest.mark.parametrize("case", CASES)
def test_every_rule(case):
    assert_right(around(case), numbers(N, D), numbers(2, N, D, seed=6), [WEIGHT, B, KERNEL])


@pytest.mark.parametrize("write", [lambda h: h.fill_(0.3), lambda h: h.copy_(torch.tensor(0.3, dtype=f64))])
def test_a_number_is_written_in_the_dtype_of_the_pair(write):
    """Not by way of float32."""
    x = numbers(N, D)
    assert torch.equal(propagated(lambda x: write(x * 1) + 0 * x, x, x[None])[0], torch.full_like(x, 0.3))


def test_every_row_of_the_table_has_a_case():
    used = {}
    for case in CASES:
        propagated(around(case), numbers(N, D), numbers(1, N, D), used)
    rows = {name_of(function) for function in RULES} - {*CONSTANT.split(), *LIKE.split()}
    about = {name for name in rows if isinstance(getattr(torch.Tensor, name, None), type(torch.Tensor.shape))}
    same = {name for name in rows if name.endswith("_") or (name.startswith("__") and name.endswith("__"))}
    assert {name.removeprefix("special_") for name in rows - about - same} - used.keys() <= UNUSED


# Other spellings of what has a case, or what a case calls by another name
UNUSED = {
    "absolute", "dropout1d", "dropout3d",  "expit", "feature_alpha_dropout", "ger", "log_sigmoid", "round",
    "threshold",
    *(f"{kind}max_pool{n}d_with_indices" for kind in ("", "adaptive_") for n in (1, 2, 3)),
    # in test_streams_more.py
    *"broadcast_tensors positive linalg_norm linalg_det det linalg_slogdet slogdet logdet linalg_solve".split(),
    *"inverse linalg_inv bilinear cosine_similarity pairwise_distance".split(),
    *"gru lstm rnn_tanh rnn_relu rnn_relu_cell".split(),
    *"dot vdot mv outer ger".split(),  # in test_streams_twice.py
    "register_hook",  # FSDP's, in test_chain.py
}  # fmt: skip


class LeNet(nn.Module):
    D = 64

    def __init__(self, O):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.f1, self.f2 = nn.Linear(6, 8), nn.Linear(8, O)

    def forward(self, x):
        h = F.max_pool2d(F.silu(self.c1(x.view(-1, 1, 8, 8))), 2)
        h = F.avg_pool2d(torch.tanh(self.c2(h)), 2)
        return self.f2(F.gelu(self.f1(h.view(h.shape[0], -1))))


class Residual(nn.Module):
    """Two blocks of a residual network of images, batch norm in eval."""

    D = 64

    def __init__(self, O):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(4), nn.SiLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
            )
            for _ in range(2)
        )  # fmt: skip
        self.last = nn.Linear(4, O)
        for block in self.blocks:
            block[0].running_mean.normal_()
        self.eval()

    def forward(self, x):
        h = self.first(x.reshape(-1, 1, 8, 8))
        for block in self.blocks:
            out = block(h)
            out += h
            h = out
        return self.last(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Blocks(nn.Module):
    D = 6

    def __init__(self, O):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, O)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8), nn.Dropout(0.3))
            for _ in range(2)
        )
        self.eval()

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(self.norm(h))


class Fourier(nn.Module):
    D = 3

    def __init__(self, O):
        super().__init__()
        self.register_buffer("waves", torch.randn(3, 6))
        self.net = nn.Sequential(nn.Linear(12, 8), nn.Softplus(), nn.Linear(8, O))

    def forward(self, x):
        angles = x @ self.waves
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=-1))


class Gated(nn.Module):
    D = 3

    def __init__(self, O):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, O)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.last(torch.tanh(self.a(x)) * torch.sigmoid(self.b(x)) * self.scale) + x[:, :1].exp()


class Encoder(nn.Module):
    D = 12

    def __init__(self, O, norm_first=True):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.place = nn.Parameter(torch.randn(4, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder, self.last = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, O)
        self.eval()

    def forward(self, x):
        return self.last(self.encoder(self.embed(x.unflatten(-1, (4, 3))) + self.place).mean(1))


class Recurrent(nn.Module):
    D = 12

    def __init__(self, O):
        super().__init__()
        self.cell, self.long, self.last = nn.GRUCell(3, 8), nn.LSTMCell(8, 8), nn.Linear(8, O)

    def forward(self, x):
        h, state = None, None
        for step in x.view(len(x), 4, 3).unbind(1):
            h = self.cell(step, h)
            state = self.long(h, state)
        return self.last(state[0])


class Skips(nn.Module):
    """Down and up again, with a skip."""

    D = 16

    def __init__(self, O):
        super().__init__()
        self.down, self.up, self.last = (
            nn.Conv1d(1, 4, 3, 2, 1),
            nn.ConvTranspose1d(4, 4, 2, 2),
            nn.Conv1d(5, 1, 3, padding=1),
        )
        self.head = nn.Linear(16, O)

    def forward(self, x):
        h = x[:, None]
        h = torch.cat([h, self.up(F.mish(self.down(h)))], 1)
        return self.head(torch.where(self.last(h) > 0, self.last(h), 0.1 * self.last(h)).squeeze(1))


NETWORKS = {
    "LeNet": LeNet, "residual network": Residual, "residual MLP": Blocks, "Fourier features": Fourier,
    "gated product": Gated, "encoder": Encoder, "encoder, norm last": lambda O: Encoder(O, norm_first=False),
    "recurrent": Recurrent, "skips": Skips,
}  # fmt: skip


def network(name, O):
    torch.manual_seed(1)
    module = NETWORKS[name](O).double()
    return module, numbers(N, module.D), numbers(4, N, module.D, seed=3)


@pytest.mark.parametrize("P, O", [(1, 10), (4, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, P, O):
    module, x, v = network(name, O)
    assert_right(module, x, v[:P], list(module.parameters()), BY_DIFFERENCES["a network"])


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_of_networks(name):
    """Of a free choice and forced, with all that a loss may say, beside the reference."""
    module, x, v = network(name, 2)
    targets = sk.Targets(values=numbers(N, 2, seed=5), jacobian=numbers(N, 2, module.D, seed=6))
    more = {"derivative_loss": "cosine", "output_weight": torch.tensor([0.5, 2.0], dtype=f64), "wrt": [2, 0]}
    narrow = sk.Targets(values=targets.values, jacobian=targets.jacobian[..., [2, 0]])
    for settings, t in (({"directions": sk.Directions.given(v[:2])}, targets), (more, narrow)):
        if "wrt" in settings:
            settings = settings | {"directions": sk.Directions.sphere(3, seed=4)}
        results = []
        for backend in ("streams", None, "reference"):
            z = x.clone().requires_grad_()
            loss = sk.sobolev_loss(module, z, t, backend=backend, **settings)
            results.append([loss, *torch.autograd.grad(loss, [z, *module.parameters()])])
        for got in results[:2]:
            for g, e in zip(got, results[2], strict=True):
                torch.testing.assert_close(g, e, **ANOTHER_WAY)
    with torch.no_grad():
        y, tangents = sk.jvp(module, x, v)
    assert not tangents.requires_grad and known_of(module, x).flows[1, None].unfollowed is None
    assert_within_rule("y", y, module(x))


def chosen(student, x, **settings):
    (line,) = [line for line in sk.explain(student, x, **settings).splitlines() if line.startswith("-> ")]
    return line.split()[1]


def test_the_cheaper_side():
    """An output with several directions goes by gradients, as many or more by pairs, order 2 too; cotangents not."""
    few, many = Blocks(1).double(), Blocks(10).double()
    x = numbers(N, 6)
    assert chosen(few, x, directions=sk.Directions.sphere(4)) == "reference"
    assert chosen(few, x, directions=sk.Directions.sphere(2)) == "reference"
    assert chosen(few, x, directions=sk.Directions.sphere(1)) == "reference"
    assert "5 by tangents, 1.8 by gradients" in sk.explain(few, x, directions=sk.Directions.sphere(4))
    enough = numbers(SMALL + 1, 6)
    assert chosen(few, enough, directions=sk.Directions.sphere(1)) == "streams"
    assert "5 by tangents, 2.2 by gradients" in sk.explain(few, enough, directions=sk.Directions.sphere(4))
    recurrent = Call(lambda x, gru: gru(x.unflatten(1, (3, 2)))[0][:, -1], nn.GRU(2, 1, batch_first=True).double())
    assert chosen(recurrent, enough, directions=sk.Directions.sphere(1)) == "reference"
    assert chosen(Blocks(2).double(), x, directions=sk.Directions.sphere(2)) == "streams"
    assert chosen(many, x, directions=sk.Directions.sphere(4)) == "streams"
    assert chosen(many, x, cotangents=sk.Cotangents.sphere(1)) == "reference"
    assert chosen(few, x, order=2) == "streams"
    v = numbers(4, N, 6, seed=1)
    results = [sk.jvp(few, x, v, backend=backend)[1] for backend in ("streams", "reference")]
    torch.testing.assert_close(*results, **ANOTHER_WAY)


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Gated(2)
        self.hidden = None

    def forward(self, x):
        self.hidden = self.net(x)
        return self.hidden.sin()


def through_no_grad(x, net):
    with torch.no_grad():
        h = net(x)
    return h + net(x)


def into_zeros(x, net):
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    out[:, 0] = net(x)[:, 0].sin()
    return out


def through_a_view(x, net):
    h = net(x) * 1.0
    h[:, 0].mul_(2)
    return h


PITFALLS = {
    "autograd.Function": (lambda x, net: net(x) + Straight.apply(net(x)), "in an autograd.Function"),
    "autograd.Function of nothing": (lambda x, net: net(Reversed.apply(x)), "in an autograd.Function"),
    "detach": (lambda x, net: net(x) * x.detach()[:, :1], "detach"),
    "data": (lambda x, net: net(x) * x.data[:, :1], "data"),
    "no_grad": (through_no_grad, "without gradients"),
    "item": (lambda x, net: net(x) * (2 + x[0, 0].item()), "item"),
    "numpy": (lambda x, net: net(x) * float(x.detach().numpy().sum() > -1e9), "detach"),
    "a number": (lambda x, net: net(x) * float(x.sum() > -1e9) + float(x[0, 0] * 0), "__float__"),
    "complex numbers": (lambda x, net: torch.fft.rfft(net(x)).abs(), "fft_rfft"),
    "to complex numbers": (lambda x, net: net(net(x)[:, :1] * x).to(torch.complex128).real * net(x), "complex"),
    "by complex numbers": (lambda x, net: torch.kron(net(x), torch.ones(1, 1) * (1 + 0j)).real * net(x), "complex"),
    "no rule": (lambda x, net: F.pdist(net(x)).sum() * net(x), "pdist"),
    "embedding bag": (lambda x, net: F.embedding_bag(torch.arange(len(x))[:, None], net(x)) * net(x), "embedding_bag"),
    "a bag's weights": (
        lambda x, net: F.embedding_bag(
            torch.zeros(len(x), 2, dtype=torch.int64), net.a.weight[:, :2], per_sample_weights=net(x), mode="sum"
        ),
        "embedding_bag",
    ),
    "a product that is scattered": (
        lambda x, net: net(x).scatter_reduce(1, torch.zeros(len(x), 2, dtype=torch.int64), net(x), "prod"),
        "prod",
    ),
    "targets that depend": (
        lambda x, net: F.binary_cross_entropy(net(x).sigmoid(), net(x).cos().square(), reduction="none"),
        "binary_cross_entropy to targets",
    ),
    "as a dtype": (lambda x, net: net(x) * net(x).view(f64), "as a dtype"),
    "into zeros": (into_zeros, "ordinary tensor"),
    "through a view": (through_a_view, "seen elsewhere"),
    "train statistics": (lambda x, net: F.batch_norm(net(x), None, None, training=True), "batch"),
    "keeping": (Kept(), "keeps what flows"),
    "no pair": (lambda x, net: net.last.bias.expand(len(x), -1), "no tensor that depends"),
}


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning", "ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", PITFALLS)
def test_what_has_no_rule_is_named(name):
    """Forced it is refused, and nothing is left of the run; of a free choice it is computed as before, or refused."""
    function, said = PITFALLS[name]
    student = function if isinstance(function, nn.Module) else call_of(function, Gated(2))
    student, x, v = student.double(), numbers(N, D)[:, :3], numbers(2, N, D, seed=1)[..., :3]
    state = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(sk.NotProvided, match=rf"backend: .*{said}"):
            sk.jvp(student, x, v, backend="streams")
    assert torch.equal(torch.get_rng_state(), state)
    results = []
    for backend in (None, "reference"):
        try:
            results.append(sk.jvp(student, x, v, backend=backend)[1])
        except (sk.NotProvided, RuntimeError) as error:
            results.append(str(error))
    a, b = results
    assert a == b if isinstance(a, str) or isinstance(b, str) else torch.equal(a, b)
    assert said in sk.explain(student, x)


def test_what_changes_its_way_goes_by_the_reference():
    """A call that meets an operation without a rule that the first one did not: with the same random numbers."""
    student = call_of(
        lambda x, net: F.dropout(net(x) if x.shape[0] < 4 else F.rrelu(net(x), training=True), 0.5), Gated(2)
    )
    x, v = numbers(6, 3), numbers(2, 6, 3, seed=1)
    sk.jvp(student, x[:3], v[:, :3])
    results = []
    for backend, warned in (None, pytest.warns(sk.SobolevWarning, match="rrelu")), ("reference", nullcontext()):
        torch.manual_seed(0)
        with warned:
            results.append(sk.jvp(student, x, v, backend=backend)[1])
    assert torch.equal(*results)
    student = call_of(student.function, Gated(2))
    sk.jvp(student, x[:3], v[:, :3], backend="streams")
    with pytest.raises(sk.NotProvided, match="rrelu"):
        sk.jvp(student, x, v, backend="streams")


def test_dropout_has_one_mask_for_all():
    student = call_of(lambda x, net: F.dropout(net(x), 0.5), Gated(4))
    x, v = numbers(50, 3), numbers(2, 50, 3, seed=1)
    state = torch.get_rng_state()
    y, tangents = sk.jvp(student, x, v, backend="streams")
    assert torch.equal(y == 0, (tangents == 0).all(0))
    torch.set_rng_state(state)
    assert torch.allclose(y, student(x))


def test_the_first_run_leaves_no_trace():
    """It counts as no call, and draws no number."""

    student, x, v = Counting(Gated(2), lambda y: y * torch.rand(())), numbers(N, 3), numbers(2, N, 3, seed=1)
    student = student.double()
    state = torch.get_rng_state()
    sk.explain(student, x)
    assert student.calls == 0 and torch.equal(torch.get_rng_state(), state)
    for calls in (1, 2):
        sk.jvp(student, x, v)
        assert student.calls == calls


@pytest.mark.parametrize("wrap", ["checkpoint", "functional_call", "torch.compile", "forward hook", "MLP"])
def test_wrapped(wrap):
    net = Blocks(2).double()
    student = {
        "checkpoint": lambda: call_of(lambda x, net: checkpoint(net, x, use_reentrant=False), net),
        "functional_call": lambda: lambda x: torch.func.functional_call(net, dict(net.named_parameters()), (x,)),
        "torch.compile": lambda: torch.compile(net, backend="eager"),
        "forward hook": lambda: [net, net.blocks[0].register_forward_hook(lambda m, a, y: y * 2)][0],
        "MLP": lambda: sk.MLP(6, 2, width=4).double(),
    }[wrap]()
    x, v = numbers(N, 6), numbers(2, N, 6, seed=1)
    results = []
    for backend in ("streams", "reference"):
        z = x.clone().requires_grad_()
        _, tangents = sk.jvp(student, z, v, backend=backend)
        results.append([tangents, *torch.autograd.grad(tangents.sin().sum(), [z])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


def test_results_are_differentiable_again():
    student, x, v = Gated(2).double(), numbers(N, 3).requires_grad_(), numbers(1, N, 3, seed=1)
    results = []
    for backend in ("streams", "reference"):
        tangents = sk.jvp(student, x, v, backend=backend)[1]
        (g,) = torch.autograd.grad(tangents.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), student.parameters(), allow_unused=True))
    for got, expected in zip(*results, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)


def test_another_head():
    """Its outputs are counted anew: of a module by its shapes, of a function where they do not fit."""
    x, student = numbers(N, 6), Blocks(2).double()
    which = [Blocks(2).double(), Blocks(3).double()]
    function = lambda x: which[0](x)  # noqa: E731
    for O in (2, 3, 2):
        student.last, targets = nn.Linear(8, O).double(), sk.Targets(teacher=lambda x, O=O: x[:, :O].sin())
        dense = sk.Targets(values=numbers(N, O), jacobian=numbers(N, O, 6))
        for f, t in ((student, targets), (student, dense), (function, dense)):
            which.sort(key=lambda net: net.last.out_features != O)
            got, expected = (sk.sobolev_loss(f, x, t, derivatives="exact", backend=b) for b in (None, "reference"))
            assert_within_rule("loss", got, expected)
        assert sk.jvp(function, x, numbers(2, N, 6))[1].shape == (2, N, O)


def test_explain_counts_the_operations():
    text = sk.explain(Gated(2).double(), numbers(N, 3))
    assert "operations" in text and "linear 3" in text and "tanh 1" in text


def test_not_followed_is_not_seen():
    """It is no exception of a public function."""
    with pytest.raises(NotFollowed):
        propagated(lambda x: x.numpy(), numbers(N, 3), numbers(1, N, 3))


MIXED = {
    "a mean of the batch": lambda x, net: net((x - x.mean(0)) / x.std(0)),
    "the other way round": lambda x, net: net(x.flip(0)),
    "his neighbour": lambda x, net: net(x.roll(1, 0)),
    "attention": lambda x, net: net((x @ x.T).softmax(1) @ x),
}


@pytest.mark.parametrize("backend", [None, "streams", "reference"])
@pytest.mark.parametrize("name", MIXED)
def test_samples_that_are_mixed(name, backend):
    """The gradient of a sum over samples is none of each of them; all move along their directions together."""
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, v = numbers(6, D), numbers(3, 6, D, seed=1)
    function = lambda x: MIXED[name](x, net)  # noqa: E731
    _, tangents = sk.jvp(function, x, v, backend=backend)
    expected = [torch.func.jvp(function, (x,), (direction,))[1] for direction in v]
    assert torch.allclose(tangents, torch.stack(expected), **ANOTHER_WAY)


def test_mixed_samples_flow():
    """Where the first call found that samples see each other, it is pairs that cost least."""
    function = call_of(lambda x, net: MIXED["attention"](x, net), Gated(1))
    x, v = numbers(6, 3), numbers(4, 6, 3, seed=1)
    results = [sk.jvp(function, x, v)[1] for _ in range(3)]
    assert chosen(function, x, directions=sk.Directions.given(v)) == "streams"
    for got in results[1:]:
        torch.testing.assert_close(got, results[0], **ANOTHER_WAY)

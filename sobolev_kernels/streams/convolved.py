"""A convolution of a value and its tangents as one: a call of PyTorch's costs as much as some ten thousand numbers.

What an operation of one node gives lies side by side, the tangents behind the value. Whoever takes both sees that by
their addresses and reads them as more samples; what lies elsewhere is copied there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..boundary import PLAIN
from ..transforms import refuse_forward_mode, several
from .activated import fits

# Numbers of all samples, coming or going, from which a convolution is none of few: then the value's and the tangents'
# stay in the cache longer one after the other. µs of both and of all together, forward, and back in all, 3×3, one
# thread of an EPYC with AVX-512, by samples of each:
#
#     128   1→6 8×8  124 95, 563 520      6→16 4×4  84 55, 262 196     8→8 8×8  257 230, 751 712
#     256   1→6 8×8  187 158, 986 1007    6→16 4×4  109 85, 377 309    8→8 8×8  455 427, 1359 1464
#     1024  1→6 8×8  558 547, 3587 4211   6→16 4×4  263 234, 1026 957  8→8 8×8  1655 1795, 5599 7023
FEW = 1 << 18

back = torch.ops.aten.convolution_backward.default


def together(v: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """A value [N, ...] and its tangents [S, N, ...] as samples [(1 + S) N, ...]; where they lie, if side by side."""
    samples = (1 + len(d)) * len(v), *v.shape[1:]
    if v.is_contiguous() and d.is_contiguous():
        beside = d.data_ptr() == v.data_ptr() + v.nbytes
        if beside and d.untyped_storage().data_ptr() == v.untyped_storage().data_ptr():
            return v.as_strided(samples, v.stride())
    return torch.cat([v, d.flatten(0, 1)])


def apart(samples: torch.Tensor, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `together` put together."""
    return samples[:N], samples[N:].view(-1, N, *samples.shape[1:])


def takes(v: torch.Tensor, d: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a convolution of them is one of few numbers, and nobody would have to see two."""
    if not fits(v, d) or type(weight) not in PLAIN or type(bias) not in (type(None), *PLAIN):
        return False
    samples = (1 + len(d)) * len(v)
    most = max(v.numel(), len(v) * weight.shape[0] * v[0, 0].numel())
    return most * samples <= FEW * len(v) and weight.dtype is v.dtype


def arguments_of(
    dims: int, transposed: bool, stride=1, padding=0, *others, output_padding=0, groups=1, dilation=1
) -> tuple | None:  # fmt: skip
    """Those of `aten.convolution` after the bias; None of a padding in words."""
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    told = {"output_padding": output_padding, "groups": groups, "dilation": dilation} | dict(zip(names, others))
    if isinstance(padding, str) or (not transposed and told["output_padding"] != 0):
        return None
    each = lambda of: [of] * dims if isinstance(of, int) else list(of) * (dims // len(of))  # noqa: E731
    spread = map(each, (stride, padding, told["dilation"]))
    return *spread, transposed, each(told["output_padding"]), told["groups"]


class Convolved(torch.autograd.Function):
    """Of `of`, the arguments of `aten.convolution` after the bias."""

    @staticmethod
    def forward(ctx, v, d, weight, bias, of):
        y, t = apart(torch.convolution(together(v, d), weight, None, *of), len(v))
        if bias is not None:
            y.add_(bias.view(-1, *[1] * (y.dim() - 2)))
        ctx.set_materialize_grads(False)
        ctx.of = of
        ctx.save_for_backward(v, d, weight, bias)
        return y, t

    @staticmethod
    def backward(ctx, bar_y, bar_t):
        v, d, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() or bar_y is None or bar_t is None or several(bar_y, bar_t):
            return *one_by_one(ctx.of, needs, v, d, weight, bias, bar_y, bar_t), None
        bars = together(bar_y, bar_t)
        asked = [needs[0] or needs[1], needs[2], False]
        of_samples, of_weight, _ = back(bars, together(v, d), weight, None, *ctx.of, asked)
        of_bias = bars[: len(v)].sum((0, *range(2, bars.dim()))) if needs[3] else None
        return *((None, None) if of_samples is None else apart(of_samples, len(v))), of_weight, of_bias, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def one_by_one(of, needs, v, d, weight, bias, bar_y, bar_t) -> list[torch.Tensor | None]:
    """The adjoints of a value, its tangents, weight and bias by PyTorch's operations, which are differentiable again,
    also of several at a time."""
    found = [None] * 4
    if bar_y is not None:
        sizes = None if bias is None else list(bias.shape)
        found[0], found[2], found[3] = back(bar_y, v, weight, sizes, *of, [needs[0], needs[2], needs[3]])
    if bar_t is not None:
        asked = [needs[1], needs[2], False]
        of_d, of_weight, _ = back(bar_t.reshape(-1, *bar_t.shape[2:]), d.flatten(0, 1), weight, None, *of, asked)
        found[1] = None if of_d is None else of_d.reshape(d.shape)
        found[2] = of_weight if found[2] is None else found[2] + of_weight
    return found


apply = super(torch.autograd.Function, Convolved).apply  # without what torch.func would be told of it

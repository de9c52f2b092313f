"""A convolution of a value and its tangents as one: a call of PyTorch's costs as much as some ten thousand numbers.

What an operation of one node gives lies side by side, the tangents behind the value. Whoever takes both sees that by
their addresses and reads them as more samples; what lies elsewhere is copied there.
"""

from __future__ import annotations

import torch

from ..transforms import refuse_forward_mode
from .operations import are_weights, differentiated, fits, goes_on

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


def on_its_own(part: torch.Tensor) -> torch.Tensor:
    """The same memory, no view of the whole: who is given one of two views may not write to it."""
    return part.new_empty(0).set_(part.untyped_storage(), part.storage_offset(), part.shape, part.stride())


def takes(v: torch.Tensor, d: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a convolution of them is one of few numbers, and nobody would have to see two."""
    if not fits(v, d) or not are_weights(v, weight, bias):
        return False
    numbers = (1 + len(d)) * v.numel() // v.shape[1]
    return numbers * max(weight.shape[:2]) <= FEW


def arguments_of(
    dims: int, transposed: bool, stride=1, padding=0, *others, output_padding=0, groups=1, dilation=1
) -> tuple | None:  # fmt: skip
    """Those of `aten.convolution` after the bias; None of a padding in words."""
    told = {"output_padding": output_padding, "groups": groups, "dilation": dilation}
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    told |= dict(zip(names, others, strict=False))
    if isinstance(padding, str) or (not transposed and told["output_padding"] != 0):
        return None
    each = lambda of: [of] * dims if isinstance(of, int) else list(of) * (dims // len(of))  # noqa: E731
    spread = map(each, (stride, padding, told["dilation"]))
    return *spread, transposed, each(told["output_padding"]), told["groups"]


class Convolved(torch.autograd.Function):
    """Of `of`, the arguments of `aten.convolution` after the bias."""

    @staticmethod
    def forward(ctx, v, d, weight, bias, of):
        y, t = map(on_its_own, apart(torch.convolution(together(v, d), weight, None, *of), len(v)))
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
        if goes_on(bar_y, bar_t):
            written_out = lambda *tensors: in_torch(*tensors, ctx.of)  # noqa: E731
            return *differentiated(written_out, (v, d, weight, bias), needs[:4], (bar_y, bar_t)), None
        bars = together(bar_y, bar_t)
        asked = [needs[0] or needs[1], needs[2], False]
        of_samples, of_weight, _ = back(bars, together(v, d), weight, None, *ctx.of, asked)
        of_bias = bars[: len(v)].sum((0, *range(2, bars.dim()))) if needs[3] else None
        return *((None, None) if of_samples is None else apart(of_samples, len(v))), of_weight, of_bias, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def in_torch(v, d, weight, bias, of) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.convolution(d.flatten(0, 1), weight, None, *of)
    return torch.convolution(v, weight, bias, *of), t.unflatten(0, d.shape[:2])


convolved = super(torch.autograd.Function, Convolved).apply  # without what torch.func would be told of it

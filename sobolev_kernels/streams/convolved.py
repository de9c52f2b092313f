"""A convolution of a value and its tangents as one: what an operation of one node gives lies side by side, the tangents
behind the value. Whoever takes both sees that by their addresses and reads them as more samples; what lies elsewhere is
copied there.
"""

from __future__ import annotations

import torch

from ..transforms import refuse_forward_mode
from .images import FEW, Convolution
from .operations import are_weights, differentiated, fits, goes_on


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


def together_of(
    v: torch.Tensor, d: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, of: tuple | None
) -> Convolution | None:  # fmt: skip
    """A convolution of both, if it is the core's or one of few numbers, and nobody would have to see two."""
    if of is None or not fits(v, d) or not are_weights(v, weight, bias):
        return None
    numbers, of_both = (1 + len(d)) * v.numel() // v.shape[1], Convolution.of_tensors(v, weight, of)
    return of_both if of_both.told is not None or numbers * max(weight.shape[:2]) <= FEW else None


class Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, d, weight, bias, of):
        y, t = map(on_its_own, apart(of.made(together(v, d), weight, None), len(v)))
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
            written_out = lambda *tensors: in_torch(*tensors, ctx.of.of)  # noqa: E731
            return *differentiated(written_out, (v, d, weight, bias), needs[:4], (bar_y, bar_t)), None
        bars = together(bar_y, bar_t)
        asked = needs[0] or needs[1], needs[2], False
        of_samples, of_weight, _ = ctx.of.back(bars, together(v, d), weight, asked)
        of_bias = bars[: len(v)].sum((0, *range(2, bars.dim()))) if needs[3] else None
        return *((None, None) if of_samples is None else apart(of_samples, len(v))), of_weight, of_bias, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def in_torch(v, d, weight, bias, of) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.convolution(d.flatten(0, 1), weight, None, *of)
    return torch.convolution(v, weight, bias, *of), t.unflatten(0, d.shape[:2])


convolved = super(torch.autograd.Function, Convolved).apply  # without what torch.func would be told of it

"""A norm of a value and its tangents as one operation of the core, and its way back as one: layer norm and its like, of
which PyTorch's operations are a dozen and thirty, and batch norm in eval, a scale and a shift of each channel."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..backends import core
from ..transforms import refuse_forward_mode
from .operations import differentiated, goes_on, saved


@lru_cache(maxsize=256)
def told(dtype: torch.dtype, n: int, channels: int, centred: bool, eps: float, threads: int, isa: str):
    """The core's own words for it."""
    return core._C.Normed(
        core.CODES["Dtype"][str(dtype).removeprefix("torch.")], n, channels, centred, eps, threads, isa
    )


class Normed(torch.autograd.Function):
    """Of v [...] and d [S, ...] without gaps, of which each `n` numbers are a row. With `channels`, row i times the
    weight of channel i % channels, plus its bias for the value; without, each row less its mean (if `centred`) and
    divided by its deviation, times weight [n], plus bias [n]."""

    @staticmethod
    def forward(ctx, v, d, weight, bias, n, channels, centred, eps):
        ctx.told = told(v.dtype, n, channels, centred, eps, torch.get_num_threads(), core.instruction_set())
        ctx.of = n, channels, centred, eps
        y, t = torch.empty_like(v), torch.empty_like(d)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, d, weight, bias)
        core._C.normed(ctx.told, v.numel() // n, len(d), [v, d, weight, bias, y, t])
        return y, t

    @staticmethod
    def backward(ctx, *bars):
        v, d, weight, bias = saved(ctx)
        _, of_d, of_weight, of_bias, *nothing = ctx.needs_input_grad
        nothing = (None,) * len(nothing)
        if goes_on(*bars):
            written_out = lambda *tensors: in_torch(*tensors, *ctx.of)  # noqa: E731
            return *differentiated(written_out, (v, d, weight, bias), ctx.needs_input_grad[:4], bars), *nothing
        bars = [bar.contiguous() for bar in bars]
        wanted = (v, True), (d, of_d), (weight, of_weight), (bias, of_bias)
        made = [torch.empty_like(tensor) if asked else None for tensor, asked in wanted]
        core._C.normed(ctx.told, v.numel() // ctx.of[0], len(d), [v, d, weight, *bars, *made])
        return *made, *nothing

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def in_torch(
    v: torch.Tensor, d: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, n: int, channels: int,
    centred: bool, eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The same by PyTorch's operations."""
    of_row = (-1, channels, n) if channels else (-1, n)
    rows, streams = v.reshape(of_row), d.reshape(len(d), *of_row)
    if channels:
        weight, bias = (None if w is None else w[:, None] for w in (weight, bias))
    else:
        weight, bias = (None if w is None else w.reshape(n) for w in (weight, bias))
        rows, streams, *_ = standardised(rows, streams, (-1,), eps, centred)
    y, t = scaled(rows, streams, weight, bias)
    return y.reshape(v.shape), t.reshape(d.shape)


def standardised(
    v: torch.Tensor, t: torch.Tensor, dims: tuple[int, ...], eps: float, centred: bool = True
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """n, values without their mean and of mean square 1 over dims counted from the end, and their tangents; and what
    these are of: t without its mean, its mean along n, and the scale."""
    mean = lambda a: a.mean(dims, keepdim=True)  # noqa: E731
    if centred:
        v, t = v - mean(v), t - mean(t)
    r = (mean(v.square()) + eps).rsqrt()
    n = v * r
    along = mean(n * t)
    return n, r * (t - n * along), t, along, r


def scaled(v, t, weight, bias) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and tangents times a weight, values plus a bias."""
    if weight is not None:
        v, t = v * weight, t * weight
    return v if bias is None else v + bias, t


normed = super(torch.autograd.Function, Normed).apply  # without what torch.func would be told of it

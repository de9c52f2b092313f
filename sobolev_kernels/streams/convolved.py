"""A convolution of a value and its tangents as one: what an operation of one node gives lies side by side, the tangents
behind the value. Whoever takes both sees that by their addresses and reads them as more samples; of what lies elsewhere
the core reads one after the other, and for PyTorch it is copied there.
"""

from __future__ import annotations

import torch

from ..transforms import refuse_forward_mode
from .images import FEW, Convolution, is_bias
from .operations import are_weights, differentiated, fits, goes_on, saved


def beside(v: torch.Tensor, d: torch.Tensor) -> torch.Tensor | None:
    """A value [N, ...] and its tangents [S, N, ...] as samples [(1 + S) N, ...], if they lie side by side."""
    if v.is_contiguous() and d.is_contiguous() and d.data_ptr() == v.data_ptr() + v.nbytes:
        if d.untyped_storage().data_ptr() == v.untyped_storage().data_ptr():
            return v.as_strided(((1 + len(d)) * len(v), *v.shape[1:]), v.stride())
    return None


def together(v: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The same wherever they lie."""
    found = beside(v, d)
    return torch.cat([v, d.flatten(0, 1)]) if found is None else found


def parts_of(*pairs: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """Of each of these pairs the samples as one part if all lie side by side, or the value's and then the tangents'."""
    found = [beside(v, d) for v, d in pairs]
    if all([whole is not None for whole in found]):
        return [tuple(found)]
    return [tuple(v for v, _ in pairs), tuple(d.flatten(0, 1) for _, d in pairs)]


def made(of: Convolution, v: torch.Tensor, d: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What comes of all samples, without the bias."""
    if of.told is None:
        return of.made(together(v, d), weight, None)
    y = v.new_empty(((1 + len(d)) * len(v), *of.told.sizes))
    parts = parts_of((v, d))
    for (x,), to_y in zip(parts, [y] if len(parts) == 1 else y.tensor_split((len(v),)), strict=True):
        of.told.run(x, None, weight, to_y=to_y)
    return y


def back(
    of: Convolution, bars: tuple[torch.Tensor, torch.Tensor], v: torch.Tensor, d: torch.Tensor, weight: torch.Tensor,
    asked: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """The adjoints of all samples and of the weight, of those that are asked for."""
    if of.told is None:
        return of.back(together(*bars), together(v, d), weight, (*asked, False))[:2]
    parts = parts_of(tuple(bar.contiguous() for bar in bars), (v, d))
    dx = v.new_empty(((1 + len(d)) * len(v), *v.shape[1:])) if asked[0] else None
    to_x = [dx] if len(parts) == 1 else (None, None) if dx is None else dx.tensor_split((len(v),))
    dweights = [torch.empty_like(weight) if asked[1] else None for _ in parts]
    for (bar, x), to, dweight in zip(parts, to_x, dweights, strict=True):
        of.told.run(x if asked[1] else None, bar, weight, to_x=to, dweight=dweight)
    return dx, dweights[0] if len(parts) == 1 or not asked[1] else dweights[0].add_(dweights[1])


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
    if of is None or not fits(v, d) or not are_weights(v, weight, bias) or not is_bias(bias, weight, of):
        return None
    numbers, of_both = (1 + len(d)) * v.numel() // v.shape[1], Convolution.of_tensors(v, weight, of)
    return of_both if of_both.told is not None or numbers * max(weight.shape[:2]) <= FEW else None


class Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, d, weight, bias, of):
        y, t = map(on_its_own, apart(made(of, v, d, weight), len(v)))
        if bias is not None:
            y.add_(bias.view(-1, *[1] * (y.dim() - 2)))
        ctx.set_materialize_grads(False)
        ctx.of = of
        ctx.save_for_backward(v, d, weight, bias)
        return y, t

    @staticmethod
    def backward(ctx, bar_y, bar_t):
        v, d, weight, bias = saved(ctx)
        needs = ctx.needs_input_grad
        if goes_on(bar_y, bar_t):
            written_out = lambda *tensors: in_torch(*tensors, ctx.of.of)  # noqa: E731
            return *differentiated(written_out, (v, d, weight, bias), needs[:4], (bar_y, bar_t)), None
        of_samples, of_weight = back(ctx.of, (bar_y, bar_t), v, d, weight, (needs[0] or needs[1], needs[2]))
        of_bias = bar_y.sum((0, *range(2, bar_y.dim()))) if needs[3] else None
        return *((None, None) if of_samples is None else apart(of_samples, len(v))), of_weight, of_bias, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def in_torch(v, d, weight, bias, of) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.convolution(d.flatten(0, 1), weight, None, *of)
    return torch.convolution(v, weight, bias, *of), t.unflatten(0, d.shape[:2])


convolved = super(torch.autograd.Function, Convolved).apply  # without what torch.func would be told of it

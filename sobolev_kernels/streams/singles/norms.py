"""Batch norm in eval, a scale and a shift of each channel: its gradient is a scale, whose adjoints are one operation of
PyTorch's, as are those of the whole. And norms of rows, as they are written out."""

from __future__ import annotations

import torch
from torch.nn import functional

from ...backends.exact import WRITTEN
from ...backends.standard import OWN
from ...transforms import refuse_forward_mode, several
from ..operations import differentiated, fits, wants
from .single import Single

# µs that batch norm saves of each number, and those of Python that it takes amid a step. µs of a value, its gradient
# and what both owe, in a loop, PyTorch's and these: 65,536 numbers 177 159, 524,288 1564 988.
SAVED, PYTHON = 1.1e-3, 60.0
back = torch.ops.aten.native_batch_norm_backward.default


def in_torch(v, weight, bias, mean, var, eps) -> torch.Tensor:
    """The same by operations that can be differentiated any number of times."""
    made = along(v - of_channels(mean, v), weight, var, eps)
    return made if bias is None else made + of_channels(bias, v)


def along(v: torch.Tensor, weight: torch.Tensor | None, var: torch.Tensor, eps: float) -> torch.Tensor:
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    return v * of_channels(scale, v)


def of_channels(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return numbers.view(-1, *[1] * (like.dim() - 2))


class Fixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, weight, bias, mean, var, eps):
        ctx.eps, ctx.has = eps, (True, weight is not None, bias is not None)
        ctx.save_for_backward(v, weight, mean, var)
        return functional.batch_norm(v, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, bar):
        (v, weight, mean, var), kept = ctx.saved_tensors, torch.is_grad_enabled()
        wanted = iter([wants(node, kept) for node, _ in ctx.next_functions])
        of = [has and next(wanted) for has in ctx.has]
        if (kept and any(of[1:])) or several(bar):
            shift = torch.zeros_like(var).requires_grad_() if ctx.has[2] else None
            function = lambda *tensors: (in_torch(*tensors, mean, var, ctx.eps),)  # noqa: E731
            return *differentiated(function, (v, weight, shift), of, (bar,)), None, None, None
        if kept:
            return scaled(bar, weight, var, ctx.eps), None, None, None, None, None
        return *back(bar, v, weight, mean, var, None, None, False, ctx.eps, of), None, None, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class Scaled(torch.autograd.Function):
    """The adjoint of v."""

    @staticmethod
    def forward(ctx, bar, weight, var, eps):
        ctx.eps = eps
        ctx.save_for_backward(bar, weight, var)
        return back(bar, bar, weight, var, var, None, None, False, eps, [True, False, False])[0]

    @staticmethod
    def backward(ctx, c):
        (bar, weight, var), of = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled() or several(c):
            function = lambda bar, weight: (along(bar, weight, var, ctx.eps),)  # noqa: E731
            return *differentiated(function, (bar, weight), of[:2], (c,)), None, None
        none, wanted = torch.zeros_like(var), [*of[:2], False]
        return *back(c, bar, weight, none, var, None, None, False, ctx.eps, wanted)[:2], None, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> torch.Tensor | None:  # fmt: skip
    numbers = [t for t in (input, running_mean, running_var, weight, bias) if t is not None]
    if training or running_mean is None or running_var is None or input.dim() < 2 or not fits(*numbers):
        return None
    if running_mean.requires_grad or running_var.requires_grad:
        return None
    return apply(input, weight, bias, running_mean, running_var, eps)


def saves(input, *_, **named) -> float:
    return input.numel() * SAVED - PYTHON


# Those that are written out (exact.py), which no mode need meet where they are met here.
TABLE = {functional.batch_norm: Single(batch_norm, saves)} | {
    function: Single(WRITTEN[function], lambda *_, **named: 1.0)
    for function in (functional.layer_norm, functional.rms_norm)
}
OWN.update((Fixed, Scaled))
# without what torch.func would be told of them
apply = super(torch.autograd.Function, Fixed).apply
scaled = super(torch.autograd.Function, Scaled).apply

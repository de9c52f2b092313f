"""Standardising features: PyTorch's fused kernels, with derivatives of all orders.

The derivative of PyTorch's own layer norm takes mean and deviation for constants where it is differentiated twice more
(pytorch#196700). With y = (x - mean) s, over n features, the first derivative is a symmetric map A, its own adjoint:

    dy = A dx = s (dx - mean(dx) - y mean(y dx)),    ds = -s² mean(y dx).

So c·A g changes with y by b = -s (c mean(g y) + g mean(c y)), with s by c·A g / s, and so with x by
A b - s y mean(c A g).
"""

from __future__ import annotations

import torch
from torch.autograd import Function, forward_ad

WHOLE = torch.Tensor, torch.nn.Parameter


def fits(x: torch.Tensor) -> bool:
    """Whether the kernels take it, and nobody follows the call who would have to see the operations."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return type(x) in WHOLE and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


class Standardised(Function):
    """y, over the last `n` dims."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, n: int, eps: float) -> torch.Tensor:
        y, mean, scale = torch.native_layer_norm(x, x.shape[-n:], None, None, eps)
        ctx.save_for_backward(x)
        ctx.of = mean, scale, n, eps
        return y

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        slope = Slope.apply if torch.is_grad_enabled() else along
        return slope(g, *ctx.saved_tensors, *ctx.of), None, None


class Slope(Function):
    """A g."""

    @staticmethod
    def forward(ctx, g: torch.Tensor, x: torch.Tensor, *of) -> torch.Tensor:
        made = along(g, x, *of)
        ctx.save_for_backward(g, x, made)
        ctx.of = of
        return made

    @staticmethod
    def backward(ctx, c: torch.Tensor):
        (g, x, made), (mean, scale, n, eps) = ctx.saved_tensors, ctx.of
        dims = tuple(range(-n, 0))
        if torch.is_grad_enabled():  # it will be differentiated once more: written out
            centred = x - x.mean(dims, keepdim=True)
            scale = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
            y = centred * scale
            apply = lambda g: scale * (g - g.mean(dims, keepdim=True) - y * (g * y).mean(dims, keepdim=True))  # noqa: E731
            made = apply(g)
        else:
            y = (x - mean) * scale
            apply = lambda g: along(g, x, mean, scale, n, eps)  # noqa: E731
        b = (c * (g * y).mean(dims, keepdim=True) + g * (c * y).mean(dims, keepdim=True)) * -scale
        return apply(c), apply(b) - y * (scale * (c * made).mean(dims, keepdim=True)), None, None, None, None


def along(g: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, n: int, _: float) -> torch.Tensor:
    """A g by the kernel."""
    back = torch.ops.aten.native_layer_norm_backward.default
    return back(g, x, x.shape[-n:], mean, scale, None, None, [True, False, False])[0]


OWN = {Standardised, Slope}  # operations whose kind tells what their derivatives are

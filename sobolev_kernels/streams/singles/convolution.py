"""A convolution whose gradient is differentiated by the convolutions of its own way back.

PyTorch's double backward of a weight takes samples for channels, in kernels as large as an image; and its adjoint of
few channels takes longer than the same as a convolution of the weights turned around.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...backends.standard import OWN
from ...transforms import refuse_forward_mode, several
from ..convolved import arguments_of, back
from ..flowing import spelt
from ..operations import differentiated, fits, wants
from .single import Single

# Channels of the adjoint up to which it is a convolution. µs of it, 3×3 of N samples 8×8, by PyTorch's backward and so,
# one thread of an EPYC with AVX-512; by channels in → out:
#
#     N = 128    1→6  206 103    4→4  207 92    8→8  220 137    16→8  214 132    8→16  219 227    24→24  736 738
#     N = 1024   1→6 1413 580    4→4 1417 464   8→8 1544 834    16→8 1587 803    8→16 1619 1561   24→24 6092 6174
FEW = 15
# Multiplies of which each saves a µs, where that is so and where it is not, and µs of Python that it takes.
TURNED, ALIKE, PYTHON = 1.7e4, 1.0e5, 120.0


def turned_around(weight: torch.Tensor, of: tuple) -> tuple | None:
    """The arguments after the bias of the convolution that the adjoint of the inputs is; None where there is none, or
    PyTorch's own backward is as fast."""
    stride, padding, dilation, transposed, _, groups = of
    if groups > 1 or transposed or weight.shape[0] > FEW or any([s > 1 for s in stride]):
        return None
    around = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    return None if min(around) < 0 else (stride, around, dilation, False, [0] * len(around), 1)


def to_input(bar: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of: tuple) -> torch.Tensor:
    """The adjoint of x from that of what a convolution makes of it."""
    turned = turned_around(weight, of)
    if turned is None:
        return back(bar, x, weight, None, *of, [True, False, False])[0]
    return torch.convolution(bar, weight.transpose(0, 1).flip(*range(2, weight.dim())), None, *turned)


class Convolution(torch.autograd.Function):
    """Of `of`, the arguments of `aten.convolution` after the bias."""

    @staticmethod
    def forward(ctx, of, x, weight, bias):
        ctx.of, ctx.biased = of, bias is not None
        ctx.save_for_backward(x, weight)
        return torch.convolution(x, weight, bias, *of)

    @staticmethod
    def backward(ctx, bar):
        (x, weight), of, kept = ctx.saved_tensors, ctx.of, torch.is_grad_enabled()
        # what comes to the inputs costs more than the answer whether it is asked for
        wanted = [wants(node, asked) for (node, _), asked in zip(ctx.next_functions, (True, kept, kept), strict=False)]
        if (kept and any(wanted[1:])) or several(bar):
            shift = weight.new_zeros(bar.shape[1]).requires_grad_() if ctx.biased else None
            function = lambda *tensors: (torch.convolution(*tensors, *of),)  # noqa: E731
            return None, *differentiated(function, (x, weight, shift), (*wanted, False)[:3], (bar,))
        if kept:
            return None, of_input(bar, x.detach(), weight, of), None, None
        if turned_around(weight, of) is None:
            return None, *back(bar, x, weight, bar.shape[1:2], *of, (*wanted, False)[:3])
        dx = to_input(bar, x, weight, of) if wanted[0] else None
        return None, dx, *back(bar, x, weight, bar.shape[1:2], *of, [False, *wanted[1:], False][:3])[1:]

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class OfInput(torch.autograd.Function):
    """The adjoint of x, on whose numbers it does not depend."""

    @staticmethod
    def forward(ctx, bar, x, weight, of):
        ctx.of, ctx.x = of, x
        ctx.save_for_backward(bar, weight)
        return to_input(bar, x, weight, of)

    @staticmethod
    def backward(ctx, c):
        (bar, weight), of = ctx.saved_tensors, ctx.of
        of_bar, _, of_weight, _ = ctx.needs_input_grad
        if torch.is_grad_enabled() or several(c):
            function = lambda bar, weight: (to_input(bar, ctx.x, weight, of),)  # noqa: E731
            of_bar, of_weight = differentiated(function, (bar, weight), (of_bar, of_weight), (c,))
            return of_bar, None, of_weight, None
        dbar = torch.convolution(c, weight, None, *of) if of_bar else None
        return dbar, None, back(bar, c, weight, None, *of, [False, True, False])[1] if of_weight else None, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def convolution(dims: int, transposed: bool) -> Callable[..., torch.Tensor | None]:
    def applied(input, weight, bias=None, *arguments, **named):
        if input.dim() != dims or not fits(input, weight) or (bias is not None and not fits(bias)):
            return None
        of = arguments_of(dims - 2, transposed, *arguments, **named)
        return None if of is None else apply(of, input, weight, bias)

    return applied


def saves(dims: int, transposed: bool) -> Callable[..., float]:
    """By the multiplies of a convolution."""

    def saved(input, weight, bias=None, *arguments, **named) -> float:
        of = arguments_of(dims - 2, transposed, *arguments, **named)
        if of is None or input.dim() != dims:
            return 0.0
        positions = input.numel() // input.shape[1] // (1 if transposed else math.prod(of[0]))
        return positions * weight.numel() / (ALIKE if turned_around(weight, of) is None else TURNED) - PYTHON

    return saved


TABLE = {
    function: Single(convolution(n + 2, transposed), saves(n + 2, transposed))
    for n in (1, 2, 3)
    for name, transposed in ((f"conv{n}d", False), (f"conv_transpose{n}d", True))
    for function in spelt(name)
}
OWN.update((Convolution, OfInput))
# without what torch.func would be told of them
apply = super(torch.autograd.Function, Convolution).apply
of_input = super(torch.autograd.Function, OfInput).apply

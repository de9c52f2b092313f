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
from .. import images
from ..flowing import spelt
from ..images import OF_INPUT, arguments_of, is_bias, turned_around
from ..operations import differentiated, fits, saved, wants
from .single import Single

# Multiplies of which each saves a µs, where the core has it, where it is turned around, and where neither is so; µs
# that the core saves of any, and those of Python that it takes.
OF_CORE, OF_TURNED, ALIKE, CALLS, PYTHON = 2.0e4, 1.7e4, 1.0e5, 300.0, 120.0


class Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, of, x, weight, bias):
        ctx.of, ctx.biased = of, bias is not None
        ctx.save_for_backward(x, weight)
        return of.made(x, weight, bias)

    @staticmethod
    def backward(ctx, bar):
        (x, weight), of, kept = saved(ctx), ctx.of, torch.is_grad_enabled()
        # what comes to the inputs costs more than the answer whether it is asked for
        wanted = [wants(node, asked) for (node, _), asked in zip(ctx.next_functions, (True, kept, kept), strict=False)]
        if (kept and any(wanted[1:])) or several(bar):
            shift = weight.new_zeros(bar.shape[1]).requires_grad_() if ctx.biased else None
            function = lambda *tensors: (torch.convolution(*tensors, *of.of),)  # noqa: E731
            return None, *differentiated(function, (x, weight, shift), (*wanted, False)[:3], (bar,))
        if kept:
            return None, of_input(bar, x.detach(), weight, of), None, None
        return None, *of.back(bar, x, weight, (*wanted, False)[:3])

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class OfInput(torch.autograd.Function):
    """The adjoint of x, on whose numbers it does not depend."""

    @staticmethod
    def forward(ctx, bar, x, weight, of):
        ctx.of, ctx.x = of, x
        ctx.save_for_backward(bar, weight)
        return of.back(bar, x, weight, OF_INPUT)[0]

    @staticmethod
    def backward(ctx, c):
        (bar, weight), of = saved(ctx), ctx.of
        of_bar, _, of_weight, _ = ctx.needs_input_grad
        if torch.is_grad_enabled() or several(c):
            function = lambda bar, weight: (of.back_by_torch(bar, ctx.x, weight, OF_INPUT)[0],)  # noqa: E731
            of_bar, of_weight = differentiated(function, (bar, weight), (of_bar, of_weight), (c,))
            return of_bar, None, of_weight, None
        dbar, dweight = of.both(c, bar, weight, (of_bar, of_weight))
        return dbar, None, dweight, None

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def convolution(dims: int, transposed: bool) -> Callable[..., torch.Tensor | None]:
    def applied(input, weight, bias=None, *arguments, **named):
        if input.dim() != dims or not fits(input, weight) or (bias is not None and not fits(bias)):
            return None
        of = arguments_of(dims - 2, transposed, *arguments, **named)
        if of is None or not is_bias(bias, weight, of):
            return None
        return apply(images.Convolution.of_tensors(input, weight, of), input, weight, bias)

    return applied


def saves(dims: int, transposed: bool) -> Callable[..., float]:
    """By the multiplies of a convolution."""

    def saved(input, weight, bias=None, *arguments, **named) -> float:
        of = arguments_of(dims - 2, transposed, *arguments, **named)
        if of is None or input.dim() != dims:
            return 0.0
        positions = input.numel() // input.shape[1] // (1 if transposed else math.prod(of[0]))
        multiplies = positions * weight.numel()
        if images.Convolution.of_tensors(input, weight, of).told is not None:
            return CALLS + multiplies / OF_CORE - PYTHON
        return multiplies / (ALIKE if turned_around(weight, of) is None else OF_TURNED) - PYTHON

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

"""Whether a function depends on its inputs where autograd finds no path to them: a true zero, or a refusal in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..errors import NotProvided
from .exact import exactly

SILENT = (
    "autograd: no path leads from what the function gives to its inputs, though it changes with them, and its derivative "
    "would be a silent zero; look for a forward that detaches its input, runs under torch.no_grad() or leaves PyTorch "
    "(NumPy), and for an autograd.Function whose backward is no part of the graph"
)


class Evaluated(NamedTuple):
    """A function and what it gave; x asks for its gradient. Without y it has not been run yet."""

    function: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor
    y: torch.Tensor | None


def refuse_dependence(ran: Evaluated) -> None:
    """Raise unless y, which no path of autograd leads from to x, stays as it is when x moves a little."""
    moved = ran.x + small_steps(ran.x)
    before, after = (again(ran.function, x) for x in (ran.x, moved))
    if not same(before, after):
        raise NotProvided(SILENT)


def refuse_slope(ran: Evaluated) -> None:
    """Raise unless Jᵀu, which does not depend on the cotangent u, is 0 for all of them."""
    u = torch.linspace(1, 2, ran.y.numel(), dtype=ran.y.dtype, device=ran.y.device).view(ran.y.shape)
    g = torch.autograd.grad(ran.y, ran.x, u, retain_graph=True, allow_unused=True)[0]
    if g is not None and not same(g, torch.zeros_like(g)):
        raise NotProvided(
            "autograd: a backward in the function's graph cannot be differentiated, and would be a silent zero"
        )


def small_steps(x: torch.Tensor) -> torch.Tensor:
    """Different ones for all inputs, of about half the digits of their dtype: so small that a step stays a step."""
    eps = torch.finfo(x.dtype).eps ** 0.5
    each = torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)
    return eps * each * (1 + x.detach().abs())


def again(function: Callable, x: torch.Tensor) -> torch.Tensor:
    """function(x) with the random numbers that come next, which are left to come."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []), exactly():
        return function(x)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they hold the same numbers, below all transforms of torch.func."""
    with torch._C._DisableFuncTorch(), torch.no_grad():
        a, b = plain(a), plain(b)
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def plain(tensor: torch.Tensor) -> torch.Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor

"""Whether samples see each other in what a function gives, by its graph; and whether they could, were other numbers in
it: a strength of 0, or a matrix of ones on its diagonal, may be another one at the next call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from .exact import exactly, graphs, tracked

TIMES = {torch.mul, torch.multiply}
TIMES |= {getattr(torch.Tensor, name) for name in "mul mul_ multiply multiply_ __mul__ __rmul__ __imul__".split()}
BY_CONDITION = {torch.where: 0, torch.Tensor.where: 1, torch.masked_fill: 1, torch.Tensor.masked_fill: 1}


def are_coupled(y: torch.Tensor, x: torch.Tensor) -> bool | None:
    """Whether gradients of some samples' outputs lead to other samples' inputs; None where that cannot be told, as no
    gradient is a number. One that is none says so itself, and tells nothing.

    With cotangents of twice the size for some samples, by no pattern, their gradients are twice the same, with no
    rounding, and those of others are the same.

    Raises:
        RuntimeError: the graph can be gone through but once.
    """
    k = torch.arange(1, len(x) + 1, device=y.device, dtype=torch.float64)
    factor = (1 + ((k * 0.6180339887).frac() < 0.5)).to(y.dtype)[:, None]
    u = torch.linspace(1, 2, y.shape[1], dtype=y.dtype, device=y.device).expand_as(y)
    a, b = (torch.autograd.grad(y, x, c, retain_graph=True, allow_unused=True)[0] for c in (u * factor, u))
    if a is None:
        return False
    told = a.isfinite() & b.isfinite()
    if not told.any():
        return None if len(told) else False
    rounding = 64 * torch.finfo(y.dtype).eps * torch.where(told, b, 0.0).abs().amax()
    return not bool((((a - factor.to(b.dtype) * b).abs() <= rounding) | ~told).all())


class OtherNumbers(TorchFunctionMode):
    """Within it products by 0 are products by another number, and conditions are met by chance."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in TIMES:
            args = tuple(0.5 if isinstance(arg, (int, float)) and arg == 0 else arg for arg in args)
        place = BY_CONDITION.get(function)
        if place is not None and len(args) > place + 1:
            condition = torch.rand(args[place].shape, device=args[place].device) < 0.5
            args = (*args[:place], condition, *args[place + 1 :])
        return function(*args, **(kwargs or {}))


def other(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of its shape."""
    if not (tensor.is_floating_point() and tensor.layout is torch.strided):
        return tensor.detach()
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).uniform_(0.25, 0.75)


def may_be_coupled(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether samples could see each other by some numbers in its graph, as far as can be seen."""
    with graphs():
        x = tracked(x).detach().clone().requires_grad_()
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []), exactly(), OtherNumbers():
            with torch.autograd.graph.saved_tensors_hooks(other, lambda saved: saved):
                y = function(x)
            return y.requires_grad and bool(are_coupled(y, x))
    except Exception:  # other numbers suit no formula there
        return False

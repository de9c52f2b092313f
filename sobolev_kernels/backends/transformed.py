"""The same by transforms of torch.func, which a compiler can follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._functorch.eager_transforms import _jvp_with_argnums
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import NotProvided
from .dependence import SILENT, Evaluated, Jets
from .exact import ExactNorms


def transformed_vjps(ran: Evaluated, u: torch.Tensor) -> torch.Tensor:
    """Gradients Jᵀu."""
    with sdpa_kernel(SDPBackend.MATH), ExactNorms():
        forward_tangent(ran.function, ran.x, torch.ones_like(ran.x))
        pull = torch.func.vjp(ran.function, ran.x)[1]
        gradients = [pull(cotangent)[0] for cotangent in u]
    return of_each(gradients, ran.x).detach()


def transformed_jet(ran: Evaluated, v: torch.Tensor, order: int) -> Jets:
    """y, tangents in forward mode, and second derivatives by VJPs of VJPs: dynamo does not follow forward mode in
    itself through a norm with weights."""
    # of one layout: of tensors with others, sizes that are variables are not followed
    x, v, seconds = ran.x.contiguous().clone(), [direction.contiguous().clone() for direction in v], None
    with sdpa_kernel(SDPBackend.MATH), ExactNorms():
        tangents = [forward_tangent(ran.function, x, direction) for direction in v]
        if order == 2:
            seconds = [pulled_twice(lambda x, d=d: pulled_twice(ran.function, x, d), x, d) for d in v]
    return ran.y, *(of_each(t, ran.y).detach() if t is not None else None for t in (tangents, seconds))


def of_each(derivatives: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """[P, ...] of those of each direction, which may be none."""
    return torch.stack(derivatives) if derivatives else like.new_empty((0, *like.shape))


def pulled_twice(function: Callable, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """D f(x)[v] as the VJP of the VJP, which is linear in the cotangent."""
    y, pull = torch.func.vjp(function, x)
    return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1](direction)[0]


def forward_tangent(function: Callable, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """As torch.func.jvp, but an output that no tangent reaches is an error, which compilers meet while they trace."""
    try:
        return _jvp_with_argnums(function, (x,), (direction,), None, strict=True, has_aux=False)[1]
    except RuntimeError as error:
        if "strict" not in str(error):
            raise
        raise NotProvided(SILENT) from error

"""The same by transforms of torch.func, which a compiler can follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._functorch.eager_transforms import _jvp_with_argnums
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import NotProvided
from .dependence import SILENT, Evaluated, Jets
from .exact import ExactNorms


def transformed(function: Callable, x: torch.Tensor) -> Evaluated:
    """A function that is run once, so that values and all first derivatives are of the same random numbers."""
    mode = ExactNorms()
    with sdpa_kernel(SDPBackend.MATH), mode:
        y, pull = torch.func.vjp(function, x)
    return Evaluated(function, x, y, pull=pull, read=mode.read)


def transformed_vjps(ran: Evaluated, u: torch.Tensor) -> torch.Tensor:
    """Gradients Jᵀu."""
    need_path(ran)
    return given_out(of_each([ran.pull(cotangent)[0] for cotangent in u], ran.x))


def transformed_jet(ran: Evaluated, v: torch.Tensor, order: int) -> Jets:
    """y, tangents and second derivatives by VJPs of VJPs: dynamo does not follow forward mode in itself through a norm
    with weights."""
    # of one layout: of tensors with others, sizes that are variables are not followed
    x, v, seconds = ran.x.contiguous().clone(), [direction.contiguous().clone() for direction in v], None
    need_path(ran)
    tangents = [pulled(ran.pull, ran.y, direction) for direction in v]
    if order == 2:
        with sdpa_kernel(SDPBackend.MATH), ExactNorms():
            seconds = [pulled_twice(lambda x, d=d: pulled_twice(ran.function, x, d), x, d) for d in v]
    return ran.y, *(given_out(of_each(t, ran.y)) if t is not None else None for t in (tangents, seconds))


def need_path(ran: Evaluated) -> None:
    """Raise, while it is traced, where nothing leads from x to y; of what is computed for it nothing is left."""
    if not ran.looked:
        with sdpa_kernel(SDPBackend.MATH), ExactNorms():
            forward_tangent(ran.function, ran.x, torch.ones_like(ran.x))


def of_each(derivatives: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """[P, ...] of those of each direction, which may be none."""
    return torch.stack(derivatives) if derivatives else like.new_empty((0, *like.shape))


def given_out(result: torch.Tensor) -> torch.Tensor:
    """With its graph where gradients are on; a transform makes one anyway."""
    return result if torch.is_grad_enabled() else result.detach()


def pulled_twice(function: Callable, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """D f(x)[v] as the VJP of the VJP, which is linear in the cotangent."""
    y, pull = torch.func.vjp(function, x)
    return pulled(pull, y, direction)


def pulled(pull: Callable, y: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The same of the VJP of a function that was run."""
    return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1](direction)[0]


def forward_tangent(function: Callable, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """As torch.func.jvp, but an output that no tangent reaches is an error, which compilers meet while they trace."""
    try:
        return _jvp_with_argnums(function, (x,), (direction,), None, strict=True, has_aux=False)[1]
    except RuntimeError as error:
        if "strict" not in str(error):
            raise
    raise NotProvided(SILENT)  # with a cause dynamo of PyTorch 2.11 does not follow it

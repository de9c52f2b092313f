"""Derivatives of any function of x [N, D] by autograd, differentiable again and again: VJPs, and VJPs of VJPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import index

import torch
from torch.autograd import forward_ad

from ..enums import GRADIENTS
from ..errors import NotProvided, need
from ..planner import side_of_function
from .dependence import Evaluated, Jets, refuse_dependence, refuse_slope
from .exact import graphs, keeps_graphs, tracked
from .graph import leads_to, nodes_of, refuse_inexact
from .kinks import need_smooth
from .running import are_own, by_transforms, with_graph
from .transformed import given_out, of_each, transformed_jet, transformed_vjps

ENGINE, NOTHING = torch.autograd.Variable._execution_engine, nullcontext()
NO_DERIVATIVE = "student: an operation in it has no further derivative in PyTorch ({}); write it out in others"


def differentiably(function: Callable, x: torch.Tensor, breaks: bool = False) -> tuple[torch.Tensor, ...]:
    """function(x), where derivatives can be taken of what is run in it; it `breaks` where transforms are taken."""
    if by_transforms() and not breaks:
        try:
            return function(x)
        except (
            AssertionError
        ):  # dynamo's own, of frames that it compiles one by one where it did not follow all of them
            from .uncompiled import uncompiled

            return uncompiled(by_autograd, function, x)
    if torch.compiler.is_compiling():
        from .uncompiled import uncompiled

        return uncompiled(by_autograd, function, x)
    return by_autograd(function, x)


def by_autograd(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """function(x); amid transforms of torch.func in one of their own, since only there x can ask for a gradient."""
    if not torch._C._are_functorch_transforms_active():
        return function(x)
    results = torch.func.vjp(function, x)[0]
    return results if torch.is_grad_enabled() else tuple(map(without_graph, results))


def without_graph(result: torch.Tensor) -> torch.Tensor:
    """Where gradients are off: without its graph, but with its tangent of forward mode."""
    return result.detach() if forward_ad._current_level < 0 else result.clone()


def where_graphs() -> AbstractContextManager:
    return NOTHING if keeps_graphs() else graphs()


def vjps(ran: Evaluated, u: Sequence[torch.Tensor] | torch.Tensor):
    """y and its gradients Jᵀu."""
    if by_transforms():
        return ran.y, transformed_vjps(ran, u)
    with where_graphs():
        gradients = of_each(gradients_of(ran, u if isinstance(u, list) else tracked(u)), ran.x)
    return (ran.y, gradients) if ran.kept else (without_graph(ran.y), without_graph(gradients))


def gradients_of(ran: Evaluated, u: Sequence[torch.Tensor] | torch.Tensor) -> list[torch.Tensor]:
    x, y = ran.x, ran.y
    gradients = [gradient(y, x, cotangent) for cotangent in u]
    if gradients and gradients[0] is None:
        need_constant(ran)
        return [torch.zeros_like(x) for _ in u]
    if gradients and ran.kept:
        need_second_derivatives(ran, gradients[0], lambda x: gradients_of(values_at(ran, x), u[:1])[0])
    return gradients


def need_second_derivatives(ran: Evaluated, derivative: torch.Tensor, derivative_at: Callable) -> None:
    """Raise where the graph of a derivative is no such graph as gives it its own derivatives."""
    if ran.alike is not None and ran.alike.again:
        return
    nodes = nodes_of(derivative)
    refuse_inexact(nodes, again=True)
    if ran.looked < 2 and not leads_to(ran.x, nodes):
        refuse_dependence(Evaluated(derivative_at, ran.x, derivative))
    if ran.alike is not None:
        ran.alike.again = True


def need_constant(ran: Evaluated) -> None:
    """Raise where no path leads from y to x, and nobody has looked yet whether y changes with x."""
    if not ran.looked:
        refuse_dependence(ran)


def values_at(ran: Evaluated, x: torch.Tensor) -> Evaluated:
    """The same function at another x, of which only values are wanted."""
    return with_graph(ran.function, x)._replace(kept=False, looked=ran.looked)


def gradient(y: torch.Tensor, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor | None:
    """Jᵀu, differentiable; None where no path leads from y to x."""
    if not y.requires_grad:
        return None
    try:
        # as torch.autograd.grad does, without a look at arguments of ours
        if type(y) is type(cotangent) is torch.Tensor:
            return ENGINE.run_backward((y,), (cotangent,), True, True, (x,), True, accumulate_grad=False)[0]
        return torch.autograd.grad(y, x, cotangent, create_graph=True, allow_unused=True)[0]
    except RuntimeError as error:
        if "derivative for" in str(error) and "is not implemented" in str(error):
            raise NotProvided(NO_DERIVATIVE.format(error)) from error
        raise


def function_jet(ran: Evaluated, v: torch.Tensor, order: int = 1) -> Jets:
    """Derivatives along v of any function of x [N, D]: the VJP of its VJP, which is linear in the cotangent.

    Not torch.func.jvp, which many operations do not support.
    """
    if order > 2:
        need(not by_transforms(), "order", "1 or 2 within a transform of a student that is no MLP", order, NotProvided)
        need_smooth(ran.y, order, "order")
    if by_transforms():
        if order == 1 and by_gradients(ran, len(v)):
            return ran.y, given_out(along_gradients(v, transformed_vjps(ran, units(ran.y)))), None
        if ran.jet is not None:
            return tuple(None if r is None else given_out(r) for r in ran.jet(ran.x, v, order))
        return transformed_jet(ran, v, order)
    x, y, kept = ran.x, ran.y, ran.kept
    with where_graphs():
        v, seconds = tracked(v), None
        if order == 1 and by_gradients(ran, len(v)):
            results = y, along_gradients(v, gradients_of(ran, units(y))), None
            return results if kept else (without_graph(y), without_graph(results[1]), None)
        tangents = along(ran, v, again=kept or order == 2)
        if order > 1:
            of_tangents = [Evaluated(tangent(ran, d), x, t, kept) for t, d in zip(tangents, v, strict=True)]
            seconds = [along(t, d[None], again=kept or order > 2)[0] for t, d in zip(of_tangents, v, strict=True)]
        if order > 2:
            seconds = higher_along(of_tangents, seconds, v, order)
    results = (y, *(of_each(t, y) if t is not None else None for t in (tangents, seconds)))
    return results if kept else tuple(r if r is None else without_graph(r) for r in results)


def higher_along(
    ran: list[Evaluated], derivatives: list[torch.Tensor], v: torch.Tensor, order: int
) -> list[torch.Tensor]:  # fmt: skip
    """Derivatives of each order from 2 on, each [P, N, O], from the second ones along each direction."""
    found = [of_each(derivatives, ran[0].y) if len(v) else v.new_zeros(0, *v.shape[1:])]
    for k in range(3, order + 1):
        ran = [Evaluated(tangent(r, d), r.x, t, r.kept) for r, t, d in zip(ran, derivatives, v, strict=True)]
        again = k < order or (ran[0].kept if ran else False)
        derivatives = [along(r, d[None], again=again)[0] for r, d in zip(ran, v, strict=True)]
        found.append(of_each(derivatives, ran[0].y))
    return found


def by_gradients(ran: Evaluated, P: int) -> bool:
    """Whether derivatives along P directions are projections of the gradient of each output, and these are fewer."""
    return side_of_function(index(P), index(ran.y.shape[1]), ran.jet is not None) == GRADIENTS and are_own(ran)


def along_gradients(v: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The derivatives of y along each direction, as projections of the gradient of each output."""
    if len(gradients) == 1:
        return (v * gradients[0]).sum(-1, keepdim=True)
    return torch.einsum("ond,pnd->pno", torch.stack([*gradients]), v)


def units(y: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
    """The cotangents [O, N, O] of each output alone."""
    if y.shape[1] == 1:
        return [torch.ones_like(y)]
    return torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, len(y), -1)


def along(ran: Evaluated, v: torch.Tensor, again: bool) -> list[torch.Tensor]:
    """The derivatives of y along each direction, differentiable; `again`, if they will be differentiated."""
    x, y = ran.x, ran.y
    if not len(v):
        return []
    u = torch.zeros_like(y, requires_grad=True)
    g = gradient(y, x, u)
    if g is None:
        need_constant(ran)
        return [torch.zeros_like(y) for _ in v]
    tangents = [gradient(g, u, direction) for direction in v]
    if tangents[0] is None:
        refuse_slope(ran)
        return [torch.zeros_like(y) for _ in v]
    if again:
        need_second_derivatives(ran, g, tangent(ran, v[0]))
    return tangents


def tangent(ran: Evaluated, direction: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The derivative along direction [N, D] as a function of x."""
    return lambda x: along(values_at(ran, x), direction[None], again=False)[0]


def tangent_of(function: Callable, D: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The derivative [N, O] of a function that was looked at, along one direction of D numbers, as a function of x."""

    def tangent_at(x: torch.Tensor) -> torch.Tensor:
        direction = torch.linspace(1, 2, D, dtype=x.dtype, device=x.device).expand_as(x)
        return along(with_graph(function, x)._replace(looked=2), direction[None], again=True)[0]

    return tangent_at

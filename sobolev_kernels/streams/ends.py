"""Backward hooks of a whole student that is an MLP: they look at the gradients of his outputs and inputs alone, which
a step in one pass has too, or which cost little beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..backends.reference import mlp_jet
from ..backends.residuals import loss_of
from ..changed import replace
from ..enums import NONE
from ..ops import is_apart
from ..problem import DERIVATIVES, LOSS, Operands, Problem
from ..settings import Settings

Hook = tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, ...]]  # gives outputs of this shape, and is on them


def has_ends(result: str, settings: Settings) -> bool:
    """Whether the gradient of a call's outputs is that of its values, or known beside its loss."""
    whole = result == DERIVATIVES or (result == LOSS and not settings.return_terms and settings.reduction != "none")
    return whole and settings.head is None


def looked_at(
    hooks: Sequence[Hook], results: tuple[torch.Tensor, ...], problem: Problem, operands: Operands
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The results of a call, of which hooks see the gradients of the student's outputs, before all others."""
    if not hooks or not results[0].requires_grad:
        return results
    if problem.result == DERIVATIVES:
        return through(hooks, results[0]), *results[1:]
    y = results[1] if problem.looked else values_of(problem, operands)
    slopes, cotangents = slopes_of(problem, operands, y), []
    outputs = through(hooks, Begin.apply(cotangents, y.shape, results[0]))
    return (End.apply(cotangents, slopes, results[0].detach(), outputs),)


def through(hooks: Sequence[Hook], y: torch.Tensor) -> torch.Tensor:
    shape = y.shape
    for hook, sizes in hooks:
        y = hook(y.view(sizes))
    return y.view(shape)


def with_outputs(problem: Problem) -> Problem:
    """The same with the outputs beside its loss, where a backend has them there."""
    looked = problem.result == LOSS and problem.gradients and problem.backend == "cpu" and not is_apart(problem)
    return replace(problem, looked=looked)


@torch.no_grad()
def values_of(problem: Problem, operands: Operands) -> torch.Tensor:
    """The outputs [N, O] by themselves."""
    x = operands.x
    return mlp_jet(problem, operands.parameters, x, x.new_zeros(0, *x.shape))[0]


def slopes_of(problem: Problem, operands: Operands, y: torch.Tensor) -> torch.Tensor:
    """The gradient [N, O] of a loss by the outputs: that of its term of values, since derivatives are those of what a
    constant was added to, too."""
    if operands.values is None:
        return torch.zeros_like(y)
    with torch.enable_grad():
        y, operands = y.detach().requires_grad_(), operands._replace(weights=operands.weights[:1])
        of_values = replace(problem, order=0, derivative_target=NONE, second_target=NONE)
        loss = loss_of(of_values, operands, None, (y, None, None))[0]
        return torch.autograd.grad(loss, y)[0]


class Begin(torch.autograd.Function):
    """What stands for the outputs: its gradient is the loss's own, which waited for the hooks."""

    @staticmethod
    def forward(ctx, cotangents, shape, loss):
        ctx.cotangents = cotangents
        return loss.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx, _):
        return None, None, ctx.cotangents.pop()


class End(torch.autograd.Function):
    """The loss, whose cotangent is that of the outputs, by its slopes."""

    @staticmethod
    def forward(ctx, cotangents, slopes, loss, outputs):
        ctx.cotangents = cotangents
        ctx.save_for_backward(slopes)
        return loss.clone()

    @staticmethod
    def backward(ctx, cotangent):
        (slopes,) = ctx.saved_tensors
        ctx.cotangents.append(cotangent)
        return None, None, None, slopes * cotangent

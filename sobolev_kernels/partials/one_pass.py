"""A loss that the core makes together with its gradients, as autograd has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from ..backends import core
from ..ops import AGAIN, is_one
from ..transforms import refuse_forward_mode, several
from .tape import Recording, told

Terms = tuple[torch.Tensor, torch.Tensor]
Tensors = Sequence[torch.Tensor | None]


class OnePass(Protocol):
    """What a loss must say of itself."""

    def run(
        self, tensors: Tensors, asked: Sequence[bool] | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """The loss, its terms, and the gradient of each tensor that is asked for, if any is."""

    def again(self, tensors: Tensors) -> Terms:
        """The loss and its terms by operations that can be differentiated again."""


@lru_cache(maxsize=256)
def planned(recording: Recording, columns: tuple[int, ...], asked: tuple[bool, ...], results: int, terms: int):
    """What the core is told of residuals that read so many results, but for tensors."""
    programs = told(recording, asked)
    given = [results, len(columns), recording.coefficients]
    values, adjoint = tuple(programs.values), tuple(programs.adjoint)
    functions = [(core.CODES["Function"][name], of, to, before) for name, of, to, before in programs.functions]
    more = programs.deviations, programs.bars, functions
    return core._C.JetLoss(given, list(columns), terms, values, adjoint, *more)


class FusedLoss(torch.autograd.Function):
    """The loss and its terms. Gradients of the loss are computed beside it and kept; those of terms, and further
    derivatives, are computed from the start again."""

    @staticmethod
    def forward(ctx, loss: OnePass, *tensors: torch.Tensor | None) -> Terms:
        ctx.set_materialize_grads(False)
        total, each, gradients = loss.run(tensors, ctx.needs_input_grad[1:])
        ctx.loss, ctx.held = loss, gradients
        ctx.places = [i for i, tensor in enumerate(tensors) if tensor is not None]
        ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))
        return total, each

    @staticmethod
    def backward(ctx, total: torch.Tensor | None, each: torch.Tensor | None):
        asked = ctx.needs_input_grad[1:]
        if total is None and each is None:
            return None, *[None] * len(asked)
        if torch.is_grad_enabled() or each is not None or several(total):
            return None, *from_the_start(ctx, asked, total, each)
        if ctx.held is None:
            raise RuntimeError(AGAIN)
        gradients, last = ctx.held, not torch._C._autograd._get_current_graph_task_keep_graph()
        if last:
            ctx.held = None
        if not (last and is_one(total)):
            found = iter(torch._foreach_mul([g for g in gradients if g is not None], total))
            gradients = [None if g is None else next(found) for g in gradients]
        return None, *gradients

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


# without what torch.func would be told of it: it is none of its business here
apply = super(torch.autograd.Function, FusedLoss).apply


def from_the_start(
    ctx, asked: Sequence[bool], total: torch.Tensor | None, each: torch.Tensor | None
) -> list[torch.Tensor | None]:  # fmt: skip
    """Gradients with their own graph."""
    kept, tensors = torch.is_grad_enabled(), [None] * len(asked)
    with torch.enable_grad():
        for i, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            tensors[i] = tensor.view_as(tensor) if asked[i] else tensor
        pairs = [(out, c) for out, c in zip(ctx.loss.again(tensors), (total, each), strict=True) if c is not None]
        wanted = [tensor for tensor, here in zip(tensors, asked, strict=True) if here]
        outs, cotangents = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outs, wanted, cotangents, create_graph=kept, materialize_grads=True))
    return [next(found) if here else None for here in asked]

"""The plain loss of residuals.py, from the gradients of a function's outputs, by the core: one small operation in the
place of a dozen, and its slopes beside it, which the backward hands out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from .backends import core
from .backends.functions import along_gradients
from .backends.residuals import is_plain, plain_loss_of
from .backends.transformed import of_each
from .enums import DTYPES
from .math.losses import LOSSES
from .ops import is_one
from .problem import Operands, Problem

MOST = 1 << 19  # numbers of derivatives, from which on several threads of PyTorch's are worth their cost


def computes(problem: Problem, operands: Operands, y: torch.Tensor, vectors: torch.Tensor | None, count: int) -> bool:
    """Whether it does, of values y [N, O] and `count` gradients [N, D]; projected on vectors, if there are any, or else
    compared themselves."""
    x, shape = operands.x, (count, *operands.x.shape) if vectors is None else (len(vectors), *y.shape)
    work = count * x.numel() * (1 if vectors is None else len(vectors))
    return is_little(work) and computes_of(problem, operands, y, shape)


def computes_of_pairs(problem: Problem, operands: Operands, y: torch.Tensor, d: torch.Tensor) -> bool:
    """The same of values y [N, O] and tangents d [P, N, O]."""
    plain = problem.head is None and problem.order == 1
    return plain and d.dtype == y.dtype and is_little(d.numel()) and computes_of(problem, operands, y, d.shape)


def is_little(count: int) -> bool:
    """Whether so many numbers are none that PyTorch's threads should share."""
    return count <= MOST or torch.get_num_threads() == 1


def computes_of(problem: Problem, operands: Operands, y: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether it does, of derivatives of this shape."""
    x, values, derivative = operands.x, operands.values, operands.derivative
    if core.MISSING is not None or not x.is_cpu or not y.requires_grad or not is_plain(problem, operands):
        return False
    if problem.order > 1 or not (problem.value_loss.name in LOSSES and problem.derivative_loss.name in LOSSES):
        return False
    if not (values.dtype == derivative.dtype == y.dtype == x.dtype and problem.dtype in DTYPES):
        return False
    return is_little(y.numel()) and values.shape == y.shape and derivative.shape == shape


@lru_cache(maxsize=256)
def told(problem: Problem, weights: tuple[float, ...], sizes: tuple[int, ...], projected: bool):
    """The core's own words for it; sizes N, O, D, P."""
    losses = tuple(core.formula("Loss", loss) for loss in (problem.value_loss, problem.derivative_loss))
    factor = 1 if problem.reduction == "mean" else sizes[0]
    weights = [factor * weight for weight in weights]
    return core._C.MeanLoss(problem.dtype == "float64", losses, *weights, list(sizes), projected)


class MeanLoss(torch.autograd.Function):
    """Of y and the gradients of a function: of the outputs, to be projected on `vectors`, or of the cotangents; or of y
    and all its tangents, as one more that is compared number by number."""

    @staticmethod
    def forward(ctx, problem, operands, vectors, y, *gradients):
        reads = [y, operands.values, operands.derivative, *(() if vectors is None else (vectors,)), *gradients]
        reads = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in reads]
        loss, *slopes = made = [y.new_empty(()), *map(torch.empty_like, (reads[0], *reads[-len(gradients) :]))]
        projected, N, tangents = vectors is not None, len(y), gradients[0].dim() == 3
        sizes = (gradients[0].numel() // N, 1) if tangents else (problem.D, len(vectors if projected else gradients))
        core._C.mean_loss(told(problem, operands.weights, (N, problem.O, *sizes), projected), reads, made)
        ctx.save_for_backward(y, *gradients)
        ctx.of, ctx.slopes = (problem, operands, vectors), slopes
        return loss

    @staticmethod
    def backward(ctx, cotangent):
        if torch.is_grad_enabled():
            y, *gradients = ctx.saved_tensors
            (loss,) = plain_loss_of(*ctx.of[:2], jets_of(*ctx.of, y, gradients))
            asking = [tensor for tensor in (y, *gradients) if tensor.requires_grad]
            found = iter(torch.autograd.grad(loss, asking, cotangent, create_graph=True))
            return None, None, None, *(next(found) if tensor.requires_grad else None for tensor in (y, *gradients))
        slopes = ctx.slopes
        return None, None, None, *(slopes if is_one(cotangent) else [slope * cotangent for slope in slopes])


def jets_of(problem: Problem, operands: Operands, vectors: torch.Tensor | None, y: torch.Tensor, gradients: Sequence):
    """Values and derivatives of these gradients."""
    if gradients[0].dim() == 3:
        return y, gradients[0], None
    derivative = of_each(gradients, operands.x) if vectors is None else along_gradients(vectors, gradients)
    return y, derivative, None


mean_loss = super(torch.autograd.Function, MeanLoss).apply  # without what torch.func would be told of it

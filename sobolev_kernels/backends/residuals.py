"""From values, derivatives and targets to the loss: plain PyTorch, differentiable again and again."""

from __future__ import annotations

import torch
from torch.nn.functional import mse_loss

from ..enums import COTANGENTS, DENSE
from ..math import heads
from ..math.losses import coupled, is_coupled, is_likelihood, is_summed, likelihood, residual
from ..math.table import Formula
from ..problem import LOSS, Operands, Problem
from .dependence import Jets
from .finish import finish

MSE = Formula("mse")


def loss_of(
    problem: Problem, operands: Operands, vectors: torch.Tensor | None, predictions: Jets
) -> tuple[torch.Tensor, ...]:
    """(loss, terms): the loss differentiable as often as needed; without terms where nobody asks for them."""
    cotangents, outputs, N = problem.projection == COTANGENTS, operands.output_weight, operands.x.shape[0]
    if problem.head is not None:
        of_value = heads.logits if is_likelihood(problem.value_loss) else heads.value
        predictions = (of_value(problem.head, predictions[0]), *predictions[1:])
    if is_plain(problem, operands):
        return plain_loss_of(problem, operands, predictions)
    y, derivative, second = predictions[0], operands.derivative, operands.second
    if problem.derivative_target == DENSE and derivative is not None:
        derivative = (pull if cotangents else project)(derivative, vectors)
    if problem.second_target == DENSE and second is not None:
        second = project_twice(second, vectors)
    rows, of_each = (
        outputs[:, None, None] if cotangents and outputs is not None else outputs,
        operands.derivative_weight,
    )
    rows = of_each if rows is None else rows if of_each is None else rows * of_each
    samples, others = (None, None) if operands.sample_weight is None else operands.sample_weight
    higher = orders_of(problem, predictions[2], second)
    parts = (
        (problem.value_loss, y, operands.values, outputs, samples),
        (problem.derivative_loss, predictions[1], derivative, rows, others),
        *((problem.derivative_loss, *pair, rows, others) for pair in higher),
    )
    terms = []
    for loss, prediction, target, weight, sample in parts[: 1 + problem.order]:
        each = y.new_zeros(N) if target is None else term(loss, prediction, target, weight, sample)
        terms.append(each / max(1, N) if problem.reduction == "mean" else each)
    loss, terms = finish(problem, operands.weights, terms)
    if not any(operands.weights):
        loss = loss + 0 * (y.sum(-1) if problem.reduction == "none" else y.sum())
    return loss, terms


def orders_of(
    problem: Problem, predictions: torch.Tensor | None, targets: torch.Tensor | None
) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Derivatives of each order from 2 on with their targets, of which there are none without a target."""
    if problem.order < 3:
        return [(predictions, targets)]
    return list(zip(predictions, [None] * len(predictions) if targets is None else targets, strict=True))


def project(jacobian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's tangents [P, N, O] from its Jacobian [N, O, D] along v [P, N, D]."""
    return torch.einsum("nod,pnd->pno", jacobian, v)


def pull(jacobian: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The target's gradients [R, N, D] from its Jacobian [N, O, D] for cotangents u [R, N, O]."""
    return torch.einsum("nod,rno->rnd", jacobian, u)


def project_twice(hessian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's second derivatives [P, N, O] from its Hessian [N, O, D, D] along v [P, N, D]."""
    return torch.einsum("node,pnd,pne->pno", hessian, v, v)


def is_plain(problem: Problem, operands: Operands) -> bool:
    """Whether the terms, all of which count, are means over all numbers."""
    if problem.result != LOSS or problem.terms or DENSE in (problem.derivative_target, problem.second_target):
        return False
    targets = operands.values, operands.derivative, operands.second
    if any(target is None or not target.numel() for target in targets[: 1 + problem.order]):
        return False
    if any(weights is not None for weights in (operands.sample_weight, operands.output_weight)):
        return False
    if operands.derivative_weight is not None or not all(operands.weights):
        return False
    return not (is_summed(problem.value_loss) or is_coupled(problem.derivative_loss))


def plain_loss_of(problem: Problem, operands: Operands, predictions: Jets) -> tuple[torch.Tensor]:
    """The same loss, each term in one operation where that is possible, without the terms."""
    higher = orders_of(problem, predictions[2], operands.second)
    losses = problem.value_loss, *(problem.derivative_loss,) * problem.order
    pairs = (predictions[0], operands.values), (predictions[1], operands.derivative), *higher
    each = ((loss, *pair) for loss, pair in zip(losses, pairs, strict=False))
    terms = [term_of_all(*of_term) for of_term in each]
    factor = 1 if problem.reduction == "mean" else len(operands.x)
    weights = [factor * w for w in operands.weights]
    loss = sum(term if w == 1 else w * term for w, term in zip(weights, terms, strict=True))
    return (loss,)


def term_of_all(loss: Formula, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean of the terms of all samples, of a pointwise loss without weights."""
    need_alike(prediction, target)
    if is_likelihood(loss):
        return likelihood(loss, prediction, target).mean()
    # which is the row of the table in one operation
    return mse_loss(prediction, target) if loss == MSE else residual(loss, prediction - target)[0].mean()


def need_alike(prediction: torch.Tensor, target: torch.Tensor) -> None:
    """Broadcasting [N, 1] - [N] would quietly make an N × N loss."""
    if prediction.shape != target.shape:
        raise ValueError(f"target: expected shape {tuple(prediction.shape)}, got {tuple(target.shape)}")


def term(
    loss: Formula, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
    sample: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """A term for each sample [N], from [N, O], [P, N, O] or [R, N, D]; `weight` broadcasts over the residuals.

    Pointwise, the mean of ρ over everything but the samples, or the sum (`is_summed`); of a coupled loss, ρ of the sums
    over the same; by `sample` [N]. What has weight 0 is selected, not multiplied: its target may be NaN.
    """
    need_alike(prediction, target)
    dims = (-1,) if prediction.dim() == 2 else (0, -1)
    w = 1.0 if weight is None else weight
    if not (weight is None and sample is None):
        counting = (w if sample is None else w * sample[:, None]) != 0
        prediction, target = torch.where(counting, prediction, 0.0), torch.where(counting, target, 0.0)
    if is_coupled(loss):
        a, t = prediction.double(), target.double()
        r = a - t
        products = (r * r, a * a, a * t, t * t, torch.ones_like(t))
        each = coupled(loss, *((w * product).sum(dims) for product in products)).to(prediction.dtype)
    elif is_likelihood(loss):
        each = w * likelihood(loss, prediction, target)
        each = each.sum(dims) if is_summed(loss) else each.mean(dims)
    else:
        each = (w * residual(loss, prediction - target)[0]).mean(dims)
    if sample is None:
        return each
    # so that a cotangent of what does not count, which may be infinite, ends here
    return torch.where(sample == 0, 0.0, sample * each)

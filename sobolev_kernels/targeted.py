"""Targets as a step compares with them: of the shapes, units and dtype that it computes in."""

from __future__ import annotations

import torch

from .columns import Columns
from .directions import Cotangents
from .labels import probabilities_of
from .prepare import Prepared
from .student import widened
from .targets import Targets
from .weights import Weights, by_projection

# Of values, derivatives and second derivatives, above order 2 of all orders from 2 on, [order - 1, P, N, O]; None where
# there is no target.
Targeted = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
UNTARGETED: Targeted = (None, None, None)


def targets_of(call: Prepared, targets: Targets, columns: Columns, of_teacher: Targeted | None = None) -> Targeted:
    """Targets as the backends take them: values [N, O], derivative and second, dense or projected."""
    values, derivative = targets.values, targets.derivative
    second = targets.higher(call.problem.order)
    if derivative is targets.jacobian and derivative is not None and derivative.dim() == 2:
        derivative = derivative[:, None, :]
    if targets.has_classes:
        values = probabilities_of(values, call.problem)
    elif values is not None and values.dim() == 1:
        values = values[:, None]
    values, derivative, second = widened(values), widened(derivative), widened(second)
    if of_teacher is not None:
        values_of_teacher, derivative, second = of_teacher
        values = values_of_teacher if values is None else values
    elif columns.scale is not None:
        derivative = None if derivative is None else derivative * columns.scale
        second = None if second is None else second * columns.scale * columns.scale[:, None]
    if of_teacher is None and call.projections is not None:
        derivative, second = of_dense(call, targets, derivative, second)
    first = None if call.projections is None else derivative
    return values, first, second if call.problem.order > 1 else None


def of_dense(
    call: Prepared, targets: Targets, jacobian: torch.Tensor | None, hessian: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A Jacobian [N, O, W] and a Hessian [N, O, W, W] for the backends; other targets as they are.

    Along the basis they are projections already, and nothing is summed. Where the directions have masked columns
    theirs are 0.
    """
    projections, mask = call.projections, Weights(derivative=call.request.derivative_weight)
    magnitude, rows = call.problem.magnitude, isinstance(projections, Cotangents)
    if projections.distribution == "basis":
        if targets.jacobian is not None:
            jacobian = by_projection(jacobian, rows)
            jacobian = jacobian if magnitude == 1.0 else magnitude * jacobian
        if targets.hessian is not None:
            hessian = by_projection(hessian.diagonal(dim1=2, dim2=3), rows)
            hessian = hessian if magnitude == 1.0 else magnitude * magnitude * hessian
    elif mask.masks(projections):
        if targets.jacobian is not None:
            jacobian = torch.where(mask.counting("jacobian", jacobian), jacobian, 0.0)
        if targets.hessian is not None:
            hessian = torch.where(mask.counting("hessian", hessian), hessian, 0.0)
    return jacobian, hessian


def taught(call: Prepared, targets: Targeted) -> dict[str, torch.Tensor]:
    """What a teacher's results are compared as, by name, and 0 for what does not count."""
    if call.teacher is None:
        return {}
    weights, named = call.request.residual_weights, {}
    if weights.masks(call.projections):
        weights = weights._replace(derivative=None)
    derivative = "vjps" if isinstance(call.projections, Cotangents) else "tangents"
    for kind, what, tensor in zip(
        ("values", derivative, "seconds"), ("values", "derivatives", "second derivatives"), targets, strict=True
    ):
        if tensor is not None and (kind != "values" or call.request.targets.values is None):
            counting = weights.counting(kind, tensor)
            named[f"teacher: {what}"] = tensor if counting is None else torch.where(counting, tensor, 0.0)
    return named

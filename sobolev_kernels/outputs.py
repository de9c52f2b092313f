"""What students and teachers give that are not looked into: checked, and known from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import index

import torch

from .changed import replace
from .directions import Cotangents
from .errors import Fault, need, refuse
from .labels import faults_of_labels
from .prepare import Prepared


def outputs_of(function: Callable, x: torch.Tensor) -> torch.Tensor:
    """What a student that is not looked into gives for x [N, D]: [N, O]; [N] is of one output."""
    y, N = function(x), x.shape[0]
    if type(y) is torch.Tensor and y.dim() == 2 and y.is_floating_point() and y.shape[0] == N and y.shape[1]:
        return y
    y = y[:, None] if isinstance(y, torch.Tensor) and y.dim() == 1 else y
    refuse(faults_of_outputs(y, N))
    return y


def faults_of_outputs(y: object, N: int) -> Iterator[Fault]:
    if not isinstance(y, torch.Tensor):
        yield Fault("student", f"to return a tensor [{N}, O]", y, TypeError)
    if y.dim() != 2 or y.shape[0] != N:
        yield Fault("student", f"to return a tensor [{N}, O]", y)
    if not y.is_floating_point():
        yield Fault("student", f"to return real floating numbers [{N}, O]", y)
    if not y.shape[1]:
        yield Fault("student", "to return at least one output", y)


def knowing_outputs(call: Prepared, O: int) -> Prepared:
    """The call of a student that only running him told the outputs of, checked for what they are compared with."""
    request, problem = call.request, call.problem
    targets = request.targets
    if targets is not None:
        refuse(faults_of_labels(request.settings, targets, request.residual_weights, O))
    jacobian = None if targets is None or targets.jacobian is None or targets.jacobian.dim() == 2 else targets.jacobian
    each = request.derivative_weight
    each = None if each is None or each.dim() == 1 or (each.dim() == 2 and each.dtype == torch.bool) else each
    of_outputs = ("output_weight", request.output_weight, 0), ("derivative_weight", each, 1)
    for name, tensor, dim in (("jacobian", jacobian, 1), *of_outputs):
        fits = tensor is None or tensor.shape[dim] == O
        need(fits, name, f"{O} outputs, as the student has", tensor)
    if problem.outputs == O:
        return call
    problem = replace(problem, widths=(problem.D, O))
    if isinstance(call.projections, Cotangents):
        refuse(call.projections.faults(request.inputs, O, call.given))
        problem = replace(problem, P=index(call.projections.count(O)), magnitude=call.projections.magnitude(O))
    return replace(call, problem=problem)


def outputs_of_teacher(function: Callable, x: torch.Tensor, outputs: int | None) -> torch.Tensor:
    """[N, O] as the student's; a teacher of one output may return [N]."""
    y = function(x)
    need(isinstance(y, torch.Tensor), "teacher", "a function that returns a tensor [N, O]", y, TypeError)
    y = y[:, None] if y.dim() == 1 else y
    outputs = outputs or y.shape[-1]
    need(y.shape == (len(x), outputs), "teacher", f"values [{len(x)}, {outputs}], one row for each input", y)
    cast = torch.is_autocast_enabled(x.device.type)
    need(cast or y.dtype == x.dtype, "teacher", f"values of {x.dtype}, as the inputs are", y)
    return y

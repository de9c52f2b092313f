"""First derivatives with respect to K numbers q that the inputs x(q) were made of, as atoms' positions of descriptors.

By the chain rule the derivative along w of q is that along (∂x/∂q) w of x. So a loss of these is one along directions
of the inputs that are given: the columns of ∂x/∂q, read where they lie, if all K derivatives are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from .advice import advise_of_function
from .boundary import faults_of_memory
from .checks import faults_of_derivative_weight, faults_of_kinds, faults_of_targets, faults_of_units, outputs_of
from .columns import Mask
from .directions import Cotangents, Directions, Projections
from .drawing import over_samples
from .enums import NONE
from .errors import Fault, NotProvided, converted, need_tensor, refuse
from .problem import LOSS
from .request import Request
from .rows import function_on_rows, inputs_on_rows
from .settings import DIFFERENTIAL_ML, Settings
from .student import Unrecognised, widened
from .targets import Targets
from .weights import Weights, by_projection

FIRST = "{} (with input_jacobian first derivatives alone are compared, along directions or all of them)"


def loss_of_coordinates(
    settings: Settings, student: object, inputs: torch.Tensor, targets: Targets, given: torch.Tensor | None,
    weights: Weights, input_scale: torch.Tensor | None, offset: int | None, input_jacobian: torch.Tensor,
) -> tuple:  # fmt: skip
    """What a loss with respect to q is of: settings, student, inputs, targets, directions and weights on rows.

    Raises:
        TypeError, ValueError: an argument does not suit the inputs, or their K coordinates.
        NotImplementedError: what is asked for is not provided with respect to them.
    """
    need_tensor(inputs, "inputs", "a tensor [N, D]")
    need_tensor(input_jacobian, "input_jacobian", "a tensor [N, D, K]")
    shape = inputs.shape[1:]
    student, inputs = function_on_rows(student, shape, inputs), inputs_on_rows(inputs)
    refuse(faults_of_coordinates(settings, inputs, shape, targets, input_jacobian))
    columns = input_jacobian.flatten(1, -2)
    of_q = Request(
        LOSS, student, columns[:, 0], settings, given, targets, (targets.kind, NONE), input_scale, *weights,
        offset=offset,
    )  # fmt: skip
    chosen, given = of_q.projections(Unrecognised("", student))
    refuse(faults_of_projected(of_q, chosen, given))
    jacobian, K = targets.jacobian, columns.shape[2]
    jacobian = jacobian[:, None] if jacobian is not None and jacobian.dim() == 2 else jacobian
    if input_scale is not None:
        columns, jacobian = columns * input_scale, None if jacobian is None else jacobian * input_scale
    if chosen.entries:
        settings, size = along(settings, K, True), chosen.magnitude(K)
        directions, tangents = (None if t is None else by_projection(t, False) for t in (columns, jacobian))
        if size != 1.0:
            directions, tangents = directions * size, None if tangents is None else tangents * size
    else:
        advise_of_function(student, inputs, settings, targets, chosen)
        w = chosen.tensor(columns[:, 0]) if given is None else over_samples(given, len(columns))
        if weights.masks(chosen):  # a derivative that is not known is not gone along
            w = torch.where(weights.derivative, w, 0.0)
            weights = weights._replace(derivative=weights.derivative.any(1).to(inputs.dtype))
        settings = along(settings, len(w), False)
        directions = projected(columns, w)
        tangents = None if jacobian is None else projected(jacobian, w).to(inputs.dtype)
    tangents = targets.tangents if tangents is None else tangents
    teacher = function_on_rows(targets.teacher, shape)
    return settings, student, inputs, Targets(targets.values, tangents=tangents, teacher=teacher), directions, weights


@lru_cache(maxsize=256)
def along(settings: Settings, P: int, entries: bool) -> Settings:
    """The same along P directions of the inputs, whose residuals may be those of single entries."""
    directions = Directions("given", P, entries=entries)
    return replace(settings, directions=directions, cotangents=None, derivatives=None)


def projected(columns: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """[N, n, K] along vectors w [P, N, K]: [P, N, n], in the dtype that is computed in."""
    with torch.autocast(columns.device.type, enabled=False):
        return by_projection(widened(columns) @ widened(w).permute(1, 2, 0), False)


def faults_of_coordinates(
    settings: Settings, inputs: torch.Tensor, shape: torch.Size, targets: Targets, input_jacobian: torch.Tensor
) -> Iterator[Fault]:
    name, sizes = "input_jacobian", (len(inputs), *shape)
    yield from faults_of_memory(name, input_jacobian)
    if input_jacobian.shape[:-1] != sizes or not input_jacobian.shape[-1:].numel():
        yield Fault(name, f"[{', '.join(map(str, sizes))}, K], K numbers that each input was made of", input_jacobian)
    if input_jacobian.dtype != inputs.dtype or input_jacobian.device != inputs.device:
        hint = converted(input_jacobian, inputs, name)
        yield Fault(name, f"{inputs.dtype} on {inputs.device}, as the inputs are", input_jacobian, hint=hint)
    if settings.order != 1:
        yield Fault("order", FIRST.format("1"), settings.order, NotProvided)
    if settings.wrt is not None:
        got = "a mask" if type(settings.wrt) is Mask else settings.wrt
        yield Fault("wrt", f"None, since {name} says with respect to what", got)
    if settings.weights == DIFFERENTIAL_ML:
        yield Fault("weights", f"numbers together with {name}", settings.weights)
    for what in ("vjps", "hessian", "seconds", "jets"):
        if getattr(targets, what) is not None:
            yield Fault("targets", FIRST.format("a jacobian, tangents or teacher"), what, NotProvided)


def faults_of_projected(of_q: Request, chosen: Projections, given: torch.Tensor | None) -> Iterator[Fault]:
    """As of any request, of all that has a number for each of q [N, K]."""
    q, targets, O = of_q.inputs, of_q.targets, outputs_of(of_q, Unrecognised("", of_q.student))
    for name, tensor in of_q.tensors().items():
        if tensor is not None:
            yield from faults_of_memory(name, tensor)
    yield from faults_of_kinds(of_q, targets)
    yield from of_q.columns.faults(q)
    if isinstance(chosen, Cotangents) and not chosen.entries:
        yield Fault("cotangents", FIRST.format('directions, Cotangents.basis() or "exact"'), chosen, NotProvided)
    if given is not None:
        yield from faults_of_memory("directions", given)
    K = q.shape[1]
    chosen = Directions.basis() if chosen.entries else chosen
    yield from chosen.faults(q, K, given)
    yield from faults_of_targets(targets, q, O, K, chosen, of_q.settings)
    yield from faults_of_derivative_weight(of_q, "O" if O is None else O, K, chosen)
    yield from faults_of_units(of_q, targets, chosen)

"""The checks of a call's arguments that need more than one line."""

from __future__ import annotations

import math

import torch
from torch import nn

from .directions import Projections
from .errors import NotProvided, describe, need
from .math.activations import is_curved
from .problem import PRECISIONS
from .student import Student
from .targets import Targets

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# torch's own activations that are linear between their kinks
FLAT_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink,
)  # fmt: skip


def check_inputs(inputs: object, layers: Student | str, owner: str = "student") -> None:
    need(isinstance(inputs, torch.Tensor), "inputs", "a tensor [N, D]", inputs, TypeError)
    need(inputs.dtype in FLOATING, "inputs", f"a floating dtype ({', '.join(map(str, FLOATING))})", inputs)
    need(inputs.dim() == 2, "inputs", "a tensor [N, D]", inputs)
    if isinstance(layers, Student):
        D = layers.widths[0]
        need(inputs.shape[1] == D, "inputs", f"[N, {D}], since the {owner} takes {D} features", inputs)


def check_student(student: object, layers: Student | str, inputs: torch.Tensor, name: str = "student") -> None:
    need(callable(student), name, "a torch.nn.Module", student, TypeError)
    if isinstance(layers, Student):
        parameters = layers.parameters
    else:
        parameters = getattr(student, "parameters", tuple)()
    for i, parameter in enumerate(parameters):
        if parameter.device != inputs.device or parameter.dtype != inputs.dtype:
            expected = f"all parameters {inputs.dtype} on {inputs.device}, as the inputs are"
            need(False, name, expected, f"parameter {i}, {describe(parameter)}")


def check_outputs(y: object, inputs: torch.Tensor, name: str) -> torch.Tensor:
    """What a function of the user's returned for inputs [N, D]: a tensor [N, O]."""
    N = inputs.shape[0]
    need(isinstance(y, torch.Tensor), name, f"to return a tensor [{N}, O]", y, TypeError)
    need(y.dim() == 2 and y.shape[0] == N, name, f"to return a tensor [{N}, O]", y)
    return y


def check_known_order(order: object) -> None:
    known = type(order) is int and order in (1, 2)
    need(known, "order", "1 or 2 (3 would take the fourth derivative of the activations)", order)


def check_order(model: object, layers: Student | str, order: int, name: str = "student") -> None:
    """An activation whose second derivative is zero almost everywhere has no second derivative to fit."""
    if order == 1:
        return
    if isinstance(layers, Student):
        flat = [a.name for a in layers.activations if a.name != "identity" and not is_curved(a)]
    else:
        modules = model.modules() if isinstance(model, nn.Module) else ()
        flat = [type(module).__name__ for module in modules if isinstance(module, FLAT_MODULES)]
    if flat:
        raise NotProvided(
            f"order: expected 1 with {flat[0]}, whose second derivative is 0 almost everywhere "
            f"(the second derivative of the {name} would be silently 0), got {order}"
        )


def check_precision(precision: object) -> None:
    need(precision in (None, *PRECISIONS), "precision", f"None or one of {', '.join(PRECISIONS)}", precision)


def check_weight(name: str, weight: object, count: int | str, inputs: torch.Tensor) -> None:
    """A weight for each sample or output."""
    if weight is None:
        return
    need(isinstance(weight, torch.Tensor), name, f"a tensor [{count}]", weight, TypeError)
    need(not weight.requires_grad, name, "a tensor without requires_grad (no gradient to weights is provided)", weight)
    check_shape(name, weight, [(count,)], inputs)


def check_weights(weights: object, order: int = 1) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * (1 + order)
    names = ("value, derivative", "value, derivative, second derivative")[order - 1]
    count = ("two", "three")[order - 1]
    try:
        parts = tuple(weights)
        learned = [w for w in parts if isinstance(w, torch.Tensor) and w.requires_grad]
        numbers = () if learned else tuple(map(float, parts))
    except (TypeError, ValueError):
        learned, numbers = [], ()
    need(not learned, "weights", "plain numbers (no gradient to weights is provided)", learned and learned[0])
    need(len(numbers) == 1 + order, "weights", f"{count} numbers ({names})", weights)
    need(all(math.isfinite(w) and w >= 0 for w in numbers), "weights", "finite numbers >= 0", weights)
    return numbers


def check_shape(name: str, tensor: torch.Tensor, shapes: list[tuple[int | str, ...]], inputs: torch.Tensor) -> None:
    """One of `shapes`, where a letter stands for any size; and the inputs' dtype and device."""
    got = tuple(tensor.shape)
    known = lambda shape: len(shape) == len(got) and all(n == m or n in ("O", "R") for n, m in zip(shape, got))  # noqa: B905, E731
    if not any(got == shape or known(shape) for shape in shapes):
        need(False, name, " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes), tensor)
    if tensor.dtype != inputs.dtype or tensor.device != inputs.device:
        need(False, name, f"{inputs.dtype} on {inputs.device}, as the inputs are", tensor)


def check_targets(
    targets: Targets, inputs: torch.Tensor, O: int | None, W: int, projections: Projections | None,
    weights: tuple[float, ...],
) -> None:  # fmt: skip
    """Shapes, dtypes and devices; `O` is None where only running the student would tell."""
    N = inputs.shape[0]
    outputs = "O" if O is None else O
    one = O in (None, 1)
    if targets.values is not None:
        check_shape("values", targets.values, [(N, outputs)] + [(N,)] * one, inputs)
    elif targets.teacher is None:
        need(weights[0] == 0, "targets", "values, since the value term's weight is not zero", "none")
    if targets.jacobian is not None:
        check_shape("jacobian", targets.jacobian, [(N, outputs, W)] + [(N, W)] * one, inputs)
    if targets.hessian is not None:
        check_shape("hessian", targets.hessian, [(N, outputs, W, W)], inputs)
    if projections is None:
        return
    for name in ("tangents", "seconds"):
        if getattr(targets, name) is not None:
            check_shape(name, getattr(targets, name), [(projections.count(W), N, outputs)], inputs)
    if targets.vjps is not None:
        check_shape("vjps", targets.vjps, [("R" if O is None else projections.count(O), N, W)], inputs)


def check_finite_tensors(
    student: torch.nn.Module, inputs: torch.Tensor, targets: Targets, projections: Projections | None,
    more: dict[str, torch.Tensor | None],
) -> None:  # fmt: skip
    named = [("inputs", inputs)]
    named += [(n, getattr(targets, n)) for n in ("values", "jacobian", "tangents", "vjps", "hessian", "seconds")]
    named += [] if projections is None else [(projections.NAME, projections.values)]
    named += more.items()
    named += [(f"student.{name}", p) for name, p in getattr(student, "named_parameters", list)()]
    for name, tensor in named:
        if tensor is not None:
            finite = bool(torch.isfinite(tensor).all())
            bad = int((~torch.isfinite(tensor)).sum()) if not finite else 0
            need(finite, name, "finite numbers", f"{bad} that are not, in {describe(tensor)}")

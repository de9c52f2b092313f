"""Inputs of any shape [N, …] as rows [N, D], and with them all that has their shape: what is below knows rows alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from .boundary import faults_of_memory
from .columns import Mask
from .directions import Directions
from .errors import Fault, refuse
from .heads import inner_of
from .parts import roots_of
from .settings import Settings
from .student import Unrecognised
from .targets import Targets
from .weights import Weights


class Rows(nn.Module):
    """A function of inputs [N, …] as one of rows [N, D], made for a call: what is known, is known of the function, and
    of the inputs as they came."""

    def __init__(
        self, student: Callable[[torch.Tensor], torch.Tensor], shape: Sequence[int], inputs: torch.Tensor | None = None
    ):
        super().__init__()
        self.student, self.shape = student, tuple(shape)
        self.inputs = inputs if inputs is None else weakref.ref(inputs)
        if not isinstance(student, nn.Module):
            self.parts = nn.ModuleList(roots_of(student))

    @property
    def original_name(self) -> str:
        """By which it is spoken of."""
        return type(inner_of(self.student)).__name__

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x.unflatten(1, self.shape))


def behind(function: object) -> object:
    """The function that the user gave."""
    return function.student if type(function) is Rows else function


def inputs_behind(function: object, x: torch.Tensor) -> torch.Tensor:
    """The inputs that the user gave."""
    came = function.inputs if type(function) is Rows else None
    return x if came is None else came()


def are_rows(inputs: object, settings: Settings) -> bool:
    """Whether they come as rows, or as something that is refused, and the columns by their numbers."""
    return type(settings.wrt) is not Mask and (not isinstance(inputs, torch.Tensor) or inputs.dim() <= 2)


def function_on_rows(function: object, shape: Sequence[int], inputs: torch.Tensor | None = None) -> object:
    """What cannot be called is left for the checks."""
    if len(shape) == 1 or not callable(function) or isinstance(function, type):
        return function
    if not torch.compiler.is_compiling():
        return Rows(function, shape, inputs)
    refuse(Unrecognised("", function).faults_of_statistics("student"))  # which a compiler sees in a module alone
    return lambda x: function(x.unflatten(1, tuple(shape)))


def settings_on_rows(settings: Settings, shape: Sequence[int]) -> Settings:
    """The same with the numbers of the columns that a mask names.

    Raises:
        ValueError: it is not of the inputs' shape; or columns of what has none.
    """
    if settings.wrt is None:
        return settings
    named = type(settings.wrt) is Mask
    if not named or settings.wrt.shape != tuple(shape):
        got = f"a mask {list(settings.wrt.shape)}" if named else settings.wrt
        refuse([Fault("wrt", f"a Boolean mask of one input's shape, torch.bool {list(shape)}", got)])
    return with_columns(settings, settings.wrt.columns)


def with_columns(settings: Settings, columns: tuple[int, ...]) -> Settings:
    return replace(settings, wrt=columns) if torch.compiler.is_compiling() else known(settings, columns)


@lru_cache(maxsize=256)
def known(settings: Settings, columns: tuple[int, ...]) -> Settings:
    return replace(settings, wrt=columns)


def flat(name: str, tensor: torch.Tensor | None, before: str, shape: Sequence[int]) -> torch.Tensor | None:
    """A tensor [before, *shape] as [before, D].

    Raises:
        ValueError: it has another shape, or no memory that could be read.
    """
    if tensor is None or len(shape) == 1:
        return tensor
    refuse(faults_of_memory(name, tensor))
    lead = before.count(",") + 1
    if tensor.dim() != lead + len(shape) or tensor.shape[lead:] != tuple(shape):
        refuse([Fault(name, f"[{before}, {', '.join(map(str, shape))}], as the inputs are", tensor)])
    return tensor.flatten(lead)


def inputs_on_rows(inputs: torch.Tensor) -> torch.Tensor:
    refuse(faults_of_memory("inputs", inputs))
    if 0 in inputs.shape[1:]:
        refuse([Fault("inputs", "a tensor [N, …] of at least one feature", inputs)])
    return inputs.flatten(1) if inputs.dim() > 2 else inputs


def directions_on_rows(given: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor | None:
    if given is not None and given.dim() == len(shape) + 1 > 2:
        hint = "for the same at every sample expand it: v[:, None].expand(-1, N, *v.shape[1:])"
        expected = f"[P, N, {', '.join(map(str, shape))}], as the inputs are"
        refuse([Fault("directions", expected, given, hint=hint)])
    return flat("directions", given, "P, N", shape)


def targets_on_rows(targets: Targets, shape: Sequence[int], columns: bool) -> Targets:
    """The same targets; where `columns` are named derivatives have one number for each of these already."""
    teacher = function_on_rows(targets.teacher, shape)
    if columns or len(shape) == 1:
        return targets.replace(teacher=teacher)
    jacobian, hessian, directions = targets.jacobian, targets.hessian, targets.directions
    of_one = jacobian is not None and jacobian.dim() == 1 + len(shape)
    if hessian is not None:
        hessian = flat("hessian", hessian, "N, O", (*shape, *shape))
        hessian = hessian.unflatten(2, (-1, torch.Size(shape).numel()))
    if directions is not None and directions.values is not None:
        directions = Directions.given(directions_on_rows(directions.values, shape))
    return targets.replace(
        teacher=teacher, hessian=hessian, directions=directions,
        jacobian=flat("jacobian", jacobian, "N" if of_one else "N, O", shape),
        vjps=flat("vjps", targets.vjps, "R, N", shape),
    )  # fmt: skip


def weights_on_rows(weights: Weights, shape: Sequence[int]) -> Weights:
    """Of the entries of a Jacobian [N, O, *shape], or a mask of inputs [N, *shape]; other weights stay."""
    derivative = weights.derivative
    if not isinstance(derivative, torch.Tensor):
        return weights
    of_entries = derivative.dim() == 2 + len(shape)
    if not of_entries and (derivative.dim() != 1 + len(shape) or derivative.dtype is not torch.bool):
        return weights
    return weights._replace(derivative=flat("derivative_weight", derivative, "N, O" if of_entries else "N", shape))


def loss_on_rows(
    settings: Settings, student: object, inputs: torch.Tensor, targets: Targets, given: torch.Tensor | None,
    weights: Weights, input_scale: torch.Tensor | None,
) -> tuple:  # fmt: skip
    """What a loss is of, as it came, on rows."""
    shape = inputs.shape[1:]
    settings = settings_on_rows(settings, shape)
    student, named = function_on_rows(student, shape, inputs), settings.wrt is not None
    inputs = inputs_on_rows(inputs)
    if not named:
        given = given if settings.cotangents is not None else directions_on_rows(given, shape)
        weights = weights_on_rows(weights, shape)
        if isinstance(input_scale, torch.Tensor):
            input_scale = flat("input_scale", input_scale[None], "1", shape)[0]
    return settings, student, inputs, targets_on_rows(targets, shape, named), given, weights, input_scale


def derivatives_on_rows(
    student: object, x: torch.Tensor, settings: Settings, given: torch.Tensor | None
) -> tuple:  # fmt: skip
    """The same of derivatives, and the shape of a gradient."""
    shape = x.shape[1:]
    settings = settings_on_rows(settings, shape)
    x = inputs_on_rows(x)
    if settings.wrt is None and settings.cotangents is None:
        given = directions_on_rows(given, shape)
    gradient = shape if settings.wrt is None else (len(settings.wrt),)
    return function_on_rows(student, shape), x, settings, given, gradient

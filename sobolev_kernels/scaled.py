"""`Scaled`: a student of a scaler's units as a module in the data's, and how it is an MLP itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .backends import core
from .boundary import PLAIN
from .errors import in_words, need
from .math.table import Formula
from .modules import CALL, CALL_IMPL, IDENTITY, RULES, own
from .scaler import Scaler
from .student import Student, has_hooks, recognise

WHOLE = torch.float32, torch.float64


class Scaled(nn.Module):
    """y = student((x - x_mean) / x_scale) · y_scale + y_mean: a student of a scaler's units in the data's.

    Its derivatives are those of y with respect to x. What trains well is the student in its own units: `sk.fit(…,
    scale=True)` does that, and gives a `Scaled`. The scaler is a part of it, and of its `state_dict()`, so that
    `Scaled(MLP(2, 1), Scaler())` can load what was saved.

    If the student is an MLP, so is this one: the inputs are centred first, and x_scale, y_scale and y_mean are taken
    into the weights of its first and last layers, at every call. With a teacher in the targets it goes as any
    other module, by `streams` (`Targets.from_teacher` asks him once), as it does in half precision.

    Args:
        student: a module from [N, …] to [N, O] or [N], of the scaler's units.
        scaler: see `Scaler`.

    Example:
        >>> from sobolev_kernels import MLP, Targets
        >>> x = torch.rand(64, 2) * 100
        >>> scaler = Scaler().fit(x, Targets(values=x.sum(1)))
        >>> y = Scaled(MLP(2, 1, width=16), scaler)(x)
    """

    @in_words
    def __init__(self, student: nn.Module, scaler: Scaler):
        super().__init__()
        need(isinstance(student, nn.Module), "student", "a torch.nn.Module", student, TypeError)
        need(isinstance(scaler, Scaler), "scaler", "a sobolev_kernels.Scaler", scaler, TypeError)
        self.student, self.scaler = student, scaler

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        units = self.scaler
        y = self.student(((x - units.x_mean) / units.x_scale).to(x.dtype))
        return (y * units.y_scale + units.y_mean).to(x.dtype)


FORWARD = own(Scaled, "forward")


class Form(NamedTuple):
    """What a recognised MLP is made of but for its parameters, whose widths these tell."""

    biases: tuple[bool, ...]
    activations: tuple[Formula, ...]

    @property
    def is_linear(self) -> bool:
        """Whether its outputs are linear in its last weights."""
        return self.activations[-1] is IDENTITY


class Fold(NamedTuple):
    """A `Scaled` as an MLP: `inputs` are x - x_mean, and `parameters` its student's, `leaves`, with the scales in them.

    The mean is no part of a bias, since inputs far from 0 would lose their digits there.
    """

    kinds: list  # what the core read of the student
    form: Form
    inputs: torch.Tensor
    leaves: list[torch.Tensor]
    parameters: list[torch.Tensor]
    units: tuple[torch.Tensor, ...]  # x_scale, y_mean, y_scale

    def with_graph(self) -> Fold:
        """The same, whose parameters have a graph."""
        return self._replace(parameters=in_data_units(self.form, self.leaves, *self.units))

    @property
    def student(self) -> Student:
        weights = [parameter for parameter in self.parameters if parameter.dim() == 2]
        biases, activations = (*self.form.biases[:-1], True), self.form.activations
        if not self.form.is_linear:
            biases, activations = (*self.form.biases, True), (*activations, IDENTITY)
        widths = (weights[0].shape[1], *(weight.shape[0] for weight in weights))
        return Student(widths, biases, activations, tuple(self.parameters))

    def of_leaves(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients of the leaves from those of the parameters, in their place."""
        x_scale, _, y_scale = self.units
        gradients[0].div_(x_scale)
        if self.form.is_linear:
            n = len(self.leaves) - self.form.biases[-1] - 1
            gradients[n].mul_(y_scale[:, None])
            gradients[n + 1].mul_(y_scale)
        return gradients[: len(self.leaves)]


# By what the core read of a student. Few are ever alive.
FORMS: dict[tuple, Form] = {}
MOST = 256


def fold_of(function: object, x: torch.Tensor, graph: bool) -> Fold | None:
    """None of what is no `Scaled` of an MLP, or not in the usual way: a forward that is run."""
    if type(function) is not Scaled or core.MISSING is not None or not is_usual(function):
        return None
    modules, kinds, leaves = function._modules, [], []
    if not core._C.read(modules["student"], RULES, kinds, leaves):
        return None
    form = FORMS.get(tuple(kinds)) or new_form(kinds, modules["student"])
    mean, _, y_mean, y_scale = units = tuple(modules["scaler"]._buffers.values())
    if form is None or x.shape[1:] != mean.shape or not plain(x, *units, leaves[0], leaves[-1]):
        return None
    if leaves[-1].shape[:1] != y_scale.shape or y_mean.shape != y_scale.shape:
        return None
    if graph:
        parameters = in_data_units(form, leaves, *units[1:])
    else:
        enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # the same as no_grad, which costs as much as an operation
        try:
            parameters = in_data_units(form, leaves, *units[1:])
        finally:
            torch._C._set_grad_enabled(enabled)
        if enabled:
            ask_as(parameters, leaves)
    return Fold(kinds, form, x - mean, leaves, parameters, units[1:])


def ask_as(parameters: list[torch.Tensor], leaves: list[torch.Tensor]) -> None:
    """Have parameters ask for gradients as those do that were made with a graph."""
    for parameter, leaf in zip(parameters, leaves, strict=False):
        if parameter is not leaf:
            parameter.requires_grad = leaf.requires_grad


def new_form(kinds: list, module: nn.Module) -> Form | None:
    student = recognise(module)
    if student.reason:
        return None
    if len(FORMS) >= MOST:
        FORMS.clear()
    return FORMS.setdefault(tuple(kinds), Form(student.biases, student.activations))


def in_data_units(
    form: Form, leaves: list[torch.Tensor], x_scale: torch.Tensor, y_mean: torch.Tensor, y_scale: torch.Tensor
) -> list[torch.Tensor]:  # fmt: skip
    """The parameters of an MLP that takes x - x_mean and gives y; of one more layer, where outputs are not linear."""
    parameters = list(leaves)
    parameters[0] = parameters[0] / x_scale
    if not form.is_linear:
        return [*parameters, torch.diag(y_scale), y_mean.clone()]
    bias = parameters.pop() if form.biases[-1] else None
    parameters[-1] = parameters[-1] * y_scale[:, None]
    return [*parameters, y_mean.clone() if bias is None else torch.addcmul(y_mean, bias, y_scale)]


def is_usual(function: Scaled) -> bool:
    """Whether nothing but its forward is run when it is called."""
    usual = Scaled.forward is FORWARD and Scaled._call_impl is CALL_IMPL and Scaled.__call__ is CALL
    return (
        usual
        and type(function._modules["scaler"]) is Scaler
        and not has_hooks(function)
        and "forward" not in vars(function)
    )


def plain(x: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether all are numbers of one kind, and none of half precision, whose scaled weights would be rounded again."""
    dtype, device = x.dtype, x.device
    return dtype in WHOLE and all([type(t) in PLAIN and t.dtype is dtype and t.device == device for t in others])

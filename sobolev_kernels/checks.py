"""All checks of a request, in one list: none has an effect, and the first that fails is the error."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .boundary import FLOATING, faults_of_memory, is_sound
from .directions import Cotangents, Directions, Projections
from .enums import NONE
from .errors import Fault, NotProvided, as_tensor, converted, describe, range_of
from .finite import faults_of_finite
from .heads import inner_of
from .labels import faults_of_classes, faults_of_labels
from .math.activations import highest_order
from .request import Request
from .rows import behind
from .settings import DIFFERENTIAL_ML, Settings, faults_of_projections
from .student import Student, Unrecognised
from .targets import CONSTANT, Targets
from .weights import Weights

Layers = Student | Unrecognised
# What has a row for each sample.
BY_SAMPLE = ("values", "jacobian", "hessian", "sample_weight")
UNKNOWN = ("O", "R")  # sizes that only running the student would tell
UNMIXED_ENTRIES = 'derivatives="exact", Directions.basis() or Cotangents.basis()'
UNMIXED = 'directions, Cotangents.basis() or derivatives="exact"'
NO_GRADIENT = "a tensor without requires_grad (no gradient to weights is provided)"
CONSTANT_BESIDE_TEACHER = "a tensor without requires_grad (no gradient through a teacher's derivatives is provided)"
NEEDED = ("values only; give jacobian, tangents, vjps or teacher", "none; give hessian, seconds or teacher")


def faults_of(request: Request, student: Layers, teacher: Layers | None) -> Iterator[Fault]:
    """Why a request is refused, before anything is run, chosen or drawn."""
    settings, inputs, targets = request.settings, request.inputs, request.targets
    # a generator for each tensor would cost more than the look at it
    compiling = torch.compiler.is_compiling()
    for name, tensor in request.tensors().items():
        if not (compiling or tensor is None or is_sound(tensor)):
            yield from faults_of_memory(name, tensor)
    if targets is not None:
        yield from faults_of_kinds(request, targets)
    yield from faults_of_inputs(inputs, student, "student")
    yield from faults_of_parameters(request.student, student, inputs, "student")
    yield from student.faults_of_statistics("student")
    yield from faults_of_order(student, settings.order, "student")
    yield from request.columns.faults(inputs)
    W, O = request.columns.count(inputs.shape[1]), outputs_of(request, student)
    projections, given = request.projections(student) if request.projects else (None, None)
    if projections is not None:
        yield from projections.faults(inputs, O if isinstance(projections, Cotangents) else W, given)
    if targets is not None:
        yield from faults_of_targets(targets, inputs, O, W, projections, settings)
        yield from faults_of_weight("sample_weight", request.sample_weight, inputs.shape[0], inputs)
        yield from faults_of_weight("output_weight", request.output_weight, "O" if O is None else O, inputs)
        yield from faults_of_derivative_weight(request, "O" if O is None else O, W, projections)
        yield from faults_of_labels(settings, targets, request.residual_weights, O)
        yield from faults_of_units(request, targets, projections)
        if teacher is not None and given is not None and given.requires_grad and torch.is_grad_enabled():
            yield Fault(projections.NAME, CONSTANT_BESIDE_TEACHER, given)
        if teacher is not None:
            yield from faults_of_teacher(targets.teacher, teacher, student, inputs, settings.order)
    yield from faults_of_numbers(request, given)


def faults_again(
    request: Request, given: torch.Tensor | None, student: Layers, teacher: Layers | None
) -> Iterator[Fault]:  # fmt: skip
    """Of a request like one that was accepted: numbers, and a teacher who was not known by what he is made of."""
    yield from request.columns.faults(request.inputs)
    yield from faults_of_ranges(request.residual_weights)
    if request.targets is not None:
        yield from faults_of_labels(request.settings, request.targets, request.residual_weights, student.O)
    if teacher is not None:
        yield from faults_of_teacher(request.targets.teacher, teacher, student, request.inputs, request.settings.order)
    yield from faults_of_numbers(request, given)


def faults_of_ranges(weights: Weights) -> Iterator[Fault]:
    """Of weights that are negative or not finite, which no layout tells."""
    for name, weight in zip(weights._fields, weights, strict=True):
        if weight is not None and weight.dtype is not torch.bool:
            yield from faults_of_range(f"{name}_weight", weight)


def faults_of_numbers(request: Request, given: torch.Tensor | None) -> Iterator[Fault]:
    """Of all tensors, if they are to be looked at; of a call that is compiled when it runs."""
    if request.settings.check_finite and not torch.compiler.is_compiling():
        for name, tensor in tensors_of(request, given).items():
            yield from faults_of_finite(name, tensor)


def faults_of_kinds(request: Request, targets: Targets) -> Iterator[Fault]:
    """Whether there are targets for what the settings ask, and vectors that they belong to."""
    settings, asked = request.settings, request.asked()
    if settings.weights == DIFFERENTIAL_ML and targets.jacobian is None:
        yield Fault("targets", f"a jacobian, whose columns {DIFFERENTIAL_ML!r} weighs", targets.kind)
    if settings.order > 2 and targets.jets is None and targets.teacher is None and any(settings.numbers(1)[1:]):
        expected = f"jets, derivatives of all orders from 1 to {settings.order} along directions, or a teacher"
        yield Fault("targets", expected, targets)
    yield from faults_of_scale(settings, request.input_scale)
    yield from faults_of_projections(settings.order, asked)
    for term, kind in enumerate(request.kinds[: settings.order]):
        if kind == NONE and settings.numbers(1)[1 + term] != 0:
            expected = "a derivative target, since its weight is not zero"
            yield Fault("targets", expected, f"{NEEDED[term]}, or a derivative weight of 0")
    if settings.numbers(1)[0] != 0 and targets.values is None and targets.teacher is None:
        yield Fault("targets", "values, since the value term's weight is not zero", "none")
    chosen = next(iter(asked.values()), None)
    for kind, names in ((Directions, ("tangents", "seconds", "jets")), (Cotangents, ("vjps",))):
        belongs = next((name for name in names if getattr(targets, name) is not None), None)
        if request.projects and belongs and not (isinstance(chosen, kind) and chosen.fixed):
            what = f"those the target {names[0]} belong to: given(tensor), a seed, or basis()"
            yield Fault(kind.NAME, what, chosen)


def faults_of_scale(settings: Settings, input_scale: object) -> Iterator[Fault]:
    if isinstance(settings.weights, str) and input_scale is not None:
        yield Fault("weights", "numbers together with an input_scale", settings.weights)


def faults_of_inputs(inputs: object, student: Layers, name: str) -> Iterator[Fault]:
    if not isinstance(inputs, torch.Tensor):
        yield Fault("inputs", "a tensor [N, D]", inputs, TypeError, as_tensor(inputs))
    if inputs.dtype not in FLOATING:
        hint = "" if inputs.is_complex() else "inputs.float() is of one"
        yield Fault("inputs", f"a floating dtype ({', '.join(map(str, FLOATING))})", inputs, hint=hint)
    if inputs.dim() != 2:
        hint = "inputs[:, None] are of one feature, inputs[None] is one sample" if inputs.dim() == 1 else ""
        yield Fault("inputs", "a tensor [N, D]", inputs, hint=hint)
    if inputs.shape[1] == 0:
        yield Fault("inputs", "a tensor [N, D] of at least one feature", inputs)
    if student.O == 0:
        yield Fault(name, "at least one output", "0")
    if student.D is not None and inputs.shape[1] != student.D:
        yield Fault("inputs", f"[N, {student.D}], since the {name} takes {student.D} features", inputs)


def faults_of_parameters(function: object, student: Layers, inputs: torch.Tensor, name: str) -> Iterator[Fault]:
    if not callable(function) or isinstance(function, type):
        hint = f"{function.__name__}(...) is one" if isinstance(function, type) else ""
        yield Fault(name, "a torch.nn.Module", function, TypeError, hint)
    if student.reason and student.fault is not None:
        yield student.fault._replace(argument=name)
    for i, parameter in enumerate(student.parameters):
        if not (student.reason or torch.compiler.is_compiling() or is_sound(parameter)):
            yield from faults_of_memory(f"{name}: parameter {i}", parameter)
        # only the function knows what its complex and its whole numbers are for
        same = parameter.dtype == inputs.dtype or (student.reason and not parameter.is_floating_point())
        if parameter.device != inputs.device or not same:
            expected = f"all parameters {inputs.dtype} on {inputs.device}, as the inputs are"
            hint = either_converted(inputs, parameter, name)
            yield Fault(name, expected, f"parameter {i}, {describe(parameter)}", hint=hint)


def either_converted(inputs: torch.Tensor, parameter: torch.Tensor, name: str) -> str:
    """The call that converts the data, first of all float64 of NumPy's to the usual float32, or else the student."""
    data, student = converted(inputs, parameter, "inputs"), converted(parameter, inputs, name)
    return f"{data} (and so the targets), or {student}" if data and student else ""


def faults_of_order(student: Layers, order: int, name: str) -> Iterator[Fault]:
    """An activation whose second derivative is zero almost everywhere has no second derivative to fit, and one that has
    a jump in a lower derivative no sound one of this order."""
    flat = student.flat() if order > 1 else None
    if flat is not None:
        what = f"1 with {flat}, whose second derivative is 0 almost everywhere "
        what += f"(the second derivative of the {name} would be silently 0)"
        yield Fault("order", what, order, NotProvided)
    for formula in student.activations:
        highest, why = highest_order(formula)
        if order > max(2, highest):
            what = f"at most {highest} with {formula.name} in the {name}, since {why}"
            yield Fault("order", what, order, NotProvided)


def outputs_of(request: Request, student: Layers) -> int | None:
    """O, of the student; where only running him would tell, of what he is to be compared with."""
    if student.O is not None or request.targets is None:
        return student.O
    values, jacobian = request.targets.values, request.targets.jacobian
    if values is not None and 0 < values.dim() <= 2 and not request.targets.has_classes:
        return values.shape[1] if values.dim() == 2 else 1
    if jacobian is not None and 1 < jacobian.dim() <= 3:
        return jacobian.shape[1] if jacobian.dim() == 3 else 1
    return None


def faults_of_shape(name: str, tensor: object, shapes: list[tuple], inputs: torch.Tensor) -> Iterator[Fault]:
    """Not one of `shapes`, where a letter stands for any size; or not of the inputs' dtype and device."""
    if not any(matches(tuple(tensor.shape), shape) for shape in shapes):
        expected = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
        yield Fault(name, expected, tensor, hint=other_samples(name, tensor, shapes, inputs.shape[0]))
    if tensor.dtype != inputs.dtype or tensor.device != inputs.device:
        hint = converted(tensor, inputs, name)
        yield Fault(name, f"{inputs.dtype} on {inputs.device}, as the inputs are", tensor, hint=hint)


def other_samples(name: str, tensor: torch.Tensor, shapes: list[tuple], N: int) -> str:
    """Of what has a row for each sample, where nothing but their number is another one: how to have the first rows."""
    M = tensor.shape[0] if tensor.dim() and name in BY_SAMPLE else N
    if M == N or not any(matches((N, *tensor.shape[1:]), shape) for shape in shapes):
        return ""
    first = f"; {name}[:{N}] are the first {N} of {M}" if 0 < N < M else ""
    return f"the inputs are {N} samples, and these {M}{first}"


def matches(got: tuple[int, ...], shape: tuple[int | str, ...]) -> bool:
    if len(got) != len(shape):
        return False
    return all(n in UNKNOWN or n == m for n, m in zip(shape, got, strict=True))


def faults_of_targets(
    targets: Targets, inputs: torch.Tensor, O: int | None, W: int, projections: Projections | None, settings: Settings
) -> Iterator[Fault]:
    N, some, one = inputs.shape[0], "O" if O is None else O, O is None or O == 1
    P = None if projections is None else projections.count(some if isinstance(projections, Cotangents) else W)
    shapes = {
        # A compiler's truth, which is no number, is asked for.
        "values": [(N, some), *([(N,)] if one else [])],
        "jacobian": [(N, some, W), *([(N, W)] if one else [])],
        "hessian": [(N, some, W, W)],
        "tangents": [(P, N, some)],
        "seconds": [(P, N, some)],
        "vjps": [("R" if P == "O" else P, N, W)],
        "jets": [(settings.order, P, N, some)],
    }
    for name, tensor in targets.tensors().items():
        if tensor.requires_grad:
            yield Fault(name, CONSTANT, tensor)
        if name == "values" and targets.has_classes:
            yield from faults_of_classes(tensor, settings.value_loss, inputs)
        elif projections is not None or name in ("values", "jacobian", "hessian"):
            yield from faults_of_shape(name, tensor, shapes[name], inputs)


def faults_of_weight(name: str, weight: object, count: int | str, inputs: torch.Tensor) -> Iterator[Fault]:
    """Of a weight for each sample or output."""
    if weight is None:
        return
    if not isinstance(weight, torch.Tensor):
        yield Fault(name, f"a tensor [{count}]", weight, TypeError, as_tensor(weight))
    if weight.requires_grad:
        yield Fault(name, NO_GRADIENT, weight)
    yield from faults_of_shape(name, weight, [(count,)], inputs)
    yield from faults_of_range(name, weight)


def faults_of_range(name: str, weight: torch.Tensor) -> Iterator[Fault]:
    known = range_of(weight)
    if known is not None and not 0 <= known[0] <= known[1] < math.inf:
        yield Fault(name, "finite numbers >= 0", f"numbers from {known[0]:.3g} to {known[1]:.3g}")


def faults_of_derivative_weight(
    request: Request, O: int | str, W: int, projections: Projections | None
) -> Iterator[Fault]:  # fmt: skip
    name, weight, inputs = "derivative_weight", request.derivative_weight, request.inputs
    if weight is None:
        return
    N, basis = inputs.shape[0], projections is None or projections.entries
    if basis and isinstance(projections, Directions):
        W = projections.count(W)
    entries = f" or [{N}, {O}, {W}]" if basis and request.order == 1 else ""
    expected = f"{inputs.dtype} [{N}], [{N}, {O}]{entries}, or a mask of columns, torch.bool [{N}, {W}]"
    if not isinstance(weight, torch.Tensor):
        yield Fault(name, expected, weight, TypeError)
    if weight.requires_grad:
        yield Fault(name, NO_GRADIENT, weight)
    if weight.device != inputs.device:
        yield Fault(name, f"a tensor on {inputs.device}, as the inputs are", weight)
    shape, mask = tuple(weight.shape), weight.dtype == torch.bool
    if not mask and len(shape) == 2 and isinstance(projections, Cotangents) and not basis:
        yield Fault(name, UNMIXED, "mixed outputs")
    if len(shape) == 3 and not entries:
        where = "order 1" if basis else f"{UNMIXED_ENTRIES} (along other directions a mask, torch.bool [{N}, {W}])"
        yield Fault(name, f"{where}, for a weight of each entry of the Jacobian", weight)
    shapes = ([(N, W)] if mask else [(N,), (N, O)]) + [(N, O, W)] * bool(entries)
    if not (mask or weight.dtype == inputs.dtype) or not any(matches(shape, one) for one in shapes):
        yield Fault(name, expected, weight)
    if not mask:
        yield from faults_of_range(name, weight)


def faults_of_units(request: Request, targets: Targets, projections: Projections | None) -> Iterator[Fault]:
    """Weights of columns and outputs, where their derivatives are mixed already."""
    projected = any(getattr(targets, name) is not None for name in ("tangents", "seconds", "jets"))
    if request.input_scale is not None and projected:
        yield Fault("input_scale", "a jacobian, hessian, vjps or teacher to scale alike", "projected tangents")
    mixed = isinstance(projections, Cotangents) and projections.distribution != "basis"
    if mixed and request.output_weight is not None:
        yield Fault("output_weight", UNMIXED, "mixed outputs")
    if projected and request.residual_weights.masks(projections):
        yield Fault("derivative_weight", "a jacobian, hessian or teacher to mask alike", "projected tangents")


def faults_of_teacher(
    function: object, teacher: Layers, student: Layers, inputs: torch.Tensor, order: int
) -> Iterator[Fault]:
    yield from faults_of_inputs(inputs, teacher, "teacher")
    yield from faults_of_parameters(function, teacher, inputs, "teacher")
    yield from teacher.faults_of_statistics("teacher")
    yield from faults_of_order(teacher, order, "teacher")
    if None not in (teacher.O, student.O) and teacher.O != student.O:
        yield Fault("teacher", f"{student.O} outputs, as the student has", f"{teacher.O}")


def tensors_of(request: Request, given: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """All tensors of a request, by name, and 0 for what does not count."""
    targets, named = {} if request.targets is None else request.targets.tensors(), request.tensors()
    named |= {name: given for name in ("directions", "cotangents") if name in " ".join(request.asked())}
    student = inner_of(behind(request.student))
    named |= {f"student.{name}": p for name, p in getattr(student, "named_parameters", list)()}
    named = {name: tensor for name, tensor in named.items() if tensor is not None}
    for name in targets:
        if not named[name].is_floating_point():
            continue
        counting = request.residual_weights.counting(name, named[name])
        if counting is not None:
            named[name] = torch.where(counting, named[name], 0.0)
    return named

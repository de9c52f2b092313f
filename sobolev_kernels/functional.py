"""The functions users call: validate once, in words, then hand a Problem and its tensors to a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from . import dispatch, ops
from .backends import reference
from .directions import Directions
from .errors import need
from .math.losses import choose_loss
from .math.table import Formula
from .problem import JVP, LOSS, PER_SAMPLE, Operands, Problem
from .student import Student, recognise
from .targets import Targets
from .validate import check_finite_tensors, check_inputs, check_outputs, check_student, check_targets, check_weights

REDUCTIONS = ("mean", "sum", "none")
COMPUTE_DTYPE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
LossName = str | tuple | Formula


class SobolevTerms(NamedTuple):
    """What `return_terms=True` gives: scalars, or [N] with reduction="none". Only `loss` carries gradients.

    A term without a target, which a weight of zero allows, is NaN.
    """

    loss: torch.Tensor
    value: torch.Tensor
    derivative: torch.Tensor


@dataclass(frozen=True)
class Call:
    """One validated call: what is common to the loss and to `jvp`."""

    student: object
    layers: Student | str
    x: torch.Tensor
    directions: Directions | None
    seed: torch.Tensor | None
    problem: Problem

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [compute_dtype(p, self.layers) for p in self.layers.parameters]

    @property
    def given(self) -> torch.Tensor | None:
        return None if self.directions is None or self.directions.values is None else self.directions.values

    def materialised(self) -> torch.Tensor:  # [P, N, D]
        if self.directions is None:
            return self.x.new_empty((0, *self.x.shape))
        return ops.materialise(self.directions, self.seed, self.x.detach()).to(self.x.dtype)

    def reference_jvp(self) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self.layers, str):
            student = lambda x: check_outputs(self.student(x), x, "student")  # noqa: E731
            return reference.function_jvp(student, self.x, self.materialised())
        return reference.mlp_jvp(self.layers, self.parameters, self.x, self.materialised())


def compute_dtype(tensor: torch.Tensor | None, layers: Student | str) -> torch.Tensor | None:
    """bfloat16 and float16 are computed in float32; but of an unrecognised module only it knows how."""
    if tensor is None or isinstance(layers, str) or tensor.dtype not in COMPUTE_DTYPE:
        return tensor
    return tensor.to(COMPUTE_DTYPE[tensor.dtype])


def make_problem(layers: Student | str, x: torch.Tensor, directions: Directions | None, **fields) -> Problem:
    """Of a student that was not recognised, `layers` is the reason and only D is known."""
    D = x.shape[1]
    if isinstance(layers, str):
        fields |= {"widths": (D,), "biases": (), "activations": (), "unrecognised": layers}
    else:
        fields |= {"widths": layers.widths, "biases": layers.biases, "activations": layers.activations}
        wanted = x.requires_grad or any(p.requires_grad for p in layers.parameters)
        fields["gradients"] = fields["result"] == LOSS and wanted and torch.is_grad_enabled()
    if directions is not None:
        fields |= {"P": directions.count(D), "distribution": directions.distribution}
        fields |= {"shared": directions.shared, "scale": directions.scale(D)}
    dtype = str(x.dtype).removeprefix("torch.")
    return Problem(dtype=dtype, device=x.device.type, input_gradient=x.requires_grad, **fields)


def begin(student: object, inputs: torch.Tensor, directions: Directions | None, backend: str | None, **fields) -> Call:
    """Recognise the student, draw the seed, choose the backend."""
    layers = recognise(student)
    check_inputs(inputs, layers)
    check_student(student, layers, inputs)
    if directions is not None:
        directions.check(inputs)
        directions = replace(directions, values=compute_dtype(directions.values, layers))
    x = compute_dtype(inputs, layers)
    problem = dispatch.choose(make_problem(layers, x, directions, **fields), backend)
    if problem.backend != "reference":
        ops.need_no_transforms(x, *layers.parameters)
    seed = None if directions is None else directions.draw_seed()
    return Call(student, layers, x, directions, seed, problem)


def run_jvp(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    if call.problem.backend == "reference":
        return call.reference_jvp()
    ops.need_no_transforms(call.given)
    y, tangents, *_ = ops.mlp_sobolev(call.problem, Operands(call.x, call.parameters, call.given, call.seed))
    return y, tangents


def jvp(
    student: torch.nn.Module, x: torch.Tensor, v: torch.Tensor | Directions, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's values and its directional derivatives, D m(x)[v], in one fused pass.

    Both results are differentiable with respect to the parameters and x (once; with `backend="reference"` as often
    as you like), so any loss can stand on top.

    Args:
        student: a module from [N, D] to [N, O]; fused if it is an MLP of the activation table (see `explain`).
        x: inputs [N, D], floating point, of the student's dtype and device.
        v: directions [P, N, D], or [P, D] shared by the batch, or a `Directions`.
        backend: forces one by name; it never falls back.

    Returns:
        y [N, O] and tangents [P, N, O], of x's dtype.

    Raises:
        ValueError: a wrong shape, dtype or device, naming the argument, what was expected and what came.
        NotImplementedError: the forced backend refuses, or a derivative is not provided.

    Example:
        >>> y, dy = jvp(torch.nn.Linear(2, 1), torch.zeros(5, 2), torch.ones(1, 2))
        >>> dy.shape
        torch.Size([1, 5, 1])
    """
    student = torch.nn.Sequential(student) if type(student) is torch.nn.Linear else student
    directions = v if isinstance(v, Directions) else Directions.given(v)
    call = begin(student, x, directions, backend, result=JVP)
    y, tangents = run_jvp(call)
    return y.to(x.dtype), tangents.to(x.dtype)


def sobolev_loss(
    student: torch.nn.Module,
    inputs: torch.Tensor,
    targets: Targets,
    *,
    directions: Directions | None = None,
    value_loss: LossName = "mse",
    derivative_loss: LossName = "mse",
    weights: tuple[float, float] = (1.0, 1.0),
    reduction: str = "mean",
    backend: str | None = None,
    return_terms: bool = False,
    check_finite: bool = False,
) -> torch.Tensor | SobolevTerms:
    """The Sobolev loss of a student on values and directional derivatives (Czarnecki et al., 2017).

        loss = w_0 · mean_{n,o} ρ_0(m(x_n) - f(x_n)) + w_1 · mean_{p,n,o} ρ_1(D m(x_n)[v_p] - D f(x_n)[v_p])

    On a fused backend one call computes the loss and all its gradients; `backward` only scales them.

    Args:
        student: a module from [N, D] to [N, O]; fused if it is an MLP of the activation table (see `explain`).
        inputs: x [N, D], floating point, of the student's dtype and device. Gets a gradient if it asks for one;
            the targets are constants then.
        targets: see `Targets`.
        directions: see `Directions`; by default `targets.directions`, else `Directions.sphere(1)`.
        value_loss, derivative_loss: "mse", "l1", "huber" or ("huber", delta), "log_cosh".
        weights: (w_0, w_1), finite numbers >= 0. A term of weight zero needs no target.
        reduction: "mean" or "sum" over the samples, or "none": [N], and the gradients wait for the backward.
        backend: forces one by name; it never falls back. So does SOBOLEV_BACKEND.
        return_terms: also return the two terms, unweighted, as `SobolevTerms`.
        check_finite: look for NaN and infinity in inputs, targets and parameters first (costs a pass over them).

    Returns:
        The loss, a scalar (or [N]) of the inputs' dtype; with `return_terms`, a `SobolevTerms`. Of an empty batch
        it is 0, and so are its gradients.

    Raises:
        TypeError, ValueError: bad arguments, naming the argument, what was expected and what came.
        NotImplementedError: the forced backend refuses, or a derivative is not provided.

    Example:
        >>> from sobolev_kernels import MLP, Directions, Targets
        >>> x = torch.rand(8, 2)
        >>> f = lambda x: (x ** 3).sum(-1, keepdim=True)
        >>> loss = sobolev_loss(MLP(2, 1, width=16), x, Targets(teacher=f), directions=Directions.sphere(4))
        >>> loss.backward()
    """
    need(reduction in REDUCTIONS, "reduction", f"one of {', '.join(REDUCTIONS)}", reduction)
    need(isinstance(targets, Targets), "targets", "a sobolev_kernels.Targets", targets, TypeError)
    losses = (choose_loss("value_loss", value_loss), choose_loss("derivative_loss", derivative_loss))
    weights = check_weights(weights)
    directions = pick_directions(directions, targets, weights, return_terms)
    result = PER_SAMPLE if reduction == "none" else LOSS
    call = begin(
        student, inputs, directions, backend, result=result, reduction=reduction,
        derivative_target="none" if directions is None else targets.kind,
        value_loss=losses[0], derivative_loss=losses[1],
    )  # fmt: skip
    O = None if isinstance(call.layers, str) else call.layers.widths[-1]
    check_targets(targets, inputs, O, call.directions, weights)
    if check_finite:
        check_finite_tensors(student, inputs, targets, call.given)
    values, derivative = resolve(targets, call, inputs.dtype)
    if call.problem.backend == "reference":
        loss, value, slope = reference_loss(call, values, derivative, weights)
    else:
        operands = Operands(call.x, call.parameters, call.given, call.seed, values, derivative, None, weights)
        ops.need_no_transforms(values, derivative, call.given)
        loss, terms, *_ = ops.mlp_sobolev(call.problem, operands)
        value, slope = terms.detach().unbind(0)
    if not return_terms:
        return loss.to(inputs.dtype)
    value = value if values is not None else torch.full_like(value, torch.nan)
    slope = slope if directions is not None else torch.full_like(slope, torch.nan)
    return SobolevTerms(loss.to(inputs.dtype), value.to(inputs.dtype), slope.to(inputs.dtype))


def pick_directions(directions, targets: Targets, weights, return_terms: bool) -> Directions | None:
    """The directions of a call; None where the derivative term is not computed."""
    kind = directions is None or isinstance(directions, Directions)
    need(
        kind, "directions", "a sobolev_kernels.Directions (given(tensor) makes one of a tensor)", directions, TypeError
    )
    once = directions is None or targets.directions is None
    need(once, "directions", "either in targets or in the call", "both")
    if targets.kind == "none" and targets.teacher is None:
        have = "values only; give jacobian, tangents or teacher, or a derivative weight of 0"
        need(weights[1] == 0, "targets", "a derivative target, since its weight is not zero", have)
        return None
    if weights[1] == 0 and not return_terms:
        return None
    chosen = directions or targets.directions
    if targets.tangents is not None:
        fixed = chosen is not None and chosen.fixed
        need(fixed, "directions", "those the target tangents belong to: given(tensor), a seed, or basis()", chosen)
    return chosen or Directions.sphere(1)


def resolve(targets: Targets, call: Call, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Targets as the backends take them: values [N, O], and the Jacobian [N, O, D] or tangents [P, N, O]."""
    values, derivative = targets.values, targets.derivative
    if targets.teacher is not None:
        values_of_teacher, derivative = teacher_jvp(targets.teacher, call, dtype)
        values = values_of_teacher if values is None else values
    if values is not None and values.dim() == 1:
        values = values[:, None]
    if derivative is targets.jacobian and derivative is not None and derivative.dim() == 2:
        derivative = derivative[:, None, :]
    derivative = None if call.directions is None else derivative
    return compute_dtype(values, call.layers), compute_dtype(derivative, call.layers)


def teacher_jvp(teacher: Callable, call: Call, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's values and tangents along the student's directions, without gradients; `dtype` is the user's."""
    x = call.x.detach()
    layers = recognise(teacher)
    with torch.no_grad():
        check_inputs(x, layers, "teacher")
        check_student(teacher, layers, x.to(dtype), "teacher")
        if not isinstance(layers, str) and x.dtype not in COMPUTE_DTYPE:
            if not isinstance(call.layers, str):
                O = call.layers.widths[-1]
                fits = layers.widths[-1] == O
                need(fits, "teacher", f"{O} outputs, as the student has", f"{layers.widths[-1]}")
            problem = make_problem(layers, x, call.directions, result=JVP)
            problem = replace(problem, backend=call.problem.backend)
            if dispatch.refusal(problem.backend, problem) is None:
                return run_jvp(replace(call, student=teacher, layers=layers, x=x, problem=problem))
        function = lambda t: with_outputs(teacher(t))  # noqa: E731
        y, tangents = reference.function_jvp(function, x.to(dtype), call.materialised().to(dtype))
        outputs = y.shape[-1] if isinstance(call.layers, str) else call.layers.widths[-1]
        need(y.shape == (len(x), outputs), "teacher", f"values [{len(x)}, {outputs}], one row for each input", y)
        need(y.dtype == dtype, "teacher", f"values of {dtype}, as the inputs are", y)
        return y.to(x.dtype), tangents.to(x.dtype)


def with_outputs(y: torch.Tensor) -> torch.Tensor:
    """A teacher of one output may return [N]."""
    need(isinstance(y, torch.Tensor), "teacher", "a function that returns a tensor [N, O]", y, TypeError)
    return y[:, None] if y.dim() == 1 else y


def reference_loss(call: Call, values, derivative, weights):
    """(loss, value, derivative): the loss differentiable as often as needed, the terms detached."""
    problem, (y, tangents) = call.problem, call.reference_jvp()
    if problem.derivative_target == "jacobian" and derivative is not None:
        derivative = reference.project(derivative, call.materialised())
    zero = y.new_zeros(y.shape[0])
    value = zero if values is None else reference.term(problem.value_loss, y, values)
    slope = zero if derivative is None else reference.term(problem.derivative_loss, tangents, derivative)
    if problem.reduction != "none":
        samples = max(1, y.shape[0]) if problem.reduction == "mean" else 1
        value, slope = value.sum() / samples, slope.sum() / samples
    loss = sum(w * t for w, t in zip(weights, (value, slope), strict=True) if w)
    if not any(weights):
        loss = 0 * (y.sum(-1) if problem.reduction == "none" else y.sum())
    return loss, value.detach(), slope.detach()

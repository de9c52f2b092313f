"""`sobolev_loss`: validate once, in words, then hand a Problem and its tensors to a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from . import dispatch
from .backends import reference
from .call import COMPUTE_DTYPE, EXACT, Call, begin, compute_dtype, make_problem
from .columns import Columns
from .directions import Cotangents, Directions, Projections
from .errors import need
from .math.losses import choose_loss
from .math.table import Formula
from .problem import COTANGENTS, DENSE, DERIVATIVES, LOSS, NONE, PER_SAMPLE
from .student import recognise
from .targets import Targets
from .validate import (
    check_finite_tensors,
    check_inputs,
    check_known_order,
    check_order,
    check_student,
    check_targets,
    check_weight,
    check_weights,
)  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")
DIFFERENTIAL_ML = "differential-ml"
LossName = str | tuple | Formula


class SobolevTerms(NamedTuple):
    """What `return_terms=True` gives: scalars, or [N] with reduction="none". Only `loss` carries gradients.

    A term without a target, which a weight of zero allows, is NaN; `second` is None unless `order=2`.
    """

    loss: torch.Tensor
    value: torch.Tensor
    derivative: torch.Tensor
    second: torch.Tensor | None = None


def sobolev_loss(
    student: torch.nn.Module,
    inputs: torch.Tensor,
    targets: Targets,
    *,
    directions: Directions | None = None,
    cotangents: Cotangents | None = None,
    derivatives: str | None = None,
    order: int = 1,
    wrt: Sequence[int] | None = None,
    value_loss: LossName = "mse",
    derivative_loss: LossName = "mse",
    weights: Sequence[float] | str | None = None,
    input_scale: torch.Tensor | None = None,
    sample_weight: torch.Tensor | None = None,
    output_weight: torch.Tensor | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    backend: str | None = None,
    return_terms: bool = False,
    check_finite: bool = False,
) -> torch.Tensor | SobolevTerms:
    """The Sobolev loss of a student on values and derivatives (Czarnecki et al., 2017).

        loss = w_0 · mean_{n,o} ρ_0(m(x_n) - f(x_n)) + w_1 · mean_{p,n,o} ρ_1(D m(x_n)[v_p] - D f(x_n)[v_p])
                                                     + w_2 · mean_{p,n,o} ρ_1(D²m(x_n)[v_p, v_p] - D²f(x_n)[v_p, v_p])

    With `cotangents` the middle term is instead the mean over r, n and d of ρ_1 of (D m(x_n)ᵀu_r - D f(x_n)ᵀu_r)_d;
    with `derivatives="exact"` the mean over all entries of the Jacobian. On a fused backend one call computes the
    loss and all its gradients; `backward` only scales them.

    Args:
        student: a module from [N, D] to [N, O]; fused if it is an MLP of the activation table (see `explain`).
        inputs: x [N, D], floating point, of the student's dtype and device. Gets a gradient if it asks for one;
            the targets are constants then.
        targets: see `Targets`.
        directions: see `Directions`; by default `targets.directions`, else `Directions.sphere(1)`.
        cotangents: see `Cotangents`, instead of directions; by default `targets.cotangents`.
        derivatives: "exact", instead of directions and cotangents: the whole Jacobian, from the cheaper side.
        order: 2 adds the second directional derivatives along the same directions. Refused for a student or teacher
            with a module as ReLU in it, whose second derivative is 0 almost everywhere; a plain function, or a forward
            that calls relu as one, cannot be looked into, and its second derivatives are silently 0.
        wrt: the W input columns that are differentiated, for example without a label or time appended to the inputs;
            by default all. Directions, Jacobian and Hessian have W columns then, in this order.
        value_loss, derivative_loss: "mse", "l1", "huber" or ("huber", delta), "log_cosh"; or a loss of all the
            numbers of a sample in a term, "relative_mse" or ("relative_mse", eps): |a - t|² / (|t|² + eps), and
            "cosine": 1 - a·t / (|a| |t|). The mean is over the samples alone for these.
        weights: (w_0, w_1), of order 2 (w_0, w_1, w_2), finite numbers >= 0, by default ones. A term of weight zero
            needs no target. Or "differential-ml" (Huge & Savine, 2020): (1 / (1 + W), W / (1 + W)), with the
            `input_scale` 1 / rms(∂f/∂x_j) over the batch, from the target Jacobian.
        input_scale: [W], > 0: multiplies the derivatives with respect to each column, of student and target.
        sample_weight: [N], multiplies each sample's residuals; `output_weight`: [O], each output's.
        reduction: "mean" or "sum" over the samples, or "none": [N], and the gradients wait for the backward.
        precision: the least that what is multiplied may have: "ieee" (float32), "tf32", "bf16" or "fp16"; sums and
            all else are float32. By default what `torch.autocast` says, else "ieee". A backend that has no such
            multiply, as those of the CPU, takes a better one. The errors are in docs/triton.md.
        backend: forces one by name; it never falls back. So does SOBOLEV_BACKEND.
        return_terms: also return the terms, unweighted, as `SobolevTerms`.
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
    check_known_order(order)
    losses = (choose_loss("value_loss", value_loss), choose_loss("derivative_loss", derivative_loss))
    columns = Columns.of(wrt, input_scale)
    weights = choose_weights(weights, order, input_scale)
    if isinstance(weights, str):
        weights, columns = differential_ml(columns, targets, inputs)
    projections = pick_projections(directions, cotangents, derivatives, targets, order, weights, return_terms)
    asked, order = order, 1 if projections is None else order
    call = begin(
        student, inputs, projections, backend, columns, precision,
        result=PER_SAMPLE if reduction == "none" else LOSS, reduction=reduction, order=order,
        derivative_target=NONE if projections is None else targets.kind,
        second_target=targets.second_kind if order == 2 else NONE,
        value_loss=losses[0], derivative_loss=losses[1],
    )  # fmt: skip
    O = None if isinstance(call.layers, str) else call.layers.widths[-1]
    check_targets(targets, inputs, O, columns.count(inputs.shape[1]), call.projections, weights)
    check_weight("sample_weight", sample_weight, inputs.shape[0], inputs)
    check_weight("output_weight", output_weight, "O" if O is None else O, inputs)
    unscaled = input_scale is None or (targets.tangents is None and targets.seconds is None)
    need(unscaled, "input_scale", "a jacobian, hessian, vjps or teacher to scale alike", "projected tangents")
    whole = call.problem.projection != COTANGENTS or call.problem.distribution == "basis" or output_weight is None
    need(whole, "output_weight", 'directions, Cotangents.basis() or derivatives="exact"', "mixed outputs")
    if check_finite:
        more = {"input_scale": input_scale, "sample_weight": sample_weight, "output_weight": output_weight}
        check_finite_tensors(student, inputs, targets, call.projections, more)
    tensors = dict(zip(("values", "derivative", "second"), resolve(targets, call, inputs.dtype), strict=True))
    tensors["sample_weight"] = compute_dtype(sample_weight, call.layers)
    tensors["output_weight"] = compute_dtype(output_weight, call.layers)
    if call.problem.backend == "reference":
        loss, terms = reference_loss(call, weights, **tensors)
    else:
        loss, terms, *_ = call.fused(weights=weights[: 1 + order], **tensors)
    if not return_terms:
        return loss.to(inputs.dtype)
    there = (tensors["values"] is not None, tensors["derivative"] is not None, tensors["second"] is not None)
    terms = [t if known else torch.full_like(t, torch.nan) for t, known in zip(terms.detach(), there, strict=False)]
    terms += [torch.full_like(terms[0], torch.nan)] * (asked - order)
    return SobolevTerms(loss.to(inputs.dtype), *(t.to(inputs.dtype) for t in terms))


def choose_weights(weights: object, order: int, input_scale: object = None) -> tuple[float, ...] | str:
    """As numbers, or the name of a balance that waits for the targets."""
    if not isinstance(weights, str):
        return check_weights(weights, order)
    need(weights == DIFFERENTIAL_ML, "weights", f"numbers or {DIFFERENTIAL_ML!r}", weights)
    need(order == 1, "weights", f"numbers, since {DIFFERENTIAL_ML!r} is of order 1", f"order = {order}")
    need(input_scale is None, "weights", "numbers together with an input_scale", weights)
    return weights


def differential_ml(columns: Columns, targets: Targets, inputs: torch.Tensor):
    """Weights and columns in the balance of Huge & Savine: every derivative in units of its own size."""
    need(targets.jacobian is not None, "targets", f"a jacobian, whose columns {DIFFERENTIAL_ML!r} weighs", targets.kind)
    columns.check(inputs)
    W = columns.count(inputs.shape[1])
    jacobian = targets.jacobian.to(COMPUTE_DTYPE.get(inputs.dtype, inputs.dtype))
    rms = jacobian.reshape(-1, W).square().mean(0).sqrt()
    # a column that never changes f has no size of its own: it takes that of the others
    usual = rms.square().mean().sqrt()
    scale = 1 / torch.where(rms > 0, rms, torch.where(usual > 0, usual, torch.ones_like(usual)))
    scale = scale if targets.jacobian.numel() else torch.ones_like(scale)
    return (1 / (1 + W), W / (1 + W)), replace(columns, scale=scale)


def pick_one(
    directions, cotangents, derivatives, order: int, targets: Targets | None = None
) -> Projections | str | None:
    """The one of them that was asked for, if any."""
    for name, value, kind in (("directions", directions, Directions), ("cotangents", cotangents, Cotangents)):
        expected = f"a sobolev_kernels.{kind.__name__} (given(tensor) makes one of a tensor)"
        need(value is None or isinstance(value, kind), name, expected, value, TypeError)
    need(derivatives in (None, EXACT), "derivatives", f"None or {EXACT!r}", derivatives)
    asked = {"directions": directions, "cotangents": cotangents, "derivatives": derivatives}
    if targets is not None:
        asked |= {"directions in targets": targets.directions, "cotangents in targets": targets.cotangents}
    asked = {name: value for name, value in asked.items() if value is not None}
    twice = {name.split()[0] for name in asked} == {"directions"} and len(asked) == 2
    need(not twice, "directions", "either in targets or in the call", "both")
    need(len(asked) <= 1, "directions", "one of directions, cotangents and derivatives", " and ".join(asked))
    chosen = next(iter(asked.values()), None)
    along = order == 1 or chosen is None or isinstance(chosen, Directions)
    need(along, "order", "1 with cotangents or exact derivatives (order 2 is along directions)", order)
    return chosen


def pick_projections(
    directions, cotangents, derivatives, targets: Targets, order: int, weights, return_terms: bool
) -> Projections | str | None:
    """What the derivatives of a call are projected on; None where no derivative term is computed."""
    chosen = pick_one(directions, cotangents, derivatives, order, targets)
    for term, kind in ((1, targets.kind), (2, targets.second_kind))[:order]:
        if kind == NONE:
            what = ("values only; give jacobian, tangents, vjps or teacher", "none; give hessian, seconds or teacher")
            need(weights[term] == 0, "targets", "a derivative target, since its weight is not zero",
                 f"{what[term - 1]}, or a derivative weight of 0")  # fmt: skip
    kinds = {targets.kind, targets.second_kind if order == 2 else NONE}
    if kinds == {NONE} or (not any(weights[1:]) and not return_terms):
        return None
    if targets.tangents is not None or targets.seconds is not None:
        fixed = isinstance(chosen, Directions) and chosen.fixed
        need(fixed, "directions", "those the target tangents belong to: given(tensor), a seed, or basis()", chosen)
    if targets.vjps is not None:
        fixed = isinstance(chosen, Cotangents) and chosen.fixed
        need(fixed, "cotangents", "those the target vjps belong to: given(tensor), a seed, or basis()", chosen)
    return chosen or Directions.sphere(1)


def resolve(targets: Targets, call: Call, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
    """Targets as the backends take them: values [N, O], derivative and second, dense or projected."""
    values, derivative, second = targets.values, targets.derivative, targets.second
    one = derivative is targets.jacobian and derivative is not None and derivative.dim() == 2
    derivative = derivative[:, None, :] if one else derivative
    if targets.teacher is not None:
        values_of_teacher, derivative, second = teacher_derivatives(targets.teacher, call, dtype)
        values = values_of_teacher if values is None else values
    if values is not None and values.dim() == 1:
        values = values[:, None]
    derivative = None if call.projections is None else derivative
    second = second if call.problem.order == 2 else None
    values, derivative, second = (compute_dtype(tensor, call.layers) for tensor in (values, derivative, second))
    scale = call.columns.scale
    if scale is not None and targets.teacher is None:
        derivative = None if derivative is None else derivative * scale
        second = None if second is None else second * scale * scale[:, None]
    return values, derivative, second


def teacher_derivatives(teacher: Callable, call: Call, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
    """The teacher's values and derivatives, projected as the student's, without gradients; `dtype` is the user's."""
    x, problem = call.x.detach(), call.problem
    layers = recognise(teacher)
    with torch.no_grad():
        check_inputs(x, layers, "teacher")
        check_student(teacher, layers, x.to(dtype), "teacher")
        check_order(teacher, layers, problem.order, "teacher")
        if not isinstance(layers, str) and x.dtype not in COMPUTE_DTYPE:
            if not isinstance(call.layers, str):
                O = call.layers.widths[-1]
                fits = layers.widths[-1] == O
                need(fits, "teacher", f"{O} outputs, as the student has", f"{layers.widths[-1]}")
            n = problem.drawn if problem.projection == COTANGENTS else call.columns.count(x.shape[1])
            own = make_problem(layers, x, call.projections, n, call.columns, result=DERIVATIVES, order=problem.order)
            own = replace(own, backend=problem.backend)
            if dispatch.refusal(own.backend, own) is None:
                return replace(call, student=teacher, layers=layers, x=x, problem=own).derivatives()
        function = lambda t: with_outputs(teacher(t))  # noqa: E731
        vectors = call.materialised().to(dtype)
        if problem.projection == COTANGENTS:
            y, derivative = reference.function_vjp(function, x.to(dtype), vectors)
            derivative, second = call.columns.restrict(derivative), None
        else:
            v = call.columns.embed(vectors, x.shape[1])
            y, derivative, second = reference.function_jet(function, x.to(dtype), v, problem.order)
        outputs = y.shape[-1] if isinstance(call.layers, str) else call.layers.widths[-1]
        need(y.shape == (len(x), outputs), "teacher", f"values [{len(x)}, {outputs}], one row for each input", y)
        cast = torch.is_autocast_enabled(x.device.type)
        need(cast or y.dtype == dtype, "teacher", f"values of {dtype}, as the inputs are", y)
        return tuple(None if tensor is None else tensor.to(x.dtype) for tensor in (y, derivative, second))


def with_outputs(y: torch.Tensor) -> torch.Tensor:
    """A teacher of one output may return [N]."""
    need(isinstance(y, torch.Tensor), "teacher", "a function that returns a tensor [N, O]", y, TypeError)
    return y[:, None] if y.dim() == 1 else y


def reference_loss(call: Call, weights, values, derivative, second, sample_weight, output_weight):
    """(loss, terms): the loss differentiable as often as needed."""
    problem, vectors = call.problem, call.materialised()
    y, *predictions = call.by_reference()
    cotangents, O = problem.projection == COTANGENTS, y.shape[1]
    for name, tensor, dim in (("jacobian", derivative, 1), ("output_weight", output_weight, 0)):
        dense = name == "output_weight" or problem.derivative_target == DENSE
        fits = tensor is None or not dense or tensor.shape[dim] == O
        need(fits, name, f"{O} outputs, as the student has", tensor)
    if problem.derivative_target == DENSE and derivative is not None:
        derivative = (reference.pull if cotangents else reference.project)(derivative, vectors)
    if problem.second_target == DENSE and second is not None:
        second = reference.project_twice(second, vectors)
    rows = output_weight[:, None, None] if cotangents and output_weight is not None else output_weight
    parts = [(problem.value_loss, y, values, output_weight)]
    parts += [(problem.derivative_loss, p, t, rows) for p, t in zip(predictions, (derivative, second), strict=True)]
    terms = []
    for loss, prediction, target, weight in parts[: 1 + problem.order]:
        term = y.new_zeros(y.shape[0]) if target is None else reference.term(loss, prediction, target, weight)
        term = term if sample_weight is None else sample_weight * term
        if problem.reduction != "none":
            term = term.sum() / (max(1, y.shape[0]) if problem.reduction == "mean" else 1)
        terms.append(term)
    loss = sum(w * term for w, term in zip(weights, terms, strict=False) if w)
    if not any(weights):
        loss = 0 * (y.sum(-1) if problem.reduction == "none" else y.sum())
    return loss, torch.stack([term.detach() for term in terms])

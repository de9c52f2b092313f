"""What is kept of a call that came the long way (kept.py): the step that it ended in, or that it was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from . import ops
from .kept import KEPT, Call, Kept
from .math.directions import GIVEN
from .math.losses import is_likelihood
from .paths import Known
from .prepare import Accepted, Prepared
from .problem import LOSS, Operands, Problem
from .steps import Step, keeps, layout_of, step_of, views_in
from .weights import UNWEIGHTED

WHOLE = torch.float32, torch.float64


def keep(call: Call, prepared: Prepared, problem: Problem, operands: Operands) -> None:
    """Keep what the next call like it need not find again.

    That is all but the numbers where the core reads just the tensors that came, each where it lies, and what the
    teacher's step gives; elsewhere that it was accepted.
    """
    whole = not prepared.student.reason
    if whole == (call.made_of.kinds[:1] == (Known,)) or (whole and not keeps(problem)):
        return
    if not whole and problem.backend != prepared.problem.backend:
        return
    read, fresh = prepared.teacher is None or call.made_of.of_teacher is not None, is_fresh(call, prepared)
    kept, function = None, None
    if whole and read and not call.settings.check_finite and not ops.is_apart(problem):
        kept = kept_of(call, prepared, problem, operands, fresh)
    if kept is None:
        layout = layout_of(call.all_tensors)
        if layout is None or layout.addresses(call.all_tensors) is None:
            return  # one at an odd address is no reason to compute as much of others that lie well
        known = prepared.teacher and read and not prepared.teacher.student.reason
        teacher = replace(prepared.teacher.student, parameters=()) if known else None
        student, given, accepted = prepared.student, prepared.given is not None, prepared.problem
        if whole:
            student = replace(student, parameters=())
        else:  # of whom it is known now what he gives
            student, accepted = replace(student, function=None), problem
            function = function_of(call, replace(prepared, student=student, problem=problem))
        kept = Accepted(call.settings, accepted, prepared.projections, student, teacher, given, fresh, layout, function)
    KEPT.put(call.likeness, kept)


def function_of(call: Call, prepared: Prepared) -> Prepared | None:
    """Without a tensor, if a call like it needs nothing but its forward, and the reference or pairs."""
    settings, found = call.settings, call.known.found.get(1)
    if prepared.projections is None or prepared.teacher is not None or call.made_of.of_teacher is not None:
        return None
    if prepared.problem.backend != "streams":
        if prepared.problem.backend != "reference" or prepared.problem.order > 1:
            return None
        if found is None or not found.settled or found.cut.any() or call.known.reads:
            return None
    special = call.weights is not UNWEIGHTED or prepared.request.input_scale is not None or settings.wrt is not None
    if special or settings.check_finite or isinstance(settings.weights, str) or call.tensors[0].dtype not in WHOLE:
        return None
    if is_likelihood(settings.value_loss) and call.targets is not None and call.targets.values is not None:
        return None  # they are looked at
    if not torch.is_grad_enabled() or any(tensor.is_inference() for tensor in call.tensors):
        return None
    return replace(prepared, request=replace(prepared.request, student=None, inputs=None, targets=None), given=None)


def is_fresh(call: Call, prepared: Prepared) -> bool:
    """Whether it is a loss along others at each call, which some optimizers cannot take (advice.py)."""
    projections = prepared.projections
    along = projections is not None and not projections.fixed
    return call.targets is not None and along and torch.is_grad_enabled()


def kept_of(call: Call, prepared: Prepared, problem: Problem, operands: Operands, fresh: bool) -> Kept | None:
    outputs, gradients = ops.outputs_of(problem, operands)
    finished = problem.result == LOSS and not problem.terms
    if finished:
        del outputs["terms"]
    targeted = (operands.values, operands.derivative, operands.second)
    taught, tensors = taught_in(call, operands, targeted)
    views, projections = views_in(tensors, operands), prepared.projections
    step = step_of(problem, operands, tensors, outputs, gradients, taught)
    if step is None:
        return None  # and whose tensors are not read as they came, his teacher's are not
    teacher = prepared.teacher and step_of_teacher(call, prepared.teacher, operands)
    if teacher is None and prepared.teacher is not None:
        return None
    drawn = projections is not None and projections.distribution != GIVEN
    return Kept(
        call.settings, problem, projections, operands.weights, tuple(t is not None for t in targeted),
        step, teacher, taught[: len(teacher.outputs) if teacher else 0], views, drawn, finished, fresh,
        differentiable=torch.is_grad_enabled() and any(t.requires_grad for t in call.tensors),
        labelled=call.targets is not None and call.targets.values is not None and is_likelihood(problem.value_loss),
    )  # fmt: skip


def taught_in(
    call: Call, operands: Operands, targeted: Sequence[torch.Tensor | None]
) -> tuple[tuple[int | None, ...], list[torch.Tensor]]:  # fmt: skip
    """As which of the tensors that a step reads the results of a teacher come to it, and all of these tensors."""
    tensors, taught = list(call.tensors), []
    if call.targets is None or call.targets.teacher is None:
        return (), tensors
    place = 1 + len(operands.parameters) + (operands.given is not None)
    came = call.targets.values is not None, False, False
    for tensor, given in zip(targeted, came, strict=True):
        taught.append(None if given or tensor is None else place)
        if taught[-1] is not None:
            tensors.insert(place, tensor)
        place += tensor is not None
    return tuple(taught), tensors


def step_of_teacher(call: Call, teacher: Prepared, operands: Operands) -> Step | None:
    """The step that he computes, along what the student is compared along."""
    parameters = list(teacher.student.parameters)
    asked = Operands(call.tensors[0], parameters, operands.given, operands.seed, weights=operands.weights)
    outputs, _ = ops.outputs_of(teacher.problem, asked)
    return step_of(teacher.problem, asked, call.of_teacher, {n: t for n, t in outputs.items() if t.numel()}, [])

"""From what was asked for to one prepared call: everything is checked and chosen here, and nothing happens yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index

import torch

from . import dispatch
from .advice import advise, advise_of_teacher, looked_at_again
from .autocast import casting
from .backends import core, on_device_of
from .boundary import is_sound
from .changed import replace
from .checks import faults_again, faults_of, faults_of_order, outputs_of
from .directions import Cotangents, Projections
from .dispatch import requested
from .enums import COTANGENTS, DENSE, DIRECTIONS, NONE, PROJECTED
from .errors import NotProvided, refuse
from .math.directions import GIVEN
from .math.heads import APART, gives_logarithms
from .math.losses import OF_LOG, is_likelihood
from .math.table import Formula
from .paths import known_of
from .planner import MANY, SMALL
from .problem import AS_HE_IS, DERIVATIVES, LOSS, Problem
from .request import Request
from .settings import Settings
from .steps import Layout
from .streams.cells import CELLS as RECURRENT
from .streams.ends import with_outputs
from .streams.look import flow_of
from .streams.whole import AS_IT_IS, Followed, followed, scaled_again
from .student import Student, Unrecognised, is_sharded, recognise
from .transforms import need_no_transforms

AUTOCAST_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request that is accepted: what the student is made of, what is computed on which backend, and from what."""

    request: Request
    student: Student | Unrecognised
    problem: Problem
    projections: Projections | None  # without a tensor
    given: torch.Tensor | None
    teacher: Prepared | None = None
    followed: tuple[Followed | None, Followed | None] = (None, None)  # student and teacher


@dataclass(frozen=True, eq=False, slots=True)
class Accepted:
    """What is known of calls that are alike, and like one that was accepted."""

    settings: Settings  # held so that its id, a part of the likeness, stays its own
    problem: Problem
    projections: Projections | None
    student: Student | Unrecognised  # he and the teacher, without their parameters and what they are called by
    teacher: Student | None  # None also of one that is not read, and looked at anew
    given: bool  # whether there are vectors, and they are read
    fresh: bool  # a loss along others at each call
    layout: Layout  # of the tensors, and of the parameters of the teacher
    whole: Prepared | None = None  # of a function, all but its tensors, if they are plain ones
    fused: dict = field(default_factory=dict)  # what is known of the chains of layers within it (streams/fused.py)
    learnt: dict = field(default_factory=dict)  # what else holds of all of them (known_function.py)

    def fits(self, call) -> bool:
        if not self.student.reason:
            return self.layout.addresses(call.all_tensors) is not None
        # of whom no kernel reads the parameters where they lie
        try:
            return self.layout.guards.check(*call.all_tensors) and self.reaches(call)
        except TypeError:  # there are more tensors or fewer, as where weights were tied since
            return False

    def reaches(self, call) -> bool:
        """Whether the memory of all that are no parameters is as large as they say."""
        if core.MISSING is not None:
            return all(map(is_sound, call.others))
        first, needs = 1 + len(call.made_of.parameters), self.layout.needs
        needs = needs[:2] + needs[2 * first : 2 * len(call.tensors)]
        return core._C.addresses(call.others, needs) is not None


def prepare(request: Request, chain: Followed | None = None) -> Prepared:
    """Check all, recognise student and teacher, choose side, precision and backend.

    `chain` is what the student's forward was found to be in this call already.

    Raises:
        TypeError, ValueError: an argument is not what was expected.
        NotImplementedError: a forced backend refuses, or a derivative is not provided.
    """
    student = recognise(request.student) if chain is None else chain.student
    if not student.reason and requested(request.settings.backend) == "streams":
        refuse(faults_of_order(student, request.settings.order, "student"))
        student = Unrecognised(AS_HE_IS, request.student)
    function = request.targets and request.targets.teacher
    teacher = None if function is None else recognise(function)
    refuse(faults_of(request, student, teacher))
    followed = (
        looked_into(request.student, student, request, function is None),
        looked_into(function, teacher, request),
    )
    student, teacher = (f.student if f else known for f, known in zip(followed, (student, teacher), strict=True))
    try:
        if any(followed):
            refuse(faults_of(request, student, teacher))
        if followed[0] is not None:
            request = replace(request, inputs=followed[0].inputs_of(request.inputs))
        prepared = prepared_of(request, student, teacher)
        whole = followed[0] if chain is None else chain
        if whole is not None and whole.looking:
            prepared = replace(prepared, problem=with_outputs(prepared.problem))
        return replace(prepared, followed=followed)
    except Exception:
        undo(followed)
        raise


def prepared_again(
    request: Request, accepted: Accepted, parameters: Sequence[torch.Tensor],
    of_teacher: Sequence[torch.Tensor] | None, given: torch.Tensor | None, offset: int | None,
) -> Prepared:  # fmt: skip
    """As `prepare` has it, of a call that is known to be accepted but for its numbers, and a teacher not read."""
    function, projections = request.targets and request.targets.teacher, accepted.projections
    given = given if accepted.given else None
    if accepted.student.reason:
        student = replace(accepted.student, function=request.student)
    else:
        student = replace(accepted.student, parameters=tuple(parameters))
    read = accepted.teacher is not None
    teacher = replace(accepted.teacher, parameters=tuple(of_teacher)) if read else None
    if function is not None and not read:
        teacher = recognise(function)
        chain = looked_into(function, teacher, request)
        teacher = teacher if chain is None else chain.student
    refuse(faults_again(request, given, student, None if read else teacher))
    if projections is not None and offset not in (None, projections.offset):
        projections = replace(projections, offset=offset)
    prepared = Prepared(request, student, accepted.problem, projections, given)
    if teacher is not None:
        prepared = replace(prepared, teacher=teacher_of(prepared, teacher))
        advise_of_teacher(request.student, function, teacher)
    if accepted.fresh:
        looked_at_again(request.student, request.inputs, parameters, request.settings, request.targets)
    return prepared


def looked_into(
    function: object, found: Student | Unrecognised | None, request: Request, alone: bool = False
) -> Followed | None:  # fmt: skip
    """What its forward tells of a student or a teacher, where his modules do not tell what he is made of.

    Only one who is `alone` may be of other inputs than those of the request.
    """
    if torch.compiler.is_compiling() or found is None or not found.reason:
        return None
    if requested(request.settings.backend) in AS_IT_IS:
        return None
    scaled = scaled_again(function, request.inputs, request.settings.backend) if alone else None
    found = followed(function, request.inputs) if scaled is None else scaled
    return found if found is not None and found.serves(request.result, request.settings) else None


def undo(followed: Sequence[Followed | None]) -> None:
    """Put back what the runs of the forwards have changed."""
    for chain in reversed(followed):
        if chain is not None:
            chain.restore()


def prepared_of(
    request: Request, student: Student | Unrecognised, teacher: Student | Unrecognised | None
) -> Prepared:  # fmt: skip
    """The call of what is known now."""
    projections, given = request.projections(student) if request.projects else (None, None)
    problem = problem_of(request, student, projections, given)
    with on_device_of(request.inputs):
        if student.reason:
            problem = with_flow(problem, request, student)
        problem = dispatch.choose(problem, request.settings.backend)
        prepared = Prepared(request, student, problem, projections, given)
        if teacher is not None:
            prepared = replace(prepared, teacher=teacher_of(prepared, teacher))
    if problem.backend != "reference":
        targets = () if request.targets is None else request.targets.tensors().values()
        need_no_transforms(request.inputs, *student.parameters, given, *targets, *request.residual_weights)
    advise(request, student, teacher, projections)
    return prepared


def with_flow(problem: Problem, request: Request, student: Unrecognised) -> Problem:
    """The same, if pairs of values and tangents could do it, with whether they flow through the student."""
    wanted = requested(request.settings.backend) in (None, "streams") and problem.P
    if torch.compiler.is_compiling() or not wanted or problem.projection != DIRECTIONS or problem.order > 2:
        return problem
    flow = flow_of(request.student, request.inputs, problem.order, outputs_of(request, student))
    widths = (problem.D, flow.outputs) if flow.outputs else problem.widths
    found = known_of(request.student, request.inputs).found.get(1)
    mixed = found is not None and not found.own
    N = len(request.inputs)
    of_size = {"light": N <= SMALL or not flow.counts.keys().isdisjoint(RECURRENT), "heavy": N >= MANY}
    return replace(problem, widths=widths, unfollowed=flow.unfollowed, mixed=mixed, ends=flow.ends, **of_size)


def problem_of(
    request: Request, student: Student | Unrecognised, projections: Projections | None, given: torch.Tensor | None
) -> Problem:
    """What is to be computed, before it is known where."""
    settings, x = request.settings, student.computed(request.inputs)
    D = index(x.shape[1])  # also where torch.compile takes sizes for variables: a Problem is of numbers
    W = request.columns.count(D)
    cotangents = isinstance(projections, Cotangents)
    n = (student.O or 0) if cotangents else W
    asking = () if student.reason else (x, given, *student.parameters)
    wanted = any(t is not None and t.requires_grad for t in asking)
    first, second = kinds_of(request, projections)
    # directions with masked columns are drawn first, and given
    drawn = projections is not None and not request.residual_weights.masks(projections)
    loss = request.result != DERIVATIVES
    return Problem(
        result=request.result,
        widths=student.widths or (D,),
        biases=student.biases,
        activations=student.activations,
        dtype=str(x.dtype).removeprefix("torch."),
        device=x.device.type,
        projection=COTANGENTS if cotangents else DIRECTIONS,
        P=0 if projections is None else index(projections.count(n)),
        distribution=projections.distribution if drawn else GIVEN,
        shared=drawn and projections.shared,
        magnitude=projections.magnitude(n) if drawn else 1.0,
        wrt=0 if W == D else W,
        order=request.order,
        collapsed=request.collapsed,
        derivative_target=first,
        second_target=second if request.order > 1 else NONE,
        value_loss=value_loss_of(request) if loss else None,
        derivative_loss=settings.derivative_loss if loss else None,
        head=None if settings.head == APART else settings.head,
        reduction=settings.reduction,
        gradients=request.result == LOSS and wanted and torch.is_grad_enabled(),
        terms=loss and settings.return_terms,
        input_gradient=x.requires_grad,
        given_gradient=given is not None and given.requires_grad and torch.is_grad_enabled(),
        precision=precision_of(settings.precision, x.device.type),
        unrecognised=student.reason,
        sharded=bool(student.reason) and is_sharded(request.student),
    )


def value_loss_of(request: Request) -> Formula:
    """Of likelihoods that of what the targets are: kl has the head's, the others labels or a teacher's."""
    loss, head, targets = request.settings.value_loss, request.settings.head, request.targets
    if not (is_likelihood(loss) and gives_logarithms(head)):
        return loss
    taught = targets is not None and targets.values is None
    return Formula(f"{loss.name}{OF_LOG}") if taught or loss.name == "kl" else loss


def kinds_of(request: Request, projections: Projections | None) -> Sequence[str]:
    """What the backends have as targets of first and of second derivatives."""
    if projections is None:
        return NONE, NONE
    if projections.distribution == "basis":  # a view of what is dense (`of_dense` of call.py)
        return [PROJECTED if kind == DENSE else kind for kind in request.kinds]
    return request.kinds


def precision_of(precision: str | None, device: str) -> str:
    """What was asked for, or what autocast computes in on this kind of device."""
    return precision or AUTOCAST_PRECISION.get(casting(device), "ieee")


def teacher_of(prepared: Prepared, teacher: Student | Unrecognised) -> Prepared:
    """The teacher's values and derivatives, projected as the student's, on his backend where that computes them."""
    request, backend = prepared.request, prepared.problem.backend
    inputs, function = request.inputs.detach(), request.targets.teacher
    asked = replace(request, result=DERIVATIVES, student=function, inputs=inputs, targets=None)
    problem = problem_of(asked, teacher, prepared.projections, None)
    problem = replace(problem, order=prepared.problem.order)
    problem = replace(problem, backend=dispatch.free(problem) if backend == "streams" else backend)
    if dispatch.refusal(problem.backend, problem) is not None:
        problem = replace(problem, backend="reference")
        if (reason := dispatch.refusal("reference", problem)) is not None:
            raise NotProvided(f"teacher: {reason}")
    return replace(prepared, request=asked, student=teacher, problem=problem)

"""A call, the short way where one like it is kept, or prepared and run: a student that cannot be looked into, the
seed, the targets, the backend."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import NamedTuple

import torch
from torch import nn

from . import keeping, kept, ops, traced
from .advice import advise_of_reference
from .backends import functions, reference, running, streams
from .backends.dependence import Evaluated
from .backends.exact import tracked
from .backends.residuals import loss_of
from .changed import replace
from .checks import tensors_of
from .columns import Columns
from .dispatch import requested
from .drawing import drawn, over_samples
from .enums import COTANGENTS, DIRECTIONS, NONE
from .errors import NotProvided, refuse
from .finite import faults_of_finite, one_if_finite
from .known_function import run_function
from .math.directions import GIVEN, IN_KERNELS
from .outputs import knowing_outputs, outputs_of, outputs_of_teacher
from .partials.fused_towers import fused_towers
from .paths import Known, known_of, need_paths, need_tensors
from .prepare import Prepared, prepare, prepared_again
from .problem import DERIVATIVES, UNSEEN, Operands, Problem
from .recorded import all_is_watched, recorded_jet, recorded_of
from .request import Request
from .settings import DIFFERENTIAL_ML, Settings
from .streams.flowing import NotFollowed
from .streams.fused import segments_of
from .streams.look import before_flow, flows_no_more
from .streams.segments import CHANGED
from .student import COMPUTE_DTYPE, widened
from .targeted import UNTARGETED, Targeted, targets_of, taught
from .targets import Targets
from .unwatched import leave_unwatched
from .weights import UNWEIGHTED, Weights

Results = tuple[torch.Tensor, ...]


class Ran(NamedTuple):
    """The results that the problem names, in the dtype that is computed in, and what they were compared with."""

    results: Results
    targeted: Targeted
    problem: Problem
    operands: Operands

    @property
    def known(self) -> tuple[bool, ...]:
        """Of each term, whether it has a target."""
        return tuple(tensor is not None for tensor in self.targeted)


def evaluate(
    result: str, student: object, inputs: torch.Tensor, settings: Settings, given: torch.Tensor | None,
    targets: Targets | None = None, weights: Weights = UNWEIGHTED, input_scale: torch.Tensor | None = None,
    collapsed: bool = False, offset: int | None = None, check: Callable[[], object] | None = None,
) -> tuple[Results, tuple[bool, ...]]:  # fmt: skip
    """The results, and of each term whether it has a target; `check` first, unless a call like it passed."""
    found = kept.look(result, student, inputs, settings, given, targets, weights, input_scale, collapsed, offset)
    chain = None if found is None else found.chain
    try:
        if found is not None and found.kept is not None:
            results, known = found.run(), found.kept.known
            problem, operands = found.kept.problem, found.operands
        else:
            accepted = None if found is None else found.accepted
            if accepted is not None and accepted.whole is not None and (ran := run_function(found, accepted.whole)):
                return ran
            if targets is not None and accepted is None and (cast := targets.like(inputs)) is not targets:
                if chain is not None:  # which the call with what is cast follows again
                    chain.held.restore()
                return evaluate(result, student, inputs, settings, given, cast, weights, input_scale, offset=offset)
            if check is not None and accepted is None:
                check()
            inputs = inputs if chain is None else chain.inputs_of(inputs)
            kinds = (NONE, NONE) if targets is None else (targets.kind, targets.second_kind)
            request = Request(
                result, student, inputs, settings, given, targets, kinds, input_scale, *weights, collapsed, offset
            )
            if accepted is None:
                prepared = prepare(request, chain)
            else:
                prepared = prepared_again(request, accepted, *found.made_of[1:], found.given, found.offset)
            ran = run(prepared)
            if found is not None and accepted is None and found.still_is():
                keeping.keep(found, prepared, ran.problem, ran.operands)
            results, known, problem, operands = ran.results, ran.known, ran.problem, lambda: ran.operands
            chain = prepared.followed[0] if chain is None else chain
        if chain is not None:
            results = chain.attach(results, problem, operands)
        if torch.compiler.is_compiling():
            leave_unwatched()
        return results, known
    except Exception:
        if chain is not None:
            chain.restore()
        raise


def run(call: Prepared) -> Ran:
    request = call.request
    ran = (run_differentiably if call.student.reason else run_at)(call, request.inputs)
    if request.settings.check_finite and torch.compiler.is_compiling():
        loss, *terms = ran.results
        named = tensors_of(request, call.given) | taught(call, ran.targeted)
        ran = ran._replace(results=(loss * one_if_finite(named, loss), *terms))
    return ran


def run_differentiably(call: Prepared, inputs: torch.Tensor) -> Ran:
    """The same of a student that is not looked into: his own derivatives are taken."""
    ran = None

    def results_at(x: torch.Tensor) -> Results:
        nonlocal ran
        ran = run_at(call, x)
        return ran.results

    breaks = torch.compiler.is_compiling() and traced.told_of(call.request.student, inputs)[0] == traced.BREAKS
    results = functions.differentiably(results_at, inputs, breaks)
    return ran._replace(results=results)


def run_at(call: Prepared, inputs: torch.Tensor) -> Ran:
    """The results at these inputs; by the reference, where pairs do not flow through the student as they did before."""
    if call.problem.backend != "streams":
        return run_on(call, inputs)
    function = call.request.student
    held = before_flow(function, inputs)
    try:
        return run_on(call, inputs)
    except NotFollowed as error:
        held.restore()
        flows_no_more(function, call.request.inputs, call.problem.order, str(error))
        if str(error) == CHANGED:  # so another run would give other numbers
            raise NotProvided(f"student: {CHANGED}, as in no call before; the next one looks at him again") from None
        if requested(call.request.settings.backend) is not None or call.problem.sharded:
            raise NotProvided(f"backend: streams does not support this student: {error}") from None
        why = UNSEEN if str(error) == streams.OUTPUTS else str(error)  # which is looked at again
    return run_on(replace(call, problem=replace(call.problem, backend="reference", unfollowed=why)), inputs)


def run_on(call: Prepared, inputs: torch.Tensor) -> Ran:
    request, student, evaluated = call.request, call.student, None
    x, columns, targets = student.computed(inputs), request.columns, UNTARGETED
    if request.targets is not None and request.settings.weights == DIFFERENTIAL_ML:
        jacobian = request.targets.jacobian
        counting = request.residual_weights.counting("jacobian", jacobian)
        columns = columns.balanced(widened(jacobian), counting)
        refuse(columns.faults_of_balance())
    if call.problem.backend == "streams":
        call = knowing_outputs(call, call.problem.O)
    elif student.reason:
        if torch.compiler.is_compiling():
            evaluated = evaluated_in_trace(call, x)
            call = knowing_outputs(call, index(evaluated.y.shape[1]))
        else:
            known, again = known_of(request.student, x), call.problem.given_gradient
            evaluated = running.evaluate(lambda x: outputs_of(request.student, x), x, known.graphs, again)
            call = knowing_outputs(call, index(evaluated.y.shape[1]))
            evaluated = looked_at("student", call, evaluated, x, known)
        advise_of_reference(request.student, call.problem)
    seed = None if call.projections is None else call.projections.draw_seed(inputs.device, inputs.shape[0])
    columns = replace(columns, scale=widened(columns.scale))
    if request.targets is not None:
        of_teacher = None if call.teacher is None else of_teacher_along(call, columns, seed)
        targets = targets_of(call, request.targets, columns, of_teacher)
        if request.settings.check_finite and not torch.compiler.is_compiling():
            for name, tensor in taught(call, targets).items():
                refuse(faults_of_finite(name, tensor))
    results, problem, operands = compute(call, x, columns, seed, evaluated, targets)
    return Ran(results, targets, problem, operands)


def evaluated_in_trace(call: Prepared, x: torch.Tensor) -> Evaluated:
    """The student as a compiler follows him: run as he is where pairs are recorded beside that, else in a transform."""
    student, problem = call.request.student, call.problem
    function = lambda x: outputs_of(student, x)  # noqa: E731
    if call.projections is None:
        return running.evaluate(function, x)
    told, refusal = traced.told_of(student, x)
    if refusal:
        raise NotProvided(refusal)
    looked, own = int(traced.LOOKED in told), traced.OWN in told
    recorded = recorded_of(student, x) if looked and problem.projection == DIRECTIONS else None
    if recorded is not None and problem.order <= recorded.orders:
        jet = lambda x, v, order: recorded_jet(recorded, x, v, order)  # noqa: E731
        ran = Evaluated(function, x, function(x), looked=looked, own=own, jet=jet)
        if (problem.order > 1 or not functions.by_gradients(ran, problem.P)) and all_is_watched():
            return ran
    ran = running.evaluate(function, x)
    if traced.loses_tangents():
        raise NotProvided(traced.BROKEN)
    if not told:  # of whom nobody has seen whether they make a difference
        need_tensors("student", ran.read)
    return ran._replace(looked=looked, own=own)


def looked_at(role: str, call: Prepared, ran: Evaluated, x: torch.Tensor, known: Known | None = None) -> Evaluated:
    """The same, if no derivative that is asked for would silently be 0, or else that is looked for later."""
    if call.projections is None:
        return ran
    if torch.compiler.is_compiling():  # of a frame by itself, where it did not follow the whole call
        _, refusal = traced.told_of(call.request.student, x)
        if refusal:
            raise NotProvided(refusal)
        if ran.pull is not None and traced.loses_tangents():
            raise NotProvided(traced.BROKEN)
        need_tensors(role, "" if isinstance(call.request.student, nn.Module) else ran.read)
        return ran._replace(looked=0, own=False)
    if ran.pull is not None:  # a compiler followed the run, and gave up since
        raise NotProvided(traced.BROKEN)
    wanted = call.request.settings.wrt, call.projections, call.given
    order = call.problem.order
    looked, own = need_paths(role, call.request.student, ran, x, order, wanted, known)
    return ran._replace(looked=order if looked else 0, own=own)


def compute(
    call: Prepared, x: torch.Tensor, columns: Columns, seed: torch.Tensor | None,
    ran: Evaluated | None = None, targets: Targeted = UNTARGETED,
) -> tuple[Results, Problem, Operands]:  # fmt: skip
    """The results, and what they were computed of."""
    request, problem = call.request, call.problem
    of_layers = () if call.student.reason else call.student.parameters
    parameters = [call.student.computed(p) for p in of_layers]
    weights = request.settings.numbers(problem.W)[: 1 + problem.order]
    of_each, given = Weights(*map(widened, request.residual_weights)), widened(call.given)
    if of_each.masks(call.projections):
        given, seed = masked(call, x, given, seed), None
    of_each = of_each.operands(problem, call.projections) if request.targets is not None else (None,) * 3
    operands = Operands(x, parameters, given, seed, *targets, *of_each, weights)
    if problem.backend == "streams":
        segments = segments_of(problem.ends)
        return streams.run(problem, operands, columns, request.student, segments), problem, operands
    try:
        return computed(problem, operands, columns, ran)
    except NotProvided:  # whose words dynamo of PyTorch 2.11 does not read
        raise
    except RuntimeError as error:
        if not str(error).startswith("Inference tensors cannot be saved"):
            raise
    x, parameters, *others, _ = operands
    others = (tensor if tensor is None else tracked(tensor) for tensor in others)
    return computed(problem, Operands(tracked(x), [*map(tracked, parameters)], *others, weights), columns, ran)


def computed(
    problem: Problem, operands: Operands, columns: Columns, ran: Evaluated | None
) -> tuple[Results, Problem, Operands]:
    if problem.order > 2 and (made := fused_towers(problem, operands, columns)) is not None:
        return made, problem, operands
    if problem.backend == "reference" or problem.order > 2:
        return reference.run(problem, operands, columns, ran), problem, operands
    x, parameters, _, seed, *_ = operands
    if problem.distribution not in IN_KERNELS:
        vectors = drawn(problem.drawing, seed, x.shape[0])
        problem = replace(problem, distribution=GIVEN, shared=False, magnitude=1.0)
        operands = operands._replace(given=vectors, seed=None)
    x, parameters = columns.arrange(x, parameters)
    operands = operands._replace(x=x, parameters=parameters)
    if ops.is_apart(problem):
        return of_derivatives(problem, operands), problem, operands
    return ops.mlp_sobolev(problem, operands), problem, operands


def of_derivatives(problem: Problem, operands: Operands) -> Results:
    """A loss by PyTorch's operations, from what fused calls give, which is differentiable in given vectors, too."""
    x, parameters, given, *_, weights = operands
    nothing = {"derivative_target": NONE, "second_target": NONE, "value_loss": None, "derivative_loss": None}
    asked = replace(problem, result=DERIVATIVES, gradients=False, terms=False, **nothing)
    jet = (*ops.mlp_sobolev(asked, Operands(x, parameters, given, weights=weights)), None)[:3]
    return loss_of(problem, operands, over_samples(given, x.shape[0]), jet)


def masked(call: Prepared, x: torch.Tensor, given: torch.Tensor | None, seed: torch.Tensor | None) -> torch.Tensor:
    """Directions [P, N, W], given or drawn, whose masked columns are 0."""
    N, W = x.shape[0], call.problem.W
    v = drawn(call.projections.drawing(W, x[:, :W]), seed, N) if given is None else over_samples(given, N)
    return torch.where(call.request.derivative_weight, v, 0.0)


@torch.no_grad()
def of_teacher_along(call: Prepared, columns: Columns, seed: torch.Tensor | None) -> Targeted:
    """The teacher's values and derivatives, projected as the student's, in the dtype that the student computes in."""
    teacher, outputs, function = call.teacher, call.problem.outputs, call.request.targets.teacher
    inputs = teacher.student.computed(teacher.request.inputs)
    if not teacher.student.reason:
        results, *_ = compute(teacher, inputs, columns, seed)
    else:
        if teacher.problem.projection == COTANGENTS:
            widths, P, magnitude = (*teacher.problem.widths, outputs), call.problem.P, call.problem.magnitude
            teacher = replace(teacher, problem=replace(teacher.problem, widths=widths, P=P, magnitude=magnitude))

        def results_at(x: torch.Tensor) -> Results:
            known = None if torch.compiler.is_compiling() else known_of(function, x)
            graphs = known and known.graphs
            ran = running.evaluate(lambda x: outputs_of_teacher(function, x, outputs), x, graphs)
            ran = looked_at("teacher", teacher, ran, x, known)
            return compute(teacher, x, columns, seed, ran)[0]

        results = functions.differentiably(results_at, inputs)
    dtype = getattr(torch, call.problem.dtype)
    dtype = COMPUTE_DTYPE.get(dtype, dtype)
    return *(result.to(dtype) for result in results), *[None] * (3 - len(results))

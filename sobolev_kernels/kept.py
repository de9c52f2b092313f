"""What is kept of a call, so that the next one like it costs little more than its numbers.

Of each call it is read what its student is made of, which tensors came, and how they lie. All that follows from this
alone is kept, and found by it: the checks, the Problem, the plan, the step of the C++ core but for its addresses. So
there is nothing to be noticed or forgotten when a student changes, and no student and no tensor is held. A teacher is
read as the student is, and has a step of its own. A call that is out of the ordinary goes the long way, by prepare.py
and call.py, as every first one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad

from . import ops
from .advice import looked_at_again
from .backends import core
from .boundary import PLAIN
from .checks import faults_of_range
from .directions import Projections
from .errors import refuse
from .math.directions import GIVEN
from .modules import CALL, CALL_IMPL, CONTAINERS, FORWARDS, MODULES
from .prepare import Prepared
from .problem import LOSS, Operands, Problem
from .settings import DIFFERENTIAL_ML, Settings
from .steps import Shelf, Step, optional_of, step_of, surroundings
from .student import hooks_of_all
from .targets import Targets
from .weights import UNWEIGHTED, Weights

PARTS = attrgetter(
    "values", "jacobian", "tangents", "vjps", "hessian", "seconds", "directions", "cotangents", "teacher"
)  # fmt: skip
# What a module of each class is asked for: of activations the attributes that make it the row of the table that it is.
ATTRIBUTES: dict[type, object] = {nn.Linear: None, **dict.fromkeys(CONTAINERS, "children")}
for row in MODULES.values():
    ATTRIBUTES[row.kind] = (*row.parameters, *(name for name, _ in row.arguments))
RULES = {kind: (FORWARDS[kind], asked) for kind, asked in ATTRIBUTES.items()}, CALL, CALL_IMPL
KNOWN = {type(None), *PLAIN}  # types of what need not be there

WEIGHTS = tuple(f"{name}_weight" for name in Weights._fields)


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """What calls have in common that are alike."""

    settings: Settings  # held so that its id, a part of the likeness, stays its own
    problem: Problem
    projections: Projections | None
    weights: tuple[float, ...]
    known: tuple[bool, ...]  # of each term, whether it has a target
    step: Step
    teacher: Step | None
    taught: tuple[int | None, ...]  # as which of the tensors each of the teacher's results is read
    views: tuple[Callable | None, ...]  # each optional operand as one of the tensors, or what it is seen as
    drawn: bool
    seed: tuple[int, int] | None  # where two calls draw the same
    finished: bool  # a loss whose terms nobody asks for: all that its backward needs is there
    fresh: bool
    differentiable: bool


@dataclass(eq=False, slots=True)
class Call:
    """A call as it came, and what is kept of one like it."""

    likeness: tuple
    student: object
    settings: Settings
    targets: Targets | None
    made_of: MadeOf
    tensors: list[torch.Tensor]  # x, parameters, given vectors, targets, weights: in the order in which the core reads
    of_teacher: list[torch.Tensor] | None  # x, his parameters, given vectors
    weights: Weights
    kept: Kept | None = None
    addresses: list[int] | None = None
    addresses_of_teacher: list[int] | None = None
    seed: Sequence[int] = (0, 0)

    def found(self) -> bool:
        """Whether one like it is kept."""
        for kept in KEPT.get(self.likeness, ()):
            self.addresses = kept.step.addresses(self.tensors)
            if self.addresses is None:
                continue
            if kept.teacher is not None:
                self.addresses_of_teacher = kept.teacher.addresses(self.of_teacher)
                if self.addresses_of_teacher is None:
                    continue
            self.kept = kept
            return True
        return False

    def run(self) -> tuple[torch.Tensor, ...]:
        """The results, as `call.run` has them."""
        kept, x, parameters = self.kept, self.tensors[0], self.made_of.parameters
        if self.weights is not UNWEIGHTED:
            for name, weight in zip(WEIGHTS, self.weights, strict=True):
                refuse(() if weight is None else faults_of_range(name, weight))
        if kept.fresh:
            looked_at_again(self.student, x, parameters, self.settings, self.targets)
        self.seed = kept.seed or kept.projections.draw_numbers()
        if kept.teacher is not None:
            self.ask_teacher()
        if kept.finished:
            if kept.differentiable:
                return (ops.finish(self.compute, kept.problem, x, *parameters),)
            return (self.compute()[0],)
        operands = self.operands()
        if kept.differentiable:
            return ops.apply(lambda *_: self.compute(), kept.problem, operands, x, *parameters)
        return tuple(self.compute())

    def ask_teacher(self) -> None:
        """Add what he says to the tensors, as `call.of_teacher_along` computes it."""
        step = self.kept.teacher
        made = [*map(ops.empty_like, step.outputs)]
        step.run(self.addresses_of_teacher, made, self.seed)
        for place, tensor in zip(self.kept.taught, made, strict=True):
            if place is not None:
                self.tensors.insert(place, tensor)
                self.addresses.insert(place, tensor.data_ptr())

    def operands(self) -> Operands:
        """All of them, as call.py makes them."""
        kept, tensors, seed = self.kept, self.tensors, None
        if kept.drawn:
            seed = torch.tensor(self.seed, dtype=torch.int64, device="cpu")
        optional = [view and view(tensors) for view in kept.views]
        return Operands(tensors[0], self.made_of.parameters, optional[0], seed, *optional[1:], kept.weights)

    def compute(self) -> list[torch.Tensor]:
        """As `ops.compute`, without the terms that nobody asks for."""
        kept = self.kept
        made = [*map(ops.empty_like, kept.step.outputs)]
        if kept.problem.gradients:
            made += map(ops.empty_like, self.made_of.parameters)
        kept.step.run(self.addresses, made, self.seed)
        return made


KEPT: Shelf[Kept] = Shelf()


class MadeOf(NamedTuple):
    """What a student and his teacher are made of, module by module, and their parameters."""

    kinds: tuple
    parameters: list[torch.Tensor]
    of_teacher: list[torch.Tensor]


def read(student: object, teacher: object) -> MadeOf | None:
    """None of one that is not made of what MLPs are made of, or not in the usual way.

    The core asks of a module what student.py asks, in fewer words: of whatever is not usual student.py knows more.
    """
    kinds, parameters, of_teacher = [], [], []
    if not core._C.read(student, RULES, kinds, parameters):
        return None
    if teacher is not None:
        kinds.append(None)
        if not core._C.read(teacher, RULES, kinds, of_teacher):
            return None
    return MadeOf(tuple(kinds), parameters, of_teacher)


def look(
    result: str, student: object, x: object, settings: Settings, given: torch.Tensor | None,
    targets: Targets | None = None, weights: Weights = UNWEIGHTED, collapsed: bool = False,
) -> Call | None:  # fmt: skip
    """A call, and what is kept of one like it; None of a call that is out of the ordinary."""
    if torch.compiler.is_compiling() or core.MISSING is not None or watched():
        return None
    if type(x) not in PLAIN or not x.is_cpu or x.is_nested:
        return None
    said, parts, teacher = None, (), None
    if targets is not None:
        *parts, directions, cotangents, teacher = PARTS(targets)
        chosen = cotangents if directions is None else directions
        if directions is not None and cotangents is not None:
            return None
        if chosen is not None:
            said, given = (type(chosen), chosen.said), given if chosen.values is None else chosen.values
    made_of = read(student, teacher)
    optional = (given, *parts, *weights)
    types = tuple(map(type, optional))
    if made_of is None or not KNOWN.issuperset(types):
        return None
    likeness = (
        result, collapsed, id(settings), made_of.kinds, said, types, x.shape,
        torch.is_grad_enabled(), surroundings(),
    )  # fmt: skip
    tensors = [x, *made_of.parameters, *[tensor for tensor in optional if tensor is not None]]
    of_teacher = None if teacher is None else [x, *made_of.of_teacher, *(() if given is None else (given,))]
    call = Call(likeness, student, settings, targets, made_of, tensors, of_teacher, weights)
    call.found()
    return call


def watched() -> bool:
    """Whether someone looks at every operation of PyTorch, or changes what it does."""
    return (
        torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled("cpu") or hooks_of_all()
    )  # fmt: skip


def keep(call: Call, prepared: Prepared, problem: Problem, operands: Operands) -> None:
    """Keep of a call that came the long way what the next one like it need not find again.

    That is so where it reads just the tensors that came, each where it lies: whatever was computed first, as the unit
    of a column, would have to be computed again. Only what the teacher says is.
    """
    settings, projections = call.settings, prepared.projections
    if settings.check_finite or settings.weights == DIFFERENTIAL_ML or (projections and projections.offset):
        return  # of the last, the next call will be at another offset
    if not still_is(call):
        return
    outputs, gradients = ops.outputs_of(problem, operands)
    finished = problem.result == LOSS and not problem.terms
    if finished:
        del outputs["terms"]
    targeted = (operands.values, operands.derivative, operands.second)
    taught, tensors = taught_in(call, operands, targeted)
    step = step_of(problem, operands, tensors, outputs, gradients, taught)
    teacher = None if prepared.teacher is None else step_of_teacher(call, prepared.teacher, operands)
    if step is None or (teacher is None and prepared.teacher is not None):
        return
    drawn = projections is not None and projections.distribution != GIVEN
    seed = (0, 0) if not drawn else None if projections.seed is None else (projections.seed, projections.offset)
    differentiates = torch.is_grad_enabled()
    kept = Kept(
        settings, problem, projections, operands.weights, tuple(t is not None for t in targeted),
        step, teacher, taught[: len(teacher.outputs) if teacher else 0],
        views_in(tensors, operands), drawn, seed, finished,
        fresh=call.targets is not None and seed is None and differentiates,
        differentiable=differentiates and any(t.requires_grad for t in call.tensors),
    )  # fmt: skip
    KEPT.put(call.likeness, kept)


def views_in(tensors: list[torch.Tensor], operands: Operands) -> tuple[Callable | None, ...]:
    """Of each optional operand, None of one that is not there, how it comes of the tensors that are read for it."""
    places = iter(range(1 + len(operands.parameters), len(tensors)))
    views = []
    for operand in optional_of(operands):
        place = None if operand is None else next(places)
        if place is None:
            views.append(None)
        elif (operand.shape, operand.stride()) == (tensors[place].shape, tensors[place].stride()):
            views.append(itemgetter(place))
        else:
            views.append(partial(seen_as, place, operand.shape, operand.stride()))
    return tuple(views)


def seen_as(place: int, shape: Sequence[int], strides: Sequence[int], tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[place].as_strided(shape, strides)


def taught_in(
    call: Call, operands: Operands, targeted: Sequence[torch.Tensor | None]
) -> tuple[tuple[int | None, ...], list[torch.Tensor]]:  # fmt: skip
    """As which of the tensors that a step reads the results of a teacher come to it, and all of these tensors."""
    tensors, taught = list(call.tensors), []
    if call.of_teacher is None:
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


def still_is(call: Call) -> bool:
    """Whether the call is still what it was taken for: another thread may have changed the student meanwhile."""
    made_of = read(call.student, call.targets and call.targets.teacher)
    if made_of is None or made_of.kinds != call.made_of.kinds or surroundings() != call.likeness[-1]:
        return False
    same = zip(made_of[1:], call.made_of[1:], strict=True)
    return all([*map(id, now)] == [*map(id, then)] for now, then in same)

"""What is kept of a call, so that the next one like it costs little more than its numbers.

Of each call it is read what its student is made of, which tensors came, and how they lie. All that follows from this
alone is kept (keeping.py), and found by it: the checks, the Problem, the plan, the step of the C++ core but for its
addresses. So there is nothing to be noticed or forgotten when a student changes, and no student and no tensor is held.
A teacher is read as the student is, and has a step of its own.

Where tensors are computed before the core reads them, as units of columns, the call is only known to be accepted, and
is run as call.py does. One that is out of the ordinary goes the long way, by prepare.py, as every first one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from . import ops
from .advice import looked_at_again
from .backends import core
from .backends.exact import is_checkpointed
from .boundary import PLAIN
from .checks import faults_of_ranges
from .directions import Projections
from .dispatch import requested
from .errors import refuse
from .labels import faults_of_labels
from .modules import RULES
from .paths import Known, known_of, modules_read
from .prepare import Accepted
from .problem import LOSS, Operands, Problem
from .scaled import Fold, Scaled, fold_of
from .settings import Settings
from .steps import Shelf, Step, surroundings
from .streams.whole import AS_IT_IS, Followed, followed_again
from .student import hooks_of_all
from .targets import Targets
from .weights import UNWEIGHTED, Weights

PARTS = attrgetter(
    "values", "jacobian", "tangents", "vjps", "hessian", "seconds", "jets", "directions", "cotangents", "teacher"
)  # fmt: skip
KNOWN = {type(None), *PLAIN}  # types of what need not be there


class MadeOf(NamedTuple):
    """What a student and his teacher are made of, module by module, and their parameters."""

    kinds: tuple
    parameters: list[torch.Tensor]
    of_teacher: list[torch.Tensor] | None  # None of one that is not read


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """What calls have in common that are alike, and whose tensors the core reads as they came."""

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
    finished: bool  # a loss whose terms nobody asks for: all that its backward needs is there
    fresh: bool
    differentiable: bool
    labelled: bool  # whether the target values are labels, which are looked at

    def fits(self, call: Call) -> bool:
        """Whether a call's tensors are like those; then it is known where they are."""
        call.addresses = self.step.layout.addresses(call.tensors)
        if call.addresses is None or self.teacher is None:
            return call.addresses is not None
        call.addresses_of_teacher = self.teacher.layout.addresses(call.of_teacher)
        return call.addresses_of_teacher is not None


@dataclass(eq=False, slots=True)
class Call:
    """A call as it came, and what is kept of one like it, or known."""

    likeness: tuple
    student: object
    settings: Settings
    targets: Targets | None
    made_of: MadeOf
    tensors: list[torch.Tensor]  # x, parameters, given vectors, targets, weights: in the order in which the core reads
    given: torch.Tensor | None
    weights: Weights
    offset: int | None  # where it is another than the settings'
    kept: Kept | None = None
    accepted: Accepted | None = None
    addresses: list[int] | None = None
    addresses_of_teacher: list[int] | None = None
    seed: Sequence[int] = (0, 0)
    drawn: torch.Tensor | None = None  # the seed, where only the device knows it
    chain: Followed | None = None  # of a student that is known by what his forward does
    known: Known | None = None  # what is known of one who is a function
    fold: Fold | None = None  # of a student in units of a scaler

    @property
    def of_teacher(self) -> list[torch.Tensor]:
        """x, the teacher's parameters, given vectors."""
        return [self.tensors[0], *self.made_of.of_teacher, *(() if self.given is None else (self.given,))]

    @property
    def others(self) -> list[torch.Tensor]:
        """All that are no parameters of the student."""
        return [self.tensors[0], *self.tensors[1 + len(self.made_of.parameters) :]]

    @property
    def all_tensors(self) -> list[torch.Tensor]:
        return [*self.tensors, *(self.made_of.of_teacher or ())]

    def find(self) -> None:
        """What is kept of one like it."""
        for kept in KEPT.get(self.likeness, ()):
            if kept.fits(self):
                if type(kept) is Kept:
                    self.kept = kept
                else:
                    self.accepted = kept
                return

    def with_graph(self) -> None:
        """The same of parameters that have a graph, where their gradients do not come with the loss."""
        fold = self.fold.with_graph()
        self.chain, self.fold = Followed(fold.student, None, [], fold.inputs), None
        self.made_of = self.made_of._replace(parameters=fold.parameters)
        self.tensors[1 : 1 + len(fold.parameters)] = fold.parameters
        self.find()

    def still_is(self) -> bool:
        """Whether it is still what it was taken for: another thread may have changed the student meanwhile.

        Of a forward that was followed the call has the very tensors.
        """
        if self.chain is not None:
            return surroundings() == self.likeness[-1]
        if self.made_of.kinds[:1] == (Known,):
            known = known_of(self.student, self.tensors[0])
            return surroundings() == self.likeness[-1] and known.number == self.made_of.kinds[1]
        made_of = read(self.student, self.targets and self.targets.teacher)
        if made_of is None or made_of.kinds != self.made_of.kinds or surroundings() != self.likeness[-1]:
            return False
        same = zip(made_of[1:], self.made_of[1:], strict=True)
        return all([*map(id, now or ())] == [*map(id, then or ())] for now, then in same)

    def ready(self) -> None:
        """Look at what may change from call to call, draw, and ask the teacher."""
        kept, x, parameters = self.kept, self.tensors[0], self.made_of.parameters
        if self.weights is not UNWEIGHTED:
            refuse(faults_of_ranges(self.weights))
        if kept.labelled:
            refuse(faults_of_labels(self.settings, self.targets, self.weights, kept.problem.O))
        if kept.fresh:
            looked_at_again(self.student, x, parameters, self.settings, self.targets)
        if kept.drawn:
            self.seed, self.drawn = kept.projections.draw_numbers(x.device, len(x), self.offset)
        if kept.teacher is not None:
            self.ask_teacher()

    def finish(self) -> list[torch.Tensor]:
        """The loss and the gradients of the parameters, of one that is finished, without autograd."""
        self.ready()
        return self.compute()

    def run(self) -> tuple[torch.Tensor, ...]:
        """The results, as `call.run` has them."""
        self.ready()
        kept, x, parameters = self.kept, self.tensors[0], self.made_of.parameters
        if kept.finished:
            if kept.differentiable:
                given = self.given if kept.problem.given_gradient else None
                parameters = parameters if self.fold is None else self.fold.leaves
                made = ops.finish(self.compute, kept.problem, x, given, *parameters)
                return made if kept.problem.looked else (made,)
            return (self.compute()[kept.problem.looked],)
        operands = self.operands()
        if kept.differentiable:
            inputs = ops.inputs_of(kept.problem, operands)
            return ops.apply(lambda *_: self.compute(), kept.problem, operands, *inputs)
        return tuple(self.compute())

    def ask_teacher(self) -> None:
        """Add what he says to the tensors, as `call.of_teacher_along` computes it."""
        step = self.kept.teacher
        made = step.make(ops.empty_like, ())
        step.run(self.addresses_of_teacher, made, self.seed)
        for place, tensor in zip(self.kept.taught, made, strict=True):
            if place is not None:
                self.tensors.insert(place, tensor)
                self.addresses.insert(place, tensor.data_ptr())

    def operands(self) -> Operands:
        """All of them, as call.py makes them."""
        kept, tensors, seed = self.kept, self.tensors, self.drawn
        if kept.drawn and seed is None:
            seed = torch.tensor(self.seed, dtype=torch.int64, device="cpu")
        optional = [view and view(tensors) for view in kept.views]
        return Operands(tensors[0], self.made_of.parameters, optional[0], seed, *optional[1:], kept.weights)

    def compute(self) -> list[torch.Tensor]:
        """As `ops.compute`, without the terms that nobody asks for."""
        step = self.kept.step
        made = step.make(ops.empty_like, self.made_of.parameters)
        step.run(self.addresses, made, self.seed)
        if self.fold is not None and step.gradients:
            n = len(made) - len(self.made_of.parameters)
            made[n:] = self.fold.of_leaves(made[n:])
        return made


KEPT: Shelf[Kept | Accepted] = Shelf()


def read(student: object, teacher: object) -> MadeOf | None:
    """None of a student that is not made of what MLPs are made of, or not in the usual way.

    The core asks of a module what student.py asks, in fewer words: of whatever is not usual student.py knows more.
    """
    kinds, parameters = [], []
    if not core._C.read(student, RULES, kinds, parameters):
        return None
    return with_teacher(kinds, parameters, teacher)


def with_teacher(kinds: list, parameters: list[torch.Tensor], teacher: object) -> MadeOf:
    of_teacher = None
    if teacher is not None:
        of_student, of_teacher = len(kinds), []
        kinds.append("teacher")
        if not core._C.read(teacher, RULES, kinds, of_teacher):
            kinds[of_student:], of_teacher = ["teacher, not read"], None
    return MadeOf(tuple(kinds), parameters, of_teacher)


def look(
    result: str, student: object, x: object, settings: Settings, given: torch.Tensor | None,
    targets: Targets | None = None, weights: Weights = UNWEIGHTED, input_scale: torch.Tensor | None = None,
    collapsed: bool = False, offset: int | None = None,
) -> Call | None:  # fmt: skip
    """A call, and what is kept of one like it; None of a call that is out of the ordinary."""
    if torch.compiler.is_compiling() or core.MISSING is not None:
        return None
    if type(x) not in PLAIN or not (x.is_cpu or x.is_cuda) or x.is_nested or watched(x.device.type):
        return None
    said, parts, teacher = None, (), None
    if targets is not None:
        *parts, directions, cotangents, teacher = PARTS(targets)
        chosen = cotangents if directions is None else directions
        if directions is not None and cotangents is not None:
            return None
        if chosen is not None:
            said, offset = (type(chosen), chosen.said), chosen.offset
            given = given if chosen.values is None else chosen.values
    made_of = read(student, teacher)
    optional = (given, *parts, *weights, input_scale)
    types = tuple(map(type, optional))
    if not KNOWN.issuperset(types):
        return None
    chain = known = fold = None
    if made_of is None:
        if x.dim() != 2 or not callable(student):
            return None
        if type(student) is Scaled and teacher is None and requested(settings.backend) not in AS_IT_IS:
            fold = fold_of(student, x, graph=result != LOSS or settings.return_terms)
    if fold is not None:
        kinds, parameters, x = [Scaled, *fold.kinds], fold.parameters, fold.inputs
        made_of = with_teacher(kinds, parameters, None)
    elif made_of is None:
        kinds, parameters = modules_read(student)
        known = known_of(student, x, kinds)
        if known.lost:
            known.look_again()
        chain = followed_again(student, x, settings.backend, known)
        if chain is not None and not chain.serves(result, settings):
            chain = None
        if chain is not None:
            x, layers = chain.inputs_of(x), chain.student
            kinds = [Followed, bool(chain.looking), layers.biases, layers.activations]
            parameters = [*layers.parameters]
        elif parameters is None or is_checkpointed():  # which runs it again, and shall find the same way
            return None
        else:
            kinds = [Known, known.number]
        made_of = with_teacher(kinds, parameters, teacher)
    likeness = (
        result, collapsed, id(settings), made_of.kinds, said, types, x.shape,
        torch.is_grad_enabled(), surroundings(),
    )  # fmt: skip
    tensors = [x, *made_of.parameters, *[tensor for tensor in optional if tensor is not None]]
    call = Call(
        likeness, student, settings, targets, made_of, tensors, given, weights, offset, chain=chain, known=known,
        fold=fold,
    )  # fmt: skip
    call.find()
    if fold is not None and (call.kept is None or not call.kept.finished):
        call.with_graph()
    return call


def watched(device: str) -> bool:
    """Whether someone looks at every operation of PyTorch, or changes what it does."""
    return (
        torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled(device) or hooks_of_all()
    )  # fmt: skip

"""What is computed as asked, and is hardly what was meant: a `SobolevWarning`, once a student.

It is said while a call is planned, or of a function that must be run for it (`paths`), after its first run; and never
while torch.compile traces it.
"""

from __future__ import annotations

import inspect
import operator
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import MethodType

import torch
from torch import nn

from .boundary import PLAIN
from .directions import Projections
from .errors import SobolevWarning, clipped
from .heads import inner_of
from .parts import drawing_modules, roots_of
from .planner import few_outputs
from .problem import CONSTANT, LAZY, NESTED, UNSEEN, Problem
from .request import Request
from .rows import behind, inputs_behind
from .settings import Settings
from .student import Student, Unrecognised
from .targets import Targets

# Of the calls with the same inputs every so many are looked at for an optimizer around them: it costs a microsecond.
LOOKED_AT = 8
TEACHER = (
    "teacher: {} in it draws other numbers at each call, since it is in train mode, and the student is told something "
    "else each time; call teacher.eval() first"
)
FRESH = (
    "directions: {}, each time along others, so that its loss and gradients are not those of one function; a line "
    "search, as that of L-BFGS, goes astray by it. Evaluate loss_fn.at(step) of a SobolevLoss, give seed= to the "
    'directions (and .at(step)), or derivatives="exact"'
)
WITHOUT_RULE = (
    "student: {}, so the reference takes its derivatives, which is slower than tangents that are carried along with "
    'the values; change that part (sk.explain counts operations that have rules), or say backend="reference"'
)


@dataclass
class Seen:
    """What was evaluated last of a student, and what he was warned of."""

    student: weakref.ref
    inputs: Callable[[], torch.Tensor | None] = lambda: None
    last: int | None = None  # the id of inputs, of the last call of all
    versions: tuple[int, ...] = ()
    settings: Settings | None = None
    targets: list[weakref.ref | None] = field(default_factory=list)
    teacher: int | None = None
    numbers: tuple[float, ...] = ()  # of them, where the versions were the same already
    times: int = 0
    warned: set[str] = field(default_factory=set)

    def targeted(self, targets: Targets | None, tensors: tuple[torch.Tensor | None, ...]) -> bool:
        """Whether these were the targets too."""
        same = len(tensors) == len(self.targets) and self.teacher == (targets and id(behind(targets.teacher)))
        return same and all(t is (ref and ref()) for t, ref in zip(tensors, self.targets, strict=True))


# By id(student), which costs a call less than a WeakKeyDictionary.
SEEN: dict[int, Seen] = {}
version = operator.attrgetter("_version")


def advise(
    request: Request, student: Student | Unrecognised, teacher: Student | Unrecognised | None,
    projections: Projections | None,
) -> None:  # fmt: skip
    """Warn of a loss that is accepted; derivatives along fresh directions may well be averaged."""
    if torch.compiler.is_compiling() or request.targets is None:
        return
    advise_of_teacher(request.student, request.targets.teacher, teacher)
    if projections is not None and not projections.fixed and torch.is_grad_enabled():
        advise_of_fresh(request.student, request.inputs, student.parameters, request.settings, request.targets)


def advise_of_teacher(student: object, function: object, teacher: Student | Unrecognised | None) -> None:
    if teacher is not None and teacher.reason:
        drawing = next(map(type, drawing_modules(function)), None)
        if drawing is not None:
            warn(student, TEACHER, drawing.__name__)


def advise_of_reference(student: object, problem: Problem) -> None:
    """Of one that takes the reference where tangents would cost less, had all of its operations a rule."""
    no_part = problem.unfollowed in (None, UNSEEN, LAZY, NESTED, CONSTANT)
    if not (no_part or torch.compiler.is_compiling()) and few_outputs(problem) is None:
        warn(written(student), WITHOUT_RULE, clipped(problem.unfollowed, 300))


def written(student: object) -> object:
    """What is one student however often it is made anew: the code of a function, also behind what is put around it; of
    a method, what it is bound to; of what cannot be referred to weakly, its class."""
    student = inner_of(behind(student))
    if isinstance(student, nn.Module):
        return student
    if isinstance(student, partial):
        return written(student.func)
    if isinstance(student, MethodType):
        return written(student.__self__)
    with suppress(Exception):  # around itself, or whatever its class makes of the question
        student = inspect.unwrap(student)
    code = getattr(student, "__code__", None)
    return code or (student if type(student).__weakrefoffset__ else type(student))


def looked_at_again(
    student: object, x: torch.Tensor, parameters: Sequence[torch.Tensor], settings: Settings, targets: Targets
) -> None:
    """`advise_of_fresh` of a call like one before; other inputs than those of the last call need no look."""
    seen, came = SEEN.get(id(behind(student))), inputs_behind(student, x)
    if seen is None or seen.last == id(came):
        advise_of_fresh(student, x, parameters, settings, targets)
    else:
        seen.last = id(came)


def advise_of_fresh(
    student: object, x: torch.Tensor, parameters: Sequence[torch.Tensor], settings: Settings, targets: Targets | None
) -> None:
    seen, x = seen_of(student), inputs_behind(student, x)
    seen.last = id(x)
    if FRESH in seen.warned or torch._C._are_functorch_transforms_active():  # whose tensors have no numbers
        return
    try:
        versions = (x._version, *map(version, parameters))
    except RuntimeError:  # tensors of inference mode have none
        return
    tensors = () if targets is None else (targets.values, came_as(targets.jacobian))
    if seen.inputs() is not x:
        seen.inputs, seen.times = weakref.ref(x), 0
    elif x.requires_grad or any(p.requires_grad for p in parameters):
        same = versions == seen.versions and seen.settings == settings and seen.targeted(targets, tensors)
        if same and x.device.type == "cpu":
            numbers = some_numbers(x, parameters)
            if numbers == seen.numbers:
                warn(student, FRESH, "the same inputs and parameters were evaluated again")
            seen.numbers = numbers
        elif seen.times % LOOKED_AT < 2 and inside_lbfgs():
            warn(student, FRESH, "L-BFGS evaluates the same inputs again and again")
    seen.versions, seen.settings, seen.times = versions, settings, seen.times + 1
    seen.targets = [None if tensor is None else weakref.ref(tensor) for tensor in tensors]
    seen.teacher = targets and id(behind(targets.teacher))


@contextmanager
def evaluated_once(student: object) -> Iterator[None]:
    """Of a training that evaluates once a step, or along the same directions: parameters that a learning rate near 0
    leaves as they are mean no line search."""
    seen = seen_of(student)
    before = FRESH in seen.warned
    seen.warned.add(FRESH)
    try:
        yield
    finally:
        if not before:
            seen.warned.discard(FRESH)


def advise_of_function(
    student: object, x: torch.Tensor, settings: Settings, targets: Targets, projections: Projections
) -> None:
    """`advise_of_fresh` of what is not planned yet."""
    if projections.fixed or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    parameters = [parameter for module in roots_of(student) for parameter in module.parameters()]
    advise_of_fresh(student, x, parameters, settings, targets)


def came_as(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """What a tensor is a view of, as rows are of what has another shape."""
    return tensor if tensor is None or tensor._base is None else tensor._base


def some_numbers(x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> tuple[float, ...]:
    """A few of inputs and parameters: fused optimizers, and who writes to `.data`, leave the versions as they are."""
    whole = [tensor for tensor in (x, *parameters[:2], *parameters[-2:]) if type(tensor) in PLAIN]  # and not sharded
    tensors = (torch.atleast_1d(tensor.detach())[:1] for tensor in whole)
    return tuple(number for row in tensors for number in row.flatten()[:4].tolist())


def seen_of(student: object) -> Seen:
    """What is kept of a student for as long as he lives; of one that cannot be referred to weakly, nothing."""
    student = inner_of(behind(student))
    key = id(student)
    seen = SEEN.get(key)
    if seen is None or seen.student() is not student:
        try:
            seen = Seen(weakref.ref(student, lambda _: SEEN.pop(key, None)))
        except TypeError:
            return Seen(lambda: student)
        SEEN[key] = seen
    return seen


def warn(student: object, message: str, what: str) -> None:
    warned = seen_of(student).warned
    if message not in warned:
        warned.add(message)
        warnings.warn(message.format(what), SobolevWarning, stacklevel=frames_of_ours())


def frames_of_ours() -> int:
    """How many calls above `warn` the user's is."""
    frame, level = sys._getframe(2), 2
    between = "sobolev_kernels", "torch.nn.modules", "torch.utils._contextlib"
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(between):
        frame, level = frame.f_back, level + 1
    return level


def inside_lbfgs() -> bool:
    """Whether torch's L-BFGS, or one after it, is stepping: it never evaluates the same versions of the parameters."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step" and "lbfgs" in frame.f_code.co_filename.lower():
            return True
        frame = frame.f_back
    return False

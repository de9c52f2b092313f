"""What is kept of a call, so that the next one like it costs little more than its numbers.

Of each call it is read what its student is made of, which tensors came, and how they lie. All that follows from this
alone is kept, and found by it: the checks, the Problem, the plan, the step of the C++ core but for its addresses. So
there is nothing to be noticed or forgotten when a student changes, and no student and no tensor is held. A call that is
out of the ordinary goes the long way, by prepare.py and call.py, as every first one does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import nn
from torch.autograd import forward_ad

from . import ops
from .advice import looked_at_again
from .boundary import PLAIN
from .checks import faults_of_range
from .directions import Projections
from .errors import refuse
from .math.directions import GIVEN
from .modules import CALL, CALL_IMPL, CONTAINERS, FORWARDS, MODULES
from .problem import LOSS, Operands, Problem
from .settings import DIFFERENTIAL_ML, Settings
from .steps import Shelf, Step, optional_of, step_of, surroundings
from .streams.whole import Followed, followed_again
from .student import hooks_of_all
from .targets import Targets
from .weights import UNWEIGHTED, Weights

PARTS = attrgetter(
    "values", "jacobian", "tangents", "vjps", "hessian", "seconds", "directions", "cotangents", "teacher"
)  # fmt: skip
# What a module of each class is asked for: the attributes that make it the row of the activation table that it is.
ATTRIBUTES: dict[type, tuple[str, ...]] = {kind: () for kind in (nn.Linear, *CONTAINERS)}
for row in MODULES.values():
    ATTRIBUTES[row.kind] = (*row.parameters, *(name for name, _ in row.arguments))
NUMBERS = (float, int, bool, str)
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
    views: tuple[tuple | None, ...]  # which tensor each optional operand is, and as what it is seen
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
    parameters: list[torch.Tensor]
    tensors: list[torch.Tensor]  # x, parameters, given vectors, targets, weights: in the order in which the core reads
    weights: Weights
    chain: Followed | None = None  # of a student that is known by what its forward does
    kept: Kept | None = None
    addresses: list[int] | None = None

    def run(self) -> tuple[torch.Tensor, ...]:
        """The results, as `call.run` has them."""
        kept, x = self.kept, self.tensors[0]
        if self.weights is not UNWEIGHTED:
            for name, weight in zip(WEIGHTS, self.weights, strict=True):
                refuse(() if weight is None else faults_of_range(name, weight))
        if kept.fresh:
            looked_at_again(self.student, x, self.parameters, self.settings, self.targets)
        seed = kept.projections.draw_seed() if kept.seed is None else None
        if kept.finished:
            operands = Operands(x, self.parameters, seed=seed, weights=kept.weights)
        else:
            operands = self.operands(seed)
        if kept.differentiable:
            results = ops.apply(self.compute, kept.problem, operands, x, *self.parameters)
            return (results,) if kept.finished else results
        return tuple(self.compute(kept.problem, operands))

    def operands(self, seed: torch.Tensor | None) -> Operands:
        """All of them, as call.py makes them."""
        kept, tensors = self.kept, self.tensors
        if seed is None and kept.projections is not None:
            seed = kept.projections.draw_seed()
        optional = [view and tensors[view[0]].as_strided(*view[1:]) for view in kept.views]
        return Operands(tensors[0], self.parameters, optional[0], seed, *optional[1:], kept.weights)

    def compute(self, problem: Problem, operands: Operands) -> list[torch.Tensor | None]:
        """As `ops.compute`, without the terms that nobody asks for."""
        kept, x = self.kept, operands.x
        dtype, device = x.dtype, x.device
        made = [ops.empty(shape, dtype=dtype, device=device) for shape in kept.step.outputs]
        if problem.gradients:
            made += map(ops.empty_like, self.parameters)
        if not kept.step.run(self.addresses, made, kept.seed or operands.seed.tolist()):
            return ops.compute(problem, self.operands(operands.seed))
        if kept.finished:
            made.insert(1, None)
        return made


KEPT: Shelf[Kept] = Shelf()


def read(module: object, kinds: list, parameters: list[torch.Tensor]) -> bool:
    """Add what a module is made of, in order, and its parameters; whether it is made of what MLPs are made of.

    It asks of a module what student.py asks, in fewer words: of whatever is not usual student.py knows more.
    """
    kind = type(module)
    attributes = ATTRIBUTES.get(kind)
    if attributes is None or kind.forward is not FORWARDS[kind] or kind._call_impl is not CALL_IMPL:
        return False
    inside = module.__dict__
    if "_modules" not in inside or "forward" in inside or kind.__call__ is not CALL:
        return False
    if inside["_forward_hooks"] or inside["_forward_pre_hooks"]:
        return False
    if inside["_backward_hooks"] or inside["_backward_pre_hooks"]:
        return False
    if kind is nn.Linear:
        own = inside["_parameters"]
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or "bias" not in own or "weight" in inside or "bias" in inside:
            return False
        kinds.append(bias is None)
        parameters.append(weight)
        if bias is not None:
            parameters.append(bias)
    elif kind in CONTAINERS:
        return all([read(child, kinds, parameters) for child in inside["_modules"].values()])
    else:
        kinds.append(kind)
        for name in attributes:
            value = inside.get(name)
            if type(value) not in NUMBERS:
                return False
            kinds.append(value)
    return True


def look(
    result: str, student: object, x: object, settings: Settings, given: torch.Tensor | None,
    targets: Targets | None = None, weights: Weights = UNWEIGHTED, collapsed: bool = False,
) -> Call | None:  # fmt: skip
    """A call, and what is kept of one like it; None of a call that is out of the ordinary."""
    if torch.compiler.is_compiling() or watched() or type(x) not in PLAIN or not x.is_cpu or x.is_nested:
        return None
    kinds: list = []
    parameters: list[torch.Tensor] = []
    chain, usual = None, read(student, kinds, parameters)
    said, parts = None, ()
    if targets is not None:
        *parts, directions, cotangents, teacher = PARTS(targets)
        chosen = cotangents if directions is None else directions
        if teacher is not None or (directions is not None and cotangents is not None):
            return None
        if chosen is not None:
            said, given = (type(chosen), *chosen._said()), given if chosen.values is None else chosen.values
    optional = (given, *parts, *weights)
    types = tuple(map(type, optional))
    if not KNOWN.issuperset(types):
        return None
    if not usual:
        chain = followed_again(student, x, settings.backend)
        if chain is None:
            return None
        kinds, parameters = [Followed, *(chain.student.biases, chain.student.activations)], [*chain.student.parameters]
    likeness = (
        result, collapsed, id(settings), tuple(kinds), said, types, x.shape,
        torch.is_grad_enabled(), os.environ.get("SOBOLEV_BACKEND"), *surroundings(),
    )  # fmt: skip
    tensors = [x, *parameters, *[tensor for tensor in optional if tensor is not None]]
    call = Call(likeness, student, settings, targets, parameters, tensors, weights, chain)
    for kept in KEPT.get(likeness, ()):
        call.addresses = kept.step.addresses(tensors)
        if call.addresses is not None:
            call.kept = kept
            break
    return call


def watched() -> bool:
    """Whether someone looks at every operation of PyTorch, or changes what it does."""
    return (
        torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled("cpu") or hooks_of_all()
    )  # fmt: skip


def keep(call: Call, problem: Problem, operands: Operands, projections: Projections | None) -> None:
    """Keep of a call that came the long way what the next one like it need not find again.

    That is so where it reads just the tensors that came, each where it lies: whatever was computed first, as the unit
    of a column, would have to be computed again.
    """
    settings = call.settings
    if settings.check_finite or settings.weights == DIFFERENTIAL_ML or (projections and projections.offset):
        return  # of the last, the next call will be at another offset
    if not still_is(call):
        return
    outputs, gradients = ops.outputs_of(problem, operands)
    finished = problem.result == LOSS and not problem.terms
    if finished:
        del outputs["terms"]
    step = step_of(problem, operands, call.tensors, outputs, gradients)
    if step is None:
        return
    places = iter(range(1 + len(operands.parameters), len(call.tensors)))
    targeted = (operands.values, operands.derivative, operands.second)
    drawn = projections is not None and projections.distribution != GIVEN
    seed = (0, 0) if not drawn else None if projections.seed is None else (projections.seed, projections.offset)
    differentiates = torch.is_grad_enabled()
    kept = Kept(
        settings, problem, projections, operands.weights, tuple(t is not None for t in targeted), step,
        tuple(t if t is None else (next(places), t.shape, t.stride()) for t in optional_of(operands)), seed, finished,
        fresh=call.targets is not None and seed is None and differentiates,
        differentiable=differentiates and any(t.requires_grad for t in call.tensors),
    )  # fmt: skip
    KEPT.put(call.likeness, kept)


def still_is(call: Call) -> bool:
    """Whether the call is still what it was taken for: another thread may have changed the student meanwhile.

    Of a forward that was followed the call has the very tensors.
    """
    if call.chain is not None:
        return surroundings() == call.likeness[-2:]
    kinds: list = []
    parameters: list[torch.Tensor] = []
    same = read(call.student, kinds, parameters) and tuple(kinds) in call.likeness
    return same and [*map(id, parameters)] == [*map(id, call.parameters)] and surroundings() == call.likeness[-2:]

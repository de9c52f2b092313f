"""The short way of a function that is not looked into, and of which no path is cut: its forward, its derivatives and
the loss, with nothing between them that an author would not write by hand.

Where autograd takes its derivatives, what its graph is made of is looked at each time (running.py), and whether it
mixes samples as often as ever. Where pairs flow through it, each operation is met by its rule, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from .advice import looked_at_again
from .backends import reference, running, streams
from .backends.functions import by_gradients, gradients_of, units
from .columns import Columns
from .enums import COTANGENTS, DIRECTIONS
from .errors import NotProvided
from .kept import Call
from .math.directions import GIVEN
from .mean_loss import computes, computes_of_pairs, mean_loss
from .outputs import outputs_of
from .paths import found_again
from .planner import takes_gradients
from .prepare import Prepared
from .problem import LOSS, Operands, Problem
from .steps import optional_of, same_place, views_in
from .streams.by_heart import ByHeart
from .streams.flowing import NotFollowed
from .streams.fused import segments_of, values_put_off
from .streams.look import before_flow, chains_of, flows_no_more
from .streams.segments import CHANGED
from .streams.values import alone, deferred, nobody_watches
from .targeted import UNTARGETED, targets_of

PLAIN = Columns()


def run_function(found: Call, call: Prepared) -> tuple[tuple[torch.Tensor, ...], tuple[bool, ...]] | None:
    """As `call.evaluate`; None if it gives other outputs than before, takes numbers of its inputs, or pairs do not
    flow through it any more."""
    ran = (run_pairs if call.problem.backend == "streams" else run_graphs)(found, call)
    if ran is not None and found.accepted.fresh:
        looked_at_again(found.student, found.tensors[0], found.made_of.parameters, found.settings, found.targets)
    return ran


def run_graphs(found: Call, call: Prepared) -> tuple[tuple[torch.Tensor, ...], tuple[bool, ...]] | None:
    """By autograd."""
    x, problem = found.tensors[0], call.problem
    before = torch.get_rng_state()
    ran = ran_again(found, x, problem, before)
    wanted = None, call.projections, found.given if found.accepted.given else None
    paths = None if ran.read else found_again(found.student, ran, x, wanted, found.known)
    if ran.y.shape[1] != problem.O or paths is None:
        torch.set_rng_state(before)
        return None
    ran = ran._replace(looked=int(paths.told), own=paths.own)
    operands, known = operands_of(found, call)
    learnt = found.accepted.learnt
    wanted = of_gradients(problem, operands, ran, COMPUTED in learnt)
    if wanted is not None:
        learnt[COMPUTED] = True
        return (mean_loss(problem, *wanted),), known
    return reference.run(problem, operands, PLAIN, ran), known


# Of calls that are alike: how their operands come of their tensors; and that the core computes their loss.
OPERANDS, COMPUTED = "operands", "computed"


def operands_of(found: Call, call: Prepared) -> tuple[Operands, tuple[bool, ...]]:
    """The tensors of a call, and of each term whether it has a target."""
    learnt = found.accepted.learnt.get(OPERANDS)
    if learnt is not None and found.offset in (None, call.projections.offset):
        views, seed, weights, known = learnt
        others = found.others
        given, *targeted = [view and view(others) for view in views]
        return Operands(others[0], [], given, seed, *targeted, weights), known
    operands, known = operands_found(found, call)
    if call.projections.distribution in (GIVEN, "basis"):  # of which nothing is drawn
        others, views = found.others, views_in(found.others, operands)
        if all(is_view(view, others, operand) for view, operand in zip(views, optional_of(operands), strict=True)):
            found.accepted.learnt[OPERANDS] = views, operands.seed, operands.weights, known
    return operands, known


def is_view(view: Callable | None, tensors: list[torch.Tensor], operand: torch.Tensor | None) -> bool:
    """Whether it gives this operand, number by number where it lies."""
    if view is None or operand is None:
        return view is operand
    found = view(tensors)
    return same_place(found, operand) and (found.shape, found.stride()) == (operand.shape, operand.stride())


def operands_found(found: Call, call: Prepared) -> tuple[Operands, tuple[bool, ...]]:
    x, problem, projections = found.tensors[0], call.problem, call.projections
    if found.offset not in (None, projections.offset):
        projections = replace(projections, offset=found.offset)
    targets = UNTARGETED if found.targets is None else targets_of(call, found.targets, PLAIN)
    given, weights = found.given if found.accepted.given else None, call.request.settings.numbers(problem.W)
    operands = Operands(
        x, [], given, projections.draw_seed(x.device, len(x)), *targets, weights=weights[: 1 + problem.order]
    )
    return operands, tuple([tensor is not None for tensor in targets])


def run_pairs(found: Call, call: Prepared) -> tuple[tuple[torch.Tensor, ...], tuple[bool, ...]] | None:
    """By pairs; None where they do not flow through it as they did before, which the long way tells."""
    x, problem, function = found.tensors[0], call.problem, found.student
    held = before_flow(function, x)
    operands, known = operands_of(found, call)
    vectors = reference.vectors_of(problem, operands)
    segments = segments_of(problem.ends, known=found.accepted.fused)
    try:
        y, d = streams.streams_of(problem, x, vectors, function, segments)
    except NotFollowed as error:
        held.restore()
        flows_no_more(function, x, problem.order, str(error))
        if str(error) == CHANGED:  # so another run would give other numbers
            raise NotProvided(f"student: {CHANGED}, as in no call before; the next one looks at him again") from None
        return None
    if computes_of_pairs(problem, operands, y, d):
        return (mean_loss(problem, operands, None, y, d),), known
    return streams.finished(problem, operands, vectors, y, d), known


def of_gradients(problem: Problem, operands: Operands, ran: running.Evaluated, computed: bool = False) -> tuple | None:
    """What `mean_loss` is of, if it computes the loss, as it has `computed` that of a call like it: operands, vectors
    to be projected on, values and gradients."""
    if problem.result != LOSS or problem.head is not None or problem.given_gradient or not ran.kept:
        return None
    vectors = None
    if not reference.has_rows(problem, ran):
        vectors = reference.vectors_of(problem, operands)
    elif problem.magnitude != 1:
        return None
    if problem.projection == COTANGENTS:
        vectors, u = None, vectors
    elif vectors is None or by_gradients(ran, problem.P):
        u = units(ran.y)
    else:
        return None
    if vectors is None and problem.projection == DIRECTIONS and operands.derivative is not None:
        operands = operands._replace(derivative=operands.derivative.permute(2, 1, 0))
    computed = computed and ran.y.dtype is operands.x.dtype
    if not (computed or computes(problem, operands, ran.y, vectors, len(u))):
        return None
    return operands, vectors, ran.y, *gradients_of(ran, u)


def ran_again(found: Call, x: torch.Tensor, problem: Problem, before: torch.Tensor) -> running.Evaluated:
    student, graphs, again = found.student, found.known.graphs, problem.given_gradient
    function = partial(outputs_of, student)
    if graphs.needs is not None and not again and not torch.is_inference_mode_enabled():
        if takes_gradients(problem) and nobody_watches():
            chains = chains_of(student, function, x, graphs, found.made_of.parameters)
            ran = with_chains(found, chains, before) if chains.graph else None
            if ran is not None:
                return ran
        ran = running.run_again(function, x, graphs, before)
        if ran is not None:
            return ran
    return running.evaluate(function, x, graphs, again)


def with_chains(found: Call, chains: running.Chains, before: torch.Tensor) -> running.Evaluated | None:
    """The run with chains of layers put off and operations that are our own; None where that can be told, or its graph
    is of another kind. Its graph is told as that of the run as it is."""
    student, x, graphs = found.student, found.tensors[0], found.known.graphs
    held, needed = before_flow(student, x), (graphs.needs, graphs.unlike)
    if chains.begun:
        mode_of = partial(ByHeart, heard=chains.heard, parameters=found.made_of.parameters)
        told = partial(values_put_off, chains.ends, chains.begun, singles=chains.singles)
        of_chains = deferred(student, told, mode_of)
    else:
        of_chains = alone(student, chains.singles)
    try:
        ran = running.run_again(partial(outputs_of, of_chains), x, graphs, before, chains.needs)
        ran, reason = (ran, "") if ran and ran.kinds == chains.graph[0] else (None, "its graph is another than before")
    except NotFollowed as error:
        ran, reason = None, str(error)
    if ran is None:
        held.restore()
        graphs.needs, graphs.unlike = needed
        graphs.chains = dict.fromkeys(graphs.chains, running.Chains(reason=reason))
    if ran is None:
        return None
    kinds, places = chains.as_it_is
    # of layers there are no places, and of all else the same in the same order
    return ran._replace(kinds=kinds, places=places if ran.places == chains.graph[1] else ran.places)

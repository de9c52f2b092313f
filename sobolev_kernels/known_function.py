"""The short way of a function that is not looked into, that the reference runs, and of which no path is cut: its
forward, its derivatives by autograd and the loss, with nothing between them that an author would not write by hand.

What its graph is made of is looked at each time (running.py), and whether it mixes samples as often as ever.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from .advice import looked_at_again
from .backends import reference, running
from .backends.functions import by_gradients, gradients_of, units
from .columns import Columns
from .enums import COTANGENTS, DIRECTIONS
from .kept import Call
from .mean_loss import computes, mean_loss
from .outputs import outputs_of
from .prepare import Prepared
from .problem import LOSS, Operands, Problem
from .targeted import UNTARGETED, targets_of

PLAIN = Columns()


def run_function(found: Call, call: Prepared) -> tuple[tuple[torch.Tensor, ...], tuple[bool, ...]] | None:
    """As `call.evaluate`; None if it gives other outputs than before."""
    x, problem, projections = found.tensors[0], call.problem, call.projections
    if found.accepted.fresh:
        looked_at_again(found.student, x, found.made_of.parameters, found.settings, found.targets)
    ran = ran_again(found, x, problem.given_gradient)
    if ran.y.shape[1] != problem.O:
        return None
    if found.offset not in (None, projections.offset):
        projections = replace(projections, offset=found.offset)
    targets = UNTARGETED if found.targets is None else targets_of(call, found.targets, PLAIN)
    given, weights = found.given if found.accepted.given else None, call.request.settings.numbers(problem.W)[:2]
    operands = Operands(x, [], given, projections.draw_seed(x.device, len(x)), *targets, weights=weights)
    known = tuple([tensor is not None for tensor in targets])
    wanted = of_gradients(problem, operands, ran)
    if wanted is not None:
        return (mean_loss(problem, *wanted),), known
    return reference.run(problem, operands, PLAIN, ran), known


def of_gradients(problem: Problem, operands: Operands, ran: running.Evaluated) -> tuple | None:
    """What `mean_loss` is of, if it computes the loss: operands, vectors to be projected on, values and gradients."""
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
    if not computes(problem, operands, ran.y, vectors, len(u)):
        return None
    return operands, vectors, ran.y, *gradients_of(ran, u)


def ran_again(found: Call, x: torch.Tensor, again: bool) -> running.Evaluated:
    student, known, graphs = found.student, found.known.found[1], found.known.graphs
    looked, own = int(known.told), known.own
    function = partial(outputs_of, student)
    if graphs.needs is not None and not again and not torch.is_inference_mode_enabled():
        ran = running.run_again(function, x, graphs, looked, own)
        if ran is not None:
            return ran
    return running.evaluate(function, x, graphs, again)._replace(looked=looked, own=own)

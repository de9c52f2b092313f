"""Any student by pairs of a value and its tangents, which flow through his unmodified forward (`streams/`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..columns import Columns
from ..enums import DIRECTIONS
from ..planner import few_outputs
from ..problem import DERIVATIVES, Operands, Plan, Problem
from ..streams.flowing import NotFollowed, Run, is_of_checkpoint
from ..streams.pair import Pair, start
from ..streams.rules import RULES
from ..streams.trusted import TRUSTED
from ..student import widened
from .exact import Eagerly, graphs, tracked
from .functions import without_graph
from .reference import vectors_of
from .residuals import loss_of

DTYPES = ("float32", "float64")
OUTPUTS = "it gives another number of outputs than before"


def supports(problem: Problem) -> str | None:
    if not problem.unrecognised:
        return "the student is an MLP, which the other backends know"
    if problem.projection != DIRECTIONS or problem.order != 1:
        return "pairs are of first derivatives along directions"
    if not problem.P:
        return "no derivative is asked for"
    if problem.dtype not in DTYPES:
        return f"pairs are computed in {' and '.join(DTYPES)}"
    return problem.unfollowed


def gives_way(problem: Problem) -> str | None:
    """Why the reference, which takes the gradient of each output, is the better choice."""
    return few_outputs(problem)


def plan(problem: Problem, N: int) -> Plan:
    return Plan("streams", "a value and its tangents by rules")


def run(
    problem: Problem, operands: Operands, columns: Columns, function: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """As `reference.run` of a function.

    Raises:
        NotFollowed: it does something that has no rule.
    """
    x, vectors = operands.x, vectors_of(problem, operands)
    y, tangents = propagated(function, x, columns.embed(vectors, problem.D))
    if y.shape[1] != problem.O:
        raise NotFollowed(OUTPUTS)
    if problem.result == DERIVATIVES:
        return y, tangents
    return loss_of(problem, operands, widened(vectors), (y, tangents, None))


def propagated(
    function: Callable, x: torch.Tensor, v: torch.Tensor, counts: dict[str, int] | None = None,
    without_rule: dict[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y [N, O] and its tangents [P, N, O] along v [P, N, D]."""
    run = Run(RULES, x.dtype, x.device, bodies=True, trusted=TRUSTED, counts=counts, without_rule=without_rule)
    kept = torch.is_grad_enabled()
    try:
        with graphs(), Eagerly():
            # where nothing is kept, parameters alone have a graph
            result = function(start(run, tracked(x) if kept else tracked(x).detach(), tracked(v)))
    except Exception as error:  # whatever it is: run as it is, the function says it himself
        if is_of_checkpoint(error):
            raise
        raise NotFollowed(run.reason or f"{type(error).__name__} in it: {error}") from error
    if run.reason:
        raise NotFollowed(run.reason)
    if not isinstance(result, Pair) or result.run is not run:
        raise NotFollowed("what it gives is no tensor that depends on its inputs by operations with rules")
    y, tangents = result.v, result.d
    if y.dim() == 1:
        y, tangents = y[:, None], tangents[..., None]
    if y.dim() != 2 or y.shape[0] != x.shape[0] or not y.shape[1] or y.dtype != x.dtype:
        raise NotFollowed(f"what it gives is {y.dtype} {list(y.shape)}")
    del result
    if run.is_held():
        raise NotFollowed("something keeps what flows through it")
    return (y, tangents) if kept else (without_graph(y), without_graph(tangents))

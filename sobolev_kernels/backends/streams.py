"""Any student by pairs of a value and its tangents, which flow through his unmodified forward (`streams/`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..columns import Columns
from ..enums import DIRECTIONS
from ..planner import few_outputs
from ..problem import AS_HE_IS, DERIVATIVES, Operands, Plan, Problem
from ..streams.flowing import NotFollowed, Run, attach, is_of_checkpoint
from ..streams.pair import Pair, start
from ..streams.rules import RULES
from ..streams.trusted import TRUSTED
from ..student import COMPUTE_DTYPE, widened
from .exact import graphs, tracked
from .reference import loss_of, uncast, vectors_of, without_graph

HALVES = ("bfloat16", "float16")
DTYPES = ("float32", "float64", *HALVES)
OUTPUTS = "it gives another number of outputs than before"


def supports(problem: Problem) -> str | None:
    if not problem.unrecognised:
        return "the student is an MLP, which the other backends know"
    if problem.projection != DIRECTIONS or problem.order != 1:
        return "pairs are of first derivatives along directions"
    if not problem.P:
        return "no derivative is asked for"
    if problem.dtype not in DTYPES:
        return f"pairs are computed in {', '.join(DTYPES)}"
    if problem.unrecognised == AS_HE_IS and problem.dtype in HALVES:
        return "an MLP in half precision is computed in float32, which the other backends do"
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
    y, tangents = widened(y), widened(tangents)
    if problem.result == DERIVATIVES:
        return y, tangents
    with uncast(x):
        return loss_of(problem, operands, widened(vectors), (y, tangents, None))


def propagated(
    function: Callable, x: torch.Tensor, v: torch.Tensor, counts: dict[str, int] | None = None,
    without_rule: dict[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y [N, O] and its tangents [P, N, O] along v [P, N, D]."""
    run = Run(RULES, x.dtype, x.device, bodies=True, trusted=TRUSTED, counts=counts, without_rule=without_rule)
    kept = torch.is_grad_enabled()
    try:
        with graphs(), torch.compiler.set_stance("force_eager"):
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
    alike = {COMPUTE_DTYPE.get(t.dtype, t.dtype) for t in (x, y)}
    if y.dim() != 2 or y.shape[0] != x.shape[0] or not y.shape[1] or len(alike) > 1:
        raise NotFollowed(f"what it gives is {y.dtype} {list(y.shape)}")
    del result
    if run.is_held():
        raise NotFollowed("something keeps what flows through it")
    if not kept:
        return without_graph(y), without_graph(tangents)
    attach(run.hooks, (y, tangents))
    return y, tangents

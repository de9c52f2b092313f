"""Any student by pairs of a value and its tangents, which flow through his unmodified forward (`streams/`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..columns import Columns
from ..enums import DIRECTIONS
from ..math.heads import value
from ..planner import few_outputs
from ..problem import AS_HE_IS, CONSTANT, DERIVATIVES, Operands, Plan, Problem
from ..streams.checkpoints import FLOWS
from ..streams.flowing import NotFollowed, Run, attach, is_of_checkpoint
from ..streams.pair import Pair, start
from ..streams.rules import RULES, TWICE
from ..streams.segments import SEGMENTED, SEGMENTED_TWICE, Segments
from ..streams.trusted import TRUSTED, TRUSTED_TWICE
from ..streams.twice import LACKS, Twice, whole
from ..student import COMPUTE_DTYPE, widened
from .exact import Eagerly, graphs, tracked
from .functions import without_graph
from .reference import behind_head, uncast, vectors_of
from .residuals import loss_of

HALVES = ("bfloat16", "float16")
DTYPES = ("float32", "float64", *HALVES)
OUTPUTS = "it gives another number of outputs than before"


def supports(problem: Problem) -> str | None:
    if not problem.unrecognised:
        return "the student is an MLP, which the other backends know"
    if problem.projection != DIRECTIONS:
        return "pairs are of derivatives along directions"
    if not problem.P:
        return "no derivative is asked for"
    if problem.order > 2:
        return f"pairs are of second derivatives at most, not of order {problem.order}"
    if problem.dtype not in DTYPES:
        return f"pairs are computed in {', '.join(DTYPES)}"
    if problem.unrecognised == AS_HE_IS and problem.dtype in HALVES:
        return "an MLP in half precision is computed in float32, which the other backends do"
    return problem.unfollowed


def gives_way(problem: Problem) -> str | None:
    """Why the reference, which takes the gradient of each output, is the better choice."""
    return few_outputs(problem)


def plan(problem: Problem, N: int) -> Plan:
    what = "tangents" if problem.order == 1 else "first and second derivatives"
    return Plan("streams", f"a value and its {what} by rules")


def run(
    problem: Problem, operands: Operands, columns: Columns, function: Callable[[torch.Tensor], torch.Tensor],
    segments: Segments | None = None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """As `reference.run` of a function; `segments`: how chains of layers within it are fused.

    Raises:
        NotFollowed: it does something that has no rule.
    """
    vectors = vectors_of(problem, operands)
    v = columns.embed(vectors, problem.D)
    return finished(problem, operands, vectors, *streams_of(problem, operands.x, v, function, segments))


def streams_of(
    problem: Problem, x: torch.Tensor, v: torch.Tensor, function: Callable, segments: Segments | None
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What `propagated` gives of a function with as many outputs as the problem says."""
    of_order = {"order": problem.order, "collapsed": problem.collapsed, "segments": segments}
    y, streams = propagated(function, x, v, **of_order)
    if y.shape[1] != problem.O:
        raise NotFollowed(OUTPUTS)
    return y, streams


def finished(
    problem: Problem, operands: Operands, vectors: torch.Tensor, y: torch.Tensor, streams: torch.Tensor
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The results of outputs y and what else the streams carry."""
    P = len(vectors)
    with uncast(operands.x):
        first, second = (streams, None) if problem.order == 1 else streams.split([P, len(streams) - P])
        jet = behind_head(problem, (widened(y), widened(first), widened(second)))
        if problem.result != DERIVATIVES:
            return loss_of(problem, operands, widened(vectors), jet)
    y, first, second = jet
    y = y if problem.head is None else value(problem.head, y)
    return (y, second[0]) if problem.collapsed else (y, first) if second is None else (y, first, second)


def propagated(
    function: Callable, x: torch.Tensor, v: torch.Tensor, counts: dict[str, int] | None = None,
    without_rule: dict[str, int] | None = None, order: int = 1, collapsed: bool = False,
    segments: Segments | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y [N, O] and its tangents [P, N, O] along v [P, N, D]; of order 2 behind them second derivatives [P, N, O], or
    their sum [1, N, O] alone."""
    told = {"bodies": True, "counts": counts, "without_rule": without_rule}
    if order == 1:
        rules = RULES if segments is None else SEGMENTED
        run = Run(rules, x.dtype, x.device, trusted=TRUSTED, segments=segments, **told)
    else:
        told |= {"trusted": TRUSTED_TWICE, "lacks": LACKS, "segments": None if collapsed else segments}
        rules, S = TWICE if told["segments"] is None else SEGMENTED_TWICE, len(v) + (1 if collapsed else len(v))
        run = Twice(rules, x.dtype, x.device, P=len(v), S=S, **told)
    kept = torch.is_grad_enabled()
    try:
        with graphs(), Eagerly(), FLOWS:
            # where nothing is kept, parameters alone have a graph
            result = function(start(run, tracked(x) if kept else tracked(x).detach(), tracked(v)))
            numbers = None
            if isinstance(result, Pair) and result.run is run:
                numbers = result.v, result.d if order == 1 else whole(result)
    except Exception as error:  # whatever it is: run as it is, the function says it himself
        if is_of_checkpoint(error):
            raise
        raise NotFollowed(run.reason or f"{type(error).__name__} in it: {error}") from error
    if run.reason:
        raise NotFollowed(run.reason)
    if numbers is None:
        raise NotFollowed(CONSTANT)
    y, tangents = numbers
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

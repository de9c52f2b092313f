"""Which side the derivatives are computed from: what each would cost is counted, with thresholds that were measured."""

from __future__ import annotations

from functools import lru_cache

from .enums import COTANGENTS, DIRECTIONS, GRADIENTS, TANGENTS
from .math.directions import DISTRIBUTIONS
from .problem import Problem

# FLOPs of a multiply that take as long as loading one number of a direction, and as projecting one of a gradient with
# its adjoint; those of drawing are in the table of distributions. The gradients' side draws every direction once for
# each output.
LOADED, PROJECTED = 20, 10
GRADIENT = 1.06  # a gradient and its way back against a tangent and its own, without the directions


def chains(problem: Problem) -> dict[str, int]:
    """How many streams each side carries beside the values, for the sides that give what is asked."""
    if problem.projection == COTANGENTS:
        return {GRADIENTS: problem.P}
    if problem.order == 2:
        return {TANGENTS: problem.P + (1 if problem.collapsed else problem.P)}
    return {TANGENTS: problem.P, GRADIENTS: problem.O} if problem.P else {TANGENTS: 0}


def flops(problem: Problem, N: int, streams: int | None = None) -> int:
    """Floating-point operations of the matrix products, the count of docs/math.md; by default of the side taken."""
    streams = chains(problem)[side(problem)] if streams is None else streams
    return (6 if problem.gradients else 2) * (1 + streams) * N * problem.multiplies


def cost(problem: Problem, taken: str) -> float:
    """What a sample costs from one side, in FLOPs of a multiply."""
    products = flops(problem, 1, chains(problem)[taken])
    row = DISTRIBUTIONS.get(problem.distribution)
    numbers = problem.P * problem.W * (row.cost if row else LOADED)
    if taken == TANGENTS:
        return products + numbers
    return GRADIENT * products + problem.O * (numbers + problem.P * problem.W * PROJECTED)


@lru_cache(maxsize=256)
def side(problem: Problem) -> str:
    """A tangent for each direction, or a gradient for each output (or cotangent), which is projected on the
    directions: the same numbers, so whichever costs less."""
    choices = chains(problem)
    return next(iter(choices)) if len(choices) == 1 else min(choices, key=lambda taken: cost(problem, taken))


def exact_projection(W: int, O: int | None) -> str:
    """For the whole Jacobian: columns by tangents, or rows by gradients, whichever are fewer; unknown O is many."""
    return COTANGENTS if O is not None and O < W else DIRECTIONS

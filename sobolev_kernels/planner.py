"""Which side the derivatives are computed from, and what each would cost."""

from __future__ import annotations

from .problem import COTANGENTS, DIRECTIONS, Problem

TANGENTS, GRADIENTS = "tangents", "gradients"


def chains(problem: Problem) -> dict[str, int]:
    """How many streams each side carries beside the values, for the sides that give what is asked."""
    if problem.projection == COTANGENTS:
        return {GRADIENTS: problem.P}
    if problem.order == 2:
        return {TANGENTS: problem.P + (1 if problem.collapsed else problem.P)}
    return {TANGENTS: problem.P, GRADIENTS: problem.O} if problem.P else {TANGENTS: 0}


def side(problem: Problem) -> str:
    """The side with the fewest streams: a tangent for each direction, or a gradient for each output (or cotangent),
    which is projected on the directions. The numbers are the same."""
    counts = chains(problem)
    return min(counts, key=counts.get)


def flops(problem: Problem, N: int, streams: int | None = None) -> int:
    """Floating-point operations of the matrix products, the count of docs/math.md; by default of the side taken."""
    streams = min(chains(problem).values()) if streams is None else streams
    return (6 if problem.gradients else 2) * (1 + streams) * N * problem.multiplies


def exact_projection(W: int, O: int | None) -> str:
    """For the whole Jacobian: columns by tangents, or rows by gradients, whichever are fewer; unknown O is many."""
    return COTANGENTS if O is not None and O <= W else DIRECTIONS

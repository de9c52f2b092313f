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
# Of any function: a gradient of an output, and the VJP with which the tangents begin, against a VJP of that VJP. The
# gradients' side took of the time of the tangents', LeNet and a residual MLP with LayerNorm, N = 128, 2 cores, P and O
# 1 1: 0.94, 0.83; 1 2: 1.24, 1.27; 2 2: 1.15, 0.94; 4 1: 0.41, 0.39; 4 2: 0.76, 0.50; 4 4: 1.64, 1.01.
FUNCTION_GRADIENT, FUNCTION_VALUE = 1.5, 0.5
# Of any function: a value or a gradient by double backward against a value or a tangent of a pair. Double backward took
# of the time of pairs, LeNet, a residual MLP with LayerNorm and one with Fourier features, N = 128, 2 cores, P and O
# 1 1: 1.5, 1.05, 1.1; 4 1: 0.76, 0.64, 0.8; 4 2: 1.06, 1.0, 1.1; 4 10: 1.4, 1.7, 1.4.
STREAM_GRADIENT = 1.8
GRADIENT = 1.06  # a gradient and its way back against a tangent and its own, without the directions


def chains(problem: Problem) -> dict[str, int]:
    """How many streams each side carries beside the values, for the sides that give what is asked."""
    if problem.projection == COTANGENTS:
        return {GRADIENTS: problem.P}
    if problem.order == 2:
        return {TANGENTS: problem.P + (1 if problem.collapsed else problem.P)}
    if problem.gradients and problem.given_gradient:  # a direction's adjoint is at the foot of its tangent's chain
        return {TANGENTS: problem.P}
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


def side_of_function(P: int, O: int) -> str:
    """The same for any function, by VJPs of VJPs: a gradient of each output, or two passes for each direction."""
    return GRADIENTS if P and FUNCTION_GRADIENT * O <= FUNCTION_VALUE + P else TANGENTS


def few_outputs(problem: Problem) -> str | None:
    """Of a function of `outputs`: why pairs of value and tangents cost more than the gradient of each output."""
    O, P = problem.outputs, problem.P
    if O is None or STREAM_GRADIENT * (1 + O) > 1 + P:
        return None
    return f"{O} gradient{'s cost' if O > 1 else ' costs'} less than {P} tangents"


def exact_projection(W: int, O: int | None) -> str:
    """For the whole Jacobian: columns by tangents, or rows by gradients, whichever are fewer; unknown O is many."""
    return COTANGENTS if O is not None and O < W else DIRECTIONS

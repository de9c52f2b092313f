"""Which side the derivatives are computed from: what each would cost is counted, with thresholds that were measured."""

from __future__ import annotations

from functools import lru_cache

from .backends import constant_while_traced
from .enums import COTANGENTS, DIRECTIONS, GRADIENTS, TANGENTS
from .math.directions import ROWS
from .problem import Problem

# FLOPs of a multiply that take as long as loading one number of a direction, and as projecting one of a gradient with
# its adjoint; those of drawing are in the table of distributions. The gradients' side draws every direction once for
# each output.
LOADED, PROJECTED = 20, 10
# Of any function: a gradient of an output by double backward against a value or a tangent of a pair. Pairs took of the
# time of double backward within the reference, on 2 cores, gated product, Fourier features, LeNet, a residual MLP with
# LayerNorm and a transformer, N = 128, and N = 1024 where undisturbed; O and P
# 1 1: 0.73 to 0.99, 0.67 to 0.88; 1 2: 1.05 to 1.23; 2 2: 0.60 to 0.88; 2 3: 0.59 to 0.91; 2 4: 0.49 to 1.12, 1.1 to
# 1.5; 4 4: 0.45 to 0.76; 4 8: 0.65 to 1.11; 10 1: 0.67 to 0.8. The VJP of a VJP for each direction takes as much as a
# gradient.
STREAM_GRADIENT = 2.2
# Where there are so few numbers that a pair's operation costs what Python takes: of up to SMALL samples, and within
# recurrent layers, whose steps are operations by themselves. Reference ÷ pairs, one thread, O = P = 1, N = 8: 0.86,
# 1.03, 0.92, 1.05, 0.91, and 0.63 of a GRU; N = 32: 0.93, 1.14, 0.96, 1.08, 0.98, 0.65; a GRU with N = 128: 0.66.
LIGHT_GRADIENT, SMALL = 1.8, 16
# From MANY samples on, where a tangent is limited by memory and chains of layers are fused on the gradients' side, too:
# beside the values. One thread, N = 1024, LeNet, residual MLP, Fourier features, gated product, a GRU, transformer and
# U-net, gradients ÷ tangents of a step, by O and P: 1 1: 1.16, 1.17, 1.03, 1.02, 0.98, 1.24, 1.05; 2 3: 0.99, 1.04,
# 1.19, 0.98, 0.86, 0.84, 0.78; 10 16: 0.83, 0.85, 0.98, 0.85, 0.75, 0.75, 0.68.
HEAVY_GRADIENT, MANY = 1.35, 512
# Compiled, beside the values, too. One thread, ms by pairs and by gradients of a gated product, O and P 2 3: 0.97 and
# 0.89, N = 1024 7.2 and 6.6; 10 12: 2.9 and 3.0, N = 1024 38 and 37; 10 16: 3.6 and 2.8; 1 1: 0.57 and 0.59.
COMPILED_GRADIENT = 1.25
GRADIENT = 1.06  # a gradient and its way back against a tangent and its own, without the directions


def chains(problem: Problem) -> dict[str, int]:
    """How many streams each side carries beside the values, for the sides that give what is asked."""
    if problem.projection == COTANGENTS:
        return {GRADIENTS: problem.P}
    if problem.order > 1:
        return {TANGENTS: problem.P + 1 if problem.collapsed else problem.order * problem.P}
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
    row = ROWS.get(problem.distribution)
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


@constant_while_traced  # dynamo would take the threshold for a variable
def side_of_function(P: int, O: int, pairs: bool = False) -> str:
    """The same for any function: a gradient of each output, or as much for each direction, by the VJP of a VJP; or by
    `pairs` of a value and its tangents, as a compiler has them."""
    return GRADIENTS if 0 < O and (COMPILED_GRADIENT if pairs else 1) * O <= P else TANGENTS


def takes_gradients(problem: Problem) -> bool:
    """Of any function: whether first derivatives are taken as gradients of outputs, or of cotangents."""
    if problem.projection == COTANGENTS or problem.order > 1:
        return problem.order == 1
    return problem.P > 0 and side_of_function(problem.P, problem.outputs or 0) == GRADIENTS


def sides_of_function(problem: Problem) -> dict[str, float] | None:
    """What first derivatives of a function cost from both sides, in values or tangents of a pair; None of others, and
    of one whose outputs are not known.

    Of order 2 no other side costs less: the reference took 1.2 to 7 times as long as pairs (the same students without
    the transformer, one core, N = 128 and 1024, O = 1 and 10, P = 1 and 4 and a Laplacian).
    """
    if problem.projection == COTANGENTS or problem.order > 1 or not problem.P or problem.outputs is None:
        return None
    if problem.heavy:
        return {TANGENTS: 1 + problem.P, GRADIENTS: 1 + HEAVY_GRADIENT * problem.outputs}
    gradient = LIGHT_GRADIENT if problem.light else STREAM_GRADIENT
    return {TANGENTS: 1 + problem.P, GRADIENTS: gradient * problem.outputs}


def few_outputs(problem: Problem) -> str | None:
    """Of a function of `outputs`: why pairs of value and tangents cost more than the gradient of each output, which
    are no derivatives along directions where samples are mixed."""
    O, P, costs = problem.outputs, problem.P, sides_of_function(problem)
    if costs is None or problem.mixed or problem.sharded or costs[GRADIENTS] > costs[TANGENTS]:
        return None
    return f"{O} gradient{'s cost' if O > 1 else ' costs'} less than {P} tangent{'s' if P > 1 else ''}"


def exact_projection(W: int, O: int | None) -> str:
    """For the whole Jacobian: columns by tangents, or rows by gradients, whichever are fewer; unknown O is many."""
    return COTANGENTS if O is not None and O < W else DIRECTIONS

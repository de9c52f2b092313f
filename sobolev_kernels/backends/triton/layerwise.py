"""The layer-wise path, for every student: all streams of a layer at a time, stacked [S, N, n].

Up to a width a multiply has what follows it in its epilogue (`fused_multiply.py`); above, the multiply is torch's own
and only what lies between two of them is fused (`elementwise.py`). Gradients of weights are of all layers in one launch
(`outer.py`), or one multiply by torch for each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import triton

from ...drawing import drawn
from ...enums import COTANGENTS, DENSE
from ...math.directions import is_dependent
from ...math.losses import is_coupled
from ...problem import DERIVATIVES, DERIVATIVES_GRADIENTS, PER_SAMPLE, Operands, Problem
from ..residuals import project, project_twice, pull
from .elementwise import activate_kernel, adjoint_kernel, along_g_bar_kernel, delta_kernel, residual_kernel  # noqa: F401
from .finishing import finish, terms_of
from .formulas import loss_of
from .fused_multiply import backward_kernel, forward_kernel, product_kernel, pull_kernel, push_kernel  # noqa: F401
from .launches import WIDEST_DRAWN, fuses
from .layers import BLOCK, Layers
from .outer import outer_kernel  # noqa: F401
from .parts import results_kernel, slopes_kernel  # noqa: F401
from .script import At, Script
from .start import along_kernel, cast_kernel, start_kernel  # noqa: F401

here = sys.modules[__name__]
SAMPLES = 128
LONGEST_ALONG = 256  # numbers that a thread sums of a target along a vector


def near(weight: torch.Tensor) -> torch.Tensor:
    """The weight, or a copy of one whose numbers lie further apart than the kernels' 32-bit integers reach."""
    (rows, columns), (by_row, by_column) = weight.shape, weight.stride()
    return weight.contiguous() if (rows - 1) * by_row + (columns - 1) * by_column >= 2**31 else weight


def readable(problem: Problem, operands: Operands) -> Operands:
    """The operands as the kernels read them, some of them copies."""
    pack = lambda tensor: None if tensor is None else tensor.contiguous()  # noqa: E731
    parameters = [near(p) if p.dim() == 2 else p.contiguous() for p in operands.parameters]
    samples, outputs = pack(operands.sample_weight), pack(operands.output_weight)
    return operands._replace(parameters=parameters, sample_weight=samples, output_weight=outputs)


def drawn_before(problem: Problem, operands: Operands) -> Operands:
    """With vectors given that no kernel draws: those of a sample that depend on each other, or very long ones."""
    if (
        operands.given is None
        and problem.P
        and (is_dependent(problem.distribution) or max(problem.D, problem.drawn) > WIDEST_DRAWN)
    ):
        return operands._replace(given=drawn(problem.drawing, operands.seed, operands.x.shape[0]), seed=None)
    return operands


def write(
    script: Script, problem: Problem, operands: Operands, at: Operands, outputs: dict, gradients: list,
    layers: Layers | None = None,
) -> None:  # fmt: skip
    """The launches of a step.

    operands: tensors that lie as those that will come; at, outputs, gradients: where those will be; layers: whose ways
    through them are not those of this module.
    """
    layers = layers or Layers(here, fuses(problem), script, problem, operands, at)
    N, cotangents = layers.N, problem.projection == COTANGENTS
    terms = terms_of(script, problem, N, SAMPLES, outputs)
    common = 1.0
    if N:
        H = layers.forward()
        g = layers.gradients() if cotangents else None
        if problem.result == DERIVATIVES:
            results(layers, H, g, outputs)
        else:
            adjoints = script.room(layers.made, N, problem.O)
            g_bar = script.room(problem.P, N, problem.D) if cotangents else None
            if problem.result == DERIVATIVES_GRADIENTS:
                given_slopes(layers, adjoints, g_bar)
            else:
                common = losses(layers, (H, g), (adjoints, g_bar), terms.at)
            if problem.gradients:
                q_of_layer, dgiven = [None] * len(layers.weights), outputs.get("dgiven")
                if cotangents:
                    q_of_layer, dgiven = layers.along_g_bar(g_bar, dgiven, common), None
                layers.backward(adjoints, q_of_layer, outputs.get("dx"), dgiven, common)
    if "loss" in outputs or gradients:
        finish(script, problem, operands.weights, outputs, gradients, terms, layers.slots(), common)


def results(layers: Layers, H: At, g: At | None, outputs: dict) -> None:
    """The values and derivatives that are asked for, out of their streams."""
    problem, N, P = layers.problem, layers.N, layers.along
    if g is not None and "derivatives" in outputs:
        layers.script.do(lambda g, out: out.copy_(g[..., : problem.W]), g, outputs["derivatives"])
    given = outputs["y"], None if g is not None else outputs.get("derivatives"), outputs.get("second")
    streams, skip, terms = layers.made, 0, 1
    if problem.collapsed:  # of tangents nothing is asked, and the others may be one each or their sum
        streams, skip, terms, P = 2, P, layers.made - 1 - P, 0
    size = N * problem.O
    layers.script.launch(
        here, "results_kernel", (triton.cdiv(size, BLOCK), streams), H, *given, size, P, skip, terms, BLOCK=BLOCK
    )


def given_slopes(layers: Layers, adjoints: At, g_bar: At | None) -> None:
    """The adjoints of the predictions are the cotangents that came, or 0."""
    at, operands, N, problem = layers.at, layers.operands, layers.N, layers.problem
    first = at.derivative
    if g_bar is not None:
        first, columns = None, problem.W
        layers.script.do(lambda place: place.zero_(), g_bar)
        if at.derivative is not None:
            layers.script.do(lambda came, place: place[..., :columns].copy_(came), at.derivative, g_bar)
    strides = [
        (0,) * dims if place is None else ((0,) * dims + tensor.stride())[-dims:]
        for place, tensor, dims in ((at.values, operands.values, 2), (first, operands.derivative, 3),
                                    (at.second, operands.second, 3))
    ]  # fmt: skip
    layers.script.launch(
        here, "slopes_kernel", (triton.cdiv(N * problem.O, BLOCK), layers.made), at.values, first, at.second, adjoints,
        N, problem.O, layers.along, *(step for of in strides for step in of), BLOCK=BLOCK,
    )  # fmt: skip


def losses(layers: Layers, predictions: tuple, slopes: tuple, terms: At) -> float:
    """The launches of the terms of the loss, scaled, and their slopes; what multiplies all gradients.

    Adjoints are of the size of residuals, whatever N is: float16 has no room for smaller ones. A term of weight 0 has
    none, since it may have any target, also NaN.
    """
    problem, operands, at, N, P = layers.problem, layers.operands, layers.at, layers.N, layers.P
    cotangents, W, O = problem.projection == COTANGENTS, problem.W, problem.O
    H, adjoints = predictions[0], slopes[0]
    rows = [(H, adjoints, 1, O, 0, O), (H, adjoints, P, O, 1, O), (H, adjoints, P, O, 1 + P, O)][: 1 + problem.order]
    if cotangents:
        rows[1] = (predictions[1], slopes[1], problem.P, W, 0, problem.D)
    targets = [None if at.values is None else (at.values, (0, *operands.values.stride())), *derivatives(layers)]
    kinds = [problem.value_loss, problem.derivative_loss, problem.derivative_loss]
    counts = [1 if is_coupled(loss) else R * n for loss, (_, _, R, n, _, _) in zip(kinds, rows, strict=False)]
    divided = max(1, N) if problem.reduction == "mean" else 1
    shares = [1 / (divided * max(1, count)) for count in counts]
    common = max(w * share for w, share in zip(operands.weights, shares, strict=False)) or 1.0
    each = (0, 0, 0) if operands.derivative_weight is None else operands.derivative_weight.stride()
    for order, ((A, slope, R, n, first, width), target) in enumerate(zip(rows, targets, strict=True)):
        T, strides = target or (None, (0, 0, 0))
        factor = operands.weights[order] * shares[order] / common
        layers.launch(
            "residual_kernel", (triton.cdiv(N, SAMPLES),), A, T, at.output_weight,
            at.derivative_weight if order else None, at.sample_weight, slope if problem.gradients else None, terms,
            N, R, n, first, width, *strides, *each, loss_of(kinds[order], factor, shares[order]), ORDER=order,
            COUPLED=is_coupled(kinds[order]), REPEATED=bool(order) and cotangents,
            OF_EACH=problem.result == PER_SAMPLE, BLOCK=SAMPLES,
        )  # fmt: skip
    return common


def derivatives(layers: Layers) -> list[tuple[At, tuple] | None]:
    """Of first and second derivatives the targets along the vectors, with their strides [P, N, n]."""
    problem, operands, at, N = layers.problem, layers.operands, layers.at, layers.N
    cotangents, targets = problem.projection == COTANGENTS, []
    kinds = (problem.derivative_target, problem.second_target)[: problem.order]
    for kind, name in zip(kinds, ("derivative", "second"), strict=False):
        place, tensor = getattr(at, name), getattr(operands, name)
        if place is None:
            targets.append(None)
        elif kind != DENSE:
            targets.append((place, tensor.stride()))
        else:
            n, terms, (sn, *steps) = problem.derived, problem.drawn, tensor.stride()
            sk, (sj, si) = (steps[1], (steps[0], 0)) if cotangents else (steps[0], (*steps[1:], 0)[:2])
            first, width = (0, problem.O) if cotangents else (1, problem.D)
            out = layers.script.room(problem.P, N, n)
            targets.append((out, (N * n, n, 1)))
            if terms ** (1 + (name == "second")) > LONGEST_ALONG:
                layers.script.do(projected(cotangents, name, first, terms), place, layers.vectors, out)
                continue
            layers.launch(
                "along_kernel", (triton.cdiv(problem.P * N * n, BLOCK),), place, layers.vectors, out, N, problem.P, n,
                terms, first, width, sn, sj, si, sk, TWICE=name == "second", BLOCK=BLOCK,
            )  # fmt: skip
    return targets


def projected(cotangents: bool, name: str, first: int, terms: int) -> Callable:
    """The same by PyTorch, whose products are faster where each number is a long sum."""
    function = project_twice if name == "second" else pull if cotangents else project

    def fill(target, vectors, out):
        out.copy_(function(target, vectors[first : first + len(out), :, :terms]))

    return fill

"""The layer-wise path, for every student: all streams of a layer at a time, stacked [S, N, n].

Up to a width a multiply has what follows it in its epilogue (`fused_multiply.py`); above, the multiply is torch's own
and only what lies between two of them is fused (`elementwise.py`). Weight gradients are one multiply over all streams.
"""

from __future__ import annotations

import torch
import triton

from ...drawing import drawn, over_samples
from ...enums import COTANGENTS, DENSE
from ...math.losses import is_coupled
from ...math.table import Formula
from ...problem import DERIVATIVES, DERIVATIVES_GRADIENTS, PER_SAMPLE_GRADIENTS, Operands, Problem
from .. import reference
from ..finish import finish
from .elementwise import activate_kernel, adjoint_kernel, along_g_bar_kernel, delta_kernel, residual_kernel
from .formulas import activation_of, loss_of
from .fused_multiply import backward_kernel, forward_kernel
from .launches import FUSED_UP_TO, LINEAR

BLOCK, SAMPLES = 1024, 128
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def product(a: torch.Tensor, b: torch.Tensor, precision: str) -> torch.Tensor:
    """a @ b by torch, in float32 from operands of a precision; whether it takes TF32 for "tf32" is torch's setting."""
    if precision not in DTYPES:
        return a @ b
    a, b = a.to(DTYPES[precision]), b.to(DTYPES[precision])
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def within_reach(weight: torch.Tensor) -> torch.Tensor:
    """The weight, or a copy of one whose numbers lie further apart than the kernels' 32-bit integers reach."""
    (rows, columns), (by_row, by_column) = weight.shape, weight.stride()
    return weight.contiguous() if (rows - 1) * by_row + (columns - 1) * by_column >= 2**31 else weight


class Layers:
    """The layers of one call, and what their value stream leaves behind: Z, the stacked z without bias."""

    def __init__(self, problem: Problem, parameters: list[torch.Tensor]):
        tensors = iter(parameters)
        self.weights, self.biases, self.slots = [], [], []
        for has_bias in problem.biases:
            self.slots.append(len(self.weights) + sum(b is not None for b in self.biases))
            self.weights.append(within_reach(next(tensors)))
            self.biases.append(next(tensors).contiguous() if has_bias else None)
        self.activations = problem.activations
        self.order, self.precision = problem.order, problem.precision
        self.last = len(self.weights) - 1
        self.fusing = max(problem.widths) <= FUSED_UP_TO

    def multiply(self, streams: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[S, N, K] times [n, K] transposed: [S, N, n]."""
        return product(streams.flatten(0, 1), weight.T, self.precision).unflatten(0, streams.shape[:2])

    def outer(self, z_bar: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Σ over streams and samples of z̄ hᵀ."""
        return product(z_bar.flatten(0, 1).T, h.flatten(0, 1), self.precision)

    def launch(self, kernel, l: int, *tensors, streams: int, **constants) -> None:
        """`kernel` over the numbers of layer l; its first two arguments are Z and the bias."""
        Z, bias = self.Z[l], self.biases[l]
        _, N, n = Z.shape
        if N == 0:
            return
        grid, activation = (triton.cdiv(N * n, BLOCK),), activation_of(self.activations[l])
        kernel[grid](Z, bias, *tensors, N, n, streams, activation, BLOCK=BLOCK, **constants)

    def fused(self, kernel, l: int, weight: torch.Tensor, *tensors, streams: torch.Tensor, P: int) -> None:
        """A multiply of `streams` [S, N, K] by `weight` [n, K] transposed, with the epilogue of layer l."""
        N, K, n = *streams.shape[1:], len(weight)
        if N == 0:
            return
        grid = (triton.cdiv(N, LINEAR.rows), triton.cdiv(n, LINEAR.columns))
        kernel[grid](
            streams, weight, *tensors, N, K, n, P, *weight.stride(), activation_of(self.activations[l]),
            ORDER=self.order, PRECISION=self.precision, BM=LINEAR.rows, BN=LINEAR.columns, BK=LINEAR.depth,
            num_warps=LINEAR.warps,
        )  # fmt: skip

    def forward(self, streams: torch.Tensor, P: int) -> torch.Tensor:
        """Values and their P tangents (and second derivatives) from those of the inputs; keeps Z and H."""
        self.H, self.Z = [streams], []
        for l, weight in enumerate(self.weights):
            below = self.H[-1]
            self.H.append(streams.new_empty(*streams.shape[:2], len(weight)))
            if self.fusing:
                self.Z.append(torch.empty_like(self.H[-1]))
                self.fused(forward_kernel, l, weight, self.biases[l], self.Z[-1], self.H[-1], streams=below, P=P)
            else:
                self.Z.append(self.multiply(below, weight))
                self.launch(activate_kernel, l, self.H[-1], streams=P, ORDER=self.order)
        return self.H[-1]

    def gradients(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Jᵀu [R, N, D] for cotangents u [R, N, O]; keeps the adjoints A and delta = σ' A of every layer."""
        self.A, self.delta = [None] * (self.last + 1), [None] * (self.last + 1)
        a = cotangents.contiguous()
        for l in range(self.last, -1, -1):
            self.A[l], self.delta[l] = a, torch.empty_like(a)
            self.launch(delta_kernel, l, a, self.delta[l], streams=len(a))
            a = self.multiply(self.delta[l], self.weights[l].T)
        return a

    def along_g_bar(self, g_bar: torch.Tensor, into: list[torch.Tensor]) -> list[torch.Tensor]:
        """Add the weight gradients of adjoints g_bar [R, N, D] of `gradients`; gives q [N, n] of each layer."""
        q_of_layer, h = [], g_bar
        for l, weight in enumerate(self.weights):
            into[self.slots[l]].add_(self.outer(self.delta[l], h))
            z = self.multiply(h, weight)
            h, q = torch.empty_like(z), torch.empty_like(z[0])
            self.launch(along_g_bar_kernel, l, z, self.A[l], h, q, streams=len(z))
            q_of_layer.append(q)
        return q_of_layer

    def backward(self, adjoints: torch.Tensor, P: int, q_of_layer: list, into: list[torch.Tensor], dx) -> None:
        """Add all gradients from the adjoints of the last H."""
        z_bar = torch.empty_like(adjoints)
        self.launch(adjoint_kernel, self.last, adjoints, q_of_layer[-1], z_bar, streams=P, ORDER=self.order)
        for l in range(self.last, -1, -1):
            into[self.slots[l]].add_(self.outer(z_bar, self.H[l]))
            if self.biases[l] is not None:
                into[self.slots[l] + 1].copy_(z_bar[0].sum(0))
            if l == 0:
                break
            above, z_bar = z_bar, torch.empty_like(self.Z[l - 1])
            if self.fusing:
                tensors = self.Z[l - 1], self.biases[l - 1], q_of_layer[l - 1], z_bar
                self.fused(backward_kernel, l - 1, self.weights[l].T, *tensors, streams=above, P=P)
            else:
                adjoints = self.multiply(above, self.weights[l].T)
                self.launch(adjoint_kernel, l - 1, adjoints, q_of_layer[l - 1], z_bar, streams=P, ORDER=self.order)
        if dx is not None:
            dx.copy_(product(z_bar[0], self.weights[0], self.precision))


def term(
    loss: Formula, prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None, repeated: bool,
    of_each: torch.Tensor | None, sample_weight: torch.Tensor | None, factor: float, share: float,
    slope: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The term of each sample [N], by `share`; fills `slope` [R, N, n], the predictions' adjoints, by `factor`."""
    R, N, n = prediction.shape
    terms = prediction.new_empty(N)
    if N:
        residual_kernel[(triton.cdiv(N, SAMPLES),)](
            prediction, target.contiguous(), weights, None if of_each is None else of_each.contiguous(), sample_weight,
            slope, terms, N, R, n, loss_of(loss, factor, share), COUPLED=is_coupled(loss), REPEATED=repeated,
            BLOCK=SAMPLES,
        )  # fmt: skip
    return terms


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    x, parameters, given, seed, *targets, sample_weight, output_weight, of_each, weights = operands
    N, W = x.shape[0], problem.W
    vectors = None
    if problem.P:
        vectors = drawn(problem.drawing, seed, N) if given is None else over_samples(given, N)
    for gradient in gradients:
        gradient.zero_()
    layers = Layers(problem, parameters)
    cotangents = problem.projection == COTANGENTS
    P = 0 if cotangents else problem.P
    streams = x.new_zeros(1 + problem.order * P, N, problem.D)
    streams[0] = x
    if P:
        streams[1 : 1 + P, :, :W] = vectors
    H = layers.forward(streams, P)
    predictions = [H[:1], H[1 : 1 + P], H[1 + P :]]
    if cotangents:
        predictions[1] = layers.gradients(vectors)[..., :W].contiguous()
    predictions = predictions[: 1 + problem.order]
    if problem.result == DERIVATIVES:
        results = [predictions[0][0], *predictions[1:]]
        names = ["y", "second"] if problem.collapsed else ["y", "derivatives", "second"]
        results = [results[0], results[2].sum(0)] if problem.collapsed else results
        for name, result in zip(names, results, strict=False):
            outputs[name].copy_(result)
        return
    adjoints, common = torch.zeros_like(H), 1.0
    slopes = [adjoints[:1], adjoints[1 : 1 + P], adjoints[1 + P :]]
    if cotangents:
        slopes[1] = torch.zeros_like(predictions[1])
    if problem.result == DERIVATIVES_GRADIENTS:
        for slope, cotangent in zip(slopes, targets, strict=False):
            if cotangent is not None:
                slope.copy_(cotangent)
    else:
        of_residuals = sample_weight, output_weight, of_each
        terms, common = losses(problem, predictions, targets, vectors, slopes, of_residuals, weights)
        if problem.result != PER_SAMPLE_GRADIENTS:
            for name, result in zip(("loss", "terms"), finish(problem, weights, terms), strict=True):
                outputs[name].copy_(result)
    if not problem.gradients:
        return
    q_of_layer = [None] * len(layers.weights)
    if cotangents:
        g_bar = x.new_zeros(problem.P, N, problem.D)
        g_bar[..., :W] = slopes[1]
        q_of_layer = layers.along_g_bar(g_bar, gradients)
    layers.backward(adjoints, P, q_of_layer, gradients, outputs.get("dx"))
    if common != 1.0:
        torch._foreach_mul_([*gradients, *(outputs[name] for name in ("dx",) if name in outputs)], common)


def losses(problem: Problem, predictions, targets, vectors, slopes, of_residuals, weights):
    """The scaled terms [N] of values, derivatives and second derivatives, and what multiplies all gradients.

    Fills the slopes. Adjoints are of the size of residuals, whatever N is: float16 has no room for smaller ones. A term
    of weight 0 has none, since it may have any target, also NaN.
    """
    values, derivative, second = targets
    sample_weight, output_weight, of_each = of_residuals
    cotangents = problem.projection == COTANGENTS
    if derivative is not None and problem.derivative_target == DENSE:
        derivative = (reference.pull if cotangents else reference.project)(derivative, vectors)
    if second is not None and problem.second_target == DENSE:
        second = reference.project_twice(second, vectors)
    values = None if values is None else values[None]
    N = predictions[0].shape[1]
    divided = max(1, N) if problem.reduction == "mean" else 1
    kinds = [problem.value_loss, problem.derivative_loss, problem.derivative_loss][: len(predictions)]
    counts = [1 if is_coupled(loss) else p.shape[0] * p.shape[2] for loss, p in zip(kinds, predictions, strict=True)]
    shares = [1 / (divided * max(1, count)) for count in counts]
    common = max(w * share for w, share in zip(weights, shares, strict=False)) or 1.0
    terms = []
    for order, (prediction, target) in enumerate(zip(predictions, (values, derivative, second), strict=False)):
        if target is None:
            terms.append(prediction.new_zeros(N))
            continue
        repeated, each = bool(order) and cotangents, of_each if order else None
        samples = None if sample_weight is None else sample_weight[1 if order else 0]
        slope, factor = (slopes[order] if weights[order] else None), weights[order] * shares[order] / common
        terms.append(
            term(kinds[order], prediction, target, output_weight, repeated, each, samples, factor, shares[order], slope)
        )
    return terms, common

"""Kernels on stacked streams [S, N, n]: S is the values, P tangents and, of order 2, P second derivatives.

One program takes BLOCK consecutive numbers of a layer and all its streams. Multiplies are elsewhere. No kernel reads
global memory that the same launch wrote. A stream may have 2^31 numbers, or all of them together: sizes that are
multiplied are 64-bit integers.

N is another one in the last batch of an epoch and must not make another variant of a kernel, nor must the alignment of
a part of a stack, which depends on N (`one_launch.py` says what Triton makes variants for). Widths are of the student.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .finishing import store_term
from .formulas import activation_jet, coupled, residual


@triton.jit
def place(N, n, BLOCK: tl.constexpr):
    """Which numbers of a stream [N, n] a program takes, which of them there are, and how many a stream has."""
    i, count = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), N.to(tl.int64) * n
    return i, i < count, count


@triton.jit
def values_of(Z, B, i, n, valid):
    """z of the values, with the bias."""
    z = tl.load(Z + i, mask=valid, other=0.0)
    if B is not None:
        z += tl.load(B + i % n, mask=valid, other=0.0)
    return z


@triton.jit(do_not_specialize=["N", "P"])
def activate_kernel(Z, B, H, N, n, P, activation, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    """H[0] = σ(z) of z = Z[0] + bias, H[1 + p] = σ' ż_p, H[1 + P + p] = σ' z̈_p + σ'' ż_p²."""
    i, valid, count = place(N, n, BLOCK)
    z = values_of(Z, B, i, n, valid)
    value, d1, d2, _d3 = activation_jet(activation, z)
    tl.store(H + i, value, mask=valid)
    for p in range(P):
        j = i + (1 + p) * count
        z1 = tl.load(Z + j, mask=valid, other=0.0)
        tl.store(H + j, d1 * z1, mask=valid)
        if ORDER == 2:
            z2 = tl.load(Z + j + P * count, mask=valid, other=0.0)
            tl.store(H + j + P * count, d1 * z2 + d2 * z1 * z1, mask=valid)


@triton.jit
def replace(Z, COPY, at, adjoint, valid):
    tl.store(Z + at, adjoint, mask=valid)
    if COPY is not None:
        tl.store(COPY + at, adjoint, mask=valid)


@triton.jit(do_not_specialize=["N", "P"])
def adjoint_kernel(Z, B, A, Q, COPY, N, n, P, activation, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    """The adjoints of z, ż_p and z̈_p, in their place, from A, those of H (docs/math.md, sections 3 and 10).

    Q [N, n], if it is there, is added to that of z. COPY, if it is there, gets them too, as what is multiplied.
    """
    i, valid, count = place(N, n, BLOCK)
    z = values_of(Z, B, i, n, valid)
    _value, d1, d2, d3 = activation_jet(activation, z)
    total = d1 * tl.load(A + i, mask=valid, other=0.0)
    if Q is not None:
        total += tl.load(Q + i, mask=valid, other=0.0)
    for p in range(P):
        j = i + (1 + p) * count
        z1 = tl.load(Z + j, mask=valid, other=0.0)
        a1 = tl.load(A + j, mask=valid, other=0.0)
        q = d2 * z1 * a1
        adjoint = d1 * a1
        if ORDER == 2:
            z2 = tl.load(Z + j + P * count, mask=valid, other=0.0)
            a2 = tl.load(A + j + P * count, mask=valid, other=0.0)
            q += (d2 * z2 + d3 * z1 * z1) * a2
            adjoint += 2.0 * d2 * z1 * a2
            replace(Z, COPY, j + P * count, d1 * a2, valid)
        replace(Z, COPY, j, adjoint, valid)
        total += q
    replace(Z, COPY, i, total, valid)


@triton.jit(do_not_specialize=["N", "R"])
def delta_kernel(Z, B, A, DELTA, N, n, R, activation, BLOCK: tl.constexpr):
    """DELTA[r] = σ'(z) A[r] for the R cotangents (docs/math.md, section 4)."""
    i, valid, count = place(N, n, BLOCK)
    _value, d1, _d2, _d3 = activation_jet(activation, values_of(Z, B, i, n, valid))
    for r in range(R):
        j = i + r * count
        tl.store(DELTA + j, d1 * tl.load(A + j, mask=valid, other=0.0), mask=valid)


@triton.jit(do_not_specialize=["N", "R"])
def along_g_bar_kernel(Z, B, Z1, A, H1, Q, N, n, R, activation, BLOCK: tl.constexpr):
    """Of the tangents along ḡ, the adjoints of R gradients: H1[r] = σ' ż_r, and Q = Σ_r σ'' ż_r a_r (section 4)."""
    i, valid, count = place(N, n, BLOCK)
    z = values_of(Z, B, i, n, valid)
    _value, d1, d2, _d3 = activation_jet(activation, z)
    total = tl.zeros_like(z)
    for r in range(R):
        j = i + r * count
        z1 = tl.load(Z1 + j, mask=valid, other=0.0)
        tl.store(H1 + j, d1 * z1, mask=valid)
        total += d2 * z1 * tl.load(A + j, mask=valid, other=0.0)
    tl.store(Q + i, total, mask=valid)


@triton.jit
def compared(predictions, targets, W, EACH, sample_weight, sample, r, column, N, REPEATED: tl.constexpr):
    """Of a column of row r of a sample: where it is among the predictions, prediction, target and weight.

    One of weight 0, or of a sample of weight 0, is 0 in both, whatever the target.
    """
    k = ((r + predictions.first) * N.to(tl.int64) + sample) * predictions.width + column
    w = tl.where(sample < N, 1.0, 0.0)
    if W is not None:
        w *= tl.load(W + (r if REPEATED else column))
    if EACH.T is not None:
        w *= tl.load(EACH.T + place_of(EACH, r, sample, column), mask=sample < N, other=0.0)
    counting = w * sample_weight != 0.0
    target = tl.load(targets.T + place_of(targets, r, sample, column), mask=counting, other=0.0)
    return k, tl.load(predictions.A + k, mask=counting, other=0.0), target, w


class Predictions(NamedTuple):
    """In a kernel, rows of `width` numbers of each sample, from row `first` of A [rows, N, width] on."""

    A: tl.tensor
    first: tl.tensor
    width: tl.tensor


class Strided(NamedTuple):
    """In a kernel, a tensor [R, N, n] with its strides."""

    T: tl.tensor
    by_row: tl.tensor
    by_sample: tl.tensor
    by_column: tl.tensor


@triton.jit
def place_of(strided, r, sample, column):
    return r * strided.by_row + sample * strided.by_sample + column * strided.by_column


@triton.jit
def sums(predictions, targets, W, EACH, sample_weight, sample, N, R, n, REPEATED: tl.constexpr):
    """rr, aa, at, tt, ww of each sample over R rows of n numbers."""
    rr = tl.zeros_like(sample).to(tl.float64)
    aa, at, tt, ww = rr, rr, rr, rr
    for r in range(R):
        for column in range(n):
            _k, a, t, w = compared(predictions, targets, W, EACH, sample_weight, sample, r, column, N, REPEATED)
            a, t = a.to(tl.float64), t.to(tl.float64)
            rr += w * (a - t) * (a - t)
            aa += w * a * a
            at += w * a * t
            tt += w * t * t
            ww += w
    return rr, aa, at, tt, ww


@triton.jit(
    do_not_specialize=["N", "R", "first", "st_r", "st_n", "st_k", "sw_r", "sw_n", "sw_k"],
    do_not_specialize_on_alignment=["T", "W", "EACH", "SAMPLE_WEIGHT"],
)
def residual_kernel(
    A, T, W, EACH, SAMPLE_WEIGHT, SLOPE, TERM, N, R, n, first, width, st_r, st_n, st_k, sw_r, sw_n, sw_k, loss,
    ORDER: tl.constexpr, COUPLED: tl.constexpr, REPEATED: tl.constexpr, OF_EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A term of each sample into row ORDER of TERM (`store_term`), and its slopes, of a Loss; without T they are 0.

    Predictions are the first n numbers of R rows of A [rows, N, width], from row `first` on, and so are SLOPE's.
    Targets are [R, N, n]. W has a weight for each of the n numbers, or, if REPEATED, for each of the R rows; EACH one
    for every number; SAMPLE_WEIGHT [2, N] those of samples, in values and in derivatives. One program takes BLOCK
    samples.
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid, predictions = sample < N, Predictions(A, first, width)
    total = 0.0 * sample.to(tl.float32)
    if T is not None:
        targets = Strided(T, st_r.to(tl.int64), st_n, st_k.to(tl.int64))
        each = Strided(EACH, sw_r.to(tl.int64), sw_n, sw_k.to(tl.int64))
        sample_weight = tl.where(valid, 1.0, 0.0)
        if SAMPLE_WEIGHT is not None:
            at = sample + (N.to(tl.int64) if ORDER > 0 else 0)
            sample_weight = tl.load(SAMPLE_WEIGHT + at, mask=valid, other=0.0)
        if COUPLED:
            rr, aa, at, tt, ww = sums(predictions, targets, W, each, sample_weight, sample, N, R, n, REPEATED)
            rho, by_rr, by_aa, by_at = coupled(loss, rr, aa, at, tt, ww)
            total = rho.to(tl.float32)
        for r in range(R):
            for column in range(n):
                k, prediction, target, w = compared(
                    predictions, targets, W, each, sample_weight, sample, r, column, N, REPEATED
                )  # fmt: skip
                if COUPLED:
                    a, t = prediction.to(tl.float64), target.to(tl.float64)
                    slope = (2.0 * by_rr * (a - t) + 2.0 * by_aa * a + by_at * t).to(tl.float32)
                else:
                    rho, slope = residual(loss, prediction - target)
                    total += w * rho
                if SLOPE is not None:
                    slope = tl.where(loss.factor != 0.0, loss.factor * sample_weight * w * slope, 0.0)
                    tl.store(SLOPE + k, slope, mask=valid)
        total *= loss.share * sample_weight
    if SLOPE is not None:
        for r in range(R):
            for column in range(n if T is not None else 0, width):
                tl.store(SLOPE + ((r + first) * N.to(tl.int64) + sample) * width + column, 0.0, mask=valid)
    store_term(TERM, ORDER, total, sample, valid, tl.program_id(0), N, OF_EACH, BLOCK)

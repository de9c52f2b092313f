"""Kernels on stacked streams [S, N, n]: S is the values, P tangents and, of order 2, P second derivatives.

One program takes BLOCK consecutive numbers of a layer and all its streams. Multiplies are elsewhere. No kernel reads
global memory that the same launch wrote. A stream may have 2^31 numbers, or all of them together: sizes that are
multiplied are 64-bit integers.

N is another one in the last batch of an epoch and must not make another variant of a kernel, nor must the alignment of
a part of a stack, which depends on N (`one_launch.py` says what Triton makes variants for). Widths are of the student.
"""

import triton
import triton.language as tl

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


@triton.jit(do_not_specialize=["N", "P"])
def adjoint_kernel(Z, B, A, Q, Z_BAR, N, n, P, activation, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    """Z_BAR, the adjoints of z, ż_p and z̈_p, from A, those of H (docs/math.md, sections 3 and 10).

    Q [N, n], if it is there, is added to that of z.
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
            tl.store(Z_BAR + j + P * count, d1 * a2, mask=valid)
        tl.store(Z_BAR + j, adjoint, mask=valid)
        total += q
    tl.store(Z_BAR + i, total, mask=valid)


@triton.jit(do_not_specialize=["N", "R"], do_not_specialize_on_alignment=["A"])
def delta_kernel(Z, B, A, DELTA, N, n, R, activation, BLOCK: tl.constexpr):
    """DELTA[r] = σ'(z) A[r] for the R cotangents (docs/math.md, section 4)."""
    i, valid, count = place(N, n, BLOCK)
    _value, d1, _d2, _d3 = activation_jet(activation, values_of(Z, B, i, n, valid))
    for r in range(R):
        j = i + r * count
        tl.store(DELTA + j, d1 * tl.load(A + j, mask=valid, other=0.0), mask=valid)


@triton.jit(do_not_specialize=["N", "R"], do_not_specialize_on_alignment=["A"])
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
def compared(A, T, W, EACH, sample_weight, sample, r, column, N, n, REPEATED: tl.constexpr):
    """Of a column of row r of a sample: where it is in [R, N, n], prediction, target and weight.

    One of weight 0, or of a sample of weight 0, is 0 in both, whatever the target.
    """
    k = (r * N.to(tl.int64) + sample) * n + column
    w = tl.where(sample < N, 1.0, 0.0)
    if W is not None:
        w *= tl.load(W + (r if REPEATED else column))
    if EACH is not None:
        w *= tl.load(EACH + k, mask=sample < N, other=0.0)
    counting = w * sample_weight != 0.0
    return k, tl.load(A + k, mask=counting, other=0.0), tl.load(T + k, mask=counting, other=0.0), w


@triton.jit
def sums(A, T, W, EACH, sample_weight, sample, N, R, n, REPEATED: tl.constexpr):
    """rr, aa, at, tt, ww of each sample over R rows of n numbers."""
    rr = tl.zeros_like(sample).to(tl.float64)
    aa, at, tt, ww = rr, rr, rr, rr
    for r in range(R):
        for column in range(n):
            _k, a, t, w = compared(A, T, W, EACH, sample_weight, sample, r, column, N, n, REPEATED)
            a, t = a.to(tl.float64), t.to(tl.float64)
            rr += w * (a - t) * (a - t)
            aa += w * a * a
            at += w * a * t
            tt += w * t * t
            ww += w
    return rr, aa, at, tt, ww


@triton.jit(
    do_not_specialize=["N", "R"], do_not_specialize_on_alignment=["A", "T", "W", "EACH", "SAMPLE_WEIGHT", "SLOPE"]
)
def residual_kernel(
    A, T, W, EACH, SAMPLE_WEIGHT, SLOPE, TERM, N, R, n, loss, COUPLED: tl.constexpr, REPEATED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A term of each sample, TERM [N], and its slopes, of a Loss; predictions and targets are [R, N, n].

    W has a weight for each of the n numbers, or, if REPEATED, for each of the R rows; EACH one for every number. One
    program takes BLOCK samples.
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = sample < N
    sample_weight = tl.where(valid, 1.0, 0.0)
    if SAMPLE_WEIGHT is not None:
        sample_weight = tl.load(SAMPLE_WEIGHT + sample, mask=valid, other=0.0)
    total = 0.0 * sample.to(tl.float32)
    if COUPLED:
        rr, aa, at, tt, ww = sums(A, T, W, EACH, sample_weight, sample, N, R, n, REPEATED)
        rho, by_rr, by_aa, by_at = coupled(loss, rr, aa, at, tt, ww)
        total = rho.to(tl.float32)
    for r in range(R):
        for column in range(n):
            k, prediction, target, w = compared(A, T, W, EACH, sample_weight, sample, r, column, N, n, REPEATED)
            if COUPLED:
                a, t = prediction.to(tl.float64), target.to(tl.float64)
                slope = (2.0 * by_rr * (a - t) + 2.0 * by_aa * a + by_at * t).to(tl.float32)
            else:
                rho, slope = residual(loss, prediction - target)
                total += w * rho
            if SLOPE is not None:
                tl.store(SLOPE + k, loss.factor * sample_weight * w * slope, mask=valid)
    tl.store(TERM + sample, loss.share * sample_weight * total, mask=valid)

"""Kernels on stacked streams [S, N, n]: S is the values, P tangents and, of order 2, P second derivatives.

One program takes BLOCK consecutive numbers of a layer and all its streams. Multiplies are elsewhere. No kernel reads
global memory that the same launch wrote.
"""

import triton
import triton.language as tl

from .formulas import coupled, derivatives, residual


@triton.jit
def activate_kernel(
    Z, B, H, count, n, P, a, b,
    F: tl.constexpr, COUNT: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """H[0] = σ(z) of z = Z[0] + bias, H[1 + p] = σ' ż_p, H[1 + P + p] = σ' z̈_p + σ'' ż_p²; `count` = N n."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    z = tl.load(Z + i, mask=there, other=0.0)
    if B is not None:
        z += tl.load(B + i % n, mask=there, other=0.0)
    value, d1, d2, _d3 = derivatives(F, COUNT, z, a, b)
    tl.store(H + i, value + 0.0 * z, mask=there)
    for p in range(P):
        j = i + (1 + p) * count
        z1 = tl.load(Z + j, mask=there, other=0.0)
        tl.store(H + j, d1 * z1, mask=there)
        if ORDER == 2:
            z2 = tl.load(Z + j + P * count, mask=there, other=0.0)
            tl.store(H + j + P * count, d1 * z2 + d2 * z1 * z1, mask=there)


@triton.jit
def adjoint_kernel(
    Z, B, A, Q, Z_BAR, count, n, P, a, b,
    F: tl.constexpr, COUNT: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Z_BAR, the adjoints of z, ż_p and z̈_p, from A, those of H (docs/math.md, sections 3 and 10).

    Q [N, n], if it is there, is what else the value stream is owed.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    z = tl.load(Z + i, mask=there, other=0.0)
    if B is not None:
        z += tl.load(B + i % n, mask=there, other=0.0)
    _value, d1, d2, d3 = derivatives(F, COUNT, z, a, b)
    total = d1 * tl.load(A + i, mask=there, other=0.0)
    if Q is not None:
        total += tl.load(Q + i, mask=there, other=0.0)
    for p in range(P):
        j = i + (1 + p) * count
        z1 = tl.load(Z + j, mask=there, other=0.0)
        a1 = tl.load(A + j, mask=there, other=0.0)
        owed = d2 * z1 * a1
        adjoint = d1 * a1
        if ORDER == 2:
            z2 = tl.load(Z + j + P * count, mask=there, other=0.0)
            a2 = tl.load(A + j + P * count, mask=there, other=0.0)
            owed += (d2 * z2 + d3 * z1 * z1) * a2
            adjoint += 2.0 * d2 * z1 * a2
            tl.store(Z_BAR + j + P * count, d1 * a2, mask=there)
        tl.store(Z_BAR + j, adjoint, mask=there)
        total += owed
    tl.store(Z_BAR + i, total, mask=there)


@triton.jit
def delta_kernel(
    Z, B, A, DELTA, count, n, R, a, b, F: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """DELTA[r] = σ'(z) A[r] for the R cotangents (docs/math.md, section 4)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    z = tl.load(Z + i, mask=there, other=0.0)
    if B is not None:
        z += tl.load(B + i % n, mask=there, other=0.0)
    _value, d1, _d2, _d3 = derivatives(F, COUNT, z, a, b)
    for r in range(R):
        j = i + r * count
        tl.store(DELTA + j, d1 * tl.load(A + j, mask=there, other=0.0), mask=there)


@triton.jit
def pull_kernel(
    Z, B, Z1, A, H1, Q, count, n, R, a, b, F: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Of the tangents along the adjoints of R gradients: H1[r] = σ' ż_r, and Q = Σ_r σ'' ż_r a_r for the values."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    z = tl.load(Z + i, mask=there, other=0.0)
    if B is not None:
        z += tl.load(B + i % n, mask=there, other=0.0)
    _value, d1, d2, _d3 = derivatives(F, COUNT, z, a, b)
    total = 0.0 * z
    for r in range(R):
        j = i + r * count
        z1 = tl.load(Z1 + j, mask=there, other=0.0)
        tl.store(H1 + j, d1 * z1, mask=there)
        total += d2 * z1 * tl.load(A + j, mask=there, other=0.0)
    tl.store(Q + i, total, mask=there)


@triton.jit
def sums(A, T, W, i, there, sample, N, R, n, weight_of_row, REPEATED: tl.constexpr):
    """rr, aa, at, tt of each sample over R rows of n numbers."""
    rr = tl.zeros_like(sample).to(tl.float32)
    aa, at, tt = rr, rr, rr
    for j in range(R * n):
        a = tl.load(A + (j // n) * N * n + sample * n + j % n, mask=there, other=0.0)
        t = tl.load(T + (j // n) * N * n + sample * n + j % n, mask=there, other=0.0)
        w = 1.0
        if W is not None:
            w = tl.load(W + (j // n if REPEATED else j % n))
        rr += w * (a - t) * (a - t)
        aa += w * a * a
        at += w * a * t
        tt += w * t * t
    return rr, aa, at, tt


@triton.jit
def residual_kernel(
    A, T, W, SAMPLE_WEIGHT, SLOPE, TERM, N, R, n, factor, scale, a,
    F: tl.constexpr, COUNT: tl.constexpr, COUPLED: tl.constexpr, REPEATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A term of each sample, TERM [N], by `scale`, and its slopes, by `factor`; predictions and targets are [R, N, n].

    W has a weight for each of the n numbers, or, if REPEATED, for each of the R rows. One program takes BLOCK samples.
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = sample < N
    own = 1.0
    if SAMPLE_WEIGHT is not None:
        own = tl.load(SAMPLE_WEIGHT + sample, mask=there, other=0.0)
    total = 0.0 * sample.to(tl.float32)
    if COUPLED:
        rr, aa, at, tt = sums(A, T, W, sample, there, sample, N, R, n, 0, REPEATED)
        total, by_rr, by_aa, by_at = coupled(F, COUNT, rr, aa, at, tt, a)
    for j in range(R * n):
        k = (j // n) * N * n + sample * n + j % n
        prediction = tl.load(A + k, mask=there, other=0.0)
        target = tl.load(T + k, mask=there, other=0.0)
        w = 1.0
        if W is not None:
            w = tl.load(W + (j // n if REPEATED else j % n))
        if COUPLED:
            slope = 2.0 * by_rr * (prediction - target) + 2.0 * by_aa * prediction + by_at * target
        else:
            rho, slope = residual(F, COUNT, prediction - target, a)
            total += w * rho
        if SLOPE is not None:
            tl.store(SLOPE + k, factor * own * w * slope, mask=there)
    tl.store(TERM + sample, scale * own * total, mask=there)

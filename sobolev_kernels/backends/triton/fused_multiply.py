"""Multiplies of all streams of a layer with what follows them in their epilogue: see `elementwise.py` for the formulas.

A program has BM samples and BN features of every stream, so that σ' and σ'' are computed once, on chip. As in
`elementwise.py`, the kernels have no variants for a number of samples. None reads what another program of it writes.
"""

import triton
import triton.language as tl

from .formulas import activation_jet
from .primitives import dot, operand


@triton.jit
def tile_product(
    A, W, rows, columns, N, K, sw_n, sw_k, n, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """[BM, BN] of A [N, K] times a matrix [n, K] of any strides, transposed, in float32."""
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(A + rows[:, None] * K + k[None, :], mask=(rows < N)[:, None] & (k < K)[None, :], other=0.0)
        at = columns[None, :] * sw_n + k[:, None] * sw_k
        w = tl.load(W + at, mask=(k < K)[:, None] & (columns < n)[None, :], other=0.0)
        total += dot(operand(a, PRECISION), operand(w, PRECISION), PRECISION)
    return total


@triton.jit(do_not_specialize=["N", "P"])
def forward_kernel(
    BELOW, W, B, Z, H, N, K, n, P, sw_n, sw_k, activation, ORDER: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Z = BELOW Wᵀ of all streams [S, N, K], and H as `activate_kernel` makes it of them."""
    first, rows, columns = (
        tl.program_id(0).to(tl.int64) * BM,
        tl.arange(0, BM),
        tl.program_id(1) * BN + tl.arange(0, BN),
    )
    valid, at = (rows < N - first)[:, None] & (columns < n)[None, :], rows[:, None] * n + columns[None, :]
    below, above, many = N.to(tl.int64) * K, N.to(tl.int64) * n, N - first
    BELOW, Z, H = BELOW + first * K, Z + first * n, H + first * n
    z = tile_product(BELOW, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
    tl.store(Z + at, z, mask=valid)
    if B is not None:
        z += tl.load(B + columns, mask=columns < n, other=0.0)[None, :]
    value, d1, d2, _ = activation_jet(activation, z)
    tl.store(H + at, value, mask=valid)
    for p in tl.range(P, disable_licm=True):
        s = 1 + p
        z1 = tile_product(BELOW + s * below, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
        tl.store(Z + s * above + at, z1, mask=valid)
        tl.store(H + s * above + at, d1 * z1, mask=valid)
        if ORDER == 2:
            s += P
            z2 = tile_product(BELOW + s * below, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
            tl.store(Z + s * above + at, z2, mask=valid)
            tl.store(H + s * above + at, d1 * z2 + d2 * z1 * z1, mask=valid)


@triton.jit(do_not_specialize=["N", "P"])
def backward_kernel(
    ABOVE, W, Z, B, Q, N, K, n, P, sw_n, sw_k, activation, ORDER: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The adjoints of Z [S, N, n], in its place, as `adjoint_kernel` makes them of A = ABOVE W, where ABOVE [S, N, K]
    are those of the next layer."""
    first, rows, columns = (
        tl.program_id(0).to(tl.int64) * BM,
        tl.arange(0, BM),
        tl.program_id(1) * BN + tl.arange(0, BN),
    )
    valid, at = (rows < N - first)[:, None] & (columns < n)[None, :], rows[:, None] * n + columns[None, :]
    above, here, many = N.to(tl.int64) * K, N.to(tl.int64) * n, N - first
    ABOVE, Z = ABOVE + first * K, Z + first * n
    z = tl.load(Z + at, mask=valid, other=0.0)
    if B is not None:
        z += tl.load(B + columns, mask=columns < n, other=0.0)[None, :]
    _, d1, d2, d3 = activation_jet(activation, z)
    total = d1 * tile_product(ABOVE, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
    if Q is not None:
        total += tl.load(Q + first * n + at, mask=valid, other=0.0)
    for p in tl.range(P, disable_licm=True):
        s = 1 + p
        z1 = tl.load(Z + s * here + at, mask=valid, other=0.0)
        a1 = tile_product(ABOVE + s * above, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
        adjoint = d1 * a1
        total += d2 * z1 * a1
        if ORDER == 2:
            t = s + P
            z2 = tl.load(Z + t * here + at, mask=valid, other=0.0)
            a2 = tile_product(ABOVE + t * above, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
            adjoint += 2.0 * d2 * z1 * a2
            total += (d2 * z2 + d3 * z1 * z1) * a2
            tl.store(Z + t * here + at, d1 * a2, mask=valid)
        tl.store(Z + s * here + at, adjoint, mask=valid)
    tl.store(Z + at, total, mask=valid)


@triton.jit
def pulled_tile(
    ABOVE, W, r, N, K, n, sw_n, sw_k, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """A tile [BM, BN] of ABOVE[r] [N, K] times a matrix, its places in a stream [N, n], and which of them there are."""
    first = tl.program_id(0).to(tl.int64) * BM
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    valid = (rows < N - first)[:, None] & (columns < n)[None, :]
    above = ABOVE + (r * N.to(tl.int64) + first) * K
    tile = tile_product(above, W, rows, columns, N - first, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)
    return tile, first * n + rows[:, None] * n + columns[None, :], columns, valid


@triton.jit(do_not_specialize=["N", "R", "first"])
def product_kernel(
    ABOVE, W, OUT, N, K, n, R, sw_n, sw_k, first, scale, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """OUT [R, N, n] = scale ABOVE Wᵀ of streams [R, N, K] from `first` on: a product without a layer behind it."""
    for r in tl.range(R, disable_licm=True):
        tile, at, _columns, valid = pulled_tile(ABOVE, W, first + r, N, K, n, sw_n, sw_k, PRECISION, BM, BN, BK)
        tl.store(OUT + r * N.to(tl.int64) * n + at, scale * tile, mask=valid)


@triton.jit(do_not_specialize=["N", "R"])
def pull_kernel(
    ABOVE, W, Z, B, A, DELTA, N, K, n, R, sw_n, sw_k, activation, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A = ABOVE W of the R cotangents, where ABOVE [R, N, K] is DELTA of the next layer, and DELTA = σ'(z) A."""
    for r in tl.range(R, disable_licm=True):
        a, at, columns, valid = pulled_tile(ABOVE, W, r, N, K, n, sw_n, sw_k, PRECISION, BM, BN, BK)
        z = tl.load(Z + at, mask=valid, other=0.0)
        if B is not None:
            z += tl.load(B + columns, mask=columns < n, other=0.0)[None, :]
        _, d1, _, _ = activation_jet(activation, z)
        at += r * N.to(tl.int64) * n
        tl.store(A + at, a, mask=valid)
        tl.store(DELTA + at, d1 * a, mask=valid)


@triton.jit(do_not_specialize=["N", "R"])
def push_kernel(
    BELOW, W, Z, B, A, H1, Q, N, K, n, R, sw_n, sw_k, activation, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """H1 [R, N, n] and Q [N, n] as `along_g_bar_kernel` makes them of the tangents BELOW Wᵀ, BELOW [R, N, K]."""
    total = tl.zeros((BM, BN), tl.float32)
    first = tl.program_id(0).to(tl.int64) * BM
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    valid, at = (rows < N - first)[:, None] & (columns < n)[None, :], first * n + rows[:, None] * n + columns[None, :]
    for r in tl.range(R, disable_licm=True):
        z1, _at, _columns, _valid = pulled_tile(BELOW, W, r, N, K, n, sw_n, sw_k, PRECISION, BM, BN, BK)
        z = tl.load(Z + at, mask=valid, other=0.0)
        if B is not None:
            z += tl.load(B + columns, mask=columns < n, other=0.0)[None, :]
        _, d1, d2, _ = activation_jet(activation, z)
        here = r * N.to(tl.int64) * n + at
        tl.store(H1 + here, d1 * z1, mask=valid)
        total += d2 * z1 * tl.load(A + here, mask=valid, other=0.0)
    tl.store(Q + at, total, mask=valid)

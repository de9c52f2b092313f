"""One direction or cotangent of a tile, given or drawn, and the target along it.

Drawn from the same integers as those of the other backends (docs/math.md, section 8).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ...math.directions import DISTRIBUTIONS

DISTRIBUTION = {name: i for i, name in enumerate((*DISTRIBUTIONS, "given"))}
SPHERE, NORMAL, RADEMACHER, COORDINATE, BASIS, GIVEN = (
    tl.constexpr(DISTRIBUTION[name]) for name in ("sphere", "normal", "rademacher", "coordinate", "basis", "given")
)


class Distribution(NamedTuple):
    """How vectors are drawn: the number in DISTRIBUTION, whether all samples share them, and what multiplies them."""

    KIND: tl.constexpr
    SHARED: tl.constexpr
    magnitude: float


class Vectors(NamedTuple):
    """In a kernel, given directions or cotangents [P, N, columns] with their strides, or the key of those drawn.

    The key is two numbers, or in a CUDA graph, which draws anew at each replay, two of the device's memory, SEED: the
    seed, and the place, its offset in the lower half and the first sample's number in the upper one.
    """

    V: tl.tensor
    by_vector: tl.tensor
    by_sample: tl.tensor
    by_column: tl.tensor
    seed: tl.tensor
    place: tl.tensor
    SEED: tl.tensor
    in_memory: tl.tensor


class Target(NamedTuple):
    """In a kernel, targets of derivatives with their strides: [P, N, columns], or the Jacobian [N, terms, columns],
    which is summed over its terms."""

    T: tl.tensor
    by_vector: tl.tensor
    by_sample: tl.tensor
    by_term: tl.tensor
    by_column: tl.tensor


@triton.jit
def wave(turns, cosine):
    """cos(2π turns) where `cosine` holds, else sin(2π turns), for |turns| <= 1/2 (Cephes); tl.cos takes any angle."""
    turns = tl.where(cosine, turns + 0.25, turns)
    quarter = tl.floor(4.0 * turns + 0.5)
    x = 6.283185307179586 * (turns - 0.25 * quarter)
    s = x * x
    sine = x + x * s * ((-1.9515295891e-4 * s + 8.3321608736e-3) * s - 1.6666654611e-1)
    cos = 1.0 - 0.5 * s + s * s * ((2.443315711809948e-5 * s - 1.388731625493765e-3) * s + 4.166664568298827e-2)
    q = quarter.to(tl.int32) & 3
    return tl.where((q & 1) == 1, cos, sine) * tl.where((q & 2) == 2, -1.0, 1.0)


@triton.jit
def normal(sample, p, d, seed, offset):
    """A standard normal for each (sample, column): the pairs of docs/math.md's generator, by Box and Muller."""
    seed += tl.full((), p >> 30, tl.uint64)  # plus 0, or the keys of all rounds are kept in registers
    w0, w1, w2, w3 = tl.philox(seed, sample, p + 0 * d, d // 4 + 0 * sample, offset + 0 * d)
    second = (d % 4) >= 2
    a, b = tl.where(second, w2, w0), tl.where(second, w3, w1)
    u = ((a >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    turns = ((b >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0) - 0.5
    return tl.sqrt(-2.0 * tl.log(u)) * wave(turns, d % 2 == 0)


@triton.jit
def key_of(vectors, p):
    """Read anew for each vector, or it is kept in registers."""
    at, here = vectors.SEED + (p >> 30), vectors.in_memory
    seed = tl.load(at, mask=here, other=0).to(tl.uint64)
    place = tl.where(here, tl.load(at + 1, mask=here, other=0).to(tl.uint64), vectors.place)
    return tl.where(here, seed, vectors.seed), place.to(tl.uint32), (place >> 32).to(tl.uint32)


@triton.jit
def direction(distribution, vectors, sample, valid, p, d, W):
    """Vector p of a tile [BLOCK, columns], 0 beyond W and N."""
    within = (d < W)[None, :] & valid[:, None]
    if distribution.KIND == GIVEN:
        at = p * vectors.by_vector + sample[:, None] * vectors.by_sample + d[None, :] * vectors.by_column
        return tl.load(vectors.V + at, mask=within, other=0.0)
    seed, offset, first = key_of(vectors, p)
    rows = (0 * sample if distribution.SHARED else sample)[:, None].to(tl.uint32)
    if not distribution.SHARED:
        rows += first
    columns = d[None, :].to(tl.uint32)
    if distribution.KIND == SPHERE or distribution.KIND == NORMAL:
        v = tl.where(within, normal(rows, p, columns, seed, offset), 0.0)
        if distribution.KIND == SPHERE:
            v = v / tl.sqrt_rn(tl.maximum(tl.sum(v * v, 1), 1e-30))[:, None]
    elif distribution.KIND == RADEMACHER:
        w0, w1, w2, w3 = tl.philox(seed, rows, p + 0 * columns, columns // 4 + 0 * rows, offset + 0 * columns)
        k = columns % 4
        w = tl.where(k == 0, w0, tl.where(k == 1, w1, tl.where(k == 2, w2, w3)))
        v = tl.where((w >> 31) == 1, 1.0, -1.0)
    elif distribution.KIND == COORDINATE:
        w0, w1, w2, w3 = tl.philox(seed, rows, p + 0 * columns, 0 * columns + 0 * rows, offset + 0 * columns)
        column = ((w0.to(tl.uint64) * W) >> 32).to(tl.uint32)
        v = tl.where(column == columns, 1.0, 0.0)
    else:
        v = tl.where(columns + 0 * rows == p, 1.0, 0.0)
    return tl.where(within, v * distribution.magnitude, 0.0)


@triton.jit
def target_along(target, sample, valid, v, p, k, terms, column, columns, DENSE: tl.constexpr):
    """The derivative of f along v, direction or cotangent p, of a tile: as it was given, or from the dense Jacobian.

    Its `columns` are those of the result; v has `terms` numbers, along which the Jacobian is summed.
    """
    within = valid[:, None] & (column < columns)[None, :]
    at = sample[:, None] * target.by_sample + column[None, :] * target.by_column
    if not DENSE:
        return tl.load(target.T + p * target.by_vector + at, mask=within, other=0.0)
    total = tl.where(within, 0.0, 0.0)
    for j in range(terms):
        vj = tl.sum(tl.where(k[None, :] == j, v, 0.0), 1)
        total += tl.load(target.T + j * target.by_term + at, mask=within, other=0.0) * vj[:, None]
    return total

"""What a step layer by layer starts from: stacked streams of inputs, targets along directions, weights as operands."""

import triton
import triton.language as tl

from .draws import Vectors, direction


@triton.jit(
    do_not_specialize=[
        "N", "D", "W", "sx_n", "sx_d", "sv_p", "sv_n", "sv_k", "seed", "place", "seed_in_memory"
    ],
    do_not_specialize_on_alignment=["X", "V", "SEED"],
)  # fmt: skip
def start_kernel(
    X, V, SEED, OUT, COPY, N, P, D, W, sx_n, sx_d, sv_p, sv_n, sv_k, seed: tl.uint64, place: tl.uint64, seed_in_memory,
    distribution, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """OUT [streams, N, D]: X [N, D], if it is there, then P vectors of W numbers, given or drawn, then zeros; and the
    same as COPY, if it is there, in what is multiplied. A program's second number is that of the stream."""
    sample, d = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    valid, stream, p = sample < N, tl.program_id(1), tl.program_id(1)
    within = valid[:, None] & (d < D)[None, :]
    numbers = tl.zeros((BLOCK, COLUMNS), tl.float32)
    if X is not None:
        p -= 1
        if stream == 0:
            at = sample[:, None] * sx_n + d.to(tl.int64)[None, :] * sx_d
            numbers = tl.load(X + at, mask=within, other=0.0)
    if (p >= 0) & (p < P):
        vectors = Vectors(
            V, sv_p.to(tl.int64), sv_n, sv_k.to(tl.int64), seed.to(tl.uint64), place.to(tl.uint64), SEED,
            seed_in_memory != 0,
        )  # fmt: skip
        numbers = direction(distribution, vectors, sample, valid, p, d, W) + numbers
    place = (stream * N.to(tl.int64) + sample)[:, None] * D + d[None, :]
    tl.store(OUT + place, numbers, mask=within)
    if COPY is not None:
        tl.store(COPY + place, numbers, mask=within)


@triton.jit(do_not_specialize=["N", "P", "first", "st_n", "st_j", "st_i", "st_k"], do_not_specialize_on_alignment=["T"])
def along_kernel(
    T, V, OUT, N, P, n, terms, first, width, st_n, st_j, st_i, st_k, TWICE: tl.constexpr, BLOCK: tl.constexpr
):
    """OUT [P, N, n]: a target [N, n, terms] along vectors, the first `terms` numbers of the rows of V [rows, N, width]
    from row `first` on; if TWICE [N, n, terms, terms] along each of them twice. A program takes BLOCK numbers."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid, column, sample, p = i < P * N.to(tl.int64) * n, i % n, i // n % N, i // n // N
    vector = V + ((p + first) * N.to(tl.int64) + sample) * width
    st_j, st_i = st_j.to(tl.int64), st_i.to(tl.int64)
    total, target = 0.0 * i.to(tl.float32), T + sample * st_n + column * st_k
    for j in range(terms):
        v = tl.load(vector + j, mask=valid, other=0.0)
        if TWICE:
            along = 0.0 * v
            for k in range(terms):
                w = tl.load(vector + k, mask=valid, other=0.0)
                along += w * tl.load(target + j * st_j + k * st_i, mask=valid, other=0.0)
            total += v * along
        else:
            total += v * tl.load(target + j * st_j, mask=valid, other=0.0)
    tl.store(OUT + i, total, mask=valid)


@triton.jit
def cast_kernel(WEIGHTS, STRIDES, COPIES, SIZES, BLOCK: tl.constexpr):
    """Weights [n_out, n_in] of any strides as contiguous COPIES of another type; STRIDES and SIZES have two of each."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for k in tl.static_range(len(WEIGHTS)):
        if tl.program_id(1) == k:
            row, column = i // SIZES[2 * k + 1], i % SIZES[2 * k + 1]
            there = row < SIZES[2 * k]
            weight = tl.load(WEIGHTS[k] + row * STRIDES[2 * k] + column * STRIDES[2 * k + 1], mask=there, other=0.0)
            tl.store(COPIES[k] + i, weight, mask=there)

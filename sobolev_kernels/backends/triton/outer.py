"""Gradients of weights and biases, of all layers in one launch: sums over streams and samples of outer products.

The sum is cut into parts, each with a slot of its own, which `finishing.py` adds up in their order.
"""

import triton
import triton.language as tl

from .primitives import dot, operand


@triton.jit
def outer_layer(
    A, H, SIZES, k: tl.constexpr, slots, bias_slots, N, first_part, rows, stride, bias_stride,
    PRECISION: tl.constexpr, MULTIPLY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    n_out, n_in, at, at_bias = SIZES[6 * k], SIZES[6 * k + 1], SIZES[6 * k + 2], SIZES[6 * k + 3]
    M, of_values = SIZES[6 * k + 4] * N.to(tl.int64), SIZES[6 * k + 5] * N
    across = (n_in + BN - 1) // BN if MULTIPLY else 1
    down, right = tl.program_id(0) // across, tl.program_id(0) % across
    if down * BM < n_out:
        i, j, c = down * BM + tl.arange(0, BM), right * BN + tl.arange(0, BN), tl.arange(0, BK)
        part, total, bias = tl.program_id(1).to(tl.int64), tl.zeros((BM, BN), tl.float32), tl.zeros((BM,), tl.float32)
        for start in tl.range(0, rows, BK, disable_licm=True):
            row = part * rows + start + c
            within = (row < M) & (start + c < rows)
            a = tl.load(A + row[:, None] * n_out + i[None, :], mask=within[:, None] & (i < n_out)[None, :], other=0.0)
            if bias_slots is not None:
                bias += tl.sum(tl.where((row < of_values)[:, None], a.to(tl.float32), 0.0), 0)
            if MULTIPLY:
                h = tl.load(H + row[:, None] * n_in + j[None, :], mask=within[:, None] & (j < n_in)[None, :], other=0.0)
                total += dot(tl.trans(operand(a, PRECISION)), operand(h, PRECISION), PRECISION)
        if MULTIPLY:
            here = (i < n_out)[:, None] & (j < n_in)[None, :]
            tl.store(
                slots + (part + first_part) * stride + at + i.to(tl.int64)[:, None] * n_in + j[None, :],
                total,
                mask=here,
            )
        if bias_slots is not None:
            if right == 0:
                tl.store(bias_slots + part * bias_stride + at_bias + i, bias, mask=i < n_out)


@triton.jit(do_not_specialize=["N", "first_part", "rows", "stride", "bias_stride"])
def outer_kernel(
    A, H, SIZES, slots, bias_slots, N, first_part, rows, stride, bias_stride, PRECISION: tl.constexpr,
    MULTIPLY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of each layer Σ a hᵀ over the rows of A [S N, n_out] and H [S N, n_in], from slot first_part on; and if there are
    bias_slots, of the first N rows of A, if they are of the values, Σ a, the gradient of the bias. Unless they
    MULTIPLY, the latter alone.

    SIZES has six of each layer: n_out, n_in, where its gradients begin in a slot, its streams S, and how many of them
    are values. A program takes a tile of a gradient and `rows` rows; its second number is that of the part, its third
    one that of the layer.
    """
    for k in tl.static_range(len(A)):
        if tl.program_id(2) == k:
            outer_layer(
                A[k], H[k], SIZES, k, slots, bias_slots, N, first_part, rows, stride, bias_stride, PRECISION,
                MULTIPLY, BM, BN, BK,
            )  # fmt: skip

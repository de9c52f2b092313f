"""What stands around the one launch: parameters as it reads them, gradients and the loss of what it leaves.

Like `step_kernel` these have no variants for what changes from step to step. Sizes and strides of parameters are of the
student, as members of tuples, and make some.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...problem import Problem
from .in_cache import all_weights, weights_of
from .launches import padded
from .primitives import operand

OPERANDS = {"bf16": torch.bfloat16, "fp16": torch.float16}
AT_ONCE = 16  # layers that one launch packs, or finishes: a kernel has room for so many arguments
SOME, ROWS, COLUMNS, SAMPLES = 1024, 32, 128, 4096  # numbers that a program packs; of slots and of terms, finishes


class Packed(NamedTuple):
    """Layers one after the other, padded with zeros; weights as what is multiplied, in the order of either way."""

    weights: torch.Tensor  # [H, DB], [H, H]..., [OB, H]
    transposed: torch.Tensor  # [DB, H], [H, H]..., [H, OB]
    biases: torch.Tensor  # [H]..., [OB]


class Sizes(NamedTuple):
    """Of the student, before they are padded; and how many linear layers he has."""

    D: int
    H: int
    O: int
    LAYERS: tl.constexpr


def counts_of(problem: Problem) -> tuple[int, int]:
    """How many weights and biases there are as they are padded."""
    sizes = list(map(padded, problem.widths))
    return sum(a * b for a, b in zip(sizes, sizes[1:], strict=False)), sum(sizes[1:])


@triton.jit
def shape_of(l: tl.constexpr, sizes, TILE):
    """Of linear layer l: rows and columns, and where its weights begin."""
    n_out, n_in = sizes.H, sizes.H
    if l == sizes.LAYERS - 1:
        n_out = sizes.O
    if l == 0:
        n_in, at = sizes.D, 0
    else:
        at = weights_of(l, TILE)
    return n_out, n_in, at


@triton.jit
def pack_layer(W, B, STRIDES, k: tl.constexpr, packed, sizes, FIRST: tl.constexpr, TILE, SOME: tl.constexpr):
    l: tl.constexpr = FIRST + k
    by_row, by_column, by_bias = STRIDES[3 * k], STRIDES[3 * k + 1], STRIDES[3 * k + 2]
    R: tl.constexpr = TILE.OB if l == sizes.LAYERS - 1 else TILE.H
    C: tl.constexpr = TILE.DB if l == 0 else TILE.H
    n_out, n_in, at = shape_of(l, sizes, TILE)
    i = tl.program_id(0) * SOME + tl.arange(0, SOME)
    row, column = (i // C).to(tl.int64), (i % C).to(tl.int64)
    of_layer, known = i < R * C, (row < n_out) & (column < n_in)
    weight = tl.load(W + row * by_row + column * by_column, mask=of_layer & known, other=0.0)
    weight = operand(weight, TILE.PRECISION)
    tl.store(packed.weights + at + i, weight, mask=of_layer)
    tl.store(packed.transposed + at + column * R + row, weight, mask=of_layer)
    if tl.program_id(0) == 0:
        o = tl.arange(0, R)
        bias = tl.zeros((R,), tl.float32)
        if B is not None:
            bias = tl.load(B + o.to(tl.int64) * by_bias, mask=o < n_out, other=0.0)
        tl.store(packed.biases + (o + l * TILE.H), bias)


@triton.jit
def pack_kernel(WEIGHTS, BIASES, STRIDES, packed, sizes, FIRST: tl.constexpr, TILE, SOME: tl.constexpr):
    """packed: Packed, of the layers from FIRST on, whose WEIGHTS [n_out, n_in] and BIASES [n_out], or None, these are;
    STRIDES has three of each layer. sizes: Sizes. A program takes SOME numbers of a layer, its second number."""
    for k in tl.static_range(len(WEIGHTS)):
        if tl.program_id(1) == k:
            pack_layer(WEIGHTS[k], BIASES[k], STRIDES, k, packed, sizes, FIRST, TILE, SOME)


@triton.jit
def summed(SLOTS, at, there, stride, programs, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The numbers [COLUMNS] at these places of all slots, summed in the order of the slots."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in tl.range(0, programs, ROWS):
        slot = first + tl.arange(0, ROWS)
        within = (slot < programs)[:, None] & there[None, :]
        total += tl.load(SLOTS + slot.to(tl.int64)[:, None] * stride + at[None, :], mask=within, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def weighted(value, derivative, value_weight, derivative_weight):
    """The loss of its terms; one of weight 0 is left out, since it may be NaN."""
    loss = tl.where(value_weight != 0.0, value_weight * value, 0.0)
    return loss + tl.where(derivative_weight != 0.0, derivative_weight * derivative, 0.0)


@triton.jit
def finish_terms(LOSS, TERMS, terms, N, value_weight, derivative_weight, EACH: tl.constexpr, SAMPLES: tl.constexpr):
    """The loss and its TERMS [2], which need not be there, from the `terms` [2, N] of samples; or the loss of EACH."""
    if EACH:
        n = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
        value, derivative = tl.load(terms + n, mask=n < N, other=0.0), tl.load(terms + N + n, mask=n < N, other=0.0)
        tl.store(LOSS + n, weighted(value, derivative, value_weight, derivative_weight), mask=n < N)
    elif tl.program_id(0) == 0:
        value, derivative = tl.zeros((SAMPLES,), tl.float64), tl.zeros((SAMPLES,), tl.float64)
        for first in tl.range(0, N, SAMPLES):
            n = first + tl.arange(0, SAMPLES).to(tl.int64)
            value += tl.load(terms + n, mask=n < N, other=0.0).to(tl.float64)
            derivative += tl.load(terms + N + n, mask=n < N, other=0.0).to(tl.float64)
        values, derivatives = tl.sum(value, 0), tl.sum(derivative, 0)
        if TERMS is not None:
            tl.store(TERMS, values.to(tl.float32))
            tl.store(TERMS + 1, derivatives.to(tl.float32))
        tl.store(LOSS, weighted(values, derivatives, value_weight, derivative_weight).to(tl.float32))


@triton.jit
def finish_layer(
    W, B, slots, bias_slots, programs, common, sizes, l: tl.constexpr, TILE, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    C: tl.constexpr = TILE.DB if l == 0 else TILE.H
    n_out, n_in, at = shape_of(l, sizes, TILE)
    i = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if tl.program_id(0) * COLUMNS < n_out * n_in:
        there, place, stride = i < n_out * n_in, i // n_in * C + i % n_in + at, all_weights(sizes.LAYERS - 1, TILE)
        tl.store(W + i, common * summed(slots, place, there, stride, programs, ROWS, COLUMNS), mask=there)
    if B is not None:
        if tl.program_id(0) * COLUMNS < n_out:
            there, place, stride = i < n_out, i + l * TILE.H, (sizes.LAYERS - 1) * TILE.H + TILE.OB
            tl.store(B + i, common * summed(bias_slots, place, there, stride, programs, ROWS, COLUMNS), mask=there)


@triton.jit(do_not_specialize=["N", "programs"])
def finish_kernel(
    LOSS, TERMS, GRADIENTS, BIAS_GRADIENTS, terms, slots, bias_slots, N, programs, common, value_weight,
    derivative_weight, sizes, FIRST: tl.constexpr, EACH: tl.constexpr, TILE, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SAMPLES: tl.constexpr,
):  # fmt: skip
    """GRADIENTS [n_out, n_in] and BIAS_GRADIENTS [n_out], or None, of the layers from FIRST on: the sums of all slots,
    by `common`. And the LOSS, if it is there, by the programs whose second number is behind those of the layers."""
    for k in tl.static_range(len(GRADIENTS)):
        if tl.program_id(1) == k:
            finish_layer(
                GRADIENTS[k], BIAS_GRADIENTS[k], slots, bias_slots, programs, common, sizes, FIRST + k, TILE, ROWS, COLUMNS
            )  # fmt: skip
    if LOSS is not None:
        if tl.program_id(1) == len(GRADIENTS):
            finish_terms(LOSS, TERMS, terms, N, value_weight, derivative_weight, EACH, SAMPLES)

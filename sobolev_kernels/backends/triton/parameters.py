"""Parameters as the one launch reads them.

Sizes and strides of parameters are of the student, so they may make variants of the kernel, as members of tuples do.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...problem import Problem
from .in_cache import weights_of
from .launches import padded
from .primitives import operand

OPERANDS = {"bf16": torch.bfloat16, "fp16": torch.float16}
SOME = 1024  # numbers that a program packs


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


def places_of(problem: Problem) -> tuple[list[tuple[int, int, int]], int, int]:
    """Of each layer the columns of a row of its weights as they are padded, where these begin, and where its biases;
    and how many weights and biases there are."""
    places, at, at_bias = [], 0, 0
    for columns, rows in pairwise(map(padded, problem.widths)):
        places.append((columns, at, at_bias))
        at, at_bias = at + rows * columns, at_bias + rows
    return places, at, at_bias


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

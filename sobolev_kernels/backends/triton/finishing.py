"""What ends a step: gradients from slots of partial sums, the loss and its terms from those of the samples; one launch.

Sums have a fixed order: the same bits on every run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import triton
import triton.language as tl

from ...problem import PER_SAMPLE, Problem
from .script import At, Script, by_layer

AT_ONCE = 16  # layers that one launch packs, or finishes: a kernel has room for so many arguments
# Slots and numbers of each that a program sums at a time, terms that one does, and warps of a program.
ROWS, COLUMNS, AT_A_TIME, WARPS = 64, 128, 4096, 8


class Slots(NamedTuple):
    """Partial sums of gradients: `weights` [parts, stride] and `biases` [bias_parts, bias_stride]; of each layer the
    columns of a row of its weights there, and where its weights and its biases begin."""

    weights: At
    biases: At
    parts: int
    bias_parts: int
    stride: int
    bias_stride: int
    layers: Sequence[tuple[int, int, int]]


class Terms(NamedTuple):
    """What the loss is summed of, in rows of `count` numbers, one row for each term."""

    at: At
    count: int


def terms_of(script: Script, problem: Problem, N: int, block: int, outputs: dict) -> Terms:
    """Those of samples where they are wanted, else the sums of blocks of so many samples, as `store_term` stores."""
    if problem.result == PER_SAMPLE:
        return Terms(outputs["terms"], N)
    blocks = triton.cdiv(N, block)
    return Terms(script.room(1 + problem.order, blocks), blocks)


@triton.jit
def store_term(TERMS, row: tl.constexpr, term, sample, valid, t, N, OF_EACH: tl.constexpr, BLOCK: tl.constexpr):
    """A term of the samples [BLOCK] of block t into its row of TERMS: [terms, N] if OF_EACH, else their sum, [terms,
    blocks], which leaves less to the one program that makes a loss of all."""
    if OF_EACH:
        tl.store(TERMS + row * N.to(tl.int64) + sample, term, mask=valid)
    else:
        blocks = (N - 1) // BLOCK + 1
        tl.store(TERMS + row * blocks + t, tl.sum(tl.where(valid, term, 0.0), 0))


@triton.jit
def summed(SLOTS, at, there, stride, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The numbers [COLUMNS] at these places of all slots, summed in an order that is always the same."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in tl.range(0, parts, ROWS):
        slot = first + tl.arange(0, ROWS)
        within = (slot < parts)[:, None] & there[None, :]
        total += tl.load(SLOTS + slot.to(tl.int64)[:, None] * stride + at[None, :], mask=within, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def finish_layer(
    W, B, PLACES, k: tl.constexpr, slots, bias_slots, parts, bias_parts, stride, bias_stride, common,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program sums COLUMNS numbers in a row as they lie in the slots, where a row of weights has `columns` of them;
    those behind the weights' programs sum biases."""
    n_out, n_in, columns = PLACES[5 * k], PLACES[5 * k + 1], PLACES[5 * k + 2]
    at, at_bias = PLACES[5 * k + 3], PLACES[5 * k + 4]
    size, block = n_out.to(tl.int64) * columns, tl.program_id(0).to(tl.int64)
    of_weights = (size + COLUMNS - 1) // COLUMNS
    if block < of_weights:
        i = block * COLUMNS + tl.arange(0, COLUMNS)
        total = summed(slots + at, i, i < size, stride, parts, ROWS, COLUMNS)
        row, column = i // columns, i % columns
        tl.store(W + row * n_in + column, common * total, mask=(i < size) & (column < n_in))
    elif B is not None:
        i = (block - of_weights) * COLUMNS + tl.arange(0, COLUMNS)
        total = summed(bias_slots + at_bias, i, i < n_out, bias_stride, bias_parts, ROWS, COLUMNS)
        tl.store(B + i, common * total, mask=i < n_out)


@triton.jit
def finish_each(LOSS, terms, count, WEIGHTS, AT_A_TIME: tl.constexpr):
    """The LOSS [count] of each sample. A term of weight 0 is left out, since it may be NaN."""
    n = tl.program_id(0).to(tl.int64) * AT_A_TIME + tl.arange(0, AT_A_TIME)
    loss = tl.zeros((AT_A_TIME,), tl.float32)
    for t in tl.static_range(len(WEIGHTS)):
        term = tl.load(terms + t * count.to(tl.int64) + n, mask=n < count, other=0.0)
        loss += tl.where(WEIGHTS[t] != 0.0, WEIGHTS[t] * term, 0.0)
    tl.store(LOSS + n, loss, mask=n < count)


@triton.jit
def row_sum(row, count, AT_A_TIME: tl.constexpr):
    """The sum in float64 of numbers [count], in an order that is always the same."""
    sums = tl.zeros((AT_A_TIME,), tl.float64)
    for first in tl.range(0, count, AT_A_TIME):
        n = first + tl.arange(0, AT_A_TIME).to(tl.int64)
        sums += tl.load(row + n, mask=n < count, other=0.0).to(tl.float64)
    return tl.sum(sums, 0)


@triton.jit
def finish_terms(LOSS, TERMS, terms, count, WEIGHTS, AT_A_TIME: tl.constexpr):
    """The LOSS and its TERMS, which need not be there."""
    if tl.program_id(0) == 0:
        loss = 0.0 * tl.program_id(0).to(tl.float64)
        for t in tl.static_range(len(WEIGHTS)):
            term = row_sum(terms + t * count.to(tl.int64), count, AT_A_TIME)
            loss += tl.where(WEIGHTS[t] != 0.0, WEIGHTS[t] * term, 0.0)
            if TERMS is not None:
                tl.store(TERMS + t, term.to(tl.float32))
        tl.store(LOSS, loss.to(tl.float32))


@triton.jit(do_not_specialize=["count", "parts", "bias_parts"])
def finish_kernel(
    LOSS, TERMS, terms, GRADIENTS, BIAS_GRADIENTS, PLACES, slots, bias_slots, count, parts, bias_parts, stride,
    bias_stride, common, WEIGHTS, EACH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    AT_A_TIME: tl.constexpr,
):  # fmt: skip
    """GRADIENTS [n_out, n_in] and BIAS_GRADIENTS [n_out], or None: the sums of all slots, by `common`. PLACES has five
    of each layer: n_out, n_in, and those of Slots. And the LOSS, if it is there, of the `terms` [len(WEIGHTS), count].
    A program's second number says of which layer it is; those behind the last one make the loss."""
    for k in tl.static_range(len(GRADIENTS)):
        if tl.program_id(1) == k:
            finish_layer(
                GRADIENTS[k], BIAS_GRADIENTS[k], PLACES, k, slots, bias_slots, parts, bias_parts, stride, bias_stride,
                common, ROWS, COLUMNS,
            )  # fmt: skip
    if LOSS is not None:
        if tl.program_id(1) == len(GRADIENTS):
            if EACH:
                finish_each(LOSS, terms, count, WEIGHTS, AT_A_TIME)
            else:
                finish_terms(LOSS, TERMS, terms, count, WEIGHTS, AT_A_TIME)


def finish(
    script: Script, problem: Problem, weights: Sequence[float], outputs: dict, gradients: Sequence[At], terms: Terms,
    slots: Slots, common: float,
) -> None:  # fmt: skip
    """The launch that ends a step; for a student of more than AT_ONCE layers several."""
    each, loss = problem.result == PER_SAMPLE, outputs.get("loss")
    # also where nobody asks for the terms: one variant of the kernel
    sums = None if each or loss is None else outputs.get("terms") or script.room(1 + problem.order)
    layers = by_layer(problem, gradients) if gradients else []
    sizes = [*pairwise(problem.widths)]
    for first in range(0, max(1, len(layers)), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        grid_1 = len(layers[some]) + (loss is not None)
        if not grid_1:
            continue
        places = (
            [p for (a, b), of in zip(sizes[some], slots.layers[some], strict=True) for p in (b, a, *of)]
            if layers
            else []
        )
        blocks = triton.cdiv(terms.count, AT_A_TIME) if each else 1
        if layers:
            each_layer = zip(sizes[some], slots.layers[some], strict=True)
            of_layers = [triton.cdiv(b * of[0], COLUMNS) + triton.cdiv(b, COLUMNS) for (_, b), of in each_layer]
            blocks = max(blocks, *of_layers)
        of_weights, of_biases = map(tuple, zip(*layers[some], strict=True)) if layers else ((), ())
        script.launch(
            sys.modules[__name__], "finish_kernel", (blocks, grid_1), loss, sums, terms.at, of_weights, of_biases,
            tuple(places), slots.weights, slots.biases, terms.count, *slots[2:6], common,
            tuple(map(float, weights[: 1 + problem.order])), EACH=each, ROWS=ROWS, COLUMNS=COLUMNS,
            AT_A_TIME=AT_A_TIME, num_warps=WARPS,
        )  # fmt: skip
        loss = None

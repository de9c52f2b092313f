"""Parameters of a narrow student as the one launch reads them, and gradients as it leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import mul
from typing import NamedTuple

import torch

from ...problem import Problem
from .launches import padded

OPERANDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Packed(NamedTuple):
    """Layers one after the other, padded with zeros; weights as what is multiplied, in the order of either way."""

    weights: torch.Tensor  # [H, DB], [H, H]..., [OB, H]
    transposed: torch.Tensor  # [DB, H], [H, H]..., [H, OB]
    biases: torch.Tensor  # [H]..., [OB]


def places(problem: Problem) -> Iterator[tuple[slice, tuple[int, int], slice, bool]]:
    """Of each layer: where its weights lie, their padded shape, where its biases lie, and whether it has any."""
    sizes, at, at_bias = list(map(padded, problem.widths)), 0, 0
    for columns, rows, n_out, has_bias in zip(sizes, sizes[1:], problem.widths[1:], problem.biases, strict=False):
        yield slice(at, at + rows * columns), (rows, columns), slice(at_bias, at_bias + n_out), has_bias
        at, at_bias = at + rows * columns, at_bias + rows


def pack(problem: Problem, parameters: Sequence[torch.Tensor]) -> Packed:
    sizes, cursor = list(map(padded, problem.widths)), iter(parameters)
    biases = parameters[0].new_zeros(sum(sizes[1:]))
    weights = parameters[0].new_zeros(2, sum(map(mul, sizes, sizes[1:])), dtype=OPERANDS.get(problem.precision))
    for place, (rows, columns), bias_place, has_bias in places(problem):
        weight = next(cursor)
        n_out, n_in = weight.shape
        weights[0, place].view(rows, columns)[:n_out, :n_in] = weight
        weights[1, place].view(columns, rows)[:n_in, :n_out] = weight.T
        if has_bias:
            biases[bias_place] = next(cursor)
    if problem.precision == "tf32":  # as `rounded` of primitives.py
        weights = torch.where(weights == weights, (weights.view(torch.int32) + 0x1000).view(torch.float32), weights)
    return Packed(weights[0], weights[1], biases)


def unpack(problem: Problem, weights: torch.Tensor, biases: torch.Tensor, gradients: Sequence[torch.Tensor]) -> None:
    """Gradients of packed weights and biases into those of the parameters."""
    cursor = iter(gradients)
    for place, shape, bias_place, has_bias in places(problem):
        gradient = next(cursor)
        n_out, n_in = gradient.shape
        gradient.copy_(weights[place].view(shape)[:n_out, :n_in])
        if has_bias:
            next(cursor).copy_(biases[bias_place])

"""A GRU over all steps: a forward, a gradient and its own way back, each one operation of the core."""

from __future__ import annotations

import torch

from ..flowing import spelt
from ..recurred import layer_of, values_of
from .single import Single

# µs that each step saves, at least, and those of Python that it takes.
SAVED, PYTHON = 100.0, 100.0


def gru(
    input, hx, weights, has_biases=None, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False
) -> tuple[torch.Tensor, torch.Tensor] | None:  # fmt: skip
    if not isinstance(has_biases, bool):  # the function of a packed sequence has other arguments
        return None
    layer = layer_of(input, hx, weights, num_layers, bidirectional, batch_first)
    if layer is None:
        return None
    y, _ = values_of(layer, input, hx[0], *weights)
    return y, layer.last_of(y)


def saves(input, *_, **named) -> float:
    return SAVED * min(input.shape[:2]) - PYTHON if isinstance(input, torch.Tensor) and input.dim() == 3 else 0.0


TABLE = {function: Single(gru, saves) for function in spelt("gru")}

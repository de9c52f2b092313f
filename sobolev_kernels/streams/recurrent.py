"""Rules of recurrent networks, by the arithmetic of their cells; of whole layers too, one step after the other, or, of
a GRU, by the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from .cells import CELLS, along
from .dual import Dual, by_numbers
from .operations import fits
from .pair import rule
from .recurred import layer_of, recurred


def single(name: str) -> Callable:
    """The rule of a cell; an LSTM's gives its whole state, the others h."""
    cell = CELLS[name]

    def applied(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
        state = tuple(hx) if name == "lstm" else (hx,)
        after = cell(functional.linear(input, w_ih, b_ih), state, w_hh, b_hh)
        return after if name == "lstm" else after[0]

    return applied


def weights_of(flat: list, has_biases: bool, projected: bool) -> Iterator[tuple]:
    """(w_ih, b_ih, w_hh, b_hh, and w_hr where h is projected) of each layer and direction."""
    n = 2 + 2 * has_biases + projected
    for i in range(0, len(flat), n):
        w_ih, w_hh, *others = flat[i : i + n]
        b_ih, b_hh = others[:2] if has_biases else (None, None)
        yield w_ih, b_ih, w_hh, b_hh, *others[2 * has_biases :]


def of_core(input: Dual, hx: object, weights: list, *shape: object) -> tuple[Dual, Dual] | None:
    """What a GRU gives as one operation of the core; None where it is not that."""
    if type(input) is not Dual or type(hx) is Dual:
        return None
    layer = layer_of(input.v, hx, weights, *shape)
    if layer is None or not fits(input.v, input.d):
        return None
    y, t = recurred(layer, input.v, input.d, hx[0], *weights)
    y = Dual(y, t)
    return y, layer.last_of(y)


def layers(name: str) -> Callable:
    """The rule of PyTorch's function of all layers, of inputs [T, N, n], or [N, T, n] where the batch is first."""
    cell = CELLS[name]

    def applied(input, hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        if not isinstance(has_biases, bool):  # the function of a packed sequence has other arguments
            raise TypeError("a packed sequence")
        if name == "gru":
            made = of_core(input, hx, weights, num_layers, bidirectional, batch_first)
            if made is not None:
                return made
        x, directions = input.transpose(0, 1) if batch_first else input, 1 + bidirectional
        states = list(zip(*(part.unbind(0) for part in (hx if name == "lstm" else (hx,))), strict=True))
        projected = name == "lstm" and states[0][0].shape[-1] != states[0][1].shape[-1]
        after, each = [], list(weights_of(weights, has_biases, projected))
        for i in range(num_layers):
            given = []
            for j in range(i * directions, (i + 1) * directions):
                y, state = along(cell, x, states[j], each[j], backwards=j % directions == 1)
                given.append(y)
                after.append(state)
            x = torch.cat(given, -1) if bidirectional else given[0]
            if dropout and train and i + 1 < num_layers:
                x = x * functional.dropout(torch.ones_like(x.v), dropout)
        return x.transpose(0, 1) if batch_first else x, *(torch.stack(part) for part in zip(*after, strict=True))

    return applied


for name in CELLS:
    rule(f"{name}_cell", twice=True)(by_numbers(single(name)))
    rule(name, spaces=(torch,), twice=True)(by_numbers(layers(name)))

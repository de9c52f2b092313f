"""Rules of recurrent networks, by the arithmetic of their cells; of whole layers too, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from .dual import by_numbers
from .pair import rule

# The state of a cell: h, and of an LSTM c too.
State = tuple[torch.Tensor, ...]


def gru(gates: torch.Tensor, state: State, w_hh, b_hh) -> State:
    (h,) = state
    (r, z, n), (s, c, m) = gates.chunk(3, -1), functional.linear(h, w_hh, b_hh).chunk(3, -1)
    z = (z + c).sigmoid()
    n = (n + (r + s).sigmoid() * m).tanh()
    return (n + z * (h - n),)


def lstm(gates: torch.Tensor, state: State, w_hh, b_hh, w_hr=None) -> State:
    h, c = state
    i, f, g, o = (gates + functional.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if w_hr is None else functional.linear(h, w_hr)), c


def simple(activation: str) -> Callable[..., State]:
    def cell(gates: torch.Tensor, state: State, w_hh, b_hh) -> State:
        return (getattr(gates + functional.linear(state[0], w_hh, b_hh), activation)(),)

    return cell


CELLS = {"gru": gru, "lstm": lstm, "rnn_tanh": simple("tanh"), "rnn_relu": simple("relu")}


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


def along(cell: Callable, x, state: State, weights: tuple, backwards: bool):
    """What a layer gives for each step of x [T, N, n], from one end to the other, and its last state."""
    w_ih, b_ih, *others = weights
    steps, given = functional.linear(x, w_ih, b_ih).unbind(0), []
    for gates in reversed(steps) if backwards else steps:
        state = cell(gates, state, *others)
        given.append(state[0])
    return torch.stack(given[::-1] if backwards else given), state


def layers(name: str) -> Callable:
    """The rule of PyTorch's function of all layers, of inputs [T, N, n], or [N, T, n] where the batch is first."""
    cell = CELLS[name]

    def applied(input, hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        if not isinstance(has_biases, bool):  # the function of a packed sequence has other arguments
            raise TypeError("a packed sequence")
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

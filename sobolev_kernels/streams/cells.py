"""The arithmetic of recurrent cells, of values or of whatever else can be computed with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

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


def along(cell: Callable, x, state: State, weights: tuple, backwards: bool = False):
    """What a layer gives for each step of x [T, N, n], from one end to the other, and its last state; `weights` are
    w_ih, b_ih, w_hh, b_hh and whatever else the cell takes."""
    w_ih, b_ih, *others = weights
    steps, given = functional.linear(x, w_ih, b_ih).unbind(0), []
    for gates in reversed(steps) if backwards else steps:
        state = cell(gates, state, *others)
        given.append(state[0])
    return torch.stack(given[::-1] if backwards else given), state

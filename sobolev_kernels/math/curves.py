"""The activations whose derivatives are functions of their value h = σ(z), in a form that a kernel takes as numbers.

Such a kernel (csrc/cuda/registers, Triton's on chip) keeps of a layer h alone, which the next layer's gradient wants
too. A row is a function of the activation's parameters, with their defaults; `csrc/math/generate.py` prints it as C++,
and `backends/triton/formulas.py` writes it out for Triton where that is less work than σ of z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .activations import UNSEEN_THRESHOLD
from .table import Formula, table


class Curve(NamedTuple):
    """σ' is the polynomial `first` of h less e^-βh, and σ''/σ' the polynomial `ratio` of h and β e^-βh more, without
    an exponential if β is 0; if the curve is `split`, then of h above 0 they are `top` and 0, and of 0 the second is 0.

    It is no such function unless it is `known`, which the parameters may decide.
    """

    first: tuple[float, ...] = (0.0, 0.0, 0.0)
    ratio: tuple[float, ...] = (0.0, 0.0)
    split: bool = False
    top: float = 0.0
    beta: float = 0.0
    known: bool = True

    def derivatives(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """σ' and σ'' of values of any shape and floating dtype."""
        e = torch.exp(-self.beta * h) if self.beta else torch.zeros_like(h)
        first = sum(c * h**i for i, c in enumerate(self.first)) - e
        ratio = sum(c * h**i for i, c in enumerate(self.ratio)) + self.beta * e
        if self.split:
            first, ratio = torch.where(h > 0, self.top, first), torch.where(h < 0, ratio, 0 * h)
        return first, ratio * first


def identity():
    return Curve(first=(1.0, 0.0, 0.0))


def relu():
    return Curve(split=True, top=1.0)


def leaky_relu(slope=0.01):
    return Curve(first=(slope, 0.0, 0.0), split=True, top=1.0, known=slope >= 0.0)


def elu(alpha=1.0):
    return Curve(first=(alpha, 1.0, 0.0), ratio=(1.0, 0.0), split=True, top=1.0, known=alpha > 0.0)


def tanh():
    return Curve(first=(1.0, 0.0, -1.0), ratio=(0.0, -2.0))


def sigmoid():
    return Curve(first=(0.0, 1.0, -1.0), ratio=(1.0, -2.0))


def softplus(beta=1.0, threshold=20.0):
    # above a threshold that is seen the value is that of the identity
    return Curve(first=(1.0, 0.0, 0.0), beta=beta, known=beta > 0.0 and threshold >= UNSEEN_THRESHOLD)


CURVES = table(identity, relu, leaky_relu, elu, tanh, sigmoid, softplus, arguments=0)


def curve_of(activation: Formula) -> Curve | None:
    """Its row, or None if its derivatives are no such functions of its value."""
    row = CURVES.get(activation.name)
    curve = row.function(*activation.parameters) if row else None
    return curve if curve and curve.known else None

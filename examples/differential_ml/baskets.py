"""Basket options: a market of Gaussian assets, paths with the labels that they give, and the truth in closed form.

Of the input x, the spots of a year from today, one path is simulated. What a student learns from are three samples
that this path gives, each unbiased and very noisy:

    price   the payoff max(0, a·S - K) on the basket a·S
    delta   its pathwise derivative, 1{a·S > K} a
    gamma   (1{a·S > K} - 1{a·x > K}) (a·S - a·x) / σ² · a aᵀ, with σ the basket's volatility over the year

A payoff has a kink, and the gamma of a path is a Dirac there: a sample of it is 0, which is not what is wanted.
Smoothing the payoff would give samples, of another price. The gamma above is that of a likelihood ratio instead: the
delta differentiated once more by the density of the basket, whose score is (a·S - a·x) / σ². This is the known mix of
pathwise and likelihood-ratio derivatives, without a bias. Two things keep its noise small: the score is that of the
basket, the one number that the payoff depends on, and not of all assets; and 1{a·x > K}, known before the path, is
taken off, since a score is 0 on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

STRIKE, VOLATILITY, WINGS = 1.1, 0.2, 1.5


class Greeks(NamedTuple):
    """Prices [N], deltas [N, d] and gammas [N, d, d]."""

    price: torch.Tensor
    delta: torch.Tensor
    gamma: torch.Tensor


@dataclass(frozen=True)
class Market:
    """Gaussian assets, 1 today, and a call on their basket.

    Attributes:
        basket: weights a [d], of sum 1.
        factor: Cholesky factor [d, d] of the covariance of the spots over a year.
    """

    basket: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def random(cls, d: int, generator: torch.Generator) -> Market:
        """As Huge and Savine draw it: weights 1 to 10 and volatilities 5 to 50, before they are scaled."""

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        mixing, basket, volatility = uniform(-1, 1, 2 * d, d), uniform(1, 10, d), uniform(5, 50, d)
        basket = basket / basket.sum()
        mixing = mixing / mixing.norm(dim=0) * volatility
        covariance = mixing.T @ mixing
        covariance = covariance * VOLATILITY**2 / (basket @ covariance @ basket)
        return cls(basket, torch.linalg.cholesky(covariance))

    def noise(self, N: int, generator: torch.Generator) -> torch.Tensor:
        """Standard normal numbers [N, d], enough for a year of N paths."""
        return torch.randn(N, len(self.basket), generator=generator, dtype=torch.float64)

    def spots(self, N: int, generator: torch.Generator) -> torch.Tensor:
        """Inputs [N, d]: the spots of a year from today."""
        return 1 + WINGS * self.noise(N, generator) @ self.factor.T

    def greeks(self, price: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor) -> Greeks:
        """Those of a function of the basket, from its value and two derivatives [N]."""
        square = self.basket[:, None] * self.basket
        return Greeks(price, slope[:, None] * self.basket, bend[:, None, None] * square)

    def paths(self, x: torch.Tensor, noise: torch.Tensor) -> Greeks:
        """The labels of one path from each x [N, d], driven by noise [N, d]."""
        before, move = x @ self.basket - STRIKE, noise @ self.factor.T @ self.basket
        gain = before + move
        paid, expected = (gain > 0).double(), (before > 0).double()
        return self.greeks(gain.clamp(min=0), paid, (paid - expected) * move / VOLATILITY**2)

    def truth(self, x: torch.Tensor) -> Greeks:
        """The closed form at x [N, d]: the basket is one normal variable."""
        k = (x @ self.basket - STRIKE) / VOLATILITY
        probability, density = torch.special.ndtr(k), torch.exp(-(k**2) / 2) / math.sqrt(2 * math.pi)
        return self.greeks(VOLATILITY * (k * probability + density), probability, density / VOLATILITY)

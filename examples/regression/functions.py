"""The seven functions that the Sobolev training paper (arXiv 1706.04859) regresses, each with its own box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Function:
    """A function of two variables and the box in which it is learnt.

    Args:
        formula: [N, 2] to [N].
        lower, upper: the corners of the box, one number per axis.
    """

    formula: Callable[[torch.Tensor], torch.Tensor]
    lower: tuple[float, float]
    upper: tuple[float, float]

    def sample(self, N: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """N uniform random points of the box [N, 2], in float64."""
        unit = torch.rand(N, 2, dtype=torch.float64, generator=generator)
        lower, upper = torch.tensor((self.lower, self.upper), dtype=torch.float64)
        return lower + (upper - lower) * unit

    def values_and_gradients(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f(x) [N] and ∂f/∂x [N, 2], in float64.

        Ackley has no gradient at 0 (it comes out as NaN), and Bukin's grows without bound towards the curve
        x₂ = 0.01 x₁²: the points of `sample` lie on neither, with probability 1.
        """
        x = x.detach().double().requires_grad_()
        y = self.formula(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    def hessians(self, x: torch.Tensor) -> torch.Tensor:
        """∂²f/∂x² [N, 2, 2], in float64, where the function has one."""
        x = x.detach().double().requires_grad_()
        gradient = torch.autograd.grad(self.formula(x).sum(), x, create_graph=True)[0]
        return torch.stack([torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in gradient.unbind(-1)], 1)


def styblinski_tang(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x**4 - 16 * x**2 + 5 * x).sum(-1)


def ackley(x: torch.Tensor) -> torch.Tensor:
    radius = (0.5 * (x**2).sum(-1)).sqrt()
    waves = 0.5 * (2 * torch.pi * x).cos().sum(-1)
    return -20 * (-0.2 * radius).exp() - waves.exp() + torch.e + 20


def beale(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unbind(-1)
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def booth(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unbind(-1)
    return (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2


def bukin(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unbind(-1)
    return 100 * (b - 0.01 * a**2).abs().sqrt() + 0.01 * (a + 10).abs()


def mccormick(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unbind(-1)
    return (a + b).sin() + (a - b) ** 2 - 1.5 * a + 2.5 * b + 1


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unbind(-1)
    return 100 * (b - a**2) ** 2 + (a - 1) ** 2


FUNCTIONS: dict[str, Function] = {
    "Styblinski-Tang": Function(styblinski_tang, (-5, -5), (5, 5)),
    "Ackley": Function(ackley, (-5, -5), (5, 5)),
    "Beale": Function(beale, (-4.5, -4.5), (4.5, 4.5)),
    "Booth": Function(booth, (-10, -10), (10, 10)),
    "Bukin N.6": Function(bukin, (-15, -3), (-5, 3)),
    "McCormick": Function(mccormick, (-1.5, -3), (4, 4)),
    "Rosenbrock": Function(rosenbrock, (-2, -2), (2, 2)),
}

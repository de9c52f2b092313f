"""The equations: each with its domain, what holds at the border, and its solution by other means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from examples.pde import solutions

BURGERS, KS, REYNOLDS = 0.1 / math.pi, 0.5, 100.0
Points = torch.Tensor


@dataclass(frozen=True)
class Border:
    """What a function of derivatives is to be at points that `at(n, generator)` draws; 0 where there is no `target`."""

    function: Callable
    at: Callable[[int, torch.Generator], Points]
    target: Callable[[Points], object] | None = None


@dataclass(frozen=True)
class Equation:
    """
    Attributes:
        box: the least and the largest of each input. size: of the residual, which it is divided by.
        enhanced: the inputs by which the residual is differentiated, too; none where that is of order 5.
        weight: of the squares of these derivatives. fewer, more: points inside. longer: so many times the steps.
        exact: points [n, D] of a grid, the solution there [n, outputs that are known], and the shape of the grid.
    """

    title: str
    fields: str
    box: tuple[tuple[float, float], ...]
    inside: Callable
    borders: dict[str, Border]
    exact: Callable[[], tuple[np.ndarray, np.ndarray, tuple[int, ...]]]
    enhanced: tuple[str, ...] = ()
    weight: float = 0.0
    size: float = 1.0
    fewer: int = 100
    more: int = 1000
    longer: int = 1
    activation: str = "tanh"

    def draw(self, n: int, generator: torch.Generator) -> Points:
        low, high = torch.tensor(self.box).T
        return low + (high - low) * torch.rand(n, len(self.box), generator=generator)


def at_start(low: float, high: float) -> Callable[[int, torch.Generator], Points]:
    """Points (x, 0)."""
    return lambda n, g: torch.stack([low + (high - low) * torch.rand(n, generator=g), torch.zeros(n)], 1)


def at_ends(low: float, high: float) -> Callable[[int, torch.Generator], Points]:
    """Points (x, t) at both ends, t in [0, 1]."""
    return lambda n, g: torch.stack([low + (high - low) * (torch.arange(n) % 2), torch.rand(n, generator=g)], 1)


def at_walls(n: int, generator: torch.Generator) -> Points:
    """Points on the four sides of the unit square."""
    along, side = torch.rand(n, generator=generator), torch.arange(n) % 4
    x = torch.where(side < 2, along, (side == 3).float())
    return torch.stack([x, torch.where(side < 2, (side == 1).float(), along)], 1)


def square(n: int, low: tuple[float, float], high: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A grid of n x n, by rows of the second coordinate."""
    return np.meshgrid(np.linspace(low[0], high[0], n), np.linspace(low[1], high[1], n))


def columns(*grids: np.ndarray) -> np.ndarray:
    return np.stack([grid.ravel() for grid in grids], 1)


# Poisson in one dimension, of Yu et al., "Gradient-enhanced physics-informed neural networks" (2022)
def poisson(p):
    force = 8 * torch.sin(8 * p.x)
    for i in range(1, 5):
        force = force + i * torch.sin(i * p.x)
    return p.u_xx + force


def of_poisson():
    x = np.linspace(0, np.pi, 401)
    u = x + np.sin(8 * x) / 8 + sum(np.sin(i * x) / i for i in range(1, 5))
    return x[:, None], u[:, None], (401,)


def burgers(p):
    return p.u_t + p.u * p.u_x - BURGERS * p.u_xx


def of_burgers():
    x, t = square(101, (-1, 0), (1, 1))
    u = np.where(t == 0, -np.sin(np.pi * x), solutions.cole_hopf(x, np.maximum(t, 1e-12), BURGERS))
    return columns(x, t), u.reshape(-1, 1), x.shape


def kuramoto_sivashinsky(p):
    return p.u_t + p.u * p.u_x + p.u_xx + KS * p.u_xxxx


def of_sivashinsky():
    modes, times = 64, 41
    u = solutions.sivashinsky(KS, modes, times, 1.0)
    x, t = np.meshgrid(-np.pi + 2 * np.pi * np.arange(modes) / modes, np.linspace(0, 1, times))
    return columns(x, t), u.reshape(-1, 1), x.shape


def plate(p):
    load = 4 * math.pi**4 * torch.sin(math.pi * p.x) * torch.sin(math.pi * p.y)
    return p["u_xxxx + 2*u_xxyy + u_yyyy"] - load


def of_plate():
    x, y = square(65, (0, 0), (1, 1))
    return columns(x, y), (np.sin(np.pi * x) * np.sin(np.pi * y)).reshape(-1, 1), x.shape


def cavity(p):
    return {
        "x": p.u * p.u_x + p.v * p.u_y + p.p_x - p["u_xx + u_yy"] / REYNOLDS,
        "y": p.u * p.v_x + p.v * p.v_y + p.p_y - p["v_xx + v_yy"] / REYNOLDS,
        "mass": p.u_x + p.v_y,
    }


def of_cavity():
    flow = solutions.cavity(REYNOLDS)
    x, y = square(flow.shape[1], (0, 0), (1, 1))
    return columns(x, y), flow.reshape(2, -1).T, x.shape


def speed_of_walls(x: Points) -> dict[str, Points]:
    along, lid = x[:, :1], x[:, 1:] == 1
    return {"walls_0": torch.where(lid, solutions.lid(along), 0.0)}


def value(p):
    return p.u


EQUATIONS = {
    "poisson": Equation(
        "Poisson, 1D", "x -> u", ((0, math.pi),), poisson,
        {"ends": Border(value, lambda n, g: torch.tensor([[0.0], [math.pi]]), lambda x: x)},
        of_poisson, ("x",), weight=0.1, size=10.0, fewer=20, more=100, activation="sin",
    ),
    "burgers": Equation(
        "Burgers", "x t -> u", ((-1, 1), (0, 1)), burgers,
        {
            "start": Border(value, at_start(-1, 1), lambda x: -torch.sin(math.pi * x[:, :1])),
            "ends": Border(value, at_ends(-1, 1)),
        },
        of_burgers, ("x", "t"), weight=1e-2, fewer=200, more=1000,
    ),
    "sivashinsky": Equation(
        "Kuramoto–Sivashinsky", "x t -> u", ((-math.pi, math.pi), (0, 1)), kuramoto_sivashinsky,
        {
            "start": Border(value, at_start(-math.pi, math.pi), lambda x: -torch.sin(x[:, :1])),
            # the solution stays odd and periodic
            "ends": Border(lambda p: (p.u, p.u_xx), at_ends(-math.pi, math.pi)),
        },
        of_sivashinsky, fewer=200, more=1000,
    ),
    "plate": Equation(
        "biharmonic plate", "x y -> u", ((0, 1), (0, 1)), plate,
        {"edges": Border(lambda p: (p.u, p["u_xx + u_yy"] / (2 * math.pi**2)), at_walls)},
        of_plate, size=4 * math.pi**4, fewer=100, more=500,
    ),
    "cavity": Equation(
        "Navier–Stokes cavity", "x y -> u v p", ((0, 1), (0, 1)), cavity,
        {
            "walls": Border(lambda p: (p.u, p.v), at_walls, speed_of_walls),
            "corner": Border(lambda p: p.p, lambda n, g: torch.zeros(1, 2)),
        },
        of_cavity, ("x", "y"), weight=1e-3, fewer=200, more=1000, longer=2,
    ),
}  # fmt: skip

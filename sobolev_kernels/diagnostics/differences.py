"""Differences of values between near places: of samples next to each other, or of a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..errors import need

QUERIES, NEIGHBOURS, BLOCK = 2048, 8, 256
AGREE = 0.5  # the most that gradients which agree may differ by, in parts of their sum


class Differences(NamedTuple):
    """Of values, dy [M, O], between two places dx [M, W] apart, and the samples whose gradients belong there [M, 2]."""

    dx: torch.Tensor
    dy: torch.Tensor
    ends: torch.Tensor
    samples: int

    def between(self, jacobian: torch.Tensor) -> torch.Tensor:
        """Gradients [M, O, W] halfway."""
        return (jacobian[self.ends[:, 0]] + jacobian[self.ends[:, 1]]) / 2

    def agreeing(self, jacobian: torch.Tensor) -> Differences:
        """Those between samples whose gradients agree: elsewhere the trapezoidal rule errs by as much as it says. That
        agreement is the same in other units, with another sign or with columns in another order."""
        size = jacobian.square().mean(0).sqrt()
        first, second = (jacobian[end] / torch.where(size > 0, size, 1.0) for end in self.ends.unbind(1))
        apart, sum_of = ((first + sign * second).square().sum((1, 2)) for sign in (-1, 1))
        some = apart <= AGREE**2 * sum_of
        return Differences(self.dx[some], self.dy[some], self.ends[some], len(self.ends[some, 0].unique()))

    def left(self, jacobian: torch.Tensor) -> torch.Tensor:
        """Of each output of values, with the derivatives of each output of the Jacobian: what is left of the squares,
        in parts of them [O, O]."""
        by = torch.einsum("mow,mw->mo", self.between(jacobian), self.dx)
        unit = self.dy.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.stack([(self.dy[:, o, None] - by).square().sum(0) / unit[o] for o in range(self.dy.shape[1])])


def some_of(N: int, most: int) -> torch.Tensor:
    """Numbers of samples, evenly among N."""
    return torch.arange(N) if N <= most else torch.linspace(0, N - 1, most).long()


def nearest_of(x: torch.Tensor, asked: torch.Tensor, k: int) -> torch.Tensor:
    """The k samples next to each, in columns of unit size [n, k]; not itself."""
    size = x.std(0)
    z = (x - x.mean(0)) / torch.where(size > 0, size, 1.0)
    found = []
    for part in asked.split(BLOCK):
        far = torch.cdist(z[part], z, compute_mode="donot_use_mm_for_euclid_dist")
        far[torch.arange(len(part)), part] = math.inf
        found.append(far.topk(k, largest=False).indices)
    return torch.cat(found)


def of_neighbours(x: torch.Tensor, y: torch.Tensor) -> Differences:
    # of samples at one place the first, or all neighbours of some would be there
    places, of = torch.unique(x, dim=0, return_inverse=True)
    numbers = torch.arange(len(x))
    numbers = torch.full((len(places),), len(x)).scatter_reduce(0, of, numbers, "amin").sort().values
    asked, k = some_of(len(numbers), QUERIES), min(NEIGHBOURS, len(numbers) - 1)
    i, j = numbers[asked.repeat_interleave(k)], numbers[nearest_of(x[numbers], asked, k).flatten()]
    return Differences(x[j] - x[i], y[j] - y[i], torch.stack([i, j], 1), len(asked))


def of_function(function: Callable, x: torch.Tensor, O: int) -> Differences:
    """Central differences along each column, at some of the samples."""
    asked = some_of(len(x), BLOCK)
    x = x[asked.to(x.device)].detach()
    rows, (n, *shape) = x.flatten(1), x.shape
    W = rows.shape[1]
    size = rows.std(0) if n > 1 else torch.zeros_like(rows[0])
    step = torch.finfo(x.dtype).eps ** (1 / 3) * torch.where(size > 0, size, rows.abs().mean(0).clamp_min(1.0))
    plus, minus = (rows[:, None] + sign * torch.diag(step) for sign in (1, -1))  # [n, W, W]
    with torch.no_grad():
        each = [function(part.reshape(-1, *shape)) for part in (plus, minus)]
    for y in each:
        fits = isinstance(y, torch.Tensor) and (y.shape == (n * W, O) or (O == 1 and y.shape == (n * W,)))
        need(fits, "values", f"a function to [N, {O}], as the jacobian's outputs are", y)
    dy = (each[0].double() - each[1].double()).reshape(n * W, -1).cpu()
    moved = torch.arange(W).repeat(n)
    dx = (plus - minus).double().cpu().flatten(0, 1)  # as they were rounded
    size = torch.where(size > 0, size, 1.0).double().cpu()[moved] / dx[torch.arange(n * W), moved]
    i = asked.repeat_interleave(W)
    return Differences(dx * size[:, None], dy * size[:, None], torch.stack([i, i], 1), n)


def predictable(x: torch.Tensor, y: torch.Tensor) -> float:
    """What a plane through the neighbours of a sample leaves of the squares of their values, each foretold from the
    others; 1 where there are too few."""
    N, W = x.shape
    k = 3 * (W + 1)
    if N <= k:
        return 1.0
    asked = some_of(N, 4 * BLOCK)
    left = whole = 0.0
    near = nearest_of(x, asked, k)
    for part in range(0, len(asked), BLOCK):
        i, j = asked[part : part + BLOCK], near[part : part + BLOCK]
        dx = x[j] - x[i, None]
        A = torch.cat([torch.ones_like(dx[..., :1]), dx / dx.std(1, keepdim=True).clamp_min(1e-300)], 2)
        Q, _ = torch.linalg.qr(A)
        rest = y[j] - Q @ (Q.mT @ y[j])
        own = (1 - Q.square().sum(2)).clamp_min(1e-3)  # what foretells a value without itself
        unit = y.std(0).clamp_min(1e-300)
        left += float((rest / own[..., None] / unit).square().sum())
        whole += float(((y[j] - y[j].mean(1, keepdim=True)) * k / (k - 1) / unit).square().sum())
    return left / whole if whole else 1.0

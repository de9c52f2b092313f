"""What differences of values say of target derivatives: least squares, and which simple fault explains them better.

Between two near samples i and j the trapezoidal rule says y_j - y_i = ½ (g_i + g_j)·(x_j - x_i), with an error of third
order. Were the derivative with respect to column d in column e of the target, or in another unit, it would be
Σ_{d,e} B_{de} ½ (g_i + g_j)_e (x_j - x_i)_d with another B than 1. All that is asked of a B is asked of the sums of
these W² products, so that a fault costs no second look at the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BETTER = 0.8  # what a fault may leave of the squares, to be one
EXPLAINED = 0.5  # and of those of the differences
CERTAIN = 25.0  # the square of a t-value
UNIT = 0.8, 1.25  # slopes that are taken for 1
SOME = 1e-3  # the least part of the differences that a column must make, to be told of


@dataclass
class Sums:
    """Of differences y, all outputs' in their own unit: yᵀy, and of the products A of B's entries Aᵀy and AᵀA."""

    square: float
    with_y: torch.Tensor  # [W, W], row d and column e as B
    products: torch.Tensor  # [W W, W W]
    samples: int

    @property
    def W(self) -> int:
        return len(self.with_y)

    def left(self, B: torch.Tensor) -> float:
        """|y - A B|²."""
        flat = B.flatten()
        rest = self.square - 2 * flat @ self.with_y.flatten() + flat @ self.products @ flat
        return max(float(rest), 1e-14 * self.square)

    def gain(self, B: torch.Tensor, change: dict[tuple[int, int], float], slope: torch.Tensor) -> float:
        """How much less is left with a few entries changed; `slope` is Aᵀ(y - A B)."""
        places = torch.tensor([d * self.W + e for d, e in change])
        delta = torch.tensor(list(change.values()), dtype=B.dtype)
        return float(2 * delta @ slope.flatten()[places] - delta @ self.products[places][:, places] @ delta)

    def slope(self, B: torch.Tensor) -> torch.Tensor:
        return self.with_y - (self.products @ B.flatten()).reshape(self.W, self.W)


def sums_of(dx: torch.Tensor, gradient: torch.Tensor, dy: torch.Tensor, samples: int) -> Sums:
    """Of differences dx [M, W] and dy [M, O], and gradients between them [M, O, W]."""
    W = dx.shape[1]
    square, with_y, products = (
        0.0,
        torch.zeros(W * W, dtype=torch.float64),
        torch.zeros(W * W, W * W, dtype=torch.float64),
    )
    size = max(1, 2_000_000 // (W * W))
    for o in range(dy.shape[1]):
        unit = dy[:, o].square().mean().sqrt()
        if not unit > 0:
            continue
        for start in range(0, len(dx), size):
            part = slice(start, start + size)
            A = (dx[part, :, None] * gradient[part, o, None, :]).flatten(1) / unit
            y = dy[part, o] / unit
            square, with_y, products = square + float(y @ y), with_y + A.T @ y, products + A.T @ A
    return Sums(square, with_y.reshape(W, W), products, samples * dy.shape[1])


@dataclass(frozen=True)
class Fault:
    """One that explains the differences: what it is, and what B it makes."""

    kind: str  # "swapped", "slope" of column d to column e of the target, or "all"
    columns: tuple[int, ...]
    factor: float
    part: float  # of the squares of the differences, that its columns make with this factor


def faults_in(sums: Sums) -> tuple[list[Fault], torch.Tensor, float]:
    """The faults that explain the differences, the largest first, with B and what is left of the squares then."""
    B = torch.eye(sums.W, dtype=torch.float64)
    faults: list[Fault] = []
    for _ in range(2 * sums.W):
        left, slope = sums.left(B), sums.slope(B)
        found = max(candidates(sums, B, slope), key=lambda one: one[0], default=None)
        if found is None:
            break
        gain, fault, change = found
        rest = max(left - gain, 1e-14 * sums.square)
        certain = gain / rest * sums.samples > CERTAIN and gain > SOME * sums.square
        if not (rest < BETTER * left and certain and fault.kind):
            break
        for place, value in change.items():
            B[place] += value
        faults.append(fault)
    return faults, B, sums.left(B)


def candidates(sums: Sums, B: torch.Tensor, slope: torch.Tensor):
    """Each fault that may be, with what it gains and how it changes B."""
    W = sums.W
    diagonal = sums.products.diagonal().reshape(W, W)
    whole = B.flatten()
    size = float(whole @ sums.products @ whole)
    if size > 0 and W > 1:
        factor = 1 + float(whole @ slope.flatten()) / size
        if not UNIT[0] < factor < UNIT[1]:
            change = {(d, e): float(B[d, e]) * (factor - 1) for d, e in B.nonzero().tolist()}
            yield (factor - 1) ** 2 * size, Fault("all", (), factor, factor**2 * size / sums.square), change
    for d in range(W):
        own = B[d].nonzero()[:, 0].tolist()
        for e in own:
            if diagonal[d, e] > 0:
                step = float(slope[d, e] / diagonal[d, e])
                factor = 1 + step / float(B[d, e])
                if not UNIT[0] < factor < UNIT[1]:
                    entry = float(B[d, e]) + step
                    part = entry**2 * float(diagonal[d, e]) / sums.square
                    yield sums.gain(B, {(d, e): step}, slope), Fault("slope", (d, e), entry, part), {(d, e): step}
        for other in range(d + 1, W):
            change = swap(B, d, other)
            if change:
                yield sums.gain(B, change, slope), Fault("swapped", (d, other), 1.0, 1.0), change


def swap(B: torch.Tensor, d: int, other: int) -> dict[tuple[int, int], float]:
    """How B changes where two columns are in each other's place."""
    change: dict[tuple[int, int], float] = {}
    for e in {*B[d].nonzero()[:, 0].tolist(), *B[other].nonzero()[:, 0].tolist()}:
        difference = float(B[other, e] - B[d, e])
        change[d, e], change[other, e] = difference, -difference
    return change

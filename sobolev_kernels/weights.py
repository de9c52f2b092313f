"""`Weights`: how much each residual counts, and which do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .directions import Cotangents, Directions, Projections
from .problem import Problem


class Weights(NamedTuple):
    """What multiplies the residuals of samples, of outputs, and of derivatives; None: ones.

    A residual of weight 0 counts as 0 whatever its target. A mask of columns says which partial derivatives of a sample
    are known: where they are residuals by themselves the others have weight 0, else their numbers of v are 0.
    """

    sample: torch.Tensor | None = None  # [N]
    output: torch.Tensor | None = None  # [O]
    derivative: torch.Tensor | None = None  # [N], [N, O], [N, O, W], or a mask, Boolean [N, W] or [N, O, W]

    def masks(self, projections: Projections | None) -> bool:
        """Whether it is the directions that have masked columns."""
        if self.derivative is None or self.derivative.dtype != torch.bool or self.derivative.dim() != 2:
            return False
        return isinstance(projections, Directions) and not projections.entries

    def operands(self, problem: Problem, projections: Projections | None) -> Sequence[torch.Tensor | None]:
        """Of samples [2, N], in values and in derivatives; of outputs [O]; of derivatives [P, N, O] or [P, N, W]."""
        sample, output, derivative = self
        if derivative is None and sample is None:
            return self
        if self.masks(projections):  # without a known column there is no derivative, nor its residual
            derivative = derivative.any(1).to(getattr(torch, problem.dtype))
        if derivative is not None and derivative.dim() == 1:
            values = torch.ones_like(derivative) if sample is None else sample
            return torch.stack([values, values * derivative]), output, None
        sample = None if sample is None else sample.expand(2, -1)
        if derivative is None or projections is None:
            return sample, output, None
        each = by_projection(self._of_entries(derivative), isinstance(projections, Cotangents))
        each = each.to(getattr(torch, problem.dtype)).expand(problem.P, -1, problem.derived)
        return sample, output, each

    @staticmethod
    def _of_entries(derivative: torch.Tensor) -> torch.Tensor:
        """As they multiply the entries of a Jacobian [N, O, W]."""
        if derivative.dtype == torch.bool and derivative.dim() == 2:
            return derivative[:, None, :]
        return derivative[(...,) + (None,) * (3 - derivative.dim())]

    def counting(self, name: str, target: torch.Tensor) -> torch.Tensor | None:
        """Which numbers of a target count, in a shape that expands to its own; None: all."""
        sample, output, derivative = self
        weights = [] if sample is None else [sample[:, None, None]]
        weights += [] if output is None else [output[:, None]]
        weights += [] if derivative is None or name == "values" else [self._of_entries(derivative)]
        counting = None
        for weight in weights:
            counting = weight != 0 if counting is None else counting & (weight != 0)
        if counting is None:
            return None
        counting = counting[None] if counting.dim() == 2 else counting  # [N or 1, O or 1, W or 1]
        if name == "hessian":
            return counting[..., None] & counting[..., None, :]
        if name in ("tangents", "seconds", "jets", "vjps"):
            return by_projection(counting, name == "vjps")
        counting = counting[..., 0] if name == "values" else counting
        return counting[:, 0] if target.dim() < counting.dim() else counting


UNWEIGHTED = Weights()


def weights_of(
    sample: torch.Tensor | None, output: torch.Tensor | None, derivative: torch.Tensor | None
) -> Weights:  # fmt: skip
    """Without a new object where there are none, as in most calls."""
    none = sample is None and output is None and derivative is None
    return UNWEIGHTED if none else Weights(sample, output, derivative)


def by_projection(entries: torch.Tensor, rows: bool) -> torch.Tensor:
    """Entries [N, O, W] of a Jacobian by its columns [W, N, O], or by its `rows` [O, N, W]."""
    return entries.permute(1, 0, 2) if rows else entries.permute(2, 0, 1)

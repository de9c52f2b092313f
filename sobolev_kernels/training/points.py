"""`Points`: where residuals are to be zero, as a term of a training; and their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..errors import in_words, need, need_tensor, whole
from ..math.losses import LOSSES
from ..math.table import choose
from ..partials.residual import Residual
from ..partials.residual_loss import (
    ResidualTerms,
    by_name,
    faults_of_numbers,
    faults_of_samples,
    names_of,
    refuse,
    residual_loss,
    residuals_of,
)


class Points:
    """Points at which residuals are to be zero, or a target: a term of `fit(…, residuals=[…])`.

    Args:
        residual: a `Residual`, or several of the same fields.
        x: the points [N, D]; or a sampler, a function without arguments that gives them. It is called at the beginning
            of an epoch, and draws by torch's generator, which `fit` seeds; one that looks at the student can put points
            where residuals are large.
        target: as of `residual_loss`; or a function of the points that gives it, as the values at a border.
        batch_size: points of a step, None: as `fit` has it. Of a set that has fewer steps than another it begins anew.
        every: a sampler is asked every so many epochs.
        loss, weights, scales, sample_weight: as of `residual_loss`; a sampler's points have no sample_weight.

    Example:
        >>> heat = Residual(lambda p: p.u_t - p.u_xx, "x t -> u", name="heat")
        >>> inside = Points(heat, lambda: torch.rand(512, 2), batch_size=128)
    """

    @in_words
    def __init__(
        self, residual: Residual | Sequence[Residual], x: torch.Tensor | Callable[[], torch.Tensor], *,
        target: Any = None, batch_size: int | None = None, every: int = 1, loss: str | tuple[Any, ...] = "mse",
        weights: Any = None, scales: Any = None, sample_weight: torch.Tensor | None = None,
    ):  # fmt: skip
        self.residuals = residuals_of(residual)
        self.names = names_of(self.residuals)
        tensor = isinstance(x, torch.Tensor)
        need(tensor or callable(x), "x", "points [N, D], or a function that gives them", x, TypeError)
        need(tensor or sample_weight is None, "sample_weight", "none with a sampler", sample_weight)
        for name, number in (("batch_size", whole(batch_size)), ("every", whole(every))):
            counts = type(number) is int and number >= 1
            need(counts or (name == "batch_size" and number is None), name, "a whole number, at least 1", number)
        choose(LOSSES, "loss", loss)
        for name, given in (("weights", weights), ("scales", scales)):
            refuse(faults_of_numbers({name: by_name(given, name, self.names)}))
        self.x, self.target, self.every, self.batch_size = x, target, whole(every), whole(batch_size)
        self.loss, self.scales, self.sample_weight = loss, scales, sample_weight
        self.weights = by_name(weights, "weights", self.names)

    @property
    def resamples(self) -> bool:
        return not isinstance(self.x, torch.Tensor)

    def sample(self) -> PointBatch:
        """All points, with what belongs to them."""
        x = self.x if isinstance(self.x, torch.Tensor) else self.x()
        need_tensor(x, "x", "points [N, D]")
        need(x.dim() == 2 and len(x) > 0, "x", "points [N, D], N at least 1", x)
        x = x.detach()
        target = self.target(x) if callable(self.target) else self.target
        targets = by_name(target, "target", self.names)
        refuse(faults_of_samples(targets, self.sample_weight, x))
        return PointBatch(x, {name: t.detach() for name, t in targets.items()}, self.sample_weight)

    def __call__(self, student: torch.nn.Module, batch: PointBatch, weights: Mapping[str, float]) -> ResidualTerms:
        weights = self.weights | {name: weight for name, weight in weights.items() if name in self.names}
        return residual_loss(
            student, batch.x, self.residuals, loss=self.loss, target=batch.targets, weights=weights, scales=self.scales,
            sample_weight=batch.weight, return_terms=True,
        )  # fmt: skip


class PointBatch(NamedTuple):
    x: torch.Tensor
    targets: dict[str, torch.Tensor]
    weight: torch.Tensor | None

    def part(self, index: torch.Tensor) -> PointBatch:
        weight = None if self.weight is None else self.weight[index]
        return PointBatch(self.x[index], {name: t[index] for name, t in self.targets.items()}, weight)


class PointBatches:
    """Batches of a set of points, shuffled anew each time that all were there; one batch of all is not."""

    def __init__(self, points: Points, batch_size: int | None):
        self.points, self.given = points, points.batch_size or batch_size
        self.epochs, self.fixed = 0, False
        self.all = points.sample()

    @property
    def size(self) -> int:
        return min(self.given or len(self.all.x), len(self.all.x))

    @property
    def count(self) -> int:
        return math.ceil(len(self.all.x) / self.size)

    def begin(self) -> None:
        """An epoch: other points, if it is time."""
        if self.points.resamples and not self.fixed and self.epochs and self.epochs % self.points.every == 0:
            self.all = self.points.sample()
        self.epochs += 1

    def fix(self) -> None:
        """From now on these points, all at once."""
        self.fixed, self.given = True, None

    def cycle(self, generator: torch.Generator | None) -> Iterator[PointBatch]:
        while True:
            if self.count == 1:
                yield self.all
                continue
            order = torch.randperm(len(self.all.x), generator=generator).to(self.all.x.device)
            yield from map(self.all.part, order.split(self.size))

    def state_dict(self) -> dict:
        """Points that were drawn are part of where a training is."""
        drawn = {"x": self.all.x, "targets": self.all.targets} if self.points.resamples else None
        return {"epochs": self.epochs, "drawn": drawn}

    def load_state_dict(self, state: dict) -> None:
        self.epochs = state["epochs"]
        if state["drawn"] is not None:
            like = self.all.x
            moved = {name: target.to(like) for name, target in state["drawn"]["targets"].items()}
            self.all = PointBatch(state["drawn"]["x"].to(like), moved, None)

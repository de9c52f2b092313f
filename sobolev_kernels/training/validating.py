"""How far a student is from what it was not trained on: in values, and in derivatives."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from ..loss import SobolevLoss
from ..math.losses import is_likelihood
from .batches import Data
from .settings import with_scale, with_settings

MOST = 4096  # samples at a time
ERRORS = ("value_error", "derivative_error", "second_error", "third_error", "fourth_error")


class Validation:
    """Errors of a student on held-out data: the root mean square of the error over that of the target, of values
    without their mean. Where values are classes or probabilities, the loss instead."""

    def __init__(self, data: Data, loss: SobolevLoss):
        self.data, self.N = data, len(data.x)
        settings = loss.settings
        self.by_loss = is_likelihood(settings.value_loss) or data.targets.has_classes
        if self.by_loss:
            self.loss = with_settings(along_a_seed(loss), reduction="mean", return_terms=True)
            return
        targets = data.targets
        jets = 0 if targets.jets is None else len(targets.jets)
        there = (
            targets.values is not None,
            targets.derivative is not None,
            targets.second is not None,
            jets > 2,
            jets > 3,
        )
        known = [here or targets.teacher is not None for here in there]
        weights = tuple(map(float, known[: 1 + settings.order]))
        changes = {"value_loss": "mse", "derivative_loss": "mse", "weights": weights, "reduction": "mean"}
        if targets.jacobian is not None and settings.order == 1:
            changes |= {"derivatives": "exact", "directions": None, "cotangents": None}
        self.loss = with_settings(along_a_seed(loss), **changes, return_terms=True, check_finite=False)
        self.loss = with_scale(self.loss, None)
        if "derivatives" in changes:
            self.loss._buffers["given"] = None
        self.known = [w > 0 for w in weights]
        self.sizes = self._means(constant(data)) if any(self.known) else []

    def __call__(self, student: nn.Module) -> dict[str, float]:
        training = {module: module.training for module in student.modules()}
        student.eval()
        try:
            means = self._means(student)
        finally:
            for module, mode in training.items():
                module.training = mode
        if self.by_loss:
            return {"validation_loss": means[0]}
        errors = {}
        for name, known, mean, size in zip(ERRORS, self.known, means[1:], self.sizes[1:], strict=False):
            if known:
                errors[name] = math.sqrt(mean / size) if size > 0 else math.sqrt(mean)
        return errors

    @torch.no_grad()
    def _means(self, student: nn.Module) -> list[float]:
        """Loss and terms over all samples."""
        total = None
        for start in range(0, self.N, MOST):
            part = self._part(start)
            terms = self.loss(student, *part)
            numbers = torch.stack([t.double() for t in terms if t is not None]) * (len(part.x) / self.N)
            total = numbers if total is None else total + numbers
        return total.tolist()

    def _part(self, start: int) -> Data:
        if self.N <= MOST:
            return self.data
        return self.data.part(torch.arange(start, min(start + MOST, self.N), device=self.data.x.device))


def score_of(errors: dict[str, float]) -> float:
    """What is least at the best epoch: the errors together, or the loss; NaN of nothing."""
    if "validation_loss" in errors:
        return errors["validation_loss"]
    return math.sqrt(sum(error**2 for error in errors.values())) if errors else math.nan


def along_a_seed(loss: SobolevLoss) -> SobolevLoss:
    """The same along directions that are the same at each call, and draw no number."""
    changes = {}
    for name in ("directions", "cotangents"):
        projections = getattr(loss.settings, name)
        if projections is not None and not projections.fixed:
            changes[name] = replace(projections, seed=0)
    return with_settings(loss, **changes)


def constant(data: Data) -> nn.Module:
    """The student that gives the mean of the values everywhere."""
    values, O = data.targets.values, data.targets._outputs(data.x.dim())
    if values is None and data.targets.teacher is not None:
        values, data = data.targets.teacher(data.x[:MOST]).detach(), data._replace(sample_weight=None)
        O = 1 if values.dim() == 1 else values.shape[1]
    if values is not None and values.dim() == 1:
        values = values[:, None]
    if O is None:
        of_outputs = (data.targets.values, data.targets.tangents, data.targets.seconds)
        O = next((t.shape[-1] for t in of_outputs if t is not None), 1)
        vectors = data.targets.cotangents
        O = O if vectors is None or vectors.values is None else vectors.values.shape[-1]
    layer = nn.Linear(data.x[0].numel(), O, dtype=data.x.dtype, device=data.x.device)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        if values is not None:
            counting = values if data.sample_weight is None else values[data.sample_weight > 0]
            layer.bias.copy_(counting.double().nanmean(0))
    return layer if data.x.dim() == 2 else nn.Sequential(nn.Flatten(), layer)

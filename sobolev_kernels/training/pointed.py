"""A training on residuals at points, beside data or alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from numbers import Real
from pathlib import Path

import torch
from torch import nn

from ..errors import Fault, need
from ..loss import SobolevLoss
from . import checkpoint as files
from .arguments import held_out, split_of, validation_of
from .batches import Batches, Data
from .history import History
from .points import PointBatch, PointBatches, Points
from .schedules import Schedule
from .settings import with_settings
from .stepping import Stepper
from .stopping import TRY, stop
from .trainer import WEIGHTS, Training
from .validating import ERRORS, Validation
from .weighting import terms_of

RESERVED = ("epoch", "loss", "lr", "seconds", "data", *ERRORS, *WEIGHTS)


def faults_of_points(
    sets: object, x: object, targets: object, weights: object, scale: object, of_samples: tuple
) -> Iterator[Fault]:  # fmt: skip
    expected = "sobolev_kernels.Points, or a list of them"
    if not isinstance(sets, (list, tuple)) or not sets:
        yield Fault("residuals", expected, sets, TypeError)
    for points in sets:
        if not isinstance(points, Points):
            yield Fault("residuals", expected, points, TypeError, "Points(residual, x) has the points")
    names = [name for points in sets for name in points.names]
    for name in names:
        if names.count(name) > 1 or name in RESERVED:
            hint = "Residual(…, name=…) sets one"
            yield Fault("residuals", "terms of different names, none a column of its own", name, hint=hint)
    if scale is not False:
        hint = "Scaled(student, scaler) is a student of the data's units"
        yield Fault("scale", "False beside residuals, which are in the data's units", scale, hint=hint)
    if isinstance(weights, nn.Module):
        yield Fault("weights", "numbers, or a rule of numbers, beside residuals", type(weights).__name__)
    if x is None:
        if targets is not None or any(weight is not None for weight in of_samples):
            yield Fault("x", "a tensor [N, …] with targets or weights of samples", x, TypeError)
        if weights is not None and not callable(weights):
            hint = "Points(…, weights=…) has those of residuals"
            yield Fault("weights", "none without data, or a rule", weights, hint=hint)


class NoData:
    """In the place of batches of data, where there are none."""

    count, data = 1, None

    def epoch(self, generator: torch.Generator | None) -> Iterator[None]:
        yield None


class PointStepper(Stepper):
    """Steps whose loss is that of a batch of data, if there is one, and of a batch of each set of points. The `terms`
    that it was made of are kept until the next."""

    def __init__(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, sets: Sequence[PointBatches],
        weights: dict[str, float],
    ):  # fmt: skip
        super().__init__(student, optimizer, None)
        self.sets, self.weights = [source.points for source in sets], weights
        self.at: tuple[PointBatch, ...] = ()
        self.terms: dict[str, torch.Tensor] = {}

    def evaluate(self, batch: Data | None, offset: int | None = None) -> torch.Tensor:
        total, self.terms = [], {}
        if batch is not None:
            total.append(super().evaluate(batch, offset))
            self.terms["data"] = total[0].detach()
        for points, at in zip(self.sets, self.at, strict=True):
            found = points(self.student, at, self.weights)
            total.append(found.loss)
            self.terms |= {name: term.detach() for name, term in found.terms.items()}
        return sum(total[1:], total[0])

    def each(self, batch: Data | None) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """The terms of the data and, by name, those of the points, to be differentiated, for a rule."""
        of_data = []
        if batch is not None:
            of_data = terms_of(with_settings(self.loss, return_terms=True)(self.student, *batch))
        of_points = {}
        for points, at in zip(self.sets, self.at, strict=True):
            of_points |= points(self.student, at, {}).terms
        return of_data, of_points


class PointTraining(Training):
    """One epoch has as many steps as the largest of its sets needs."""

    def __init__(
        self, student, data: Data | None, loss: SobolevLoss, epochs: int, batch_size: int | None, optimizer, lr,
        schedule, weights, validation, generator, path: Path | None, before: dict | None, finish,
        sets: Sequence[Points],
    ):  # fmt: skip
        device = next(student.parameters()).device
        settings = {"N": None if data is None else len(data.x), "batch_size": batch_size,
                    "residuals": [list(points.names) for points in sets]}  # fmt: skip
        self._begin(student, device, epochs, schedule, generator, path, before, finish, settings)
        self.scaler, self.held, self.rule, self.learned, self.loss = None, None, None, None, loss
        held = validation_of(validation, loss)
        if data is not None:
            self.held = split_of(validation, len(data.x), generator) if before is None else before["held"]
            if self.held is not None:
                data, held = held_out(data, self.held)
            data = self._weigh(loss, weights, data)
        else:
            part = isinstance(validation, Real)
            need(not part, "validation", "(x, targets), where there are no data to hold out", validation)
            self.rule = weights
        self.projected = data is not None and bool(data.targets.asked())
        coefficients = [p for points in sets for one in points.residuals for p in one.parameters() if p.requires_grad]
        known = set(student.parameters())
        self._optimizer(optimizer, lr, [p for p in dict.fromkeys(coefficients) if p not in known])
        self.batches = NoData() if data is None else Batches(data, batch_size or len(data.x))
        self.points = [PointBatches(points, batch_size) for points in sets]
        self.weights: dict[str, float] = {}  # of terms, by a rule
        self.stepper = self._stepper()
        self.schedule = Schedule(schedule, self.optimizer, epochs * self.count)
        self.validation = None if held is None else Validation(held, self.loss)
        self.history = History(student)
        if before is not None:
            self._resume(before)

    @property
    def count(self) -> int:
        return max(source.count for source in (self.batches, *self.points))

    def _stepper(self) -> PointStepper:
        return PointStepper(self.student, self.optimizer, self.points, self.weights)

    def _at_once(self) -> None:
        if self.batches.data is not None:
            super()._at_once()
        for source in self.points:
            source.fix()

    def _steps(self, epoch: int) -> float:
        """One epoch; the mean of the loss over its steps."""
        stepper, losses, terms = self.stepper, [], []
        for source in self.points:
            source.begin()
        streams = [again(self.batches, self.generator), *(source.cycle(self.generator) for source in self.points)]
        for i, (batch, *at) in enumerate(islice(zip(*streams, strict=True), self.count)):
            stepper.at = tuple(at)
            if i == 0:
                stepper.loss = self.loss
                self._rule_of(batch)
                stepper.begin(self.loss)
            self.schedule.before_step()
            closes = stepper.closes
            value = stepper.whole(batch, self.history.steps % 2**32) if closes else stepper.gradients(batch)
            losses.append(value.clone())
            terms.append(torch.stack([*stepper.terms.values()]))
            if not self.waits:
                self._need_finite(value, batch, epoch, i + 1)
            if not closes:
                stepper.update()
            self.schedule.after_step()
            self.history.steps += 1
        self.columns |= dict(zip(stepper.terms, torch.stack(terms).double().mean(0).tolist(), strict=True))
        mean = torch.stack(losses).double().mean()
        self._need_finite(mean, batch, epoch, len(losses))
        return mean.item()

    def _need_finite(self, value: torch.Tensor, batch: Data | None, epoch: int, step: int) -> None:
        if math.isfinite(number := value.item()):
            return
        broken = [name for name, term in self.stepper.terms.items() if not bool(term.isfinite())]
        if batch is not None and broken in ([], ["data"]):
            stop(self.student, self.loss, batch, epoch, step, number)
        raise FloatingPointError(
            f"fit: the loss is {number} at epoch {epoch}, step {step}: the terms {', '.join(broken) or 'of residuals'} "
            f"are no numbers. The student has the parameters from before this step. {TRY}"
        )

    def _rule_of(self, batch: Data | None) -> None:
        if self.rule is None:
            return
        with files.same_draws(self.device):
            of_data, of_points = self.stepper.each(batch)
        there = [term for term in of_data if term.requires_grad]  # but for those without a target
        each = [*there, *of_points.values()]
        found = [float(torch.as_tensor(weight).detach()) for weight in self.rule((sum(each), *each))]
        expected = f"{len(each)} finite numbers >= 0, from the rule"
        right = len(found) == len(each) and all(0 <= weight < math.inf for weight in found)
        need(right, "weights", expected, found)
        if of_data:
            numbers = iter(found)
            weights = tuple(next(numbers) if term.requires_grad else 0.0 for term in of_data)
            self.loss = with_settings(self.loss, weights=weights)
            self.columns |= dict(zip(WEIGHTS, weights, strict=False))
        self.weights.update(zip(of_points, found[len(there) :], strict=True))
        self.columns |= {f"weight_{name}": weight for name, weight in self.weights.items()}

    def _state(self) -> dict:
        coefficients = [p.detach() for p in self.more]
        points = [source.state_dict() for source in self.points]
        return super()._state() | {"coefficients": coefficients, "points": points}

    def _resume(self, state: dict) -> None:
        for source, saved in zip(self.points, state["points"], strict=True):
            source.load_state_dict(saved)
        super()._resume(state)
        with torch.no_grad():
            for p, saved in zip(self.more, state["coefficients"], strict=True):
                p.copy_(saved)


def again(batches: Batches | NoData, generator: torch.Generator | None) -> Iterator[Data | None]:
    while True:
        yield from batches.epoch(generator)

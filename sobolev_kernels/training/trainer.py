"""A training: all that it has, from its arguments to its end."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import LBFGS

from ..advice import evaluated_once
from ..directions import Directions
from ..errors import need, whole
from ..loss import SobolevLoss
from ..scaled import Scaled
from ..scaler import Scaler
from ..settings import DIFFERENTIAL_ML, Settings
from . import checkpoint as files
from .arguments import balanced, counted, held_out, in_weights, split_of, validation_of
from .batches import Batches, Data
from .captured import Captured, stepper_of
from .history import History
from .optimizers import needs_closure, optimizer_of
from .progress import progress_of
from .schedules import Schedule
from .settings import with_settings
from .stepping import Stepper
from .stopping import stop
from .validating import Validation, score_of
from .weighting import numbers_of_rule

WEIGHTS = ("weight_value", "weight_derivative", "weight_second", "weight_third", "weight_fourth")


class Training:
    """All that a training has, from its arguments to its end."""

    def __init__(
        self, student, data: Data, loss: SobolevLoss, epochs: int, batch_size: int | None, optimizer, lr, schedule,
        weights, validation, scale, generator, path: Path | None, before: dict | None, finish: object,
    ):  # fmt: skip
        N = len(data.x)
        settings = {"N": N, "batch_size": batch_size, "x": list(data.x.shape)}
        self._begin(student, data.x.device, epochs, schedule, generator, path, before, finish, settings)
        self.held = split_of(validation, N, generator) if before is None else before["held"]
        held = validation_of(validation, loss)
        if self.held is not None:
            data, held = held_out(data, self.held)
        self.scaler = None
        if scale is not False:
            data, held = self._scaled(scale, data, held, loss)
        data = self._weigh(loss, weights, data)
        self.projected = bool(data.targets.asked())
        more = [] if self.learned is None else [p for p in self.learned.parameters() if p.requires_grad]
        if self.learned is not None:
            self.learned.to(self.device)
        self._optimizer(optimizer, lr, more)
        self.stepper = stepper_of(student, self.optimizer, self.learned, data.x)
        captured = isinstance(self.stepper, Captured)
        self.batches = Batches(data, batch_size or len(data.x), together=1 if captured else None)
        self.schedule = Schedule(schedule, self.optimizer, epochs * self.batches.count)
        self.validation = None if held is None else Validation(held, self.loss)
        self.history = History(student if self.scaler is None else Scaled(student, self.scaler))
        if before is not None:
            self._resume(before)

    def _begin(
        self, student: nn.Module, device: torch.device, epochs: int, schedule: object, generator, path: Path | None,
        before: dict | None, finish: object, settings: dict[str, object],
    ) -> None:  # fmt: skip
        """What any training has."""
        self.student, self.generator, self.path, self.device = student, generator, path, device
        self.finisher = finisher_of(finish)
        self.first = epochs
        self.epochs = epochs + (0 if self.finisher is None else self.finisher[0])
        self.settings = settings
        if isinstance(schedule, str):
            self.settings["epochs"] = epochs
        if self.finisher is not None:
            self.settings["finish after"] = epochs
        if before is not None:
            files.need_same(before, self.settings)
        self.seed = None if before is None else before["seed"]
        self.best: dict | None = None
        self.waits = device.type != "cpu"
        self.columns: dict[str, float] = {}  # of an epoch's row, beside those that all have

    def _optimizer(self, optimizer: object, lr: float | None, more: list[nn.Parameter]) -> None:
        self.more = more
        self.optimizer = optimizer_of(optimizer, lr, [p for p in self.student.parameters() if p.requires_grad], more)
        self._seed()

    def _finish(self) -> None:
        """From here on by the second optimizer, on all samples at once."""
        self.optimizer.zero_grad()
        self._optimizer(self.finisher[1], None, self.more)
        self.stepper = self._stepper()
        self.schedule = Schedule(None, self.optimizer, 0)
        self._at_once()

    def _stepper(self) -> Stepper:
        """One that takes any optimizer."""
        return Stepper(self.student, self.optimizer, self.learned)

    def _at_once(self) -> None:
        self.batches = Batches(self.batches.data, len(self.batches.data.x))

    def _scaled(self, scale: bool | Scaler, data: Data, held: Data | None, loss: SobolevLoss) -> tuple:
        """Both data in the units of a scaler, found on what is trained on."""
        wrt, some = loss.settings.wrt, data
        if data.sample_weight is not None:
            some = data.part((data.sample_weight > 0).nonzero()[:, 0])
        self.scaler = Scaler().fit(some.x, some.targets, wrt=wrt) if scale is True else scale
        self.scaler.to(data.x.device)

        def moved(data: Data) -> Data:
            x, targets = self.scaler.transform(data.x, data.targets, wrt=wrt)
            return data._replace(x=x, targets=targets)

        return moved(data), None if held is None else moved(held)

    def _weigh(self, loss: SobolevLoss, weights: object, data: Data) -> Data:
        """The loss with its weights, and what changes them: a `rule` at each epoch, a module that `learned` is; and the
        data, with what the loss needs of them."""
        self.rule, self.learned = None, None
        loss = with_settings(loss, return_terms=False)
        if isinstance(weights, nn.Module):
            self.learned = weights
        elif callable(weights):
            self.rule = weights
        elif weights is not None:
            named = Settings(weights=weights, order=loss.settings.order).weights
            loss = with_settings(loss, weights=named)
        if loss.settings.weights == DIFFERENTIAL_ML:
            need(loss.input_scale is None, "weights", "numbers together with an input_scale", DIFFERENTIAL_ML)
            loss = balanced(loss, data)
        self.loss, data = in_weights(loss, data)
        return data if callable(weights) else counted(self.loss, data)

    def _seed(self) -> None:
        """Of directions that an optimizer meets more than once a step."""
        if not needs_closure(self.optimizer):
            return
        if self.projected:
            return  # along the vectors of the data, whatever the step
        if self.loss.settings.directions is self.loss.settings.cotangents is None:
            if self.loss.settings.derivatives is None:
                self.loss = with_settings(self.loss, directions=Directions.sphere(1))
        for name in ("directions", "cotangents"):
            vectors = getattr(self.loss.settings, name)
            if vectors is not None and not vectors.fixed:
                self.seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
                self.loss = with_settings(self.loss, **{name: replace(vectors, seed=self.seed)})

    def run(self, progress: object) -> History:
        shown = progress_of(progress, self.epochs, len(self.history))
        try:
            with evaluated_once(self.student):
                while len(self.history) < self.epochs:
                    if len(self.history) == self.first:
                        self._finish()
                    row = self._epoch()
                    self.history.rows.append(row)
                    if self.path is not None:
                        files.save(self.path, self._state())
                    shown(row)
        finally:
            shown.close()
            self.optimizer.zero_grad()
        if self.best is not None:
            self.student.load_state_dict(self.best["state"])
            self.history.best_epoch = self.best["epoch"]
        return self.history

    def _epoch(self) -> dict[str, float]:
        number, start = len(self.history) + 1, time.perf_counter()
        mean = self._steps(number)
        row = {"epoch": number, "loss": mean, "lr": float(self.optimizer.param_groups[0]["lr"])}
        row |= self.columns
        score = mean
        if self.validation is not None:
            errors = self.validation(self.student)
            row |= errors
            score = score_of(errors)
            if math.isfinite(score) and (self.best is None or score < self.best["score"]):
                state = {name: t.detach().clone() for name, t in self.student.state_dict().items()}
                self.best = {"score": score, "epoch": number, "state": state}
        self.schedule.after_epoch(score)
        return row | {"seconds": time.perf_counter() - start}

    def _steps(self, epoch: int) -> float:
        """One epoch; the mean of the loss over its samples."""
        stepper, schedule, waits = self.stepper, self.schedule, self.waits
        of_samples = self.loss.settings.reduction == "mean"
        total, losses, N = 0.0, [], len(self.batches.data.x)
        for i, batch in enumerate(self.batches.epoch(self.generator)):
            if i == 0:
                self._rule_of(batch)
                stepper.begin(self.loss)
            schedule.before_step()
            if stepper.closes:
                value = stepper.whole(batch, self.history.steps % 2**32)
            else:
                value = stepper.gradients(batch)
            n = len(batch.x) if of_samples else 1
            if waits:
                losses.append(value.clone() * n)
            else:
                number = value.item()
                if not math.isfinite(number):
                    stop(self.student, self.loss, batch, epoch, i + 1, number)
                total += number * n
            if not stepper.closes:
                stepper.update()
            schedule.after_step()
            self.history.steps += 1
        if waits:
            numbers = torch.stack(losses).tolist()
            for i, number in enumerate(numbers):
                if not math.isfinite(number):
                    stop(self.student, self.loss, batch, epoch, i + 1, number)
            total = sum(numbers)
        return total / N

    def _rule_of(self, batch: Data) -> None:
        if self.rule is None:
            return
        loss = with_settings(self.loss, return_terms=True)
        with files.same_draws(batch.x.device):
            terms = loss(self.student, *batch)
        found = numbers_of_rule(self.rule(terms), self.loss.settings.order)
        self.loss = with_settings(self.loss, weights=found)
        self.columns = dict(zip(WEIGHTS, found, strict=False))

    def _state(self) -> dict:
        rule = self.rule if self.learned is None else self.learned
        return {
            "settings": self.settings,
            "rows": self.history.rows,
            "steps": self.history.steps,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": files.generators(self.generator, self.device),
            "rule": rule.state_dict() if hasattr(rule, "state_dict") else None,
            "best": self.best,
            "held": self.held,
            "seed": self.seed,
        }

    def _resume(self, state: dict) -> None:
        self.history.rows, self.history.steps = state["rows"], state["steps"]
        if len(self.history) > self.first:
            self._finish()
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        rule = self.rule if self.learned is None else self.learned
        if state["rule"] is not None and hasattr(rule, "load_state_dict"):
            rule.load_state_dict(state["rule"])
        self.best = state["best"]
        files.set_generators(state["generators"], self.generator, self.device)


def finisher_of(finish: object) -> tuple[int, object] | None:
    """Epochs, and the optimizer of them: L-BFGS with a line search, if none is named."""
    if finish is None:
        return None
    epochs, optimizer = finish if isinstance(finish, tuple) and len(finish) == 2 else (finish, lbfgs)
    epochs = whole(epochs)
    counts = type(epochs) is int and epochs >= 1
    need(counts, "finish", "epochs of L-BFGS, or (epochs, optimizer)", finish)
    return epochs, optimizer


lbfgs = partial(LBFGS, history_size=50, line_search_fn="strong_wolfe", tolerance_change=1e-12, tolerance_grad=1e-12)

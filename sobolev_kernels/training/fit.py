"""`fit`: a training in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from ..advice import evaluated_once
from ..directions import Directions
from ..errors import in_words, need, refuse, whole
from ..loss import SobolevLoss
from ..scaled import Scaled
from ..scaler import Scaler
from ..settings import DIFFERENTIAL_ML, Settings
from ..targets import Targets
from . import checkpoint as files
from .arguments import balanced, counted, data_of, faults, held_out, in_weights, split_of, validation_of
from .batches import Batches, Data
from .captured import Captured, stepper_of
from .history import History
from .optimizers import needs_closure, optimizer_of
from .progress import progress_of
from .schedules import Schedule
from .settings import with_settings
from .stopping import stop
from .validating import Validation, score_of
from .weighting import numbers_of_rule

WEIGHTS = ("weight_value", "weight_derivative", "weight_second")


@in_words
def fit(
    student: nn.Module,
    x: torch.Tensor,
    targets: Targets | Callable[[torch.Tensor], torch.Tensor],
    *,
    loss: SobolevLoss | None = None,
    epochs: int,
    batch_size: int | None = 256,
    optimizer: type[Optimizer] | Callable | Optimizer | None = None,
    lr: float | None = None,
    schedule: str | object | None = None,
    weights: Sequence[float] | str | Callable | None = None,
    validation: float | tuple[torch.Tensor, Targets] | None = None,
    scale: bool | Scaler = False,
    progress: bool | Callable[[dict[str, float]], object] = True,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    sample_weight: torch.Tensor | None = None,
    derivative_weight: torch.Tensor | None = None,
) -> History:
    """Train a student on values and derivatives, in place.

    Args:
        student: any module that `sobolev_loss` takes, in the mode in which it comes; validated in eval().
        x: inputs [N, D] or [N, …], of the student's dtype, where it is.
        targets: see `Targets`; or a teacher, any callable. Its values and derivatives are computed once, if they have
            room (64 million numbers), else at each step.
        loss: a `SobolevLoss`, by default `SobolevLoss()`; a mean or a sum over the batch.
        epochs: so many times all samples.
        batch_size: samples of a step, the last one of an epoch may have fewer; None: all. One batch of all samples is
            not shuffled.
        optimizer: a class of torch.optim, any function of a list of parameters that gives an optimizer, or an optimizer
            of the student's parameters. By default Adam, fused where that can be. One whose step takes a closure, as
            L-BFGS, evaluates a batch along the same directions throughout a step.
        lr: the learning rate of an optimizer that is made here, by default 1e-3 of Adam.
        schedule: "cosine" to 0, or "one-cycle" up to lr and down (as torch's OneCycleLR), at every step; a scheduler of
            torch's, or a function of the optimizer that gives one, stepped after every epoch (OneCycleLR and CyclicLR
            after every step; ReduceLROnPlateau by the validation, or else the loss).
        weights: instead of those of the loss: numbers; "differential-ml", with the units of all samples instead of
            each batch's; a rule, called at the beginning of each epoch with the `SobolevTerms` of a batch, which can be
            differentiated, that gives numbers (`GradNorm`); or a module that gives the loss of a step from its terms,
            whose parameters are learnt too (`Uncertainty`).
        validation: a part of the samples, which is held out, or (x, targets). Errors of values and derivatives are
            columns of the history, and the student has the parameters of the epoch where they are least, together.
        scale: train in the units of a `Scaler`, which is found from the samples, or that is given; `history.student`
            is a `Scaled` then. Not together with an input_scale, "differential-ml", a head or classes.
        progress: a bar by rich if it is installed, else a line, on a terminal alone; or a function that is called with
            the row of each epoch.
        generator: of all that is drawn: what is held out, the order of samples, directions without a seed, dropout. By
            default torch's own.
        checkpoint: a file that is written after each epoch, whole or not at all. If it is there, the training goes on
            from it, and is the same as one that was never stopped.
        sample_weight, derivative_weight: as of the loss, of all samples.

    Returns:
        A `History`, with the trained module as `history.student`.

    Raises:
        TypeError, ValueError: bad arguments, before anything is changed, or what the loss refuses.
        FloatingPointError: the loss is no number any more; it says at which step, which term, and what to try. The
            student has the parameters from before that step.

    Example:
        >>> from sobolev_kernels import MLP
        >>> x = torch.rand(512, 2)
        >>> targets = Targets(values=(x**2).sum(1), jacobian=2 * x)
        >>> history = fit(MLP(2, 1, width=16), x, targets, epochs=3, batch_size=64, validation=0.1, progress=False)
        >>> len(history), sorted(history.best)[:3]
        (3, ['derivative_error', 'epoch', 'loss'])
    """
    loss = SobolevLoss() if loss is None else loss
    epochs, batch_size = whole(epochs), whole(batch_size)
    refuse(faults(student, x, loss, epochs, batch_size, scale, generator, weights))
    path = None if checkpoint is None else Path(checkpoint)
    before = None if path is None else files.load(path)
    with torch.enable_grad(), drawing_from(generator, x.device):
        training = Training(
            student, data_of(x, targets, loss, "targets", (sample_weight, derivative_weight)), loss, epochs, batch_size,
            optimizer, lr, schedule, weights, validation, scale, generator, path, before,
        )  # fmt: skip
        return training.run(progress)


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Have torch's own generators begin where this one says, and put them back."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


class Training:
    """All that a training has, from its arguments to its end."""

    def __init__(
        self, student, data: Data, loss: SobolevLoss, epochs: int, batch_size: int | None, optimizer, lr, schedule,
        weights, validation, scale, generator, path: Path | None, before: dict | None,
    ):  # fmt: skip
        self.student, self.generator, self.path, self.epochs = student, generator, path, epochs
        device, N = data.x.device, len(data.x)
        self.settings = {"N": N, "batch_size": batch_size, "x": list(data.x.shape)}
        if isinstance(schedule, str):
            self.settings["epochs"] = epochs
        if before is not None:
            files.need_same(before, self.settings)
        self.held = split_of(validation, N, generator) if before is None else before["held"]
        held = validation_of(validation, loss)
        if self.held is not None:
            data, held = held_out(data, self.held)
        self.scaler = None
        if scale is not False:
            data, held = self._scaled(scale, data, held, loss)
        data = self._weigh(loss, weights, data)
        more = [] if self.learned is None else [p for p in self.learned.parameters() if p.requires_grad]
        if self.learned is not None:
            self.learned.to(device)
        parameters = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(optimizer, lr, parameters, more)
        self._seed(before)
        self.stepper = stepper_of(student, self.optimizer, self.learned, data.x)
        captured = isinstance(self.stepper, Captured)
        self.batches = Batches(data, batch_size or len(data.x), together=1 if captured else None)
        self.schedule = Schedule(schedule, self.optimizer, epochs * self.batches.count)
        self.validation = None if held is None else Validation(held, self.loss)
        self.history = History(student if self.scaler is None else Scaled(student, self.scaler))
        self.best: dict | None = None
        self.waits = device.type != "cpu"
        if before is not None:
            self._resume(before, device)

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

    def _seed(self, before: dict | None) -> None:
        """Of directions that an optimizer meets more than once a step."""
        self.seed = None if before is None else before["seed"]
        if not needs_closure(self.optimizer):
            return
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
        if self.rule is not None:
            row |= dict(zip(WEIGHTS, self.loss.settings.weights, strict=False))
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

    def _state(self) -> dict:
        rule = self.rule if self.learned is None else self.learned
        return {
            "settings": self.settings,
            "rows": self.history.rows,
            "steps": self.history.steps,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": files.generators(self.generator, self.batches.data.x.device),
            "rule": rule.state_dict() if hasattr(rule, "state_dict") else None,
            "best": self.best,
            "held": self.held,
            "seed": self.seed,
        }

    def _resume(self, state: dict, device: torch.device) -> None:
        self.history.rows, self.history.steps = state["rows"], state["steps"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        rule = self.rule if self.learned is None else self.learned
        if state["rule"] is not None and hasattr(rule, "load_state_dict"):
            rule.load_state_dict(state["rule"])
        self.best = state["best"]
        files.set_generators(state["generators"], self.generator, device)

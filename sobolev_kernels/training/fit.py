"""`fit`: a training in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import in_words, refuse, whole
from ..loss import SobolevLoss
from ..scaler import Scaler
from ..targets import Targets
from . import checkpoint as files
from .arguments import data_of, faults, faults_of_student
from .history import History
from .pointed import PointTraining, faults_of_points
from .points import Points
from .trainer import Training


@in_words
def fit(
    student: nn.Module,
    x: torch.Tensor | None = None,
    targets: Targets | Callable[[torch.Tensor], torch.Tensor] | None = None,
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
    residuals: Points | Sequence[Points] | None = None,
    finish: int | tuple[int, Callable] | None = None,
) -> History:
    """Train a student on values and derivatives, on residuals of differential equations, or on both; in place.

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
        residuals: `Points`, one or several, whose losses are added to that of the data, or stand alone, without x and
            targets. An epoch has as many steps as the largest of all sets needs, the others begin anew meanwhile. Each
            term is a column of the history, by its name. Coefficients of residuals are learnt too. A rule of `weights`
            is given the terms of the data, if there are any, and then those of the points.
        finish: so many epochs more by L-BFGS with a line search, on all samples and the last points at once; or
            (epochs, optimizer), another one.

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
    sets = [residuals] if isinstance(residuals, Points) else residuals
    if sets is None or x is not None:
        refuse(faults(student, x, loss, epochs, batch_size, scale, generator, weights))
    else:
        refuse(faults_of_student(student, epochs, batch_size, generator))
    if sets is not None:
        refuse(faults_of_points(sets, x, targets, weights, scale, (sample_weight, derivative_weight)))
    device = next(student.parameters()).device if x is None else x.device
    path = None if checkpoint is None else Path(checkpoint)
    before = None if path is None else files.load(path)
    with torch.enable_grad(), drawing_from(generator, device):
        data = None
        if x is not None:
            data = data_of(x, targets, loss, "targets", (sample_weight, derivative_weight))
        if sets is None:
            training = Training(
                student, data, loss, epochs, batch_size, optimizer, lr, schedule, weights, validation, scale, generator,
                path, before, finish,
            )  # fmt: skip
        else:
            training = PointTraining(
                student, data, loss, epochs, batch_size, optimizer, lr, schedule, weights, validation, generator, path,
                before, finish, sets,
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

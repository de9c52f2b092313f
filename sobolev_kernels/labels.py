"""Target values of likelihoods: classes, probabilities, or logarithms of these."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .errors import Fault, converted, range_of
from .math.heads import gives_logarithms
from .math.losses import is_likelihood
from .math.table import Formula
from .problem import Problem
from .settings import Settings
from .student import COMPUTE_DTYPE
from .targets import Targets
from .weights import Weights

ROUNDED = 1e-3  # what a probability may be more than 1 by, and its logarithm more than 0


def faults_of_classes(values: torch.Tensor, value_loss: Formula, inputs: torch.Tensor) -> Iterator[Fault]:
    """Of values that are whole numbers [N], which only cross_entropy takes, as classes."""
    N = inputs.shape[0]
    if value_loss.name != "cross_entropy":
        hint = f'{converted(values, inputs, "values")}; classes are for value_loss="cross_entropy"'
        yield Fault("values", f"{inputs.dtype} on {inputs.device}, as the inputs are", values, hint=hint)
    if values.dtype != torch.int64 or values.shape != (N,) or values.device != inputs.device:
        hint = "values.long() are classes" if values.shape == (N,) and values.dtype != torch.int64 else ""
        yield Fault("values", f"classes, torch.int64 [{N}] on {inputs.device}, or probabilities", values, hint=hint)


def faults_of_labels(settings: Settings, targets: Targets, weights: Weights, O: int | None) -> Iterator[Fault]:
    """Of what a likelihood is told, and counts: no classes, probabilities or logarithms of these."""
    values, loss = targets.values, settings.value_loss
    if values is None or not (is_likelihood(loss) and values.numel() and settings.numbers(1)[0]):
        return
    if targets.has_classes:
        counting, least, most, expected = weights.sample, 0, O, f"classes from 0 to {O and O - 1}"
        counting = None if counting is None else counting != 0
        hint = "a sample without a class has sample_weight 0"
    elif loss.name == "kl" and gives_logarithms(settings.head):
        counting, least, most, hint = weights.counting("values", values), -math.inf, ROUNDED, "values.log() are some"
        expected = f"logarithms of probabilities, as head={settings.head.name!r} gives"
    else:
        counting, least, most, hint = weights.counting("values", values), 0.0, 1 + ROUNDED, ""
        expected = f"probabilities with value_loss={loss.name!r}"
    known = None if O is None else range_of(values if counting is None else torch.where(counting, values, 0))
    if known is not None and not (least <= known[0] and known[1] < most):
        yield Fault("values", expected, f"numbers from {known[0]:.3g} to {known[1]:.3g}", hint=hint)


def probabilities_of(classes: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Those [N, O] of classes [N]; NaN of what is no class, where no number is looked at before."""
    dtype, O = getattr(torch, problem.dtype), problem.O
    there = torch.arange(O, device=classes.device) == classes[:, None]
    some = ((classes >= 0) & (classes < O))[:, None]
    return torch.where(some, there.to(COMPUTE_DTYPE.get(dtype, dtype)), torch.nan)

"""The types of public arguments, for readers and type checkers; what comes is checked where it comes, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch

from .directions import Cotangents, Directions
from .math.table import Formula

Function = Callable[[torch.Tensor], torch.Tensor]  # a student or a teacher: a module, or any other callable
Wrt = Sequence[int] | torch.Tensor | None  # columns, or a mask of an input's shape
ActivationName = str | tuple[Any, ...] | Formula
LossName = str | tuple[Any, ...] | Formula
HeadName = str | tuple[Any, ...] | Formula | Callable[[torch.Tensor], torch.Tensor] | None


class Keywords(TypedDict, total=False):
    """Those of `sobolev_loss`, explained there, that are no tensors; `Settings` has their defaults."""

    directions: Directions | None
    cotangents: Cotangents | None
    derivatives: str | None
    order: int
    wrt: Wrt
    value_loss: LossName
    derivative_loss: LossName
    weights: Sequence[float] | str | None
    reduction: str
    precision: str | None
    backend: str | None
    check_finite: bool
    head: HeadName


class LossKeywords(Keywords, total=False):
    """Those of `SobolevLoss` that are no tensors."""

    return_terms: bool


class Tensors(TypedDict, total=False):
    """Those that are."""

    input_scale: torch.Tensor | None
    input_jacobian: torch.Tensor | None
    sample_weight: torch.Tensor | None
    output_weight: torch.Tensor | None
    derivative_weight: torch.Tensor | None


class AllKeywords(Keywords, Tensors, total=False):
    """All of them but `return_terms`, by which the type of the result is told."""

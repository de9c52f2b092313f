"""Directions and cotangents of samples that were taken out of their batch: those that a seed gives their numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from .columns import Mask
from .errors import need_tensor
from .sampled import is_numbered
from .settings import Settings
from .targets import Targets


def along_samples(
    settings: Settings, targets: Targets, inputs: torch.Tensor, offset: int | None, input_jacobian: torch.Tensor | None
) -> tuple[Settings, Targets, int | None]:
    """The same call with them given, in the targets; also those that the settings name, if projected targets belong to
    them."""
    need_tensor(inputs, "inputs", "a tensor [N, D]")
    chosen = settings.cotangents if settings.directions is None else settings.directions
    if is_numbered(chosen) and not targets._vectors():
        name, chosen = chosen.NAME, chosen if offset is None else replace(chosen, offset=offset)
        settings, targets, offset = without(settings), targets._with(**{name: chosen}), None
    x, wrt = inputs, settings.wrt
    if isinstance(input_jacobian, torch.Tensor) and input_jacobian.dim() > 2:
        x, wrt = input_jacobian.flatten(1, -2)[:, 0], None
    elif wrt is not None:
        wrt = range(len(wrt.columns if type(wrt) is Mask else wrt))
    return settings, targets.along(x, wrt), offset


def without(settings: Settings) -> Settings:
    return replace(settings, directions=None, cotangents=None) if torch.compiler.is_compiling() else known(settings)


@lru_cache(maxsize=256)
def known(settings: Settings) -> Settings:
    return replace(settings, directions=None, cotangents=None)

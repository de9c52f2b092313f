"""A loss with other settings, as a training needs it."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ..loss import SobolevLoss
from ..settings import Settings


def with_settings(loss: SobolevLoss, **changes: object) -> SobolevLoss:
    """The same loss but for these; an equal one has the same Settings, by which calls are kept."""
    if all(getattr(loss.settings, name) == value for name, value in changes.items()):
        return loss
    other = copy.copy(loss)
    other._buffers = dict(loss._buffers)
    changed = replace(loss.settings, **changes)
    other.settings = known(changed)
    return other


KNOWN: dict[Settings, Settings] = {}


def known(settings: Settings) -> Settings:
    if len(KNOWN) >= 256:
        KNOWN.clear()
    return KNOWN.setdefault(settings, settings)


def with_scale(loss: SobolevLoss, scale: torch.Tensor | None) -> SobolevLoss:
    other = copy.copy(loss)
    other._buffers = {**loss._buffers, "input_scale": scale}
    return other

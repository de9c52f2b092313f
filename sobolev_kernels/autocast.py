"""What torch.autocast computes in."""

from __future__ import annotations

from functools import cache

import torch
from torch.amp.autocast_mode import is_autocast_available

from .backends import constant_while_traced

known = cache(is_autocast_available)


@constant_while_traced
def can_cast(kind: str) -> bool:
    """Whether there is an autocast on this kind of device, which dynamo of PyTorch 2.11 cannot ask."""
    return known(kind)


def casting(kind: str) -> torch.dtype | None:
    """What autocast computes in on this kind of device, if it does."""
    return torch.get_autocast_dtype(kind) if can_cast(kind) and torch.is_autocast_enabled(kind) else None

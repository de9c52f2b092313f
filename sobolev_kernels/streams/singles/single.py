"""What the table has of a function of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Single(NamedTuple):
    """Both are given the arguments of a call. What a call does is the same for batches of about the same size, of which
    the first one tells what it saves."""

    made: Callable[..., torch.Tensor | tuple | None]  # None of arguments that it does not take
    saves: Callable[..., float]  # µs beyond those of its own Python; 0 or less, and it is not made

"""Operations of a value alone that are one node of autograd, where its gradients are taken and differentiated: what
PyTorch differentiates twice in ten to twenty-five passes over the numbers is three or four."""

from __future__ import annotations

from collections.abc import Callable

from . import activation, attention, convolution, norms, recurrent
from .single import Single

SINGLES: dict[Callable, Single] = activation.TABLE | attention.TABLE | convolution.TABLE | norms.TABLE | recurrent.TABLE

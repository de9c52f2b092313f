"""Rules that sum and divide, of a value in half precision: computed in float32, and rounded once, last."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..student import COMPUTE_DTYPE
from .flowing import spelt
from .pair import RULES, Pair, is_pair, viewed

NAMES = """
    layer_norm rms_norm group_norm batch_norm instance_norm softmax log_softmax logsumexp var std
""".split()


def in_float32(found: Callable) -> Callable:
    """The same rule, of a value in the dtype that it is to be in, as PyTorch's own kernels compute it."""

    def applied(input, *arguments, dtype=None, **named):
        if not is_pair(input):
            return found(input, *arguments, **named)
        if arguments and isinstance(arguments[-1], torch.dtype):
            *arguments, dtype = arguments
        dtype = input.v.dtype if dtype is None else dtype
        wide = COMPUTE_DTYPE.get(dtype, dtype)
        result = found(converted(converted(input, dtype), wide), *arguments, **named)
        return converted(result, dtype)

    return applied


def converted(pair: Pair, dtype: torch.dtype) -> Pair:
    return pair if pair.v.dtype is dtype else viewed(pair, pair.v.to(dtype), pair.d.to(dtype))


for table in (RULES,):
    table.update({function: in_float32(table[function]) for function in spelt(*NAMES) if function in table})

"""Small tensors of numbers that follow from what is asked for. Made of Python's numbers at each call they would be
copied to a GPU each time, for which the host waits, and which no CUDA graph may do."""

from __future__ import annotations

import torch

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]
# None ever leaves: a CUDA graph, or a launch in another stream, may still read it.
KEPT: dict[tuple, torch.Tensor] = {}
MOST = 4096


def kept(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of them that nobody may write to. Where somebody follows each operation, none is to be kept."""
    key = numbers, dtype, device
    if (found := KEPT.get(key)) is None:
        with torch.inference_mode(False):  # it may be saved for a backward later
            found = torch.tensor(numbers, dtype=dtype, device=device)
        if len(KEPT) < MOST and torch._C._len_torch_dispatch_stack() == 0:  # else it may be no tensor with numbers
            found = KEPT.setdefault(key, found)
    return found

"""How the package says no: the argument, what was expected, what came."""

from __future__ import annotations

from typing import Any

import torch


def describe(value: Any) -> str:
    """A value in an error message: a tensor by dtype, shape and device, anything else as it prints."""
    if isinstance(value, torch.Tensor):
        grad = ", requires_grad" if value.requires_grad else ""
        shape = ", ".join(str(n) for n in value.shape)
        return f"a tensor {str(value.dtype).removeprefix('torch.')} [{shape}] on {value.device}{grad}"
    if isinstance(value, (tuple, list)) and any(isinstance(part, torch.Tensor) for part in value):
        return f"a {type(value).__name__} of {', '.join(map(describe, value))}"
    return value if isinstance(value, str) and value else repr(value)


def need(condition: bool, argument: str, expected: str, got: Any, kind: type[Exception] = ValueError) -> None:
    """Raise `kind` unless `condition` holds."""
    if not condition:
        raise kind(f"{argument}: expected {expected}, got {describe(got)}")


class NotProvided(NotImplementedError):
    """A derivative or a transform that this library does not compute, and refuses rather than return zero."""

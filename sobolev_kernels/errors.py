"""How the package says no: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch


class Fault(NamedTuple):
    """Why an argument is refused."""

    argument: str
    expected: str
    got: Any
    kind: type[Exception] = ValueError


class NotProvided(NotImplementedError):
    """A derivative or a transform that this library does not compute, and refuses rather than return zero."""


def describe(value: Any) -> str:
    """A value in an error message: a tensor by dtype, shape and device, anything else as it prints."""
    if isinstance(value, torch.Tensor):
        grad = ", requires_grad" if value.requires_grad else ""
        shape = "..." if value.is_nested else ", ".join(str(n) for n in value.shape)
        layout = "nested " if value.is_nested else f"{str(value.layout).removeprefix('torch.').strip('_')} "
        layout = "" if layout == "strided " else layout
        return f"a {layout}tensor {str(value.dtype).removeprefix('torch.')} [{shape}] on {value.device}{grad}"
    if isinstance(value, (tuple, list)) and any(isinstance(part, torch.Tensor) for part in value):
        return f"a {type(value).__name__} of {', '.join(map(describe, value))}"
    return value if isinstance(value, str) and value else repr(value)


def range_of(tensor: torch.Tensor) -> tuple[float, float] | None:
    """The least and the largest number, NaN if there is one; None where to look would wait for a GPU, or be traced."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if watched or tensor.device.type != "cpu" or torch._C._are_functorch_transforms_active():
        return None
    least, largest = tensor.aminmax() if tensor.numel() else (1.0, 1.0)
    return float(least), float(largest)


def refuse(faults: Iterable[Fault]) -> None:
    """Raise the first fault, if there is one.

    Checks are generators of faults: each reads like a list, runs once, and makes a message only when there is one.
    """
    for fault in faults:
        raise fault.kind(f"{fault.argument}: expected {fault.expected}, got {describe(fault.got)}")


def need(condition: bool, argument: str, expected: str, got: Any, kind: type[Exception] = ValueError) -> None:
    """A single check: raise `kind` unless `condition` holds."""
    if not condition:
        refuse([Fault(argument, expected, got, kind)])

"""What the tables of formulas are made of: a row, and a choice of a row with its parameters filled in."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import clipped, describe, nearest


@dataclass(frozen=True)
class Row:
    """One formula: its name in the table, the function, and the function's parameters with their defaults."""

    name: str
    function: Callable
    defaults: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Formula:
    """A row of a table with numbers for all its parameters: what a `Problem` carries, hashable and tensor-free."""

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{p:g}' for p in self.parameters)})" if self.parameters else self.name


def table(*functions: Callable, arguments: int = 1) -> dict[str, Row]:
    """The rows of a table in order, by name; a trailing underscore (a Python keyword or builtin) is dropped.

    A formula's parameters follow its `arguments`.
    """
    rows = {}
    for function in functions:
        parameters = list(inspect.signature(function).parameters.values())[arguments:]
        assert len(parameters) <= 2, "struct Formula of csrc/params.h has room for two"
        name = function.__name__.rstrip("_")
        rows[name] = Row(name, function, tuple((p.name, float(p.default)) for p in parameters))
    return rows


def choose(rows: dict[str, Row], argument: str, choice: str | tuple | Formula) -> Formula:
    """Turn what a user wrote (`"huber"`, `("huber", 0.5)` or a `Formula`) into a `Formula`, or refuse in words.

    Raises:
        ValueError: the name is not in the table (the message lists those that are), or a parameter is not a number.
        TypeError: `choice` is neither a name nor a name with parameters.
    """
    if isinstance(choice, Formula):
        name, given = choice.name, choice.parameters
    elif isinstance(choice, str):
        name, given = choice, ()
    elif isinstance(choice, tuple) and choice and isinstance(choice[0], str):
        name, given = choice[0], choice[1:]
    else:
        raise TypeError(f"{argument}: expected a name or a tuple (name, parameter, ...), got {describe(choice)}")
    if name not in rows:
        known = f"unknown name {clipped(name, 100)!r}; known: {', '.join(rows)}"
        raise ValueError("; ".join(part for part in (f"{argument}: {known}", nearest(name, rows)) if part))
    defaults = rows[name].defaults
    if len(given) > len(defaults):
        wanted = ", ".join(key for key, _ in defaults) or "no parameters"
        raise ValueError(f"{argument}: {name!r} takes {wanted}, got {describe(given)}")
    if not all(map(is_number, given)):
        raise ValueError(f"{argument}: the parameters of {name!r} must be numbers, got {describe(given)}")
    return Formula(name, (*map(float, given), *(value for _, value in defaults[len(given) :])))


def is_number(value: object) -> bool:
    """A real number, also as a tensor or array of one number; not a text that reads as one."""
    if isinstance(value, (int, float)):
        return True
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex() and not value.requires_grad
    return isinstance(value, numbers.Real) or (getattr(value, "size", 0) == 1 and value.dtype.kind in "biuf")


def specialised(value):
    """A float, or those of nested tuples, as numbers, also where torch.compile takes one for a variable.

    Compiled code is of these numbers then, and is compiled again for others.
    """
    if isinstance(value, tuple):
        return tuple(map(specialised, value))
    if not (torch.compiler.is_compiling() and isinstance(value, float)):
        return value
    from torch.fx.experimental.symbolic_shapes import (
        guard_scalar,  # of the compiler, which is imported when it compiles
    )

    return guard_scalar(value)

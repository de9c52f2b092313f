"""What the tables of formulas are made of: a row, and a choice of a row with its parameters filled in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass


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
        raise TypeError(f"{argument}: expected a name or a tuple (name, parameter, ...), got {choice!r}")
    if name not in rows:
        raise ValueError(f"{argument}: unknown name {name!r}; known: {', '.join(rows)}")
    defaults = rows[name].defaults
    if len(given) > len(defaults):
        wanted = ", ".join(key for key, _ in defaults) or "no parameters"
        raise ValueError(f"{argument}: {name!r} takes {wanted}, got {given!r}")
    try:
        numbers = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        raise ValueError(f"{argument}: the parameters of {name!r} must be numbers, got {given!r}") from None
    return Formula(name, numbers + tuple(value for _, value in defaults[len(numbers) :]))

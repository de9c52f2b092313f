"""`dataclasses.replace` and `astuple`, of which a compiler keeps less to be looked at before each call."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def replace(value: T, **others: object) -> T:
    """The same with other values of some fields.

    `dataclasses.replace` reads half a dozen attributes of each field's description, each of which a compiled call would
    check: a sixth of all that is checked before a loss.
    """
    kind = type(value)
    return kind(**({name: getattr(value, name) for name in kind.__match_args__} | others))


def fields_of(value: object) -> object:
    """The fields' values, those of fields of fields too, which `dataclasses.astuple` would copy deeply, one by one."""
    if isinstance(value, tuple):
        return tuple([fields_of(each) for each in value])
    kind = type(value)
    # dynamo of PyTorch 2.11 cannot ask None's class
    if value is None or not hasattr(kind, "__dataclass_fields__"):
        return value
    return tuple([fields_of(getattr(value, name)) for name in kind.__match_args__])

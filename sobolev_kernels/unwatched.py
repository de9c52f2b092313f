"""Names of this package are not looked up before each call of what was compiled.

Dynamo watches every global that it met while it followed a call: five hundred of ours, functions and constants that do
not change, which took a tenth of a small step. What is not ours is watched as ever, also where it is reached through
us, as os.environ is, and the hooks of all modules; and so is whatever belongs to the caller.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import torch

from .backends import constant_while_traced

IMPORTED = f"__import_{__package__}"  # how dynamo calls the modules of this package
NAMELESS = "___unnamed_scope_"  # and the globals of what is of no module
PLAIN, NAMED_TUPLE = ("builtins", "collections"), "namedtuple_"


@constant_while_traced
def leave_unwatched() -> bool:
    """Take back, while a call is traced, what dynamo would look up of this package; another dynamo's is left."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        output = InstructionTranslator.current_tx().output
        scope, found, guards = {"G": output.global_scope, "L": output.local_scope}, {}, output.guards
        value = lambda source: source.get_value(scope, {}, found)  # noqa: E731
        kept = [guard for guard in guards if not is_ours(guard.originating_source, value)]
        vars(guards).update(vars(type(guards)(type(guards.inner)(kept))))
        return True
    except Exception:
        return False


def is_ours(source: torch._guards.Source, value: Callable) -> bool:
    """Whether what dynamo found there is a name of a module of ours, or a part of what one stands for, with nothing of
    others on the way to it."""
    way = [source]
    while (base := getattr(way[0], "base", None)) is not None:
        way.insert(0, base)
    name = getattr(way[0], "global_name", "")
    if name.startswith(NAMELESS) and value(way[0]).get("__name__", "").startswith(NAMED_TUPLE):
        return True  # by which a named tuple, whoever's it is, makes itself
    ours = name.startswith(IMPORTED)
    for place in way[:-1]:
        at = value(place)
        home = home_of(at)
        if home == __package__:
            ours = ours or has_its_name(at)
        else:
            ours = ours and (home in PLAIN or home.startswith(NAMED_TUPLE))
    return ours


def has_its_name(value: object) -> bool:
    """Whether it is a function or a class that its module has by this name, and none that was made for a caller."""
    at = sys.modules.get(getattr(value, "__module__", None))
    for name in getattr(value, "__qualname__", "").split("."):
        at = getattr(at, name, None)
    return at is value


def home_of(value: object) -> str:
    """The package that something is of, or its type."""
    named = value if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)) else type(value)
    home = value.__name__ if isinstance(value, types.ModuleType) else named.__module__
    return (home or "").partition(".")[0]

"""A formula cut down to the first of its results: PyTorch does every operation that is written, needed or not.

`csrc/math/generate.py` reads this file too, without torch.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import cache


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def cut(definition: ast.FunctionDef, count: int) -> ast.FunctionDef:
    """The assignments that the first `count` results need, and these: the text is straight-line, ending in a return."""
    *assignments, end = definition.body
    results = ast.Tuple(end.value.elts[:count], ast.Load())
    needed, kept = names_in(results), [ast.copy_location(ast.Return(ast.copy_location(results, end)), end)]
    for assignment in reversed(assignments):
        if needed & names_in(assignment.targets[0]):
            kept.append(assignment)
            needed |= names_in(assignment.value)
    parts = {name: getattr(definition, name) for name in definition._fields}
    return ast.copy_location(ast.FunctionDef(**parts | {"body": kept[::-1]}), definition)


@cache
def first(function: Callable, count: int) -> Callable:
    """`function` with its first `count` results alone, a tuple, and no operation that these do without."""
    try:
        lines, number = inspect.getsourcelines(function)
        module = ast.parse("".join(lines))
        module.body = [cut(module.body[0], count)]
    except (OSError, SyntaxError, AttributeError):  # without its text, or no formula as those of the tables
        return lambda *arguments: function(*arguments)[:count]
    ast.increment_lineno(module, number - 1)
    names: dict[str, Callable] = {}
    exec(compile(module, inspect.getsourcefile(function), "exec"), function.__globals__, names)
    return names[function.__name__]

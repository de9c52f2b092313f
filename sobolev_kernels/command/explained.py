"""`explain` of a student in a file or a module of the user's, which is executed for it."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path

import torch

import sobolev_kernels as sk

from ..errors import nearest
from ..student import recognise

AS = "sobolev_kernels_explains"  # the name that a file has while it is executed
TITLE = 12  # characters of a line of `explain` before what it says


class NoStudent(Exception):
    """What was named is not there, or no student."""


def student_in(place: str) -> torch.nn.Module:
    """`FILE:NAME` or `MODULE:NAME`, a torch.nn.Module or what makes one without arguments; the name may have dots.

    The file is executed as if it were imported: not as `__main__`, with its folder in front of the path.

    Raises:
        NoStudent: in words.
    """
    source, _, name = place.rpartition(":")
    parts = name.split(".")
    if not source or not all(part.isidentifier() for part in parts):
        raise NoStudent(f"expected FILE:STUDENT, as in train.py:student, got {place}")
    names = names_of(source)
    if parts[0] not in names:
        modules = [key for key, value in names.items() if is_student(value)]
        known = f"; of torch.nn.Module it has: {', '.join(modules)}" if modules else "; it has no torch.nn.Module"
        hint = nearest(parts[0], modules or [key for key in names if not key.startswith("_")])
        raise NoStudent(f"{source} has no {parts[0]}{known}{'; ' if hint else ''}{hint}")
    student = names[parts[0]]
    for part in parts[1:]:
        if not hasattr(student, part):
            raise NoStudent(f"{name}: {type(student).__name__} has no {part}")
        student = getattr(student, part)
    if not isinstance(student, torch.nn.Module) and callable(student):
        try:
            student = student()
        except Exception as error:
            what = "expected a torch.nn.Module, or what makes one without arguments"
            raise NoStudent(f"{name}: {what}: {name}() raised {type(error).__name__}: {error}") from None
    if not isinstance(student, torch.nn.Module):
        raise NoStudent(f"{name}: expected a torch.nn.Module, got {type(student).__name__}")
    return student


def is_student(value: object) -> bool:
    """A module, or a class of the file's own."""
    is_class = isinstance(value, type) and issubclass(value, torch.nn.Module)
    return isinstance(value, torch.nn.Module) or (is_class and not value.__module__.startswith("torch."))


def names_of(source: str) -> dict[str, object]:
    """What a file defines, or a module that can be imported from here."""
    is_file = Path(source).is_file()
    if not is_file and not all(part.isidentifier() for part in source.split(".")):
        raise NoStudent(f"there is no file {source}")
    before = sys.path[:]
    sys.path.insert(0, str(Path(source).resolve().parent) if is_file else os.getcwd())
    try:
        return runpy.run_path(source, run_name=AS) if is_file else vars(importlib.import_module(source))
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and not is_file and source.startswith(error.name or "?"):
            raise NoStudent(f"there is no file {source}, and no module that can be imported from here") from None
        raise NoStudent(f"{source} cannot be executed: {said_of(error, source)}") from error
    finally:
        sys.path[:] = before


def said_of(error: BaseException, file: str) -> str:
    """An exception, and the line of the file that led to it, where it does not say so itself."""
    said = f"{type(error).__name__}: {error}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f", in line {lines[-1]}" if lines and not isinstance(error, SyntaxError) else ""
    return f'{said}{where}; what a run of it alone needs belongs below `if __name__ == "__main__"`'


def inputs_for(student: torch.nn.Module, shape: list[int] | None) -> torch.Tensor:
    """Zeros [N, …] of the student's dtype and device; without a shape [256, D] of a student whose D is known.

    Raises:
        NoStudent: it is not.
    """
    like = next(student.parameters(), torch.zeros(()))
    if shape is None:
        features = getattr(recognise(student), "D", None)
        linear = [module for module in student.modules() if isinstance(module, torch.nn.Linear)][:1]
        if features is None and (not linear or next(student.children(), None) is not linear[0]):
            raise NoStudent("the shape of the inputs is not known: give it, as in --shape 256,3,32,32")
        shape = [256, features or linear[0].in_features]
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def explained(student: torch.nn.Module, inputs: torch.Tensor, P: int | None, **settings: object) -> str:
    """What `explain` says, as it prints it; along P random directions, or of the exact loss."""
    how = {"derivatives": "exact"} if P is None else {"directions": sk.Directions.sphere(P)}
    return sk.explain(student, inputs, **how, **settings)


def as_dict(text: str) -> dict[str, object]:
    """Its lines by their titles; of a title with several, or of several backends, a list."""
    found: dict[str, object] = {}
    for line in text.splitlines():
        taken, title, said = line.startswith("-> "), line[:TITLE].removeprefix("-> ").strip(), line[TITLE:].strip()
        if taken:
            found["backend"] = title
        if title in found:
            before = found[title]
            found[title] = [*before, said] if isinstance(before, list) else [before, said]
        else:
            found[title] = said
    return found

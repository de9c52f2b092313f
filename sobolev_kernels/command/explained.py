"""`explain` of a student in a file of the user's, which is executed for it."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

import sobolev_kernels as sk

from ..student import recognise

TITLE = 12  # characters of a line of `explain` before what it says


class NoStudent(Exception):
    """What was named is not there, or no student."""


def student_in(place: str) -> torch.nn.Module:
    """`FILE:NAME`, a module or what makes one without arguments; the file is executed, and not as `__main__`.

    Raises:
        NoStudent: in words.
    """
    file, _, name = place.rpartition(":")
    if not file or not name.isidentifier():
        raise NoStudent(f"expected FILE:STUDENT, as in train.py:student, got {place}")
    if not Path(file).is_file():
        raise NoStudent(f"there is no file {file}")
    names = runpy.run_path(file, run_name="sobolev_kernels_explains")
    if name not in names:
        modules = [key for key, value in names.items() if isinstance(value, torch.nn.Module)]
        raise NoStudent(f"{file} has no {name}; its modules are: {', '.join(modules) or 'none'}")
    student = names[name]
    if not isinstance(student, torch.nn.Module) and callable(student):
        try:
            student = student()
        except TypeError as error:
            raise NoStudent(f"{name}: expected a module, or what makes one without arguments: {error}") from None
    if not isinstance(student, torch.nn.Module):
        raise NoStudent(f"{name}: expected a torch.nn.Module, got {type(student).__name__}")
    return student


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

"""A head that is a callable: it is composed with student and teacher, who are functions then."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .errors import need

EXPECTED = "a function of outputs [N, O] that returns a tensor of as many rows"


def with_head(student: object, targets: object, head: Callable | None) -> tuple[object, object]:
    """Student and the teacher in targets, or none, with the head behind them.

    A closure is known again by what it encloses (paths.py), so that nothing has to be kept.
    """
    if head is None:
        return student, targets
    if targets is not None and targets.teacher is not None:
        targets = targets.replace(teacher=composed(targets.teacher, head))
    return composed(student, head), targets


def composed(function: object, head: Callable) -> object:
    """What is not callable is left for the checks, which name it."""
    if not callable(function) or isinstance(function, type):
        return function

    def behind(x: torch.Tensor) -> torch.Tensor:
        y = function(x)
        if isinstance(y, torch.Tensor) and y.dim() == 1:  # of one output
            y = y[:, None]
        h = head(y)
        need(isinstance(h, torch.Tensor), "head", EXPECTED, h, TypeError)
        if type(h) is torch.Tensor:  # and nothing that flows through it
            need(h.dim() == 2 and h.shape[0] == y.shape[0], "head", EXPECTED, h)
        return h

    if not torch.compiler.is_compiling():
        behind.inner = function
    return behind


def inner_of(function: object) -> object:
    """The student or teacher that a head was composed with, or the function itself."""
    return getattr(function, "inner", function) if getattr(function, "__module__", "") == __name__ else function

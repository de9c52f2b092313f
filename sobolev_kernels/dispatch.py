"""Chooses a backend for a Problem: the first one that supports it, or the one that was asked for."""

from __future__ import annotations

import os
from types import ModuleType

from .backends import cpu, cuda, reference, streams, triton
from .changed import replace
from .errors import NotProvided, nearest, need, one_of
from .problem import Problem

# In the order in which they are tried.
BACKENDS: dict[str, ModuleType] = {
    "cpu": cpu, "cuda": cuda, "triton": triton, "streams": streams, "reference": reference,
}  # fmt: skip


def requested(backend: str | None) -> str | None:
    """The backend that the argument or SOBOLEV_BACKEND forces, None if the choice is free."""
    source = "backend" if backend is not None else "SOBOLEV_BACKEND"
    name = backend if backend is not None else os.environ.get("SOBOLEV_BACKEND") or None
    if not (name is None or one_of(name, BACKENDS)):
        need(False, source, f"one of {', '.join(BACKENDS)}", name, hint=nearest(name, BACKENDS))
    return name


def refusal(name: str, problem: Problem) -> str | None:
    """Why a backend does not compute this, None if it does."""
    return BACKENDS[name].supports(problem)


def better(name: str, problem: Problem) -> str | None:
    """Why another backend is better than one that supports this, None if none is."""
    gives_way = getattr(BACKENDS[name], "gives_way", None)
    return gives_way(problem) if gives_way is not None else None


def free(problem: Problem) -> str:
    """The backend of a free choice."""
    fit = (name for name in BACKENDS if refusal(name, problem) is None and better(name, problem) is None)
    return next(fit, "reference")


def choose(problem: Problem, backend: str | None) -> Problem:
    """The problem with the backend to use.

    Raises:
        NotImplementedError: the forced backend refuses; nothing else is tried then.
    """
    name = requested(backend)
    if name is None:
        name = free(problem)
    reason = refusal(name, problem)
    missing = getattr(BACKENDS[name], "MISSING", None)
    if missing and reason and missing not in reason:  # it could not have been taken with other tensors either
        reason = f"{missing}; and {reason}"
    # of streams it is an operation that no derivative is provided of, not a backend for others
    kind = NotProvided if name in ("streams", "reference") else NotImplementedError
    need(reason is None, "backend", f"{name} to support this problem", f"a refusal: {reason}", kind)
    return replace(problem, backend=name)

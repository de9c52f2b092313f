"""`hessian` and `divergence`: derivatives by inputs, all of one pass, without names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations_with_replacement

import torch

from ..backends.functions import differentiably
from ..backends.reference import uncast
from ..columns import Columns, Mask
from ..errors import in_words, need, refuse
from ..settings import as_columns, faults_of_columns
from ..student import Student, Unrecognised, recognise
from ..typed import Function, Wrt
from .along import rows
from .bilaplacian import outputs_of
from .constants import kept
from .evaluate import faults_of_kinks, faults_of_student, of_layers
from .layers import by_plain
from .nested import nested
from .plan import Streams, plan
from .polynomials import Exponents
from .ways import by_reference, chosen

Row = list[tuple[int, Exponents, float]]


@in_words
def hessian(
    student: Function, x: torch.Tensor, *, wrt: Wrt = None, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values, the Jacobian and the Hessian of each output, over the columns `wrt`, of one pass of W (W + 3) / 2 streams
    beside the value; each mixed derivative is computed once.

    Args:
        student: a module from [N, D] to [N, O], or [N] if O is 1. An MLP takes the streams, any other one is
            differentiated by autograd of autograd.
        x: inputs [N, D], of the student's dtype and device.
        wrt: the W input columns that are differentiated, by default all.
        backend: as of `partials`.

    Returns:
        y [N, O], the Jacobian [N, O, W] and the Hessian [N, O, W, W], of x's dtype, as `Targets` takes them;
        differentiable as the results of `partials`.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device, naming the argument, what was expected and what came.
        NotImplementedError: an activation with a jump in its first derivative, or a path that is cut.

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> [part.shape for part in hessian(student, torch.zeros(5, 2))]
        [torch.Size([5, 3]), torch.Size([5, 3, 2]), torch.Size([5, 3, 2, 2])]
    """
    known, columns, O = checked(student, x, wrt, 2, "the Hessian")
    D, W = x.shape[1], len(columns)
    found = computed(known, student, x, streams_of_hessian(columns, D, O), rows_of_hessian(columns, D, O), O, backend)
    y, first, second = found.unflatten(0, (-1, O)).permute(2, 1, 0).split([1, W, W * (W + 1) // 2], 2)
    places = {pair: n for n, pair in enumerate(combinations_with_replacement(range(W), 2))}
    whole = tuple(places[min(i, j), max(i, j)] for i in range(W) for j in range(W))
    whole = list(whole) if by_plain(second) else kept(whole, torch.int64, second.device)
    return y[..., 0], first, second[..., whole].unflatten(2, (W, W))


@in_words
def divergence(
    student: Function, x: torch.Tensor, *, wrt: Wrt = None, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values and the divergence Σ_i ∂m_i/∂x_i of a field, over the columns `wrt`, in their order one for each output.

    Args, errors: as of `hessian`.

    Returns:
        y [N, O] and the divergence [N], of x's dtype; differentiable as the results of `partials`.

    Example:
        >>> divergence(lambda x: x * torch.tensor([2.0, 3.0]), torch.zeros(5, 2))[1]
        tensor([5., 5., 5., 5., 5.])
    """
    known, columns, O = checked(student, x, wrt, 1, "the divergence")
    need(len(columns) == O, "student", f"{len(columns)} outputs, one for each column", f"{O}")
    D = x.shape[1]
    of = [[(o, unit(D, column), 1.0) for o, column in enumerate(columns)]]
    found = computed(known, student, x, streams_of_divergence(columns, D), [*values_of(D, O), *of], O, backend)
    return found[:O].T, found[O]


def checked(
    student: object, x: torch.Tensor, wrt: Wrt, order: int, what: str
) -> tuple[Student | Unrecognised, tuple[int, ...], int]:  # fmt: skip
    """What the student is, the columns, and O."""
    known = recognise(student)
    refuse(faults_of_student(student, known, x))
    columns = columns_of(wrt, x)
    refuse(faults_of_kinks(known, order, (what,), "student"))
    return known, columns, known.O or outputs_of(student, x)


def columns_of(wrt: Wrt, x: torch.Tensor) -> tuple[int, ...]:
    refuse(faults_of_columns(wrt))
    columns = as_columns(wrt)
    columns = columns.columns if type(columns) is Mask else columns
    refuse(Columns(columns).faults(x))
    return tuple(range(x.shape[1])) if columns is None else columns


def computed(
    known: Student | Unrecognised, student: Callable, x: torch.Tensor, streams: Streams, of: Sequence[Row], O: int,
    backend: str | None,
) -> torch.Tensor:  # fmt: skip
    """The results [R, N], of x's dtype."""
    if by_reference(known, backend):
        chosen(known, x, None, backend)
        found = differentiably(lambda x: nested(student, x, of, O, "student"), x, breaks=True)
        return torch.cat(found, 1).T.to(x.dtype)
    with uncast(x):
        return torch.cat([*of_layers(streams, known, x, backend)], 1).T.to(x.dtype)


def unit(D: int, *columns: int) -> Exponents:
    return tuple(map(columns.count, range(D)))


def values_of(D: int, O: int) -> list[Row]:
    return [[(o, (0,) * D, 1.0)] for o in range(O)]


def asked_of_hessian(columns: tuple[int, ...], D: int) -> list[Exponents]:
    return [unit(D, *some) for n in range(3) for some in combinations_with_replacement(columns, n)]


def rows_of_hessian(columns: tuple[int, ...], D: int, O: int) -> list[Row]:
    return [[(o, e, 1.0)] for e in asked_of_hessian(columns, D) for o in range(O)]


@lru_cache(maxsize=64)
def streams_of_hessian(columns: tuple[int, ...], D: int, O: int) -> Streams:
    return plan(tuple(row for e in asked_of_hessian(columns, D) for row in rows({e: Fraction(1)}, O)), D)


@lru_cache(maxsize=64)
def streams_of_divergence(columns: tuple[int, ...], D: int) -> Streams:
    one = Fraction(1)
    of = tuple((o, ((unit(D, column), one),)) for o, column in enumerate(columns))
    return plan((*rows({(0,) * D: one}, len(columns)), of), D)

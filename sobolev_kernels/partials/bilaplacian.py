"""`bilaplacian`: the sum of all fourth derivatives that a plate or a phase field takes, collapsed."""

from __future__ import annotations

import torch

from ..backends.functions import differentiably
from ..backends.reference import uncast
from ..columns import Columns, Mask
from ..errors import in_words, need, refuse
from ..settings import as_columns, faults_of_columns
from ..student import Student, recognise, widened
from ..typed import Function, Wrt
from .along import bilaplacian_of, bilaplacians, evaluated
from .evaluate import faults_of_kinks, faults_of_student
from .layers import directions_of, tied
from .nested import nested
from .ways import by_reference, chosen


@in_words
def bilaplacian(
    student: Function, x: torch.Tensor, *, wrt: Wrt = None, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values and bilaplacian Δ²m = Σ_ij ∂⁴m/∂x_i²∂x_j², over the columns `wrt`, by collapsed streams.

    Of an MLP 1 + W (W + 1) / 2 + 2 W streams go beside the value through the layers, W being the columns, on the CPU in
    one pass of the core; any other student is differentiated by autograd, again and again. Differentiable as the
    results of `partials`.

    Args:
        student: a module from [N, D] to [N, O], or [N] if O is 1.
        x: inputs [N, D], of the student's dtype and device.
        wrt: the W input columns that are differentiated, by default all.
        backend: as of `partials`.

    Returns:
        y [N, O] and the bilaplacian [N, O], of x's dtype.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device, naming the argument, what was expected and what came.
        NotImplementedError: the forced backend refuses; an activation with a jump in a derivative below the fourth, or
            a path that is cut.

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> bilaplacian(student, torch.zeros(5, 2))[1].shape
        torch.Size([5, 1])
    """
    known = recognise(student)
    refuse(faults_of_student(student, known, x))
    refuse(faults_of_columns(wrt))
    columns = as_columns(wrt)
    columns = columns.columns if type(columns) is Mask else columns
    refuse(Columns(columns).faults(x))
    refuse(faults_of_kinks(known, 4, ("the bilaplacian",), "student"))
    D = x.shape[1]
    columns = tuple(range(D)) if columns is None else columns
    if not by_reference(known, backend):
        with uncast(x):
            y, total = of_layers(known, x, columns, backend)
    else:
        chosen(known, x, None, backend)
        O = outputs_of(student, x)
        rows = [[(o, (0,) * D, 1.0)] for o in range(O)]
        fourth = [(e, float(c)) for e, c in bilaplacian_of(columns, D).items()]
        rows += [[(o, e, c) for e, c in fourth] for o in range(O)]
        found = differentiably(lambda x: nested(student, x, rows, O, "student"), x, breaks=True)
        y, total = torch.cat(found[:O], 1), torch.cat(found[O:], 1)
    return y.to(x.dtype), total.to(x.dtype)


def of_layers(
    student: Student, x: torch.Tensor, columns: tuple[int, ...], backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    wide = Student(student.widths, student.biases, student.activations, tuple(map(widened, student.parameters)))
    streams, x = bilaplacians(columns, x.shape[1], student.widths[-1]), widened(x)
    way = chosen(wide, x, streams, backend)
    results = evaluated(streams, wide, x, directions_of(streams, x), way)
    results = results if way else tied(results, student, x)
    y, total = results.unflatten(0, (2, -1)).transpose(1, 2)
    return y, total


def outputs_of(student: Function, x: torch.Tensor) -> int:
    """O, which only running him tells."""
    with torch.no_grad():
        y = student(x)
    need(isinstance(y, torch.Tensor) and y.dim() in (1, 2), "student", f"outputs [{len(x)}, O]", y)
    return 1 if y.dim() == 1 else y.shape[1]

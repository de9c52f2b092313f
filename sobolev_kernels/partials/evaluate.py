"""`partials`: derivatives by their names, as ordinary, differentiable outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..backends.functions import differentiably
from ..backends.reference import uncast
from ..boundary import faults_of_memory
from ..checks import faults_of_inputs, faults_of_parameters
from ..dispatch import requested
from ..errors import Fault, NotProvided, in_words, refuse
from ..math.activations import highest_order
from ..scaled import fold_of
from ..student import Student, Unrecognised, recognise, widened
from ..typed import Function
from .along import evaluated
from .fused import apply
from .known import FIRST, WHOLE, Found, found_again, keep
from .layers import directions_of, tied
from .names import Fields
from .nested import nested
from .plan import Streams
from .transformed import of_parts, parts_of
from .ways import by_reference, chosen

Looked = tuple[Streams, Student | Unrecognised, torch.Tensor]


@in_words
def partials(
    student: Function,
    x: torch.Tensor,
    names: Sequence[str] | str,
    *,
    fields: Fields | str,
    backend: str | None = None,
) -> dict[str, torch.Tensor]:
    """Derivatives of a student by their names, up to order 4, all of them in one pass.

    Of an MLP only the streams that the names need go through the layers: u, u_t, u_x and u_xxxx take five beside the
    value, and a sum under one name, as the bilaplacian "u_xxxx + 2*u_xxyy + u_yyyy", fewer than its terms do. A
    `Scaled` MLP is one, with derivatives in the data's units, and so is one between transforms (`Transformed`). Any
    other student is differentiated by autograd, again and again. Results are differentiable with respect to the
    parameters and x, as often as you like.

    Args:
        student: a module from [N, D] to [N, O], or [N] if O is 1; D and O are the fields'.
        x: inputs [N, D], of the student's dtype and device.
        names: derivatives, as ["u", "u_t", "u_xx + 2*u_yy"], or one text of them with commas. A term is a field, an
            underscore and inputs in any order, with a number before it if you like; one name may sum over outputs, as a
            divergence "u_x + v_y".
        fields: what inputs and outputs are called, a `Fields` or its text: "x y t -> u v".
        backend: forces one by name; it never falls back. Of an MLP "streams" are PyTorch's operations, layer by layer,
            and "reference" is autograd of autograd, as of any other student. So does SOBOLEV_BACKEND.

    Returns:
        By name, as it was given, a tensor [N, 1] of x's dtype. Targets should be [N, 1], too: PyTorch makes [N, N] of
        [N, 1] - [N].

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device, or a name that cannot be read, naming the argument, what
            was expected and what came.
        NotImplementedError: the forced backend refuses; an order above 4, or one that is not sound with an activation,
            as 2 with ReLU; or a path to the inputs that is cut.

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> p = partials(student, torch.zeros(5, 2), ["u_t", "u_xx"], fields="x t -> u")
        >>> p["u_t"].shape
        torch.Size([5, 1])
    """
    fields = fields_of(fields)
    names = names_of(names)
    found, looked = found_of(student, x, names, fields, backend)
    return results_at(x, names, fields, student, looked, backend) if found is None else results_of_core(found, names)


def found_of(
    student: Function, x: torch.Tensor, names: tuple[str, ...], fields: Fields, backend: str | None = None
) -> tuple[Found | None, Looked | None]:  # fmt: skip
    """The streams of derivatives where kernels take them, or else what the student was recognised as; or a refusal of
    what nobody computes."""
    of = fields.names, names, requested(backend)
    if (found := found_again(student, x, of)) is not None:
        return found, None
    looked = streams, known, inputs = looked_at(student, x, names, fields)
    if by_reference(known, backend) or inputs.dtype not in WHOLE or not len(inputs):
        return None, looked
    if (way := chosen(known, inputs, streams, backend)) is None:
        return None, looked
    found = FIRST[way](streams, known, inputs)
    keep(found, student, of)
    return found, looked


def results_of_core(found: Found, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each derivative [N, 1] by its name."""
    call = found.frame.call_of((found.x, *found.parameters))
    results = apply(call, found.x, found.frame.directions, *found.parameters)
    return dict(zip(names, results[:, :, None].unbind(), strict=True))


def results_at(
    x: torch.Tensor, names: tuple[str, ...], fields: Fields, student: Function, looked: Looked,
    backend: str | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """By name, of what was looked at."""
    streams, known, inputs = looked
    alone = requested(backend) == "reference"
    if not by_reference(known, backend):
        with uncast(x):
            results = of_layers(streams, known, inputs, backend)
    elif not alone and (parts := parts_of(student, x)) is not None:
        refuse(faults_of_kinks(parts.student, streams.order, names))
        with uncast(x):
            results = of_parts(parts, student, streams, fields.terms(names), len(fields.outputs), x, names, backend)
    else:
        chosen(known, x, None, backend)
        of, O = fields, len(fields.outputs)  # its names are read where no compiler follows
        results = differentiably(lambda x: nested(student, x, of.terms(names), O), x, breaks=True)
    results = (result if result.dtype is x.dtype else result.to(x.dtype) for result in results)
    return dict(zip(names, results, strict=True))


def looked_at(
    student: Function, x: torch.Tensor, names: tuple[str, ...], fields: Fields
) -> Looked:  # fmt: skip
    """The streams of derivatives, what the student was recognised as, and what his layers take; or a refusal."""
    fold = fold_of(student, x, torch.is_grad_enabled()) if isinstance(x, torch.Tensor) and x.dim() == 2 else None
    known, inputs = (recognise(student), x) if fold is None else (fold.student, fold.inputs)
    refuse(faults_of_call(student, known, x, fields))
    streams = fields.plan(names)
    refuse(faults_of_kinks(known, streams.order, names))
    return streams, known, inputs


def fields_of(fields: Any) -> Fields:
    if isinstance(fields, str):
        return Fields(fields)
    if not isinstance(fields, Fields):
        refuse([Fault("fields", 'a sobolev_kernels.Fields or its text, as "x t -> u"', fields, TypeError)])
    return fields


def names_of(names: Any) -> tuple[str, ...]:
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    if not isinstance(names, (list, tuple)) or not names:
        kind = ValueError if isinstance(names, (list, tuple)) else TypeError
        refuse([Fault("names", "a list of derivatives, as ['u', 'u_t', 'u_xx']", names, kind)])
    if len(set(map(str, names))) < len(names):
        refuse([Fault("names", "each derivative once", names)])
    return tuple(names)


def faults_of_student(student: object, known: Student | Unrecognised, x: torch.Tensor) -> Iterator[Fault]:
    yield from faults_of_memory("inputs", x)
    yield from faults_of_inputs(x, known, "student")
    yield from faults_of_parameters(student, known, x, "student")
    yield from known.faults_of_statistics("student")


def faults_of_call(
    student: object, known: Student | Unrecognised, x: torch.Tensor, fields: Fields
) -> Iterator[Fault]:  # fmt: skip
    yield from faults_of_student(student, known, x)
    D, O = len(fields.inputs), len(fields.outputs)
    if x.shape[1] != D:
        yield Fault("fields", f"{x.shape[1]} inputs, as x has columns", f"{D} in {fields.names!r}")
    if known.O not in (None, O):
        yield Fault("fields", f"{known.O} outputs, as the student has", f"{O} in {fields.names!r}")


def faults_of_kinks(
    known: Student | Unrecognised, order: int, names: Sequence[str], argument: str = "names"
) -> Iterator[Fault]:  # fmt: skip
    """Of an order at which an activation's jump counts, which each formula leaves out."""
    for formula in known.activations:
        highest, why = highest_order(formula)
        if order > highest:
            what = f"derivatives up to order {highest} with {formula.name}, since {why}"
            yield Fault(argument, what, f"order {order} in {', '.join(map(repr, names))}", NotProvided)
    flat = known.flat() if order > 1 and isinstance(known, Unrecognised) else None
    if flat is not None:
        what = f"derivatives of order 1 with {flat}, whose first derivative jumps"
        yield Fault(argument, what, f"order {order} in {', '.join(map(repr, names))}", NotProvided)


def of_layers(
    streams: Streams, student: Student, x: torch.Tensor, backend: str | None = None
) -> Sequence[torch.Tensor]:  # fmt: skip
    """Each derivative [N, 1], by the core where that computes it."""
    wide = Student(student.widths, student.biases, student.activations, tuple(map(widened, student.parameters)))
    x = widened(x)
    way = chosen(wide, x, streams, backend)
    results = evaluated(streams, wide, x, directions_of(streams, x), way)
    return (results if way else tied(results, student, x))[:, :, None].unbind()

"""What `partials` and `residual_loss` would do with a student, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..dispatch import requested
from ..errors import need, refuse
from ..scaled import fold_of
from ..student import Student, Unrecognised, recognise
from .along import KERNELS
from .evaluate import faults_of_call, faults_of_kinks, fields_of, names_of
from .fused_loss import record
from .layers import by_plain
from .names import Fields
from .residual import Residual, lines_of_residual, lines_of_streams
from .residual_loss import names_of as terms_of
from .residual_loss import residuals_of
from .transformed import Parts, parts_of
from .ways import FOLLOWED, by_reference, chosen

PARTIALS, RESIDUAL_LOSS = "partials", "residual_loss"
FUSED = {
    "cpu": "one pass of the core for the results, and one for all gradients",
    "triton": "launches of kernels that are written for these streams, forward and back",
}
AT_ONCE = {
    "cpu": "one pass of the core for the loss and all gradients",
    "triton": "one script of launches for the loss and all gradients",
}
STREAMS = "by PyTorch's operations, each layer with its adjoint"
AGAIN = "autograd of autograd: a gradient for each output, order and way to it"


def lines_of_partials(
    student: object, x: torch.Tensor, names: Any, fields: Any, backend: str | None = None
) -> Iterator[str]:  # fmt: skip
    fields, names = fields_of(fields), names_of(names)
    yield f"call        {PARTIALS}"
    yield from lines_of_call(student, x, fields, names, (), backend)


def lines_of_residual_loss(
    student: object, x: torch.Tensor, residual: Any, backend: str | None = None
) -> Iterator[str]:  # fmt: skip
    residuals = residuals_of(residual)
    terms_of(residuals)
    reads = tuple(dict.fromkeys(name for one in residuals for name in one.reads))
    yield f"call        {RESIDUAL_LOSS}"
    yield from lines_of_call(student, x, residuals[0].fields, reads, residuals, backend)


def lines_of_call(
    student: object, x: torch.Tensor, fields: Fields, names: Sequence[str], residuals: Sequence[Residual],
    backend: str | None,
) -> Iterator[str]:  # fmt: skip
    need(isinstance(x, torch.Tensor) and x.dim() == 2, "x", "inputs [N, D]", x)
    fold = fold_of(student, x, False)
    known = recognise(student) if fold is None else fold.student
    refuse(faults_of_call(student, known, x, fields))
    streams = fields.plan(names)
    refuse(faults_of_kinks(known, streams.order, names))
    parts = None if isinstance(known, Student) else parts_of(student, x)
    inner = parts.student if parts else known
    refuse(faults_of_kinks(inner, streams.order, names))
    if isinstance(inner, Student):
        what = f"{' -> '.join(map(str, inner.widths))} ({', '.join(map(str, inner.activations))})"
    else:
        what = type(student).__name__
    yield f"student     {what}, {str(x.dtype).removeprefix('torch.')} on {x.device}"
    yield f"fields      {fields.names}"
    yield f"reads       {', '.join(names)}, N = {len(x)}"
    yield from lines_of_streams(fields, names)
    yield from lines_of_transforms(parts, streams.count)
    for residual in residuals:
        yield from lines_of_residual(residual)
    yield from lines_of_ways(inner, x, backend, AT_ONCE if are_in_tiles(residuals, x) and not parts else FUSED)


def are_in_tiles(residuals: Sequence[Residual], x: torch.Tensor) -> bool:
    """Whether residuals are evaluated and differentiated where the streams are; else by PyTorch between two calls."""
    read = dict.fromkeys(name for one in residuals for name in (*one.reads, *one.coordinates))
    all_recorded = bool(residuals) and all(one.recorded for one in residuals)
    return all_recorded and record(residuals, tuple(read), x) is not None


def lines_of_transforms(parts: Parts | None, count: int) -> Iterator[str]:
    if parts and parts.inputs is not None:
        yield f"inputs      transformed: all {count} streams of {parts.student.widths[0]} features, by autograd"
    if parts and parts.outputs is not None:
        yield "outputs     transformed: by autograd, of a polynomial with the streams of the student"


def lines_of_ways(
    known: Student | Unrecognised, x: torch.Tensor, backend: str | None, fused: dict[str, str]
) -> Iterator[str]:  # fmt: skip
    """The one taken, and why not the others."""
    way = chosen(known, x, None, backend)
    if not isinstance(known, Student):
        said = dict.fromkeys((*KERNELS, "streams"), f"refused: {known.reason}") | {"reference": AGAIN}
        taken = "reference"
    else:
        taken = "reference" if by_reference(known, backend) else way or "streams"
        followed = FOLLOWED if by_plain(x) else ""
        said = {name: followed or why_not(known, x) for name, why_not in KERNELS.items()}
        said = {name: f"refused: {why}" if why else fused[name] for name, why in said.items()}
        faster = "" if requested(backend) else " (not taken: kernels are faster)"
        said["streams"] = STREAMS if taken == "streams" else STREAMS + faster
        if taken == "reference":
            said["reference"] = AGAIN
    for name, words in said.items():
        yield f"{'-> ' if name == taken else '   '}{name:<11}{words}"

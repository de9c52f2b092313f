"""`derivative_error`: how far a student's values and derivatives are from their targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..derivatives import hvp
from ..directions import Directions
from ..errors import NotProvided, in_words, need, need_tensor, whole
from ..heads import composed
from ..math.heads import choose_head, value
from ..rows import function_on_rows, inputs_on_rows, targets_on_rows
from ..settings import HeadName
from ..targets import Targets
from ..teaching import from_teacher
from .tables import COLOURS, axes_of, plain, table

CURVES = "Hessian-vector"
# What each field of targets is a row of; and what its last dimension counts
KINDS = {"values": "value", "jacobian": "gradient", "tangents": "tangent", "vjps": "vjp", "seconds": "second"}
BLOCK = 4096  # samples at a time


class ErrorRow(NamedTuple):
    """Of some numbers a with targets t: |a - t| / |t|, norms over all of them, and their correlation.

    `output` and `column` say of which numbers, None of all. A column is one of the inputs, a direction of tangents. The
    relative error of targets that are all 0 is infinite, if the student's are not; the correlation of what does not
    vary is NaN.
    """

    kind: str
    output: int | None
    column: int | None
    error: float
    correlation: float


@dataclass(frozen=True)
class DerivativeError:
    """What `derivative_error` gives: a table that prints itself, `rows`, and `entries`, the relative errors of each
    kind by output and column [O, W]."""

    rows: tuple[ErrorRow, ...]
    entries: dict[str, torch.Tensor] = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()

    def __getitem__(self, kind: str) -> ErrorRow:
        """The row of all numbers of a kind, as `error["gradient"].error`."""
        found = [row for row in self.rows if row.kind == kind and row.output is None and row.column is None]
        if not found:
            raise KeyError(f"{kind}: expected one of {', '.join(self.kinds)}")
        return found[0]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(row.kind for row in self.rows))

    def log(self) -> dict[str, float]:
        """The relative error of each kind, by its name, for a logger."""
        return {kind: self[kind].error for kind in self.kinds}

    def __str__(self) -> str:
        heads = "", "output", "column", "relative error", "correlation"
        each = lambda place: "all" if place is None else str(place)  # noqa: E731
        rows = [(row.kind, each(row.output), each(row.column), row.error, row.correlation) for row in self.rows]
        return "\n".join([table(heads, rows), *self.notes])

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"

    def plot(self, ax: Any = None) -> Any:
        """The relative errors as a picture; returns its axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        places, place = [], 0.0
        for i, row in enumerate(self.rows):
            place += 1.6 if i and row.kind != self.rows[i - 1].kind else 1.0  # a gap before each kind
            places.append(place)
        ax = axes_of(ax, 6.4, 0.9 + 0.24 * place)
        numbers = [row.error for row in self.rows if math.isfinite(row.error) and row.error > 0]
        least, most = (min(numbers), max(numbers)) if numbers else (1e-3, 1.0)
        low, high = least / 2, most * (most / least * 2) ** 0.35 * 1.5  # with room for what is written beside the dots
        for place, row in zip(places, self.rows, strict=True):
            shown = low if math.isnan(row.error) else min(max(row.error, low), high)
            whole = row.output is None and row.column is None
            ax.plot([low, shown], [place] * 2, color=COLOURS[row.kind], lw=1, alpha=0.4)
            ax.plot(shown, place, "o", color=COLOURS[row.kind], ms=8 if whole else 5)
            r = "" if math.isnan(row.correlation) else f", r = {row.correlation:.3f}"
            beside = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            text = "all targets are 0 " if math.isinf(row.error) else f"{row.error:.2g}{r}"
            place_of_text = ((-7, 6), "right") if math.isinf(row.error) else ((7, 0), "left")
            ax.annotate(text, (shown, place), place_of_text[0], ha=place_of_text[1], **beside)
        ax.set_yticks(places, [name_of(row) for row in self.rows], fontsize=9)
        ax.set(xscale="log", xlim=(low, high), ylim=(places[-1] + 0.6, 0.4), xlabel="relative error |a - t| / |t|")
        ax.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        return plain(ax)


def name_of(row: ErrorRow) -> str:
    if row.output is None and row.column is None:
        return row.kind
    return f"output {row.output}" if row.column is None else f"column {row.column}"


@in_words
def derivative_error(
    student: Callable[[torch.Tensor], torch.Tensor],
    targets: Targets | Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    order: int | None = None,
    wrt: Sequence[int] | torch.Tensor | None = None,
    head: HeadName = None,
    directions: Directions | None = None,
) -> DerivativeError:
    """How far a student's values, gradients and Hessian-vector products are from their targets, at inputs x.

    For each kind there are the relative error |a - t| / |t| and the correlation of all numbers, of each output and of
    each column. Target numbers that are not finite are left out. The student is run as he is, without gradients:
    `student.eval()` first, where that makes a difference.

    Args:
        student: a module or any callable from [N, D] to [N, O], or [N].
        targets: what he is compared with, a `Targets` or a teacher, that is a module or any callable.
        x: inputs [N, D], or [N, …], whose numbers are the columns then.
        order: 1 leaves out second derivatives; by default they are compared where targets have them and student and
            teacher can be differentiated twice.
        wrt, head: as in `sobolev_loss`.
        directions: those that projected targets belong to, as in `sobolev_loss`; those of Hessian-vector products,
            where there is a teacher or a Hessian, by default one random unit vector a sample, the same at every call.

    Returns:
        A table: `print(error)`, `error["gradient"].error`, `error.rows`, `error.log()`, `error.plot()`.

    Raises:
        TypeError, ValueError: in words, as `sobolev_loss`.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> print(derivative_error(lambda x: 1.1 * x**2, lambda x: x**2, x))
                        output  column  relative error  correlation
        value           all     all                0.1            1
        gradient        all     all                0.1            1
        Hessian-vector  all     all                0.1            1
    """
    need_tensor(x, "x", "the inputs [N, D]")
    order = whole(order)
    need(order is None or (type(order) is int and order in (1, 2)), "order", "None, 1 or 2", order)
    need(x.dim() > 1 and x.is_floating_point() and len(x) > 0, "x", "floating inputs [N, D] of at least one sample", x)
    apart = None if head is None else choose_head(head)
    if head is not None:
        function = head if callable(head) else lambda z: value(apart, z)
        student = composed(student, function)
    if not isinstance(targets, Targets):
        need(
            callable(targets),
            "targets",
            "a sobolev_kernels.Targets, or a teacher that is a callable",
            targets,
            TypeError,
        )
        targets = Targets(teacher=targets)
    if head is not None and targets.teacher is not None:
        targets = targets.replace(teacher=composed(targets.teacher, function))
    if (
        directions is not None
        and not targets._vectors()
        and (targets.tangents is not None or targets.seconds is not None)
    ):
        targets = targets.replace(directions=directions)
    N = targets._count()
    need(N in (None, len(x)), "targets", f"those of {len(x)} samples, as there are inputs", f"{N}")
    shape, x = x.shape[1:], inputs_on_rows(x.detach())
    student = function_on_rows(student, shape)
    if len(shape) > 1:
        wrt = None if wrt is None else wrt.flatten()
        targets = targets_on_rows(targets, shape, wrt is not None)
    if isinstance(wrt, torch.Tensor):
        wrt = wrt.nonzero()[:, 0].tolist()
    targets = targets.like(x).along(x, wrt)
    pairs: dict[str, list] = {}
    notes: list[str] = []
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        curves = Curves(order, directions, wrt, start)
        for kind, ours, theirs in compared(student, targets[part], x[part], curves, notes):
            pairs.setdefault(kind, []).append((ours.double().cpu(), theirs.double().cpu()))
    need(len(pairs) > 0, "targets", "values or derivatives to compare with", targets)
    rows, entries = [], {}
    for kind, parts in pairs.items():
        ours, theirs = (torch.cat(each) for each in zip(*parts, strict=True))
        entries[kind] = entries_of(ours, theirs)
        rows += rows_of(kind, ours, theirs)
    return DerivativeError(tuple(rows), entries, tuple(dict.fromkeys(notes)))


class Curves(NamedTuple):
    """What is asked of second derivatives, for samples from a number on."""

    order: int | None
    directions: Directions | None
    wrt: Sequence[int] | None
    start: int

    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        """Directions [P, N, W]."""
        W = x.shape[1] if self.wrt is None else len(self.wrt)
        chosen = Directions.sphere(1, seed=0) if self.directions is None else self.directions
        if chosen.values is not None and not chosen.shared:
            chosen = Directions.given(chosen.values[:, self.start : self.start + len(x)])
        elif chosen.seed is not None and chosen.distribution != "basis":
            chosen = chosen.numbered_from(self.start)
        return chosen.tensor(x.new_empty(()).expand(len(x), W)).to(x.dtype)


def compared(
    student: Callable, targets: Targets, x: torch.Tensor, curves: Curves, notes: list[str]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """What the student gives and its target, by kind, each [N, O, W]."""
    wrt, order = curves.wrt, curves.order
    if targets.teacher is not None:
        of_teacher = from_teacher(targets.teacher, x, wrt=wrt)
        values = of_teacher.values if targets.values is None else targets.values
        taught = of_teacher._with(values=values, teacher=None)
    else:
        taught = targets
    if taught.has_classes:
        notes.append("values: they are classes, which the outputs are not compared with")
    dense = taught.jacobian is not None or taught.hessian is not None
    ours = from_teacher(student, x, wrt=wrt) if dense or taught.derivative is taught.second is None else Targets()
    if taught.tangents is not None or taught.seconds is not None:
        need(taught.directions is not None, "directions", "those that target tangents belong to", None)
        twice = taught.seconds is not None and order != 1
        along = from_teacher(student, x, directions=taught.directions, order=1 + twice, wrt=wrt)
        ours = ours._with(values=along.values, tangents=along.tangents, seconds=along.seconds)
    if taught.vjps is not None:
        need(taught.cotangents is not None, "cotangents", "those that target vjps belong to, in the targets", None)
        along = from_teacher(student, x, cotangents=taught.cotangents, wrt=wrt)
        ours = ours._with(values=along.values, vjps=along.vjps)
    for name, kind in KINDS.items():
        theirs, own = getattr(taught, name), getattr(ours, name)
        if theirs is None or own is None or (name == "values" and taught.has_classes):
            continue
        yield kind, as_entries(name, own), as_entries(name, theirs.reshape(own.shape))
    if order == 1 or (taught.hessian is None and targets.teacher is None):
        return
    try:
        v = curves.vectors(x)
        own = along_all(student, x, v, wrt)
        theirs = of_hessian(taught.hessian, v) if taught.hessian is not None else along_all(targets.teacher, x, v, wrt)
    except NotProvided as error:
        if order == 2:
            raise
        notes.append(f"Hessian-vector products: {error}")
        return
    yield CURVES, own, theirs


def as_entries(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """[N, O, W]: of tangents W counts directions, of cotangents O does."""
    if name == "values":
        return tensor.reshape(len(tensor), -1, 1)
    if name == "jacobian":
        return tensor
    return tensor.permute(1, 2, 0) if name in ("tangents", "seconds") else tensor.transpose(0, 1)


def along_all(function: Callable, x: torch.Tensor, v: torch.Tensor, wrt: Sequence[int] | None) -> torch.Tensor:
    """D²f(x)[v_p, e_d], the directions one below the other: [P N, O, W]."""
    P, N, W = v.shape
    e = torch.eye(W, dtype=x.dtype, device=x.device)
    pairs = v[:, None].expand(-1, W, -1, -1).reshape(-1, N, W), e[None, :, None].expand(P, -1, N, -1).reshape(-1, N, W)
    with torch.no_grad():
        _, mixed = hvp(function, x, *pairs, wrt=wrt)
    return mixed.unflatten(0, (P, W)).permute(0, 2, 3, 1).flatten(0, 1)


def of_hessian(hessian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.einsum("node,pne->pnod", hessian, v).flatten(0, 1)


def error_of(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """|a - t| / |t| and the correlation, of what has a target."""
    known = theirs.isfinite()
    a, t = ours[known], theirs[known]
    if not len(t):
        return math.nan, math.nan
    off, size = float((a - t).norm()), float(t.norm())
    error = off / size if size else (0.0 if off == 0 else math.inf)
    a, t = a - a.mean(), t - t.mean()
    sizes = float(a.norm()) * float(t.norm())
    varies = sizes > 1e-12 * float(ours[known].norm()) * size
    return error, float(a @ t) / sizes if varies else math.nan


def entries_of(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    _, O, W = theirs.shape
    each = [[error_of(ours[:, o, d], theirs[:, o, d])[0] for d in range(W)] for o in range(O)]
    return torch.tensor(each, dtype=torch.float64)


def rows_of(kind: str, ours: torch.Tensor, theirs: torch.Tensor) -> Iterator[ErrorRow]:
    _, O, W = theirs.shape
    yield ErrorRow(kind, None, None, *error_of(ours, theirs))
    for o in range(O if O > 1 else 0):
        yield ErrorRow(kind, o, None, *error_of(ours[:, o], theirs[:, o]))
    for d in range(W if W > 1 else 0):
        yield ErrorRow(kind, None, d, *error_of(ours[..., d], theirs[..., d]))

"""What can run on this machine, each beside the reference in float64 by the one rule.

Of every backend and instruction set, in each dtype and precision that it has: losses and derivatives of every kind,
with all gradients, and whether a second run gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

import sobolev_kernels as sk

from ..backends import core, cuda, triton
from ..enums import GRADIENTS, PRECISIONS, TANGENTS
from .compare import Comparison, beside_reference, computed_from, forget, gradient, gradients, ramp, step
from .problems import DTYPES, Data, Shape, as_dtype, asking, cotangents_of, data, directions_of, random, threads

RIGHT, WRONG, REFUSED, FAILED, ABSENT = OUTCOMES = ("right", "wrong", "refused", "failed", "not here")
IEEE = PRECISIONS[0]
WIDE = Shape(101, 5, 37, 3, 3, 3, "all primes")
FEW = Shape(20, 2, 190, 2, 2, 2, "few samples of a wide student")
SCALAR = Shape(130, 6, 33, 2, 1, 2, "one output")


@dataclass(frozen=True)
class Place:
    """A backend on a device, in a dtype and a precision of its products."""

    backend: str
    where: str  # the instruction set, or the device
    dtype: torch.dtype = torch.float32
    precision: str = IEEE

    @property
    def device(self) -> str:
        return self.where if self.where == "cuda" else "cpu"


@dataclass(frozen=True)
class Row:
    """One check: the largest error over what the rule allows (right up to 1), and of which tensor."""

    place: Place
    check: str
    outcome: str
    error: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        place = {"backend": self.place.backend, "where": self.place.where, "precision": self.place.precision}
        dtype = str(self.place.dtype).removeprefix("torch.")
        what = {"check": self.check, "outcome": self.outcome, "error_over_allowed": self.error, "note": self.note}
        return place | {"dtype": dtype} | what


class Residual(nn.Module):
    """A student that is no MLP: two branches, and norms between layers."""

    def __init__(self, D: int, O: int, width: int = 24):
        super().__init__()
        self.first, self.norm = nn.Linear(D, width), nn.LayerNorm(width)
        self.inner, self.last = nn.Linear(width, width), nn.Linear(width, O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + nn.functional.silu(self.inner(self.norm(h))))


def residual(shape: Shape) -> Data:
    numbers, student = data(shape, "tanh"), Residual(shape.D, shape.O)
    for parameter in student.parameters():
        parameter.data = random(*parameter.shape) / 4
    return Data(student, numbers.x, numbers.y, numbers.jacobian)


def derivatives(
    place: Place, numbers: Data, of: Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]]
) -> Comparison:
    """A function of student and inputs that gives derivatives, and the gradients of what it gives."""

    def run(dtype: torch.dtype, backend: str, device: str = "cpu") -> dict[str, torch.Tensor]:
        here = numbers.to(dtype).on(device)
        x = here.x.detach().requires_grad_()
        results = of(here.student, x, backend=backend)
        torch.autograd.backward(results, [ramp(result) for result in results])
        named = {f"result {i}": result.detach() for i, result in enumerate(results)}
        return named | {"dx": gradient(x)} | {f"d{name}": g for name, g in gradients(here.student).items()}

    expected, plain = run(torch.float64, "reference"), run(place.dtype, "reference")
    got = run(place.dtype, place.backend, place.device)
    return Comparison(got, expected, plain, again=lambda: run(torch.float64, "reference"))


def along(function: Callable, shape: Shape, side: Callable) -> Callable:
    """`sk.jvp` or another along vectors of one shape."""

    def of(student: nn.Module, x: torch.Tensor, **how: str) -> tuple[torch.Tensor, ...]:
        vectors = as_dtype(side("given", shape), x.dtype, x.device.type).values
        return function(student, x, vectors, **how)

    return of


Check = Callable[[Place], Comparison]
# Those of other precisions, each of which a GPU's backends compile kernels for.
ROUNDED = ("loss along directions", "loss along cotangents", "second derivatives")


def loss(
    place: Place, numbers: Callable[[], Data], projections: object, targets: tuple[str, ...] = ("values", "jacobian"),
    side: str | None = None, **settings: object,
) -> Comparison:  # fmt: skip
    here = numbers().to(place.dtype)
    with computed_from(side):
        return beside_reference(
            here, projections, targets, place.backend, precision=place.precision, device=place.device, **settings
        )


def checks(student: Callable[[Shape], Data]) -> dict[str, Check]:
    """Of students that are made so."""
    wide, few, scalar = (partial(student, shape) for shape in (WIDE, FEW, SCALAR))
    spheres = directions_of("sphere", WIDE)
    second = ("values", "jacobian", "hessian")
    return {
        "loss along directions": partial(loss, numbers=wide, projections=spheres, side=TANGENTS),
        "the same from gradients": partial(
            loss, numbers=scalar, projections=directions_of("normal", SCALAR), side=GRADIENTS
        ),
        "loss along cotangents": partial(loss, numbers=wide, projections=cotangents_of("sphere", WIDE)),
        "exact loss": partial(loss, numbers=scalar, projections=None, derivatives="exact"),
        "few samples": partial(loss, numbers=few, projections=directions_of("rademacher", FEW)),
        "a loss for each sample": partial(
            loss, numbers=wide, projections=spheres, reduction="none", value_loss="huber", derivative_loss="log_cosh"
        ),
        "some columns, with units": partial(
            loss, numbers=wide, projections=directions_of("normal", Shape(101, 3, 37, 3, 3, 3, "three columns")),
            wrt=(3, 0, 1), input_scale=torch.tensor([0.5, 2.0, 4.0]),
        ),
        "gradients of given directions": partial(
            loss, numbers=wide, projections=asking(directions_of("given", WIDE)), targets=("values", "tangents")
        ),
        "gradients of given cotangents": partial(
            loss, numbers=wide, projections=asking(cotangents_of("given", WIDE)), targets=("values", "vjps")
        ),
        "a teacher": partial(loss, numbers=wide, projections=spheres, targets=("teacher",)),
        "second derivatives": partial(loss, numbers=wide, projections=spheres, targets=second, order=2),
        "jvp": lambda place: derivatives(place, wide(), along(sk.jvp, WIDE, directions_of)),
        "vjp": lambda place: derivatives(place, wide(), along(sk.vjp, WIDE, cotangents_of)),
        "laplacian": lambda place: derivatives(place, scalar(), lambda f, x, **how: sk.laplacian(f, x, **how)),
    }  # fmt: skip


def same_bits(place: Place) -> bool:
    """Of two runs."""
    numbers = data(WIDE, "tanh").to(place.dtype).on(place.device)
    projections = directions_of("sphere", WIDE)
    first, second = (step(numbers, projections, place.backend, precision=place.precision) for _ in range(2))
    return all(torch.equal(first[name], second[name]) for name in first)


def places() -> Iterator[Place | Row]:
    """Where something can be computed here; of a backend that cannot be had at all why not."""
    if core.MISSING is None:
        for name, _ in core._C.instruction_sets():
            yield from (Place("cpu", name, dtype) for dtype in DTYPES)
    else:
        yield Row(Place("cpu", "cpu"), "", ABSENT, note=core.MISSING)
    for name, backend in (("cuda", cuda), ("triton", triton)):
        missing = backend.MISSING or (None if torch.cuda.is_available() else "PyTorch finds no GPU")
        if missing:
            yield Row(Place(name, "cuda"), "", ABSENT, note=missing)
        else:
            yield from (Place(name, "cuda", precision=precision) for precision in PRECISIONS)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield from (Place("streams", device, dtype) for dtype in DTYPES)
        yield Place("reference", device)


@contextmanager
def instructions(place: Place) -> Iterator[None]:
    """The CPU backend within those of the place."""
    before = os.environ.get("SOBOLEV_ISA")
    if place.backend == "cpu":
        os.environ["SOBOLEV_ISA"] = place.where
    forget()
    try:
        yield
    finally:
        os.environ.pop("SOBOLEV_ISA", None)
        if before is not None:
            os.environ["SOBOLEV_ISA"] = before
        forget()


def verify() -> Iterator[Row]:
    """All of it, a row as soon as it is known."""
    functions = checks(residual)
    networks = checks(lambda shape: data(shape, "tanh"))
    networks["kinks"] = partial(loss, numbers=lambda: data(WIDE, "relu"), projections=directions_of("sphere", WIDE))
    for place in places():
        if isinstance(place, Row):
            yield place
            continue
        with instructions(place):
            for name, check in (functions if place.backend == "streams" else networks).items():
                if place.precision == IEEE or name in ROUNDED:
                    yield checked(place, name, check)
            if place.backend != "streams":
                yield row_of_bits(place)
    yield from row_of_threads()


def checked(place: Place, name: str, check: Check) -> Row:
    try:
        with threads(1):
            comparison = check(place)
    except NotImplementedError as refusal:
        return Row(place, name, REFUSED, note=str(refusal))
    except Exception as error:
        return Row(place, name, FAILED, note=f"{type(error).__name__}: {error}")
    worst, tensor = comparison.worst()
    try:  # which looks, where needed, at what was summed
        comparison.check()
    except AssertionError as error:
        return Row(place, name, WRONG, worst, str(error))
    return Row(place, name, RIGHT, worst, tensor)


def row_of_bits(place: Place) -> Row:
    name = "the same bits twice"
    try:
        same = same_bits(place)
    except Exception as error:
        return Row(place, name, FAILED, note=f"{type(error).__name__}: {error}")
    return Row(place, name, RIGHT if same else WRONG, note="" if same else "two runs differ")


def row_of_threads() -> Iterator[Row]:
    """Whether the core and PyTorch share one pool of threads: two libraries of it would each keep all cores busy."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as lines:
            paths = {line.split()[-1] for line in lines if "libgomp" in line.rpartition("/")[2]}
    except OSError:
        return
    if core.MISSING is None:
        note = "" if len(paths) < 2 else f"several libraries of threads: {', '.join(sorted(paths))}"
        yield Row(Place("cpu", "threads"), "one pool of threads", WRONG if note else RIGHT, note=note)

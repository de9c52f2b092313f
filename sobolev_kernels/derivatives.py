"""Derivatives of a student as ordinary, differentiable outputs: jvp, vjp, jet, laplacian, hvp."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from . import call
from .boundary import PLAIN, faults_of_memory, is_sound
from .directions import Cotangents, Directions, Projections
from .dispatch import requested
from .drawing import over_samples
from .errors import in_words, need, need_known, refuse
from .partials.along import KERNELS, mixed_along, way_of
from .partials.layers import by_plain
from .prepare import prepare
from .problem import DERIVATIVES
from .request import Request
from .rows import are_rows, derivatives_on_rows
from .settings import Settings, as_columns, settings_with
from .student import Student, recognise, widened
from .typed import Function, Wrt

NAMES = str, type(None)


def evaluate(
    student: object, x: torch.Tensor, vectors: torch.Tensor | Projections, kind: type[Projections], name: str = "",
    collapsed: bool = False, last: Callable[..., tuple[torch.Tensor, ...]] | None = None, **settings,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Values and derivatives along directions or cotangents, and what `last` makes of them, rounded to x's dtype."""
    check = offset = None
    if type(vectors) is torch.Tensor and vectors.dim() == 3 and not torch.compiler.is_compiling():
        given, check = vectors, lambda: kind.of(vectors, name)
        if settings["wrt"] is None and type(settings["backend"]) in NAMES and type(settings.get("order", 1)) is int:
            settings = such(kind, len(vectors), **settings)
        else:
            settings = settings_with(**settings, **{kind.NAME: kind("given", len(vectors))})
    else:
        projections = kind.of(vectors, name)
        given, offset = projections.values, projections.offset
        of_rows = given is None or given.dim() < 4 or getattr(x, "ndim", 0) > 2
        need(of_rows, name, f"a tensor [P, N, D] or a sobolev_kernels.{kind.__name__}", given)
        settings = settings_with(**settings, **{kind.NAME: projections})
    rows = are_rows(x, settings)
    if not rows:
        student, x, settings, given, shape = derivatives_on_rows(student, x, settings, given)
    results, _ = call.evaluate(
        DERIVATIVES, student, x, settings, given, collapsed=collapsed, offset=offset, check=check
    )
    if not rows and kind is Cotangents:
        results = results[0], results[1].unflatten(2, shape)
    if settings.order > 2:  # the last has derivatives of all orders from 2 on
        results = *results[:-1], *results[-1].unbind()
    results = results if last is None else last(*results)
    return tuple(result if result.dtype is x.dtype else result.to(x.dtype) for result in results)


@lru_cache(maxsize=256)
def such(kind: type[Projections], P: int, **settings: object) -> Settings:
    """Those of P given ones, which are known beside their tensor."""
    return settings_with(**settings, **{kind.NAME: kind("given", P)})


# What each function of this file takes for vectors, and its keywords beside them.
ASKED: dict[str, tuple[type[Projections], str, tuple[str, ...]]] = {
    "jvp": (Directions, "v", ("wrt", "backend")),
    "vjp": (Cotangents, "u", ("wrt", "backend")),
    "jet": (Directions, "v", ("wrt", "backend", "order")),
    "laplacian": (Directions, "v", ("wrt", "backend")),
    "hvp": (Directions, "v", ("wrt", "backend")),
}


def request_of(
    function: str, student: object, x: torch.Tensor, vectors: torch.Tensor | Projections | None, **settings
) -> Request:
    """What the function by this name asks for, of an HVP along v and vectors like it."""
    kind, name, known = ASKED[function]
    need_known(settings, known, f"explain of {function}")
    if function == "laplacian":
        vectors = directions_of_sum(vectors)
    elif function == "hvp":
        v = vectors_of(vectors, name)
        refuse(faults_of_memory(name, v))
        vectors = Directions.given(torch.cat([v, v]))
    projections = kind.of(vectors, name)
    if function not in ("jvp", "vjp"):
        settings.setdefault("order", 2)
    asked = settings_with(**settings, **{kind.NAME: projections})
    given = projections.values
    if not are_rows(x, asked):
        student, x, asked, given, _ = derivatives_on_rows(student, x, asked, given)
    collapsed = function == "laplacian"
    return Request(DERIVATIVES, student, x, asked, given, collapsed=collapsed, offset=projections.offset)


@in_words
def jvp(
    student: Function, x: torch.Tensor, v: torch.Tensor | Directions, *, wrt: Wrt = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The student's values and its directional derivatives, D m(x)[v], in one fused pass.

    Both results are differentiable with respect to the parameters, x and v, as often as you like (the first backward
    is fused, what differentiates it again is the reference), so any loss can stand on top, and any other call around.

    Args:
        student: a module from [N, D] to [N, O], or [N] if O is 1; fused if it is an MLP of the activation table (see
            `explain`).
        x: inputs [N, D], or of any shape [N, …], which D stands for below; floating point, of the student's dtype and
            device.
        v: directions [P, N, D], or a `Directions`: of v [P, D] for all of the batch `Directions.given(v)`. A tensor
            of two dimensions is refused, since it may be one direction for each sample: `v[None]`.
        wrt: the W input columns that are differentiated, by default all D, or a Boolean mask of an input's shape.
            Directions have W numbers then, in this order.
        backend: forces one by name; it never falls back.

    Returns:
        y [N, O] and tangents [P, N, O], of x's dtype.

    Raises:
        ValueError: a wrong shape, dtype or device, naming the argument, what was expected and what came.
        NotImplementedError: the forced backend refuses, or a derivative is not provided.

    Warns:
        SobolevWarning: once a student, where it goes to the reference since an operation of it has no rule.

    Example:
        >>> y, dy = jvp(torch.nn.Linear(2, 1), torch.zeros(5, 2), torch.ones(1, 5, 2))
        >>> dy.shape
        torch.Size([1, 5, 1])
    """
    return evaluate(student, x, v, Directions, "v", wrt=wrt, backend=backend)


@in_words
def vjp(
    student: Function, x: torch.Tensor, u: torch.Tensor | Cotangents, *, wrt: Wrt = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The student's values and the gradients D m(x)ᵀu of its outputs along cotangents, in one fused pass.

    Differentiable as those of `jvp`. `Cotangents.basis()` gives the rows of the Jacobian, so of a scalar student its
    gradient.

    Args:
        student, x, wrt, backend: as for `jvp`.
        u: cotangents [R, N, O], or a `Cotangents`: of u [R, O] for all of the batch `Cotangents.given(u)`.

    Returns:
        y [N, O] and gradients [R, N, D], with `wrt` [R, N, W], of x's dtype.

    Raises:
        ValueError, NotImplementedError: as `jvp`.

    Example:
        >>> y, gradient = vjp(torch.nn.Linear(2, 1), torch.zeros(5, 2), Cotangents.basis())
        >>> gradient.shape
        torch.Size([1, 5, 2])
    """
    return evaluate(student, x, u, Cotangents, "u", wrt=wrt, backend=backend)


@in_words
def jet(
    student: Function, x: torch.Tensor, v: torch.Tensor | Directions, *, order: int = 2,
    wrt: Wrt = None, backend: str | None = None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Values and directional derivatives: m(x), D m(x)[v], D² m(x)[v, v] and so on, in one fused pass.

    Differentiable as those of `jvp`. Orders 3 and 4 are fused on the CPU and by Triton (docs/math.md, section
    15).

    Args:
        student, x, v, wrt, backend: as for `jvp`.
        order: 1 to 4.

    Returns:
        y [N, O], tangents [P, N, O] and, of each order up to that one, derivatives [P, N, O], of x's dtype.

    Raises:
        ValueError: as `jvp`, or another order.
        NotImplementedError: as `jvp`; of order 2 also an activation with σ'' = 0 almost everywhere, as ReLU, and above
            it one with a jump in a lower derivative, as ELU.

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> [tuple(t.shape) for t in jet(student, torch.zeros(5, 2), torch.ones(3, 5, 2))]
        [(5, 1), (3, 5, 1), (3, 5, 1)]
    """
    return evaluate(student, x, v, Directions, "v", wrt=wrt, backend=backend, order=order)


@in_words
def laplacian(
    student: Function, x: torch.Tensor, v: torch.Tensor | Directions | None = None, *,
    wrt: Wrt = None, backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values and Laplacian Σ_d ∂²m/∂x_d², over the columns `wrt`, by one collapsed stream for the whole sum.

    Differentiable as those of `jvp`. With random directions of your own choice it is an estimate: exact on average
    for `Directions.rademacher(P)` or `.normal(P)`, or with `unbiased=True` for the others (Hutchinson); it is the
    mean over the directions then. Directions that are given are summed: Σ_p D²m(x)[v_p, v_p].

    Args:
        student, x, wrt, backend: as for `jvp`.
        v: None for the exact Laplacian, a random `Directions` for an estimate, or directions [P, N, D], or [P, D] for
            all of the batch.

    Returns:
        y [N, O] and the Laplacian [N, O], of x's dtype.

    Raises:
        ValueError, NotImplementedError: as `jet`.

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> laplacian(student, torch.zeros(5, 2))[1].shape
        torch.Size([5, 1])
    """
    directions = directions_of_sum(v)
    summed = directions.distribution in ("basis", "given") and not directions.unbiased

    def mean(y: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = x.shape[1:].numel() if wrt is None else len(as_columns(wrt))
        return y, total if summed else total / directions.count(columns)

    return evaluate(student, x, directions, Directions, "v", True, mean, wrt=wrt, backend=backend, order=2)


def directions_of_sum(v: torch.Tensor | Directions | None) -> Directions:
    """Those of a Laplacian: all of a basis, or also [P, D] for all of the batch."""
    if v is None:
        return Directions.basis()
    whole = isinstance(v, torch.Tensor) and not v.is_nested and v.dim() == 2
    return Directions.given(v) if whole else Directions.of(v, "v")


def vectors_of(v: torch.Tensor | Directions, name: str) -> torch.Tensor:
    """The tensor of directions that are given."""
    directions = Directions.of(v, name)
    need(directions.values is not None, name, "a tensor [P, N, D] or Directions.given(tensor)", directions, TypeError)
    return directions.values


@in_words
def hvp(
    student: Function, x: torch.Tensor, v: torch.Tensor | Directions, w: torch.Tensor | Directions, *,
    wrt: Wrt = None, backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values and mixed second derivatives D² m(x)[v, w].

    Differentiable as those of `jvp`. Of an MLP by the streams of v, w and both (docs/math.md, section 15), on the
    CPU and in float32 by Triton; elsewhere by polarization, (D²m[v+w, v+w] - D²m[v-w, v-w]) / 4, of v and w that
    are brought to one size first, since the difference loses as many digits as they differ.

    Args:
        student, x, wrt, backend: as for `jvp`.
        v, w: directions [P, N, D], or of [P, D] for all of the batch `Directions.given(v)`; both of one shape.

    Returns:
        y [N, O] and second derivatives [P, N, O], of x's dtype.

    Raises:
        ValueError, NotImplementedError: as `jet`.

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> hvp(student, torch.zeros(5, 2), torch.ones(1, 5, 2), torch.rand(1, 5, 2))[1].shape
        torch.Size([1, 5, 1])
    """
    if wrt is None and is_common(x, v, w) and (found := mixed_by_streams(student, x, v, w, wrt=wrt, backend=backend)):
        return found
    v, w = vectors_of(v, "v"), vectors_of(w, "w")
    for name, tensor in (("v", v), ("w", w)):
        refuse(faults_of_memory(name, tensor))
    need(v.shape == w.shape, "w", f"the shape of v, {list(v.shape)}", w)
    need(v.device == w.device, "w", f"a tensor on {v.device}, as v is", w)
    if (found := mixed_by_streams(student, x, v, w, wrt=wrt, backend=backend)) is not None:
        return found
    # what is added and what is subtracted would be rounded in half precision
    exact_v, exact_w = alike(*(widened(t) if t.dtype == getattr(x, "dtype", None) else t for t in (v, w)))
    both = Directions.given(torch.cat([exact_v + exact_w, exact_v - exact_w]))

    def mixed(y: torch.Tensor, _: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plus, minus = second.chunk(2)
        return y, (plus - minus) / 4

    return evaluate(student, x, both, Directions, "v", False, mixed, wrt=wrt, backend=backend, order=2)


def alike(v: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """s v and w / s of one size, each vector with a power of two s of its own: D²m[s v, w / s] is D²m[v, w]."""
    if not v.numel():
        return v, w
    vectors = min(v.dim() - 1, 2)  # after the direction and the sample, if each sample has its own
    sizes = [t.detach().abs().amax(tuple(range(vectors, t.dim())), keepdim=True) for t in (v, w)]
    scale = ((sizes[1].log2() - sizes[0].log2()) / 2).nan_to_num(0, 0, 0).round().exp2()
    return v * scale, w / scale


def mixed_by_streams(
    student: object, x: torch.Tensor, v: torch.Tensor, w: torch.Tensor, **settings: object
) -> tuple[torch.Tensor, torch.Tensor] | None:  # fmt: skip
    """An HVP of an MLP whose streams a backend's kernels take; None of any other call."""
    if torch.compiler.is_compiling() or (forced := requested(settings["backend"])) not in (None, *KERNELS):
        return None
    known = recognise(student)
    if not (isinstance(known, Student) and isinstance(x, torch.Tensor) and x.dim() == 2 and len(v)):
        return None
    if by_plain(x) or not all(type(tensor) in PLAIN for tensor in (v, w, *known.parameters)):
        return None
    if forced != "triton" and are_right(known, x, v, w) and settings["wrt"] is None:
        return mixed_along(known, x, v, w)
    call = prepare(request_of("hvp", student, x, Directions.given(v), **settings))
    wide = Student(known.widths, known.biases, known.activations, tuple(map(widened, known.parameters)))
    way = way_of(wide, widened(x), call.problem.backend)
    if way is None or w.dtype != v.dtype:
        return None
    v, w = (call.request.columns.embed(over_samples(widened(t), len(x)), x.shape[1]) for t in (v, w))
    y, mixed = mixed_along(wide, widened(x), v, w, way, call.problem.precision)
    return y.to(x.dtype), mixed.to(x.dtype)


def is_common(x: object, v: object, w: object) -> bool:
    """Whether an HVP is along ordinary tensors [P, N, D] that are in memory, which needs no further look at them."""
    if torch.compiler.is_compiling() or not all(type(t) in PLAIN and is_sound(t) for t in (x, v, w)):
        return False
    return v.dim() == 3 and v.shape == w.shape and v.shape[1:] == x.shape and v.dtype is w.dtype is x.dtype


def are_right(student: Student, x: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether nothing is wrong with the tensors of an HVP, nor to be cast: what most calls are, without a look at the
    rest."""
    alike = x.dtype in (torch.float32, torch.float64) and x.shape[1] == student.D and v.dim() == 3
    alike = alike and v.shape[1:] == x.shape and student.flat() is None and not torch.is_autocast_enabled("cpu")
    return alike and all(t.dtype is x.dtype and t.is_cpu for t in (v, w, *student.parameters))

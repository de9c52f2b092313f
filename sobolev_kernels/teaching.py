"""`Targets.from_teacher`: what a loss compares with, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from .boundary import faults_of_memory
from .derivatives import evaluate
from .directions import CPU, Cotangents, Directions, Projections
from .enums import COTANGENTS
from .errors import in_words, need, need_tensor, refuse, whole
from .heads import composed
from .math.directions import GIVEN, MASK32
from .math.heads import APART, gives_logarithms
from .planner import exact_projection
from .sampled import like_columns, vectors_at
from .settings import Settings
from .student import recognise
from .targets import Targets
from .typed import Function, HeadName, LossName, Wrt

OF_PROBABILITIES = "cross_entropy", "bce"


@in_words
def from_teacher(
    teacher: Function,
    x: torch.Tensor,
    *,
    directions: Directions | None = None,
    cotangents: Cotangents | None = None,
    derivatives: str | None = None,
    order: int = 1,
    wrt: Wrt = None,
    head: HeadName = None,
    value_loss: LossName = "mse",
    batch_size: int | None = None,
) -> Targets:
    """A teacher's values and derivatives at inputs x, computed once: the targets of every epoch.

    The loss with them is that with `Targets(teacher=teacher)` along the same vectors. Those that are drawn, with or
    without a seed, are drawn once here, for all of x, and are given in the targets, each sample's own beside it. Where
    neither directions nor cotangents are named, the targets are the Jacobian, and of order 2 the Hessian, with which a
    loss goes along fresh directions at every call, or is "exact".

    Args:
        teacher, x, directions, cotangents, derivatives, order, wrt, head, value_loss: as in `sobolev_loss`. The loss
            names the same `order`, `wrt`, `head` and `value_loss`, but no directions and no cotangents.
        batch_size: the most samples at a time, by default all.

    Returns:
        Targets without a teacher, on the device of x and of its dtype.

    Example:
        >>> x = torch.rand(8, 2)
        >>> Targets.from_teacher(lambda x: (x**3).sum(1), x, directions=Directions.sphere(2))
        Targets(values: float32 [8, 1] on cpu, tangents: float32 [2, 8, 1] on cpu, directions: float32 [2, 8, 2] on cpu)
    """
    settings = Settings(directions, cotangents, derivatives, order, wrt, value_loss, head=head)
    need_tensor(x, "x", "the inputs [N, D]")
    refuse(faults_of_memory("x", x))
    need(x.dim() > 1 and x.is_floating_point(), "x", "floating inputs [N, D]", x)
    if settings.order > 2:
        need(directions is not None, "directions", f"directions, of which derivatives of order {order} are", directions)
    size = whole(batch_size)
    need(size is None or (type(size) is int and size > 0), "batch_size", "None or a whole number, at least 1", size)
    need(callable(teacher) and not isinstance(teacher, type), "teacher", "a callable", teacher, TypeError)
    if settings.head == APART:
        teacher = composed(teacher, head)
    N, x = len(x), x.detach()
    vectors = drawn_once(cotangents if directions is None else directions, x, wrt)
    each = []
    for start in range(0, max(N, 1), size or max(N, 1)):
        part = slice(start, start + (size or N))
        some = None if vectors is None else of_part(vectors, part)
        with torch.no_grad():
            each.append(of_some(settings, teacher, x[part], wrt, some))
    targets = Targets.cat(each)
    if isinstance(vectors, Cotangents):
        vectors = as_given(vectors, targets.values)
    if vectors is not None:
        targets = targets.replace(**{vectors.NAME: vectors})
    if settings.value_loss.name in OF_PROBABILITIES and settings.head is not None and gives_logarithms(settings.head):
        targets = targets.replace(values=targets.values.exp())
    return targets


def drawn_once(vectors: Projections | None, x: torch.Tensor, wrt: object) -> Projections | None:
    """Directions as given ones; cotangents with the seed that a call with x would draw."""
    if vectors is None or vectors.distribution in ("basis", GIVEN):
        return vectors
    if isinstance(vectors, Directions):
        return as_given(vectors, like_columns(x, wrt))
    if vectors.seed is None:
        key, place = vectors.draw_seed(CPU, len(x)).tolist()
        vectors = replace(vectors, seed=key, offset=place & MASK32)
    return vectors.numbered_from(vectors.first_sample(len(x)))


def as_given(vectors: Projections, like: torch.Tensor) -> Projections:
    """For what is shaped as `like`; those that all samples share, once for all of them."""
    if vectors.distribution in ("basis", GIVEN):
        return vectors
    of_rows = vectors.shared and like.dim() == 2
    return type(vectors).given(vectors.tensor(like[:1])[:, 0] if of_rows and len(like) else vectors.tensor(like))


def of_part(vectors: Projections, part: slice) -> Projections:
    if vectors.distribution in ("basis", GIVEN):
        return vectors_at(vectors, part)
    return vectors.numbered_from(vectors.first + part.start)


def of_some(
    settings: Settings, teacher: Callable, x: torch.Tensor, wrt: object, vectors: Projections | None
) -> Targets:
    """Targets without vectors, along these or in full."""
    asked = {"wrt": wrt, "backend": None, "head": None if settings.head == APART else settings.head}
    if isinstance(vectors, Directions):
        name = "directions"
        y, *along = evaluate(teacher, x, vectors, Directions, name, order=settings.order, **asked)
        if settings.order > 2:
            return Targets(y, jets=along)
        return Targets(y, **dict(zip(("tangents", "seconds"), along, strict=False)))
    if isinstance(vectors, Cotangents):
        y, vjps = evaluate(teacher, x, vectors, Cotangents, "cotangents", **asked)
        return Targets(y, vjps=vjps)
    if settings.order == 2:
        return with_hessian(teacher, x, wrt, asked)
    columns = like_columns(x, wrt).shape[1:].numel()
    if exact_projection(columns, recognise(teacher).O) == COTANGENTS:
        y, rows = evaluate(teacher, x, Cotangents.basis(), Cotangents, "derivatives", **asked)
        return Targets(y, rows.transpose(0, 1))
    y, of_columns = evaluate(teacher, x, Directions.basis(), Directions, "derivatives", **asked)
    jacobian = of_columns.permute(1, 2, 0)
    return Targets(y, jacobian.unflatten(2, x.shape[1:]) if wrt is None else jacobian)


def with_hessian(teacher: Callable, x: torch.Tensor, wrt: object, asked: dict) -> Targets:
    """Jacobian and Hessian, by second derivatives along e_i and, by polarization, along e_i + e_j."""
    like = like_columns(x, wrt)
    sizes = like.shape[1:]
    W = sizes.numel()
    i, j = torch.triu_indices(W, W, 1, device=x.device)
    e = torch.eye(W, dtype=x.dtype, device=x.device)
    v = torch.cat([e, e[i] + e[j]])[:, None].expand(-1, len(x), -1).unflatten(2, sizes)
    y, first, second = evaluate(teacher, x, Directions.given(v), Directions, "derivatives", order=2, **asked)
    squares, sums = second.permute(1, 2, 0).split([W, len(i)], 2)
    hessian = torch.diag_embed(squares)
    mixed = (sums - squares[..., i] - squares[..., j]) / 2
    hessian[..., i, j] = mixed
    hessian[..., j, i] = mixed
    jacobian = first[:W].permute(1, 2, 0)
    return Targets(y, jacobian.unflatten(2, sizes), hessian=hessian.unflatten(3, sizes).unflatten(2, sizes))


Targets.from_teacher = staticmethod(from_teacher)

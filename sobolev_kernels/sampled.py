"""Which samples: an index as one of N samples, and vectors that belong to samples as those of some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from .directions import Directions, Projections
from .drawing import over_samples
from .errors import Fault, describe, need, refuse, whole

AXIS = {"values": 0, "jacobian": 0, "hessian": 0, "tangents": 1, "seconds": 1, "vjps": 1, "samples": 0, "jets": 2}
KINDS = "a whole number, a slice, whole numbers [n] or a Boolean mask [N], as a tensor, an array or a list"
Index = slice | torch.Tensor


def as_index(index: object, N: int) -> Index:
    """Of N samples those that an index names: a slice with a step above 0, or their numbers, int64 [n].

    A whole number names one sample, and what is of one sample has a dimension of size 1 for it.

    Raises:
        TypeError: not an index.
        IndexError: a sample that there is not, or a mask of another length.
    """
    if isinstance(index, slice):
        try:
            start, stop, step = index.indices(N)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"index: expected a slice of whole numbers with a step that is not 0, got {index}"
            ) from error
        return slice(start, max(start, stop), step) if step > 0 else torch.arange(start, stop, step)
    one = whole(index)
    if type(one) is int or (isinstance(index, torch.Tensor) and not index.dim() and is_of_integers(index)):
        one = int(one)
        if not -N <= one < N:
            raise IndexError(f"index: expected a sample from {-N} to {N - 1}, got {one}")
        return slice(one % N, one % N + 1)
    numbers = as_numbers(index)
    if numbers.dtype is torch.bool:
        if numbers.shape != (N,):
            raise IndexError(f"index: expected a mask of {N} samples, got {describe(index)}")
        return numbers.nonzero()[:, 0]
    if numbers.is_cpu and numbers.numel() and not torch.compiler.is_compiling():
        least, most = map(int, numbers.aminmax())
        if not -N <= least <= most < N:
            raise IndexError(f"index: expected samples from {-N} to {N - 1}, got {least if least < -N else most}")
    return torch.where(numbers < 0, numbers + N, numbers)


def as_numbers(index: object) -> torch.Tensor:
    """Whole numbers as int64 [n], or a mask."""
    if isinstance(index, Iterable) and not isinstance(index, (str, bytes, torch.Tensor, tuple)):
        try:
            values = index if hasattr(index, "__array__") else list(index)
            index = torch.as_tensor(values) if len(values) else torch.empty(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError):
            refuse([Fault("index", KINDS, index, TypeError)])
    known = isinstance(index, torch.Tensor) and index.dim() == 1
    need(known and (index.dtype is torch.bool or is_of_integers(index)), "index", KINDS, index, TypeError)
    return index if index.dtype is torch.bool else index.long()


def is_of_integers(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def picked(tensor: torch.Tensor, axis: int, index: Index) -> torch.Tensor:
    """These samples of a tensor: a view of a slice, a copy of numbers."""
    if isinstance(index, slice):
        return tensor[(slice(None),) * axis + (index,)]
    return tensor.index_select(axis, index.to(tensor.device))


def is_numbered(projections: object) -> bool:
    """Whether each sample has vectors of its own, drawn by its number."""
    named = isinstance(projections, Projections) and projections.seed is not None
    return named and not projections.shared and projections.distribution != "basis"


def is_each(projections: object) -> bool:
    """Whether they are given, and each sample has its own."""
    return isinstance(projections, Projections) and projections.values is not None and not projections.shared


def vectors_at(projections: Projections | None, index: Index) -> Projections | None:
    """Those of some samples, where they are given to each."""
    if not is_each(projections):
        return projections
    return type(projections).given(picked(projections.values, 1, index))


def with_tensor(projections: Projections, function) -> Projections:
    """The same with what a function makes of their tensor, if they have one."""
    if projections.values is None:
        return projections
    values = function(projections.values)
    return projections if values is projections.values else replace(projections, values=values)


def numbers_of(projections: Projections | None, N: int) -> torch.Tensor:
    """The numbers of N samples in a draw, int64 [N]; of one that only a call names, those of its process."""
    return torch.arange(N) + (Directions.basis() if projections is None else projections).first_sample(N)


def joined_vectors(name: str, each: Sequence[Projections | None], counts: Sequence[int]) -> Projections | None:
    """Those of all samples of several targets with N samples each.

    Raises:
        ValueError: they are not of one kind, or drawn in different ways.
    """
    first = each[0]
    if all(one is first or one == first for one in each) and not is_each(first):
        return first
    expected = f"{name} alike in all of them, or given in all (targets.along(x) gives those that are drawn)"
    for one in each:
        given = isinstance(one, Projections) and one.values is not None
        need(given and type(one) is type(first), "targets", expected, f"{describe(first)} and {describe(one)}")
    tensors = [one.values for one in each]
    need(len({t.shape[0] for t in tensors}) == 1, "targets", f"as many {name} in all of them", tensors)
    if all(one.shared for one in each) and all(torch.equal(t, tensors[0]) for t in tensors[1:]):
        return first
    each = [over_samples(t, N) if t.dim() == 2 else t for t, N in zip(tensors, counts, strict=True)]
    return type(first).given(joined(name, each, 1))


def joined(name: str, tensors: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Tensors of several targets one after the other."""
    first = tensors[0]
    for tensor in tensors:
        same = tensor.dtype == first.dtype and tensor.device == first.device and tensor.dim() == first.dim()
        sizes = tensor.shape[:axis] + tensor.shape[axis + 1 :] if same else None
        fits = same and sizes == first.shape[:axis] + first.shape[axis + 1 :]
        need(fits, name, f"tensors alike but for their samples, as {describe(first)}", tensor)
    return torch.cat(list(tensors), axis)


def vectors_for(projections: Projections, samples: torch.Tensor | None, like: torch.Tensor) -> Projections:
    """As given ones, for what is shaped as `like`, of samples of these numbers; those that are no sample's own stay."""
    return type(projections).given(projections.tensor(like, samples)) if is_numbered(projections) else projections


def like_columns(x: torch.Tensor, wrt: object) -> torch.Tensor:
    """Of inputs [N, …] what has the shape of those numbers that are differentiated, [N, W] of named columns."""
    if wrt is None:
        return x
    W = int(wrt.sum()) if isinstance(wrt, torch.Tensor) else len(tuple(wrt))
    return x.new_empty(()).expand(len(x), W)

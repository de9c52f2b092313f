"""Second derivatives of a pair, beside the first: one along each direction, or the sum of all in one stream.

Along a direction a value h has the derivatives h' and h''. A linear function maps each of them as it maps h, so that
its rule need not know which is which: they are stacked, h'' [P or 1, ...] behind h' [P, ...]. Any other rule maps all
of them by its own derivative and adds what it is curved by, which is quadratic in the h': f'' h'², and 2 h' g' of a
product. What is added is summed over the directions where their sum alone is asked for. While all h'' are 0, none is
there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import Function

from .flowing import Run
from .pair import Pair, as_samples, broadcast, new

LACKS = "has no rule for second derivatives"


@dataclass(eq=False)
class Twice(Run):
    """A run of order 2: P directions, and S streams of first and second derivatives."""

    P: int = 0
    S: int = 0


def is_twice(pair: Pair) -> bool:
    return isinstance(pair.run, Twice)


def levelled(*pairs: Pair) -> list[torch.Tensor]:
    """The derivatives of pairs, of all as many: with zeros where others have second ones."""
    S = max(len(pair.d) for pair in pairs)
    return [filled(pair.d, S) for pair in pairs]


def filled(d: torch.Tensor, S: int) -> torch.Tensor:
    return d if len(d) == S else torch.cat([d, d.new_zeros(S - len(d), *d.shape[1:])])


def whole(pair: Pair) -> torch.Tensor:
    """All S derivatives of a pair, also those that are 0."""
    return filled(pair.d, pair.run.S)


def tangents(pair: Pair) -> torch.Tensor:
    """The first derivatives alone."""
    return pair.d if len(pair.d) == pair.run.P else pair.d[: pair.run.P]


def summed(P: int, S: int, bent: torch.Tensor) -> torch.Tensor:
    """What is added to second derivatives, of each direction [P, ...], as they are carried."""
    return bent if S == 2 * P else bent.sum(0, keepdim=True)


def curved(like: Pair, v: torch.Tensor, t: torch.Tensor, bent: torch.Tensor) -> Pair:
    """Of streams t, mapped by the derivative of what gave v, and of what it is curved by along each direction."""
    run, t, bent = like.run, broadcast(t, v), broadcast(bent, v)
    first, *seconds = t.split([run.P, len(t) - run.P]) if len(t) > run.P else (t,)
    bent = summed(run.P, run.S, bent)
    return new(like, v, torch.cat([first, seconds[0] + bent if seconds else bent]))


def pointwise(
    input: Pair, y: torch.Tensor, slope: torch.Tensor, curvature: Callable[[], torch.Tensor | float] | None
) -> Pair:
    """y = f(z) with f'(z), and f''(z) unless it is 0 everywhere but at kinks."""
    run, d = input.run, input.d
    if curvature is None or not is_twice(input):
        return new(input, y, as_samples(torch.mul, d, slope))
    return new(input, y, Pointwise.apply(d, slope, curvature(), run.P, run.S))


def room(S: int, factor: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """For streams of the dtype of factor·d."""
    return d.new_empty(S, *d.shape[1:], dtype=torch.result_type(factor, d))


class Pointwise(Function):
    """Streams d of z [P or S, ...] as streams [S, ...] of f(z), in one piece; its backward can be differentiated."""

    @staticmethod
    def forward(ctx, d: torch.Tensor, slope: torch.Tensor, curvature: torch.Tensor | float, P: int, S: int):
        of_numbers = isinstance(curvature, float)
        ctx.save_for_backward(d, slope, *(() if of_numbers else (curvature,)))
        ctx.of = P, S, curvature if of_numbers else None
        streams, squares = room(S, slope, d), summed(P, S, d[:P] * d[:P])
        torch.mul(slope, d, out=streams[: len(d)])
        if len(d) == S:
            streams[P:].add_(curvature * squares) if of_numbers else streams[P:].addcmul_(curvature, squares)
        else:
            torch.mul(squares, curvature, out=streams[P:])
        return streams

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        (d, slope, *rest), (P, S, number) = ctx.saved_tensors, ctx.of
        first, second = d[:P], g[P:]
        of_d = slope * g[: len(d)]
        of_d[:P].addcmul_(first * (rest[0] if rest else number), second, value=2)
        of_slope = (d * g[: len(d)]).sum(0) if ctx.needs_input_grad[1] else None
        of_curvature = (summed(P, S, first * first) * second).sum(0) if ctx.needs_input_grad[2] else None
        return of_d, of_slope, of_curvature, None, None


class Product(Function):
    """Streams of a·b [S, ...] from those of a and b, of one shape, likewise."""

    @staticmethod
    def forward(ctx, da: torch.Tensor, a: torch.Tensor, db: torch.Tensor, b: torch.Tensor, P: int, S: int):
        ctx.save_for_backward(da, a, db, b)
        ctx.P, n = P, len(da)
        streams, both = room(S, b, da), summed(P, S, da[:P] * db[:P])
        torch.mul(da, b, out=streams[:n]).addcmul_(a, db)
        if n == S:
            streams[P:].add_(both, alpha=2)
        else:
            torch.mul(both, 2, out=streams[P:])
        return streams

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        (da, a, db, b), P = ctx.saved_tensors, ctx.P
        second, g = g[P:], g[: len(da)]
        of_da, of_db = b * g, a * g
        of_da[:P].addcmul_(db[:P], second, value=2)
        of_db[:P].addcmul_(da[:P], second, value=2)
        return of_da, (db * g).sum(0), of_db, (da * g).sum(0), None, None

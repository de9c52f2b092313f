"""Second derivatives of a pair, beside the first: one along each direction, or the sum of all in one stream.

Along a direction a value h has the derivatives h' and h''. A linear function maps each of them as it maps h, so that
its rule need not know which is which: they are stacked, h'' [P or 1, ...] behind h' [P, ...]. Any other rule maps all of
them by its own derivative and adds what it is curved by, which is quadratic in the h': f'' h'², and 2 h' g' of a product.
What is added is summed over the directions where their sum alone is asked for. While all h'' are 0, none are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .flowing import Run
from .pair import Pair, broadcast, new


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


def summed(run: Twice, bent: torch.Tensor) -> torch.Tensor:
    """What is added to second derivatives, of each direction [P, ...], as they are carried."""
    return bent if run.S == 2 * run.P else bent.sum(0, keepdim=True)


def curved(like: Pair, v: torch.Tensor, t: torch.Tensor, bent: torch.Tensor) -> Pair:
    """Of streams t, mapped by the derivative of what gave v, and of what it is curved by along each direction."""
    run, t, bent = like.run, broadcast(t, v), broadcast(bent, v)
    first, *seconds = t.split([run.P, len(t) - run.P]) if len(t) > run.P else (t,)
    bent = summed(run, bent)
    return new(like, v, torch.cat([first, seconds[0] + bent if seconds else bent]))


def pointwise(
    input: Pair, y: torch.Tensor, slope: torch.Tensor, curvature: Callable[[], torch.Tensor | float] | None
) -> Pair:
    """y = f(z) with f'(z), and f''(z) unless it is 0 everywhere but at kinks."""
    run, d = input.run, input.d
    if curvature is None or not is_twice(input):
        return new(input, y, slope * d)
    first, *seconds = d.split([run.P, len(d) - run.P]) if len(d) > run.P else (d,)
    bent = curvature() * summed(run, first * first)
    return new(input, y, torch.cat([slope * first, torch.addcmul(bent, slope, seconds[0]) if seconds else bent]))

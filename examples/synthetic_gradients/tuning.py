"""A search on a grid of rates that does not end at its edge.

Rates stand on a ladder, each three times the one below it. All pairs around a first guess are tried; then, for as long
as the best pair lacks a neighbour, its neighbours. So in the end the best pair is better than all that surround it, or
the search says that it is at the edge of what was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

LADDER = {i: round(m * 10.0**e, 10) for i, (e, m) in enumerate(product(range(-6, 2), (1, 3)), start=-12)}
Place = tuple[int, ...]


@dataclass(frozen=True)
class Tuned:
    """The best place on the grid; rounds: how often it was widened; inside: all neighbours were tried."""

    place: Place
    score: object
    rounds: int
    inside: bool
    tried: dict[Place, object]

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(LADDER[i] for i in self.place)


def around(place: Place) -> set[Place]:
    """A place and its neighbours, as far as the ladder goes."""
    return {found for found in product(*((i - 1, i, i + 1) for i in place)) if all(i in LADDER for i in found)}


def is_inside(place: Place, tried: Iterable[Place]) -> bool:
    """Whether all 3^n - 1 neighbours were tried: none is missing, at the end of the ladder neither."""
    near = around(place)
    return len(near) == 3 ** len(place) and near <= set(tried)


def search(
    starts: dict[str, Place], evaluate: Callable[[list[tuple[str, Place]]], list], rounds: int
) -> dict[str, Tuned]:
    """The place of least score for each name, searched side by side.

    Args:
        evaluate: scores, of any type that has an order, of (name, place) pairs.
        rounds: how often the grid may be widened.
    """
    tried: dict[str, dict[Place, object]] = {name: {} for name in starts}
    best, widened = dict(starts), dict.fromkeys(starts, -1)
    for _ in range(rounds + 1):
        missing = [(name, place) for name in starts for place in sorted(around(best[name]) - tried[name].keys())]
        if not missing:
            break
        for (name, place), score in zip(missing, evaluate(missing), strict=True):
            tried[name][place] = score
        for name in {name for name, _ in missing}:
            widened[name] += 1
        best = {name: min(scores, key=scores.get) for name, scores in tried.items()}
    return {
        name: Tuned(best[name], scores[best[name]], widened[name], is_inside(best[name], scores), scores)
        for name, scores in tried.items()
    }

"""Which univariate Taylor series make a set of derivatives, for contestants that have no others: NumPy alone, so that
JAX's process reads it too.

A mixed derivative is a combination of those along several directions; a sum of positive ones of the highest order is
one stream, where the contestant collapses: of the bilaplacian in two dimensions three directions suffice, 60° apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

Exponents = tuple[int, ...]
Direction = tuple[float, ...]
Rows = Sequence[Sequence[tuple[int, Exponents, float]]]  # of each derivative (output, exponents, coefficient)


class Bundle(NamedTuple):
    """Series of one order along some directions; collapsed, the highest is their sum."""

    order: int
    along: tuple[Direction, ...]
    collapsed: bool = False


class Part(NamedTuple):
    """Coefficient times derivative `degree` of an output along direction `r` of a bundle."""

    bundle: int
    r: int
    degree: int
    output: int
    coefficient: float


class Series(NamedTuple):
    bundles: tuple[Bundle, ...]
    rows: tuple[tuple[Part, ...], ...]


def expanded(v: Direction, e: Exponents) -> float:
    """The coefficient of ∂ᵉ in (v·∂)ⁿ, n = |e|."""
    ways = math.factorial(sum(e)) / math.prod(map(math.factorial, e))
    return ways * math.prod(a**n for a, n in zip(v, e, strict=True))


def combined(target: Mapping[Exponents, float], along: Sequence[Direction]) -> np.ndarray | None:
    """The coefficients with which derivatives along these directions make a homogeneous one, if they do."""
    D, n = len(next(iter(target))), sum(next(iter(target)))
    monomials = [e for e in np.ndindex(*(n + 1,) * D) if sum(e) == n]
    wanted = np.array([target.get(e, 0.0) for e in monomials])
    matrix = np.array([[expanded(v, e) for v in along] for e in monomials]).reshape(len(monomials), len(along))
    found = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return found if np.allclose(matrix @ found, wanted, atol=1e-12) else None


def candidates(D: int) -> Iterator[Direction]:
    units = np.eye(D)
    yield from map(tuple, units)
    for a, b in combinations(units, 2):
        yield from (tuple(a + b), tuple(a - b), tuple(a / 2 + math.sqrt(0.75) * b), tuple(a / 2 - math.sqrt(0.75) * b))


def fewest(
    targets: Sequence[Mapping[Exponents, float]], there: Sequence[Direction], some: Sequence[Direction]
) -> list[Direction]:  # fmt: skip
    """As few more directions as make all targets."""
    for n in range(len(some) + 1):
        for more in combinations(some, n):
            if all(combined(target, [*there, *more]) is not None for target in targets):
                return list(more)
    raise ValueError("no directions make these derivatives")


def collapsed(target: Mapping[Exponents, float]) -> Bundle | None:
    """One sum of several directions with positive weights, which are taken into their lengths."""
    D, n = len(next(iter(target))), sum(next(iter(target)))
    for size in range(2, D + 3):
        for along in combinations(candidates(D), size):
            weights = combined(target, along)
            if weights is not None and (weights > 1e-9).all():
                scaled = (tuple(w ** (1 / n) * a for a in v) for v, w in zip(along, weights, strict=True))
                return Bundle(n, tuple(scaled), True)
    return None


def series_of(rows: Rows, D: int, collapses: bool) -> Series:
    """Each derivative must be homogeneous, as those of the equations are, and of one output."""
    targets = [{e: c for _, e, c in row} for row in rows]
    by_degree: dict[int, list[dict[Exponents, float]]] = {}
    for target in targets:
        alike = by_degree.setdefault(sum(next(iter(target))), [])
        alike += [] if target in alike else [target]
    degrees = sorted(by_degree, reverse=True)
    top, bundles = degrees[0], []
    if collapses and len(by_degree[top]) == 1 and len(by_degree[top][0]) > 1 and (one := collapsed(by_degree[top][0])):
        bundles.append(one)
    given = [(v, 0, r) for r, v in enumerate(bundles[0].along)] if bundles else []
    chosen: dict[Direction, int] = {}
    for d in degrees:
        if d and not (bundles and d == top):
            there = [v for v, _, _ in given] + list(chosen)
            some = [v for v in candidates(D) if v not in chosen]
            chosen |= dict.fromkeys(fewest(by_degree[d], there, some), d)
    for order in sorted(set(chosen.values()), reverse=True):
        bundles.append(Bundle(order, tuple(v for v, k in chosen.items() if k == order)))
    made = []
    for row, target in zip(rows, targets, strict=True):
        (o, _, c), d = row[0], sum(row[0][1])
        if not d:
            made.append((Part(0, 0, 0, o, c),))
        elif d == top and bundles[0].collapsed:
            made.append((Part(0, 0, d, o, 1.0),))
        else:
            along = [
                (v, b, r)
                for b, bundle in enumerate(bundles)
                if bundle.order >= d and not (bundle.collapsed and bundle.order == d)
                for r, v in enumerate(bundle.along)
            ]
            weights = combined(target, [v for v, _, _ in along])
            parts = zip(weights, along, strict=True)
            made.append(tuple(Part(b, r, d, o, float(w)) for w, (_, b, r) in parts if abs(w) > 1e-12))
    return Series(tuple(bundles), tuple(made))


def summed(series: Series, found: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, Any]:
    """Derivatives by name of what each bundle gave: the value [N, O], then [R, N, O] by order; what is collapsed
    [N, O]."""
    parts = {}
    for name, row in zip(names, series.rows, strict=True):
        terms = []
        for b, r, degree, o, c in row:
            bundle, got = series.bundles[b], found[b][degree]
            got = got if degree == 0 or (bundle.collapsed and degree == bundle.order) else got[r]
            terms.append(got[:, o : o + 1] if c == 1 else c * got[:, o : o + 1])
        parts[name] = sum(terms[1:], terms[0])
    return parts


def nested(at: Callable[[Exponents], Any], rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """The same of derivatives [N, O] of one monomial each."""
    found = {}
    for name, row in zip(names, rows, strict=True):
        terms = [c * at(e)[:, o : o + 1] if c != 1 else at(e)[:, o : o + 1] for o, e, c in row]
        found[name] = sum(terms[1:], terms[0])
    return found

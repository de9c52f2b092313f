"""The streams that a set of derivatives needs, and the one table by which they are multiplied: docs/math.md, section
15."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .polynomials import Exponents, Polynomial, by_degree, degree, differentiated, shifted, span

Term = tuple[int, int, int, float]
MOST = 128  # streams that kernels are written for: each is some lines of one


class Streams(NamedTuple):
    """Streams 0 … S-1, of which 0 is the value; all in plain numbers.

    `basis`: the polynomial of each, by degree. `table`: (k, i, j, c) for (f g)_k = Σ c f_i g_j. `powers`: (a, b, terms)
    for u_m = u_a u_b, m = a + b from 2 on, of u_1 = z - z₀. `first`: those of degree 1 as directions [D], which are all
    that h₀ has beside the value. `outputs`: of each derivative asked for (stream, output of the student, coefficient).
    `wanted`: the streams in these; the last activation gives no others.
    """

    basis: tuple[tuple[tuple[Exponents, float], ...], ...]
    degrees: tuple[int, ...]
    table: tuple[Term, ...]
    powers: tuple[tuple[int, int, tuple[Term, ...]], ...]
    first: tuple[tuple[int, tuple[float, ...]], ...]
    outputs: tuple[tuple[tuple[int, int, float], ...], ...]
    wanted: tuple[int, ...]
    count: int
    order: int

    def __hash__(self) -> int:
        """Of a few of the numbers: it is asked for at every call."""
        return hash((self.count, self.order, self.first, self.outputs))


def powers_of(table: Sequence[Term], degrees: Sequence[int]) -> tuple[tuple[int, int, tuple[Term, ...]], ...]:
    """The products of u_a and u_b, which begin with degrees a and b; each pair of equal powers once."""
    rows = []
    for m in range(2, degrees[-1] + 1):
        a, b = m // 2, m - m // 2
        folded: dict[tuple[int, int, int], float] = {}
        for k, i, j, c in table:
            if i and j and degrees[i] >= a and degrees[j] >= b:
                key = (k, min(i, j), max(i, j)) if a == b else (k, i, j)
                folded[key] = folded.get(key, 0.0) + c
        rows.append((a, b, tuple((*key, c) for key, c in folded.items())))
    return tuple(rows)


def second(P: int, O: int, summed: bool) -> Streams:
    """Values, first and second derivatives along P directions, with no outputs by name; or the values, and the second
    ones `summed`, of all O outputs: what `plan` finds for |ξ|²."""
    each, seconds = range(1, 1 + P), range(1 + P, 2 + P if summed else 1 + 2 * P)
    table = [(0, 0, 0, 1.0)]
    for k in (*each, *seconds):
        table += [(k, 0, k, 1.0), (k, k, 0, 1.0)]
    table += [(1 + P if summed else P + k, k, k, 2.0) for k in each]
    degrees = (0, *(1 for _ in each), *(2 for _ in seconds))
    wanted = (0, 1 + P) if summed else tuple(range(len(degrees)))
    return Streams(
        basis=(), degrees=degrees, table=tuple(table), powers=powers_of(table, degrees),
        first=tuple((k, ()) for k in each), outputs=tuple(((k, o, 1.0),) for k in wanted for o in range(O) if summed),
        wanted=wanted, count=len(degrees), order=2,
    )  # fmt: skip


def direction(p: Polynomial, D: int) -> tuple[float, ...]:
    """What a polynomial of degree 1 differentiates along."""
    return tuple(float(p.get(tuple(int(i == d) for i in range(D)), 0)) for d in range(D))


def closed(polynomials: Sequence[Polynomial], D: int) -> dict[int, list[Polynomial]]:
    """Homogeneous polynomials and all their derivatives, by degree."""
    found: dict[int, list[Polynomial]] = {}
    todo, seen = list(polynomials), set()
    while todo:
        p = todo.pop()
        key = tuple(sorted(p.items()))
        if p and key not in seen:
            seen.add(key)
            found.setdefault(degree(p), []).append(p)
            todo += [differentiated(p, i) for i in range(D)]
    return found


def plan(asked: tuple[tuple[tuple[int, tuple[tuple[Exponents, Fraction], ...]], ...], ...], D: int) -> Streams:
    """The fewest streams of which the derivatives asked for can be made: a basis of the span of all their derivatives.

    So a monomial takes what divides it, (v·ξ)ᵏ a univariate Taylor series, and a sum like |ξ|² one stream, however many
    terms it has. `asked`: each is a sum over outputs of polynomials.
    """
    parts = [by_degree(dict(p)) for row in asked for _, p in row]
    found = closed([q for part in parts for q in part.values()], D)
    zero = (0,) * D
    pivots: dict[Exponents, int] = {zero: 0}
    basis: list[Polynomial] = [{zero: Fraction(1)}]
    for d in sorted(set(found) - {0}):
        for pivot, p in span(found[d]).items():
            pivots[pivot] = len(basis)
            basis.append(p)
    table = []
    for k, p in enumerate(basis):
        terms = [(pivots[b], pivots[c], v) for (b, c), v in shifted(p).items() if b in pivots and c in pivots]
        table += [(k, i, j, float(v)) for i, j, v in sorted(terms)]
    # coordinates in a reduced echelon basis are the coefficients of its pivots
    outputs = tuple(tuple((pivots[e], o, float(c)) for o, p in row for e, c in p if e in pivots) for row in asked)
    degrees = tuple(map(degree, basis))
    return Streams(
        basis=tuple(tuple((e, float(c)) for e, c in p.items()) for p in basis), degrees=degrees, table=tuple(table),
        powers=powers_of(table, degrees),
        first=tuple((k, direction(p, D)) for k, p in enumerate(basis) if degrees[k] == 1),
        outputs=outputs, wanted=tuple(sorted({k for row in outputs for k, _, _ in row})),
        count=len(basis), order=degrees[-1],
    )  # fmt: skip

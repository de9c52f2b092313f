"""The streams that a set of derivatives needs, and the one table by which they are multiplied: docs/math.md, section
15."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from .polynomials import Exponents, Polynomial, by_degree, degree, differentiated, shifted, span

Term = tuple[int, int, int, float]


@dataclass(frozen=True)
class Streams:
    """Streams 0 … S-1, of which 0 is the value: `basis` has the polynomial of each, by degree.

    `table`: (k, i, j, c) for (f g)_k = Σ c f_i g_j. `outputs`: of each derivative asked for (stream, output of the
    student, coefficient).
    """

    D: int
    basis: tuple[tuple[tuple[Exponents, Fraction], ...], ...]
    table: tuple[Term, ...]
    outputs: tuple[tuple[tuple[int, int, float], ...], ...]

    @property
    def count(self) -> int:
        return len(self.basis)

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        return tuple(degree(dict(p)) for p in self.basis)

    @property
    def order(self) -> int:
        return self.degrees[-1]

    @cached_property
    def wanted(self) -> tuple[int, ...]:
        """Those of which the outputs are made: the last activation gives no others."""
        return tuple(sorted({k for row in self.outputs for k, _, _ in row}))

    @cached_property
    def first(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """The streams of degree 1 as directions [D]: h₀ has the value and these alone."""
        rows = []
        for k, p in enumerate(self.basis):
            if self.degrees[k] == 1:
                direction = [0.0] * self.D
                for e, c in p:
                    direction[e.index(1)] = float(c)
                rows.append((k, tuple(direction)))
        return tuple(rows)

    @cached_property
    def powers(self) -> tuple[tuple[int, int, tuple[Term, ...]], ...]:
        """(a, b, terms) for u_m = u_a u_b, m = a + b from 2 on, of u_1 = z - z₀, which begins with degree 1."""
        rows = []
        for m in range(2, self.order + 1):
            a, b = m // 2, m - m // 2
            folded: dict[tuple[int, int, int], float] = {}
            for k, i, j, c in self.table:
                if i and j and self.degrees[i] >= a and self.degrees[j] >= b:
                    key = (k, min(i, j), max(i, j)) if a == b else (k, i, j)
                    folded[key] = folded.get(key, 0.0) + c
            rows.append((a, b, tuple((*key, c) for key, c in folded.items())))
        return tuple(rows)


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


@lru_cache(maxsize=256)
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
    outputs = tuple(
        tuple((pivots[e], o, float(c)) for o, p in row for e, c in p if e in pivots) for row in asked
    )  # fmt: skip
    return Streams(D, tuple(tuple(p.items()) for p in basis), tuple(table), outputs)

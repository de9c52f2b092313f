"""Derivatives as polynomials in ξ, exactly: ∂ₓ²∂ₜ is ξₓ²ξₜ. {exponents: coefficient} is one, {} is zero."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

Exponents = tuple[int, ...]
Polynomial = dict[Exponents, Fraction]


def degree(p: Polynomial) -> int:
    return max([sum(e) for e in p] or [0])


def added(p: Polynomial, q: Polynomial, factor: Fraction = Fraction(1)) -> Polynomial:
    """p + factor · q."""
    total = dict(p)
    for e, c in q.items():
        total[e] = total.get(e, Fraction(0)) + factor * c
    return {e: c for e, c in total.items() if c}


def multiplied(p: Polynomial, q: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for (e, c), (f, d) in itertools.product(p.items(), q.items()):
        total = added(total, {tuple(n + k for n, k in zip(e, f, strict=True)): c * d})
    return total


def differentiated(p: Polynomial, i: int) -> Polynomial:
    return {(*e[:i], e[i] - 1, *e[i + 1 :]): c * e[i] for e, c in p.items() if e[i]}


def by_degree(p: Polynomial) -> dict[int, Polynomial]:
    """The homogeneous parts."""
    parts: dict[int, Polynomial] = {}
    for e, c in p.items():
        parts.setdefault(sum(e), {})[e] = c
    return parts


def span(polynomials: list[Polynomial]) -> dict[Exponents, Polynomial]:
    """A basis of the span of homogeneous polynomials of one degree, in reduced echelon form: by pivots, which each of
    them alone has, with 1 for it. Where all are monomials, so is the basis."""
    rows: dict[Exponents, Polynomial] = {}
    for p in polynomials:
        for pivot, row in rows.items():
            p = added(p, row, -p[pivot]) if pivot in p else p
        if p:
            new = max(p)
            p = {e: c / p[new] for e, c in p.items()}
            rows = {pivot: added(row, p, -row[new]) if new in row else row for pivot, row in rows.items()}
            rows[new] = p
    return dict(sorted(rows.items(), reverse=True))


def shifted(p: Polynomial) -> dict[tuple[Exponents, Exponents], Fraction]:
    """p(ξ + η) = Σ c ξᵇ ηᶜ, which is the rule of products: p(∂)(f g) = Σ c (∂ᵇf) (∂ᶜg)."""
    parts: dict[tuple[Exponents, Exponents], Fraction] = {}
    for e, c in p.items():
        for b in itertools.product(*(range(n + 1) for n in e)):
            rest = tuple(n - k for n, k in zip(e, b, strict=True))
            ways = math.prod(math.comb(n, k) for n, k in zip(e, b, strict=True))
            parts[b, rest] = parts.get((b, rest), Fraction(0)) + ways * c
    return parts

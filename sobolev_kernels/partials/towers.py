"""Streams of the derivatives along directions, up to an order, and of the sum of the second ones."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from .plan import Streams, plan
from .polynomials import Exponents, Polynomial


@lru_cache(maxsize=256)
def towers(P: int, O: int, order: int) -> Streams:
    """Values and derivatives 1 … order along P directions, each of all O outputs: [1 + order·P] results of O."""
    asked = [(0,) * P]
    asked += [tuple(k * (p == q) for q in range(P)) for k in range(1, order + 1) for p in range(P)]
    return plan(tuple(row for e in asked for row in rows({e: Fraction(1)}, O)), P)


def rows(polynomial: Polynomial, O: int) -> Iterator[tuple[tuple[int, tuple[tuple[Exponents, Fraction], ...]], ...]]:
    """A derivative of each output, as `plan` takes them."""
    return (((o, tuple(polynomial.items())),) for o in range(O))


@lru_cache(maxsize=64)
def laplacians(P: int) -> Streams:
    """The value and the sum of the second derivatives along P directions, of one output."""
    square = {tuple(2 * (i == j) for j in range(P)): Fraction(1) for i in range(P)}
    return plan(tuple(row for p in ({(0,) * P: Fraction(1)}, square) for row in rows(p, 1)), P)

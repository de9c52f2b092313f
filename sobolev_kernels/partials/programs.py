"""What the core does with streams at each layer, as sums of products of numbers in slots (csrc/jets.h): docs/math.md,
section 15."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..math.table import Formula
from ..modules import IDENTITY
from .plan import Streams

Sum = tuple[int, list[tuple[int, int, float]]]


class Asked(NamedTuple):
    """What goes through which layers, in products of which precision."""

    streams: Streams
    widths: tuple[int, ...]
    biases: tuple[bool, ...]
    activations: tuple[Formula, ...]
    precision: str


class Program(NamedTuple):
    """Slots in all, those of σ, σ' … (None if it is not needed), and what is put where, one after the other."""

    slots: int
    sigma: list[int | None]
    sums: list[Sum]


class Layer(NamedTuple):
    """Streams of z, and of h; those of σ'(z) that the adjoint reads; and the programs, None of the identity."""

    given: tuple[int, ...]
    made: tuple[int, ...]
    kept: tuple[int, ...]
    values: Program | None
    forward: Program | None
    adjoint: Program | None


def layers_of(streams: Streams, activations: Sequence[Formula]) -> list[Layer]:
    """Of each layer: the inputs have the value and the streams of degree 1, a curved layer makes all of them, and the
    last one those that results are made of."""
    curved = [l for l, formula in enumerate(activations) if formula != IDENTITY]
    given, layers = (0, *(k for k, _ in streams.first)), []
    for l in range(len(activations)):
        if l not in curved:
            layers.append(Layer(given, given, (), None, None, None))
            continue
        made = streams.wanted if l == curved[-1] else tuple(range(streams.count))
        owed = [(k, i, j, c) for k, i, j, c in streams.table if k in made and j in given]
        kept = tuple(sorted({i for _, i, _, _ in owed}))
        values, forward = (composed(streams, given, made, g) for g in ((), kept))
        layers.append(Layer(given, made, kept, values, forward, adjoint(owed, given, made, kept)))
        given = made
    return layers


def adjoint(
    owed: list[tuple[int, int, int, float]], given: tuple[int, ...], made: tuple[int, ...], kept: tuple[int, ...]
) -> Program:
    """z̄_j = Σ c g_i h̄_k, of the slots h̄, g and z̄."""
    bar, g = place(made, 0), place(kept, len(made))
    z_bar = place(given, len(made) + len(kept))
    sums = [(z_bar[j], [(g[i], bar[k], c) for k, i, at, c in owed if at == j]) for j in given]
    return Program(len(made) + len(kept) + len(given), [None] * 6, sums)


def place(streams: Sequence[int], first: int) -> dict[int, int]:
    return {k: first + n for n, k in enumerate(streams)}


def composed(streams: Streams, given: tuple[int, ...], made: tuple[int, ...], kept: tuple[int, ...]) -> Program:
    """h_k = Σ_m σ⁽ᵐ⁾ u_m[k] and g_k = Σ_m σ⁽ᵐ⁺¹⁾ u_m[k], of the slots z, h and g, where u_m is (z - z₀)ᵐ / m!."""
    z, h, g = place(given, 0), place(made, len(given)), place(kept, len(given) + len(made))
    slots = len(given) + len(made) + len(kept)
    u: list[dict[int, int]] = [{}, {k: slot for k, slot in z.items() if k}]
    sums: list[Sum] = []
    for a, b, terms in needed_powers(streams, given, {*made, *kept}):
        powers: dict[int, int] = {}
        scale = math.factorial(a) * math.factorial(b) / math.factorial(a + b)
        for k, products in terms.items():
            powers[k], slots = slots, slots + 1
            sums.append((powers[k], [(u[a][i], u[b][j], c * scale) for i, j, c in products]))
        u.append(powers)
    highest = max([m for m in range(1, len(u)) for k in {*made, *kept} if k in u[m]], default=0)
    sigma: list[int | None] = [None] * 6
    for m, direct in enumerate((h.get(0), g.get(0), *(None,) * 4)):
        if direct is not None:
            sigma[m] = direct
        elif (h and 1 <= m <= highest) or (g and 2 <= m <= highest + 1):
            sigma[m], slots = slots, slots + 1
    for of, shift in ((h, 0), (g, 1)):
        for k, slot in of.items():
            if k:
                sums.append((slot, [(sigma[m + shift], u[m][k], 1.0) for m in range(1, len(u)) if k in u[m]]))
    return Program(slots, sigma, sums)


def needed_powers(
    streams: Streams, given: tuple[int, ...], wanted: set[int]
) -> list[tuple[int, int, dict[int, list[tuple[int, int, float]]]]]:
    """(a, b, products by stream) for u_m = u_a u_b, without what is 0 since z has no such stream, and without what no
    stream that is wanted takes."""
    there, rows = [set(), set(given) - {0}], []
    for a, b, terms in streams.powers:
        found: dict[int, list[tuple[int, int, float]]] = {}
        for k, i, j, c in terms:
            if i in there[a] and j in there[b]:
                found.setdefault(k, []).append((i, j, c))
        there.append(set(found))
        rows.append((a, b, found))
    read: list[set[int]] = [set(wanted) for _ in there]
    for m in range(len(rows) + 1, 1, -1):
        a, b, found = rows[m - 2]
        rows[m - 2] = (a, b, {k: products for k, products in found.items() if k in read[m]})
        for products in rows[m - 2][2].values():
            read[a] |= {i for i, _, _ in products}
            read[b] |= {j for _, j, _ in products}
    return rows

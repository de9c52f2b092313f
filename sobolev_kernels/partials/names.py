"""`Fields`: what inputs and outputs are called, and which derivative a name like "u_xx + 2*u_yy" is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import torch

from ..errors import Fault, NotProvided, clipped, in_words, nearest, need, refuse
from ..math.activations import ORDERS
from .plan import Streams, plan
from .polynomials import Exponents, Polynomial, added, degree

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(rf"\s*([+-]?)\s*(?:({NUMBER})(?:\s*/\s*({NUMBER}))?\s*\*\s*)?([^\W\d_]\w*)\s*")
NAME = re.compile(r"[^\W\d_][^\W_]*")
SMALLEST = Fraction(1, 10**30)  # of a coefficient, and one over the largest
EXAMPLE = 'inputs and outputs, as "x t -> u" or "x y -> u v p"'


@dataclass(frozen=True)
class Fields:
    """What a student's inputs and outputs are called, in the order of their columns, for `partials`.

    `Fields("x y t -> u v")` is a student of three inputs and two outputs, whose derivatives are "u", "v_t", "u_xxy":
    the output, an underscore, and an input for each time that it is differentiated by it, in any order.

    Args:
        names: inputs, an arrow and outputs, apart by spaces or commas. A name is a letter, perhaps more letters and
            digits; none of the inputs begins with another, so that "u_x1x2" can be read in one way.

    Raises:
        TypeError, ValueError: no such names, or one twice.

    Example:
        >>> Fields("x t -> u").outputs
        ('u',)
    """

    names: str
    inputs: tuple[str, ...] = field(init=False, repr=False)
    outputs: tuple[str, ...] = field(init=False, repr=False)

    @in_words
    def __init__(self, names: str):
        need(isinstance(names, str), "names", f"a text of {EXAMPLE}", names, TypeError)
        sides = [side.replace(",", " ").split() for side in names.split("->")]
        need(len(sides) == 2 and all(sides), "names", EXAMPLE, names or "an empty text")
        for name in (every := sides[0] + sides[1]):
            need(NAME.fullmatch(name) is not None, "names", "letters and digits, a letter first", name)
            need(every.count(name) == 1, "names", "each name once", f"{name!r} twice in {names!r}")
        for name in sides[0]:
            longer = next((other for other in sides[0] if other != name and other.startswith(name)), name)
            need(longer == name, "names", "inputs of which none begins with another", f"{name!r} and {longer!r}")
        for attribute, value in zip(("names", "inputs", "outputs"), (names, *map(tuple, sides)), strict=True):
            object.__setattr__(self, attribute, value)

    def plan(self, names: Sequence[str]) -> Streams:
        """The streams of derivatives by their names."""
        return planned(self.names, tuple(names))

    def terms(self, names: Sequence[str]) -> list[list[tuple[int, Exponents, float]]]:
        """Of each name the terms (output, exponents, coefficient)."""
        return [[(o, e, float(c)) for o, p in self.read(name).items() for e, c in p.items()] for name in names]

    def read(self, name: str) -> dict[int, Polynomial]:
        """A sum of derivatives of outputs: by output a polynomial.

        Raises:
            TypeError, ValueError: it cannot be read, or names what there is not.
            NotImplementedError: it is of a higher order than is provided.
        """
        need(isinstance(name, str), "names", "texts, as 'u_xx'", name, TypeError)
        total: dict[int, Polynomial] = {}
        end, terms = 0, 0
        while end < len(name) or not terms:
            term = TERM.match(name, end)
            if term is None or (terms and not term[1]):
                rest = clipped(name[end:], 40) or "nothing"
                expected = "a derivative as 'u', 'u_xt' or 'u_xx + 2*u_yy'"
                refuse([Fault("names", expected, f"{clipped(name, 80)!r} (at {rest!r})")])
            sign, above, below, symbol = term.groups()
            need(below is None or Fraction(below) != 0, "names", "no division by 0", name)
            factor = Fraction(above or 1) / Fraction(below or 1) * (-1 if sign == "-" else 1)
            output, exponents = self.symbol(symbol)
            total[output] = added(total.get(output, {}), {exponents: Fraction(1)}, factor)
            end, terms = term.end(), terms + 1
        need(any(total.values()), "names", "a sum that is not 0", name)
        sizes = [abs(c) for polynomial in total.values() for c in polynomial.values()]
        within = min(sizes) >= SMALLEST and max(sizes) * SMALLEST <= 1  # numbers of float32, and products of some
        need(within, "names", f"coefficients of {float(SMALLEST):g} to {float(1 / SMALLEST):g}", clipped(name, 80))
        order = max(map(degree, total.values()))
        need(order <= ORDERS, "names", f"derivatives up to order {ORDERS}", f"{name!r}, of order {order}", NotProvided)
        return {output: p for output, p in total.items() if p}

    def symbol(self, symbol: str) -> tuple[int, tuple[int, ...]]:
        """The output of "u_xxt", and how often it is differentiated by each input."""
        output, *by = symbol.split("_")
        known = "one of " + ", ".join(self.outputs)
        what = f"{known} before the underscore, as fields are named ({clipped(self.names, 80)!r})"
        if output not in self.outputs:
            refuse([Fault("names", what, symbol, hint=self.meant(symbol))])
        exponents = [0] * len(self.inputs)
        for part in by:
            rest = part
            while rest or not part:
                i = next((i for i, name in enumerate(self.inputs) if rest.startswith(name)), None)
                if i is None:
                    what = f"inputs {', '.join(self.inputs)} after the underscore"
                    refuse([Fault("names", what, symbol, hint=self.meant(symbol))])
                exponents[i] += 1
                rest = rest[len(self.inputs[i]) :]
        return self.outputs.index(output), tuple(exponents)

    def meant(self, symbol: str) -> str:
        """A derivative of first or second order that is spelt much like it."""
        by = ["", *(f"_{a}" for a in self.inputs), *(f"_{a}{b}" for a in self.inputs for b in self.inputs)]
        return nearest(symbol, [o + i for o in self.outputs for i in by])


@lru_cache(maxsize=256)
def planned_once(fields: str, names: tuple[str, ...]) -> Streams:
    of = Fields(fields)
    rows = tuple(tuple((o, tuple(p.items())) for o, p in of.read(name).items()) for name in names)
    return plan(rows, len(of.inputs))


@torch.compiler.assume_constant_result
def planned(fields: str, names: tuple[str, ...]) -> Streams:
    """The streams of names, made once; a compiler takes them for a constant."""
    return planned_once(fields, names)

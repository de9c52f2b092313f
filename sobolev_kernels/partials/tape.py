"""A residual function run once on symbols: which sums of products of names, coordinates and coefficients it is, and
which functions of such sums, in the order in which it computes them, so that the core rounds as PyTorch would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from ..boundary import FLOATING, PLAIN
from ..enums import FUNCTIONS
from .names import Fields
from .programs import Program, Sum
from .symbols import canonical

# A sum of c · a · b of what has these numbers: what is given, from 0 on, the number 1, and sums that were made before.
# Coefficients that are tensors have ~0, ~1 and so on.
Terms = tuple[tuple[int, int, float], ...]
LARGEST_POWER = 8
LEAST, MOST = 1e-30, 1e30  # of a number: products of some are numbers of float32


class NoPolynomial(Exception):
    """What a function does with a symbol is none of the rules."""


class Applied(NamedTuple):
    """A function of what has the number `of`; its derivative has the number `slope`, where it may be asked for."""

    function: str
    of: int
    slope: int | None = None


class Recording(NamedTuple):
    """A set of residuals, but for the tensors among their coefficients: what is `given`, derivatives and coordinates,
    how many `coefficients`, the `sums`, functions among them, and which number each of the `residuals` is, and of which
    of the `terms`."""

    given: int
    coefficients: int
    sums: tuple[Terms | Applied, ...]
    residuals: tuple[int, ...]
    terms: tuple[int, ...]

    def form(self) -> tuple:
        """It without numbers."""
        of = (made if type(made) is Applied else tuple(term[:2] for term in made) for made in self.sums)
        return self[:2], tuple(of), self.residuals

    def values(self, given: Sequence[torch.Tensor], coefficients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The residuals by PyTorch's operations, of what is given, each [N]."""
        kept: dict[int, torch.Tensor | float] = dict(enumerate(given))
        kept |= {self.given: 1.0} | {~k: coefficient.reshape(()) for k, coefficient in enumerate(coefficients)}
        for i, terms in enumerate(self.sums):
            if type(terms) is Applied:
                argument = kept[terms.of] + torch.zeros_like(given[0])
                kept[self.given + 1 + i] = getattr(torch, terms.function)(argument)
                continue
            total = torch.zeros_like(given[0])
            for a, b, c in terms:
                total = total + c * (kept[a] * kept[b])
            kept[self.given + 1 + i] = total
        return [kept[i] + torch.zeros_like(given[0]) for i in self.residuals]


class Tape:
    """Where symbols keep what is made of them: `given` are the numbers of names."""

    def __init__(self, given: Mapping[str, int], like: torch.Tensor):
        self.given, self.dtype, self.device, self.one = given, like.dtype, like.device, len(given)
        self.grad = torch.is_grad_enabled()
        self.sums: list[Terms | Applied] = []
        self.known: dict[Terms | Applied, int] = {}
        self.coefficients: list[torch.Tensor] = []

    def named(self, name: str) -> Symbol:
        return Symbol(self, ((self.given[name], self.one, 1.0),))

    def symbol(self, part: object) -> Symbol:
        if type(part) is Symbol:
            return part
        if type(part) in PLAIN:
            return Symbol(self, ((~self.coefficient(part), self.one, 1.0),))
        return Symbol(self, scaled(((self.one, self.one, 1.0),), number(part)))

    def coefficient(self, tensor: torch.Tensor) -> int:
        for k, known in enumerate(self.coefficients):
            if known is tensor:
                return k
        alike = tensor.dtype is self.dtype or (tensor.dim() == 0 and tensor.dtype in FLOATING)
        if tensor.numel() != 1 or tensor.dim() > 2 or not alike or tensor.device != self.device:
            raise NoPolynomial
        self.coefficients.append(tensor)
        return len(self.coefficients) - 1

    def number_of(self, symbol: Symbol) -> int:
        """Of what it is, which is put down if it is more than a name."""
        terms = symbol.terms
        if len(terms) == 1 and terms[0][1:] == (self.one, 1.0):
            return terms[0][0]
        return self.put_down(terms)

    def put_down(self, made: Terms | Applied) -> int:
        if made not in self.known:
            self.sums.append(made)
            self.known[made] = self.one + len(self.sums)
        return self.known[made]

    def applied(self, function: str, symbol: Symbol) -> Symbol:
        return Symbol(self, ((self.put_down(Applied(function, self.number_of(symbol))), self.one, 1.0),))

    def slope(self, i: int) -> Symbol:
        """The derivative of a function that has this number."""
        function, of, _ = self.sums[i - self.one - 1]
        x, y = (Symbol(self, ((number, self.one, 1.0),)) for number in (of, i))
        return SLOPES[function](x, y)

    def alone(self, symbol: Symbol) -> tuple[int, float]:
        """It as a number times one of what is there."""
        terms = symbol.terms
        if len(terms) == 1 and terms[0][1] == self.one:
            return terms[0][0], terms[0][2]
        if len(terms) == 1:
            a, b, c = terms[0]
            return self.number_of(Symbol(self, ((a, b, 1.0),))), c
        return self.number_of(symbol), 1.0

    def same(self) -> None:
        """A part in no_grad is no part of the graph."""
        if torch.is_grad_enabled() is not self.grad:
            raise NoPolynomial

    def derivative(self, of: Symbol, leaves: Mapping[int, Symbol], kept: dict[int, Symbol]) -> Symbol:
        """The chain rule, from the derivatives of leaves; those of others are 0."""

        def at(i: int) -> Symbol:
            if i <= self.one:
                return leaves.get(i, Symbol(self, ()))
            if i not in kept:
                made = self.sums[i - self.one - 1]
                if type(made) is Applied:
                    kept[i] = times(self.slope(i), at(made.of))
                else:
                    kept[i] = self.derivative(Symbol(self, made), leaves, kept)
            return kept[i]

        total = Symbol(self, ())
        for a, b, c in of.terms:
            for this, other in ((a, b), (b, a)):
                total = plus(total, times(at(this), Symbol(self, ((other, self.one, c),))))
        return total

    def recording(self, residuals: Sequence[Symbol]) -> Recording:
        numbers = tuple(map(self.number_of, residuals))
        todo, slopes = list(numbers), {}
        while todo:
            if (i := todo.pop()) <= self.one or i in slopes:
                continue
            made = self.sums[i - self.one - 1]
            slopes[i] = self.number_of(self.slope(i)) if type(made) is Applied else None
            todo += [made.of] if type(made) is Applied else [j for a, b, _ in made for j in (a, b)]
        sums = (
            made._replace(slope=slopes.get(i)) if type(made) is Applied else made
            for i, made in enumerate(self.sums, self.one + 1)
        )
        return Recording(self.one, len(self.coefficients), tuple(sums), numbers, tuple(range(len(numbers))))


class Names:
    """What a residual function is given, as `symbols.Named` of tensors."""

    def __init__(self, tape: Tape, fields: Fields):
        self.__dict__.update(_tape=tape, _fields=fields)

    def __getitem__(self, name: str) -> Symbol:
        given = self._tape.given
        return self._tape.named(name if name in given else canonical(self._fields, name))

    def __getattr__(self, name: str) -> Symbol:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


class Symbol:
    """A sum on a tape, which knows the rules of polynomials, and some functions, alone."""

    __slots__ = ("tape", "terms")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tape: Tape, terms: Terms):
        self.tape, self.terms = tape, terms

    def __getattr__(self, name: str) -> Callable:
        if name not in RULES:
            raise NoPolynomial(name)
        return partial(applied, RULES[name], self)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        own = getattr(function, "__name__", "")
        in_place, name = own.endswith("_") and not own.endswith("__"), own.strip("_")
        if keywords or in_place or name not in RULES:
            raise NoPolynomial(own)
        return applied(RULES[name], *arguments)

    def none(self, *_):
        raise NoPolynomial

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = none  # type: ignore[assignment]
    __len__ = __iter__ = __getitem__ = __float__ = __int__ = __index__ = __contains__ = none
    __repr__ = __str__ = __format__ = __reduce_ex__ = __copy__ = __deepcopy__ = none  # type: ignore[assignment]

    def __add__(self, other):
        return applied(plus, self, other)

    def __radd__(self, other):
        return applied(plus, other, self)

    def __sub__(self, other):
        return applied(minus, self, other)

    def __rsub__(self, other):
        return applied(minus, other, self)

    def __mul__(self, other):
        return applied(times, self, other)

    def __rmul__(self, other):
        return applied(times, other, self)

    def __truediv__(self, other):
        return over(self, other)

    def __rtruediv__(self, other):
        return over(other, self)

    def __pow__(self, n):
        return power(self, n)

    def __neg__(self):
        return applied(times, self, -1.0)

    def __pos__(self):
        return self


def applied(rule: Callable, *parts: object) -> Symbol:
    tape = next(part.tape for part in parts if type(part) is Symbol)
    tape.same()
    if rule in OWN:
        return rule(*parts)
    if len(parts) != 2:
        raise NoPolynomial
    return rule(*map(tape.symbol, parts))


def number(part: object) -> float:
    if not isinstance(part, (int, float, Fraction)) or isinstance(part, bool):
        raise NoPolynomial
    return float(part)


def scaled(terms: Terms, factor: float) -> Terms:
    if factor == 1:
        return terms
    found = tuple((a, b, c * factor) for a, b, c in terms)
    if not all(LEAST <= abs(c) <= MOST or c == 0 for _, _, c in found):
        raise NoPolynomial
    return found


def plus(a: Symbol, b: Symbol) -> Symbol:
    """Of several terms to the right, which PyTorch sums first, the sum."""
    return Symbol(a.tape, a.terms + summed(b)) if a.terms else b


def minus(a: Symbol, b: Symbol) -> Symbol:
    return Symbol(a.tape, a.terms + scaled(summed(b), -1.0))


def summed(b: Symbol) -> Terms:
    return b.terms if len(b.terms) < 2 else ((b.tape.number_of(b), b.tape.one, 1.0),)


def times(a: Symbol, b: Symbol) -> Symbol:
    tape = a.tape
    if not a.terms or not b.terms:
        return Symbol(tape, ())
    (left, c), (right, d) = tape.alone(a), tape.alone(b)
    if left == tape.one:
        left, right = right, left
    return Symbol(tape, scaled(((left, right, 1.0),), c * d))


def over(a: object, b: object) -> Symbol:
    tape = a.tape if type(a) is Symbol else b.tape
    tape.same()
    if type(b) is Symbol:
        return times(tape.symbol(a), tape.applied("reciprocal", b))
    if type(b) in PLAIN:
        return times(a, a.tape.symbol(1 / b))
    return times(a, a.tape.symbol(1 / number(b)))


def power(a: object, n: object) -> Symbol:
    if type(a) is not Symbol or not isinstance(n, (int, float)) or isinstance(n, bool):
        raise NoPolynomial
    a.tape.same()
    if n in (0.5, -0.5):
        root = a.tape.applied("sqrt", a)
        return root if n > 0 else a.tape.applied("reciprocal", root)
    if n != int(n) or not -LARGEST_POWER <= n <= LARGEST_POWER:
        raise NoPolynomial
    if n < 0:
        return a.tape.applied("reciprocal", power(a, -n))
    result = a.tape.symbol(1.0)
    for _ in range(int(n)):
        result = times(result, a)
    return result


def square(a: Symbol) -> Symbol:
    return times(a, a)


def negative(a: Symbol) -> Symbol:
    return Symbol(a.tape, scaled(a.terms, -1.0))


def positive(a: Symbol) -> Symbol:
    return a


def of_function(function: str) -> Callable[[Symbol], Symbol]:
    return lambda a: a.tape.applied(function, a)


APPLIED = {name: of_function(name) for name in FUNCTIONS}
# Derivatives of functions, of x and y = f(x).
SLOPES: dict[str, Callable[[Symbol, Symbol], Symbol]] = {
    "exp": lambda x, y: y, "log": lambda x, y: APPLIED["reciprocal"](x), "sin": lambda x, y: APPLIED["cos"](x),
    "cos": lambda x, y: negative(APPLIED["sin"](x)), "tanh": lambda x, y: minus(y.tape.symbol(1.0), times(y, y)),
    "sqrt": lambda x, y: times(y.tape.symbol(0.5), APPLIED["reciprocal"](y)),
    "reciprocal": lambda x, y: negative(times(y, y)),
}  # fmt: skip
OWN = {over, power, square, negative, positive, *APPLIED.values()}  # that take numbers as they are
RULES: dict[str, Callable[..., Symbol]] = {
    "add": plus, "radd": plus, "mul": times, "rmul": times, "multiply": times, "sub": minus, "subtract": minus,
    "rsub": lambda a, b: minus(b, a), "pow": power, "div": over, "divide": over, "truediv": over, "square": square,
    "neg": negative, "negative": negative, "positive": positive, "rtruediv": lambda a, b: over(b, a),
    "rdiv": lambda a, b: over(b, a), **APPLIED,
}  # fmt: skip


class Told(NamedTuple):
    """What the core is told of residuals: slots of what is given, of coefficients, of 1 and of what is made.
    `functions` (name, of, to, after how many sums) are amid those of `values`."""

    values: Program
    adjoint: Program
    deviations: list[tuple[int, int, int]]
    bars: list[int]
    functions: list[tuple[str, int, int, int]]


@lru_cache(maxsize=256)
def told(recording: Recording, asked: tuple[bool, ...]) -> Told:
    """The programs of residuals, and from their slopes of the adjoints of what is asked for among what is given and the
    coefficients."""
    given, K, one = recording.given, recording.coefficients, recording.given + recording.coefficients
    slot = lambda i: given + ~i if i < 0 else i if i < given else i + K  # noqa: E731
    wanted = {i for i, here in enumerate(asked) if here}
    sums: list[Sum] = []
    functions: list[tuple[str, int, int, int]] = []
    slopes: list[Sum] = []  # of what is made, products of which this is one, and with it their other factor
    for to, made in enumerate(recording.sums, one + 1):
        if type(made) is Applied:
            of = slot(made.of)
            functions.append((made.function, of, to, len(sums)))
            slopes.append((to, [] if made.slope is None else [(of, slot(made.slope), 1.0)]))
        else:
            terms = [(slot(a), slot(b), c) for a, b, c in made]
            sums.append((to, terms))
            slopes.append((to, [product for a, b, c in terms for product in ((a, b, c), (b, a, c))]))
        if any(this in wanted for this, _, _ in slopes[-1][1]):
            wanted.add(to)
    slots = one + 1 + len(recording.sums)
    deviations, owed = [], {}
    for residual, t in zip(map(slot, recording.residuals), recording.terms, strict=True):
        deviations.append((residual, slots, t))
        owed.setdefault(residual, []).append((slots, one, 1.0))
        slots += 1
    back: list[Sum] = []

    def bar(i: int) -> int | None:
        """The slot of an adjoint, of which all parts are known."""
        nonlocal slots
        parts = owed.get(i)
        if parts is None or i not in wanted:
            return None
        if len(parts) == 1 and parts[0][1:] == (one, 1.0):
            return parts[0][0]
        back.append((slots, parts))
        slots += 1
        return slots - 1

    for to, products in reversed(slopes):
        of = bar(to)
        for this, other, c in products if of is not None else ():
            if this in wanted:
                owed.setdefault(this, []).append((of, other, c))
    bars = [-1 if (found := bar(i)) is None else found for i in range(one)]
    sigma: list[int | None] = [None] * 6
    return Told(Program(slots, sigma, sums), Program(slots, sigma, back), deviations, bars, functions)

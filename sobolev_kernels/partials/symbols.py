"""A residual function run once on tensors that remember: which names it reads, and which polynomial of them it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..backends.exact import graphs
from ..enums import FUNCTIONS
from ..errors import need
from .names import Fields
from .polynomials import Polynomial

# A product of names, each with its power, and a sum of them with coefficients: numbers, or tensors of one number.
Monomial = tuple[tuple[str, int], ...]
Sum = dict[Monomial, "float | torch.Tensor"]
SAMPLES = 3  # that a function is recorded with: numbers between 1/2 and 3/2, at which roots and logarithms are numbers


class Named:
    """What a residual function is given: `p.u_xx` or `p["u_xx + u_yy"]`, each [N, 1]."""

    def __init__(self, fields: Fields, get: Callable[[str], torch.Tensor]):
        self.__dict__.update(_fields=fields, _get=get)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._get(canonical(self._fields, name))

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


def canonical(fields: Fields, name: str) -> str:
    """The one text of an input, or of a derivative or a sum of them, however it is spelt."""
    return canonical_of(fields.names, name) if isinstance(name, str) else text_of(fields, fields.read(name))


@lru_cache(maxsize=1024)
def canonical_once(names: str, name: str) -> str:
    fields = Fields(names)
    return name if name in fields.inputs else text_of(fields, fields.read(name))


@torch.compiler.assume_constant_result
def canonical_of(names: str, name: str) -> str:
    """Made once; a compiler takes it for a constant."""
    return canonical_once(names, name)


def text_of(fields: Fields, read: Mapping[int, Polynomial]) -> str:
    """The inverse of `Fields.read`."""
    terms = []
    for o in sorted(read):
        for exponents, c in sorted(read[o].items(), reverse=True):
            by = "".join(name * n for name, n in zip(fields.inputs, exponents, strict=True))
            symbol = fields.outputs[o] + ("_" if by else "") + by
            sign = " - " if c < 0 else " + "
            terms += [sign, symbol if abs(c) == 1 else f"{abs(c)}*{symbol}"]
    return ("-" if terms[0] == " - " else "") + "".join(terms[1:])


def differentiated_name(fields: Fields, name: str, by: str) -> str:
    """What "u_xx + u_yy" is when it is differentiated once more."""
    i = fields.inputs.index(by)
    read = fields.read(name)
    raised = {o: {(*e[:i], e[i] + 1, *e[i + 1 :]): c for e, c in p.items()} for o, p in read.items()}
    return text_of(fields, raised)


class Recorded(torch.Tensor):
    """A tensor that knows which polynomial of names it is; of what is none, `polynomial` is None, and `because` of what
    operation. `elementary`: whether it is made by operations that a tape may know."""

    polynomial: Sum | None
    because: str
    elementary: bool

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        own = getattr(function, "__name__", "")
        name = own.strip("_")
        # a ValueError, since of a TypeError Python makes that + is tried instead of +=
        in_place = (own.endswith("_") and not own.endswith("__")) or own == "__setitem__"
        need(not in_place, "function", "operations that leave what it reads as it is", f"{own} in place")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*tree_map(beside, arguments), **tree_map(beside, keywords or {}))
        rule, found = RULES.get(name), None
        if rule is not None and not keywords and all(map(is_part, arguments)):
            found = rule(*map(sum_of, arguments))
        before = (part.because for part in tree_leaves(arguments) if isinstance(part, Recorded) and part.because)
        because = "" if found is not None else next(before, name)
        known = name in RULES or name in FUNCTIONS
        elementary = known and not keywords and all(isinstance(a, Recorded) or is_part(a) for a in arguments)
        elementary = elementary and all(a.elementary for a in arguments if isinstance(a, Recorded))
        made = lambda part: recorded(part, found, because, elementary)  # noqa: E731
        return tree_map(lambda part: made(part) if isinstance(part, torch.Tensor) else part, result)


def recorded(tensor: torch.Tensor, polynomial: Sum | None, because: str = "", elementary: bool = True) -> Recorded:
    result = tensor.as_subclass(Recorded)
    result.polynomial, result.because, result.elementary = polynomial, because, elementary
    return result


def beside(part: object) -> object:
    """On the device of the numbers that are recorded with."""
    return part.cpu() if isinstance(part, torch.Tensor) and not isinstance(part, Recorded) else part


def is_part(part: object) -> bool:
    """Whether it can be a part of a polynomial."""
    if isinstance(part, Recorded):
        return part.polynomial is not None
    if isinstance(part, torch.Tensor):
        return part.numel() == 1 and part.dim() < 3
    return isinstance(part, (int, float, Fraction)) and not isinstance(part, bool)


def sum_of(part: object) -> Sum:
    if isinstance(part, Recorded):
        return part.polynomial
    return {(): part.reshape(()) if isinstance(part, torch.Tensor) else float(part)}


def plus(a: Sum, b: Sum, factor: float = 1.0) -> Sum:
    total = dict(a)
    for monomial, c in b.items():
        c = c if factor == 1 else factor * c
        total[monomial] = total[monomial] + c if monomial in total else c
    return {monomial: c for monomial, c in total.items() if isinstance(c, torch.Tensor) or c != 0}


def times(a: Sum, b: Sum) -> Sum:
    total: Sum = {}
    for left, c in a.items():
        for right, d in b.items():
            powers = dict(left)
            for name, n in right:
                powers[name] = powers.get(name, 0) + n
            total = plus(total, {tuple(sorted(powers.items())): c * d})
    return total


def power(a: Sum, b: Sum) -> Sum | None:
    n = b.get((), 0.0) if set(b) <= {()} else None
    if not isinstance(n, float) or n != int(n) or not 0 <= n <= 8:
        return None
    result: Sum = {(): 1.0}
    for _ in range(int(n)):
        result = times(result, a)
    return result


def over(a: Sum, b: Sum) -> Sum | None:
    """Divided by what depends on no name."""
    return times(a, {(): 1 / b[()]}) if set(b) == {()} else None


RULES: dict[str, Callable[..., Sum | None]] = {
    "add": plus, "radd": plus, "mul": times, "rmul": times, "pow": power, "div": over, "truediv": over,
    "sub": lambda a, b: plus(a, b, -1.0), "rsub": lambda a, b: plus(b, a, -1.0), "neg": lambda a: plus({}, a, -1.0),
    "negative": lambda a: plus({}, a, -1.0), "square": lambda a: times(a, a), "positive": lambda a: a,
    "multiply": times, "subtract": lambda a, b: plus(a, b, -1.0), "divide": over, "rtruediv": lambda a, b: over(b, a),
    "rdiv": lambda a, b: over(b, a),
}  # fmt: skip


def record(function: Callable, fields: Fields) -> tuple[object, tuple[str, ...]]:
    """What it returns of recorded tensors, and the names that it read, in this order."""
    try:
        return recorded_in(torch.float32, function, fields)
    except RuntimeError:  # a network of float64 in it takes no other numbers
        return recorded_in(torch.float64, function, fields)


def recorded_in(dtype: torch.dtype, function: Callable, fields: Fields) -> tuple[object, tuple[str, ...]]:
    read: dict[str, Recorded] = {}

    def get(name: str) -> Recorded:
        if name not in read:
            numbers = torch.linspace(0.5, 1.5, SAMPLES, dtype=dtype)[:, None] + 0.01 * len(read)
            read[name] = recorded(numbers, {((name, 1),): 1.0})
        return read[name]

    with graphs():
        return function(Named(fields, get)), tuple(read)


def derivative_of(polynomial: Sum, fields: Fields, by: str) -> Sum:
    """The chain rule on names."""
    total: Sum = {}
    for monomial, c in polynomial.items():
        for name, n in monomial:
            if name in fields.inputs and name != by:
                continue
            rest = {other: m for other, m in monomial if other != name}
            left: Sum = {tuple(sorted((rest | ({name: n - 1} if n > 1 else {})).items())): c * n}
            inner: Sum = {(): 1.0} if name == by else {((differentiated_name(fields, name, by), 1),): 1.0}
            total = plus(total, times(left, inner))
    return total


def in_words(polynomial: Sum) -> str:
    """As "u_t + u u_x - 0.01 u_xx"; of a learnt coefficient its number now, in brackets."""
    return "".join(words_of(polynomial)) or "0"


def words_of(polynomial: Sum) -> Iterator[str]:
    for place, (monomial, c) in enumerate(polynomial.items()):
        learnt = isinstance(c, torch.Tensor)
        number = float(c.detach() if learnt else c)
        sign = "-" if number < 0 and not learnt else "+"
        yield (f" {sign} " if place else "-" if sign == "-" else "")
        product = " ".join((f"({name})" if " " in name else name) + (f"^{n}" if n > 1 else "") for name, n in monomial)
        size = f"[{number:.4g}]" if learnt else f"{abs(number):.4g}"
        yield product if product and not learnt and abs(number) == 1 else " ".join(p for p in (size, product) if p)

"""Rules of sums, products and of what is chosen between two values."""

from __future__ import annotations

from functools import partial, reduce
from itertools import combinations

import torch
from torch.nn import functional

from .pair import (
    RULES,
    TWICE,
    Pair,
    as_samples,
    broadcast,
    first,
    is_pair,
    lifted,
    new,
    rule,
    value,
)  # fmt: skip
from .shapes import clone, joined, narrow, reshaped, to
from .trusted import by_jvp, elementwise
from .twice import Product, curved, is_twice, levelled, pointwise, tangents


def product(function, a, b) -> Pair:
    """Of a function that is linear in both, which it broadcasts."""
    v = function(value(a), value(b))
    n = v.dim()
    if not is_pair(a) and not is_pair(b):  # amid a sum with a pair
        return v
    if not is_pair(b):
        return new(a, v, broadcast(function(lifted(a.d, n), b), v))
    if not is_pair(a):
        return new(b, v, broadcast(function(a, lifted(b.d, n)), v))
    da, db = (lifted(d, n) for d in levelled(a, b))
    t = function(da, b.v) + function(a.v, db)
    if not is_twice(a):
        return new(a, v, broadcast(t, v))
    return curved(a, v, t, 2 * function(lifted(tangents(a), n), lifted(tangents(b), n)))


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


@rule("mul", "__mul__", "__rmul__", "multiply", twice=True)
def mul(input, other):
    if is_pair(input) and is_pair(other) and is_twice(input) and alike(input.v, other.v):
        (a, b), run = levelled(input, other), input.run
        return new(input, input.v * other.v, Product.apply(a, input.v, b, other.v, run.P, run.S))
    return product(torch.mul, input, other)


@rule("matmul", "__matmul__", "bmm", "mm", twice=True)
def matmul(input, other):
    if value(other).dim() == 1:
        return matmul(input, other.unsqueeze(-1)).squeeze(-1)
    if value(input).dim() == 1:
        return matmul(input.unsqueeze(0), other).squeeze(-2)
    return product(torch.matmul, input, other)


rule("matmul", spaces=(torch.linalg,), twice=True)(matmul)


@rule("mv", twice=True)
def mv(input, vec):
    return matmul(input, vec)


@rule("dot", "vdot", twice=True)
def dot(input, other):
    return (input * other).sum()


@rule("outer", "ger", twice=True)
def outer(input, vec2):
    return input.unsqueeze(-1) * vec2


@rule("__rmatmul__", twice=True)
def rmatmul(input, other):
    return matmul(other, input)


@rule("linear", twice=True)
def linear(input, weight, bias=None):
    if is_pair(weight) or is_pair(bias):
        z = matmul(input, weight.mT if weight.dim() == 2 else weight)
        return z if bias is None else z + bias
    return new(input, *layer(input.v, input.d, weight, bias))


def layer(v, d, weight, bias) -> tuple[torch.Tensor, torch.Tensor]:
    """What a linear layer makes of a value and of its derivatives."""
    return functional.linear(v, weight, bias), functional.linear(d, weight)


@rule("addmm", "baddbmm", twice=True)
def addmm(input, batch1, batch2, *, beta=1, alpha=1):
    return add(mul(alpha, matmul(batch1, batch2)) if alpha != 1 else matmul(batch1, batch2), input, alpha=beta)


@rule("addcmul", twice=True)
def addcmul(input, tensor1, tensor2, *, value=1):
    return add(mul(tensor1, tensor2), input) if value == 1 else add(input, mul(tensor1, tensor2), alpha=value)


@rule("add", "__add__", "__radd__", twice=True)
def add(input, other, *, alpha=1):
    like, a, b = first(input, other), value(input), value(other)
    v = torch.add(a, b, alpha=alpha) if isinstance(a, torch.Tensor) else a + alpha * b
    each = [broadcast(d, v) for d in levelled(*filter(is_pair, (input, other)))]
    if len(each) == 2:
        return new(like, v, as_samples(partial(torch.add, alpha=alpha), *each))
    return new(like, v, alpha * each[0] if alpha != 1 and is_pair(other) else each[0])


@rule("sub", "__sub__", "subtract", twice=True)
def sub(input, other, *, alpha=1):
    return add(input, other, alpha=-alpha)


@rule("rsub", "__rsub__", twice=True)
def rsub(input, other, *, alpha=1):
    return add(other, input, alpha=-alpha)


@rule("div", "__truediv__", "true_divide", "divide", twice=True)
def div(input, other, *, rounding_mode=None):
    if rounding_mode is not None:
        return torch.div(value(input), value(other), rounding_mode=rounding_mode)
    if not is_pair(other):
        return product(torch.div, input, other)
    v = torch.div(value(input), other.v)
    d, *numerators = (lifted(d, v.dim()) for d in levelled(other, *filter(is_pair, (input,))))
    t = -v * d
    t = broadcast((numerators[0] + t if numerators else t) / other.v, v)
    if not is_twice(other):
        return new(other, v, t)
    return curved(other, v, t, t[: other.run.P] * lifted(tangents(other), v.dim()) * (-2 / other.v))


@rule("__rtruediv__", "__rdiv__", twice=True)
def rdiv(input, other):
    return div(other, input)


@rule("pow", "__pow__", twice=True)
def power(input, exponent):
    if is_pair(exponent) or not is_pair(input) or isinstance(exponent, torch.Tensor):
        return power_of(input, exponent)
    if exponent == 0:
        return torch.ones_like(input.v)
    z, again = input.v, float(exponent * (exponent - 1))
    curvature = None if again == 0 else lambda: again if exponent == 2 else again * z ** (exponent - 2)
    return pointwise(input, z**exponent, exponent * z ** (exponent - 1), curvature)


@rule("__rpow__", twice=True)
def rpow(input, other):
    return power_of(other, input)


power_of = elementwise(torch.pow)


@rule("einsum", twice=True)
def einsum(equation, *operands):
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    like, v = first(*operands), value(list(operands))
    if not isinstance(equation, str):
        return by_jvp(torch.einsum, linear=1)(equation, *operands)
    (ins, out), y = spelt_out(equation.replace(" ", ""), [a.dim() for a in v]), torch.einsum(equation, v)
    z = next(c for c in LETTERS if c not in f"{out}{ins}")

    def along(streams: dict[int, torch.Tensor]) -> torch.Tensor:
        """With these in the places of operands."""
        named = ",".join(z + s if i in streams else s for i, s in enumerate(ins))
        return torch.einsum(f"{named}->{z}{out}", [streams.get(i, a) for i, a in enumerate(v)])

    places = [i for i, x in enumerate(operands) if is_pair(x)]
    each = levelled(*(operands[i] for i in places))
    t = reduce(torch.add, [along({i: d}) for i, d in zip(places, each, strict=True)])
    if not is_twice(like) or len(places) == 1:
        return new(like, y, t)
    pairs = combinations(((i, tangents(operands[i])) for i in places), 2)
    return curved(like, y, t, 2 * sum(along(dict(two)) for two in pairs))


@rule("bilinear", twice=True)
def bilinear(input1, input2, weight, bias=None):
    y = einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


LETTERS = "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA"


def spelt_out(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, also of dims that are not named."""
    ins, arrow, out = equation.partition("->")
    if not arrow:  # those that come once, in their order
        named = ins.replace("...", "")
        out = ("..." if "..." in ins else "") + "".join(sorted(c for c in {*named} - {","} if named.count(c) == 1))
    operands = ins.split(",")
    unnamed = [n - len(s.replace("...", "")) if "..." in s else 0 for s, n in zip(operands, dims, strict=True)]
    free = [c for c in LETTERS if c not in equation][: max(unnamed, default=0)]
    each = [s.replace("...", "".join(free[len(free) - n :])) for s, n in zip(operands, unnamed, strict=True)]
    return each, out.replace("...", "".join(free))


@rule("where", spaces=(torch,), twice=True)
def where(condition, input=None, other=None):
    if input is None or is_pair(condition):
        first(condition, input, other).run.stop("where without two values")
    v = torch.where(condition, value(input), value(other))
    if not is_pair(input) and not is_pair(other):  # of a limit that is no pair, beside one that is
        return v
    like = first(input, other)
    each = iter(levelled(*filter(is_pair, (input, other))))
    parts = [lifted(next(each), v.dim()) if is_pair(x) else v.new_zeros(()) for x in (input, other)]
    return new(like, v, broadcast(torch.where(condition, *parts), v))


RULES[torch.Tensor.where] = TWICE[torch.Tensor.where] = lambda input, condition, other: where(condition, input, other)


@rule("masked_fill", twice=True)
def masked_fill(input, mask, value):
    if not is_pair(input) or is_pair(mask) or is_pair(value):
        return where(mask, value, input)
    return new(input, input.v.masked_fill(mask, value), input.d.masked_fill(mask, 0.0))


@rule("clamp", "clip", twice=True)
def clamp(input, min=None, max=None):
    if not is_pair(input) or is_pair(min) or is_pair(max):
        y = input if min is None else where(value(input) < value(min), min, input)
        return y if max is None else where(value(y) > value(max), max, y)
    y = input.v.clamp(min, max)
    inside = (y == input.v).to(y.dtype)
    return new(input, y, broadcast(inside * lifted(input.d, y.dim()), y))


@rule("clamp_min", twice=True)
def clamp_min(input, min):
    return clamp(input, min)


@rule("clamp_max", twice=True)
def clamp_max(input, max):
    return clamp(input, None, max)


def greater(function):
    """Of two numbers; where they are equal, half of each one's derivatives, as PyTorch has it."""

    def found(input, other):
        like, a, b = first(input, other), value(input), value(other)
        v = function(a, b)
        share = ((v == a).to(v.dtype) + (v != b).to(v.dtype)) / 2
        each = iter(levelled(*filter(is_pair, (input, other))))
        of_a, of_b = (lifted(next(each), v.dim()) if is_pair(x) else v.new_zeros(()) for x in (input, other))
        return new(like, v, broadcast(torch.lerp(of_b.to(v.dtype), of_a.to(v.dtype), share), v))

    return found


maximum, minimum = greater(torch.maximum), greater(torch.minimum)
rule("maximum", twice=True)(maximum)
rule("minimum", twice=True)(minimum)


@rule("fmax", twice=True)
def fmax(input, other):
    return where((value(input) >= value(other)) | value(other).isnan(), input, other)


@rule("fmin", twice=True)
def fmin(input, other):
    return where((value(input) <= value(other)) | value(other).isnan(), input, other)


def extreme(function, towards, all_of):
    def found(input, dim=None, keepdim=False):
        if not is_pair(input) or isinstance(dim, torch.Tensor):
            return towards(input, dim)
        if dim is None:
            return all_of(input)
        found_at = function(input.v, dim, keepdim)
        v, i = found_at
        places, d = (i if keepdim else i.unsqueeze(dim)), dim % input.v.dim()
        t = input.d.gather(d + 1, places.expand(input.d.shape[0], *places.shape))
        return type(found_at)((new(input, v, t if keepdim else t.squeeze(d + 1)), i))

    return found


def farthest(function):
    """The extreme over dims; where several numbers are it, the mean of their derivatives, as PyTorch has it."""

    def reduced(input, dim=(), keepdim=False):
        v, n = input.v, input.v.dim()
        if not n:
            return clone(input)
        dims = tuple(d % n - n for d in ((dim,) if isinstance(dim, int) else tuple(dim) or range(n)))
        y = function(v, dims, True)
        share = (v == y).to(v.dtype)
        t = (share / share.sum(dims, keepdim=True) * input.d).sum(dims, keepdim=keepdim)
        return new(input, y if keepdim else y.squeeze(dims), t)

    return reduced


for name in ("max", "min"):
    found = farthest(getattr(torch, f"a{name}"))
    rule(f"a{name}", twice=True)(found)
    rule(name, twice=True)(extreme(getattr(torch, name), RULES[getattr(torch, f"{name}imum")], found))


def product_over(input, dim: int):
    """By halves, so that none of the numbers is divided by."""
    while (n := input.shape[dim]) > 1:
        half = mul(narrow(input, dim, 0, n // 2), narrow(input, dim, n // 2, n // 2))
        input = half if n % 2 == 0 else joined(torch.cat)((half, narrow(input, dim, n - 1, 1)), dim)
    return input


@rule("prod", twice=True)
def prod(input, dim=None, keepdim=False, *, dtype=None):
    input = input if dtype is None else to(input, dtype)
    if dim is None:
        return prod(reshaped("reshape")(input, -1), 0)
    if not input.shape[dim]:
        return torch.prod(input.v, dim, keepdim)
    y = product_over(input, dim)
    return y if keepdim else reshaped("squeeze")(y, dim)


@rule("cumprod", twice=True)
def cumprod(input, dim, *, dtype=None):
    """By products of twice as many numbers each time."""
    y, k = input if dtype is None else to(input, dtype), 1
    while k < (n := input.shape[dim]):
        further = mul(narrow(y, dim, k, n - k), narrow(y, dim, 0, n - k))
        y, k = joined(torch.cat)((narrow(y, dim, 0, k), further), dim), 2 * k
    return y if y is not input else clone(input)

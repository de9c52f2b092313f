"""Rules of sums, products and of what is chosen between two values."""

from __future__ import annotations

from functools import reduce
from itertools import combinations

import torch
from torch.nn import functional

from .pair import (
    RULES,
    TWICE,
    Pair,
    broadcast,
    first,
    in_place,
    is_pair,
    lifted,
    need_constant,
    new,
    rule,
    value,
)  # fmt: skip
from .trusted import by_jvp, elementwise
from .twice import Product, curved, is_twice, levelled, pointwise, tangents


def product(function, a, b) -> Pair:
    """Of a function that is linear in both, which it broadcasts."""
    v = function(value(a), value(b))
    n = v.dim()
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
    need_constant(first(input, weight, bias).run, weight, bias)
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
        return new(like, v, torch.add(*each, alpha=alpha))
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


def power_of(base, exponent) -> Pair:
    return (elementwise if is_twice(first(base, exponent)) else by_jvp)(torch.pow)(base, exponent)


@rule("einsum", twice=True)
def einsum(equation, *operands):
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    like, v = first(*operands), value(list(operands))
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return by_jvp(torch.einsum, linear=1)(equation, *operands)
    ins, out = equation.replace(" ", "").split("->")
    ins, z, y = ins.split(","), next(c for c in "zyxwvu" if c not in equation), torch.einsum(equation, v)

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


@rule("where", spaces=(torch,), twice=True)
def where(condition, input=None, other=None):
    if input is None or is_pair(condition):
        first(condition, input, other).run.stop("where without two values")
    like, v = first(input, other), torch.where(condition, value(input), value(other))
    each = iter(levelled(*filter(is_pair, (input, other))))
    parts = [lifted(next(each), v.dim()) if is_pair(x) else v.new_zeros(()) for x in (input, other)]
    return new(like, v, broadcast(torch.where(condition, *parts), v))


RULES[torch.Tensor.where] = TWICE[torch.Tensor.where] = lambda input, condition, other: where(condition, input, other)


@rule("masked_fill", twice=True)
def masked_fill(input, mask, value):
    if not is_pair(input) or is_pair(mask) or is_pair(value):
        first(input, mask, value).run.stop("masked_fill with what depends on the inputs")
    return new(input, input.v.masked_fill(mask, value), input.d.masked_fill(mask, 0.0))


@rule("clamp", "clip", twice=True)
def clamp(input, min=None, max=None):
    need_constant(first(input, min, max).run, min, max)
    y = input.v.clamp(min, max)
    inside = (y == input.v).to(y.dtype)
    return new(input, y, broadcast(inside * lifted(input.d, y.dim()), y))


@rule("clamp_min", twice=True)
def clamp_min(input, min):
    return clamp(input, min)


@rule("clamp_max", twice=True)
def clamp_max(input, max):
    return clamp(input, None, max)


@rule("maximum", "fmax", twice=True)
def maximum(input, other):
    return where(value(input) >= value(other), input, other)


@rule("minimum", "fmin", twice=True)
def minimum(input, other):
    return where(value(input) <= value(other), input, other)


def extreme(function, towards):
    def found(input, dim=None, keepdim=False):
        if isinstance(dim, torch.Tensor):
            return towards(input, dim)
        if dim is None:
            return found(input.reshape(-1), 0)[0]
        found_at = function(input.v, dim, keepdim)
        v, i = found_at
        places, d = (i if keepdim else i.unsqueeze(dim)), dim % input.v.dim()
        t = input.d.gather(d + 1, places.expand(input.d.shape[0], *places.shape))
        return type(found_at)((new(input, v, t if keepdim else t.squeeze(d + 1)), i))

    return found


rule("max", twice=True)(extreme(torch.max, maximum))
rule("min", twice=True)(extreme(torch.min, minimum))


def farthest(found):
    def reduced(input, dim=(), keepdim=False):
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
        if len(dims) != 1:
            input.run.stop("an extreme over several dims")
        return found(input, dims[0], keepdim)[0]

    return reduced


rule("amax", twice=True)(farthest(extreme(torch.max, maximum)))
rule("amin", twice=True)(farthest(extreme(torch.min, minimum)))
for name in ("add", "sub", "mul", "div", "masked_fill", "clamp", "clamp_min", "clamp_max"):
    in_place(name)

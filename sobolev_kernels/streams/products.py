"""Rules of sums, products and of what is chosen between two values."""

from __future__ import annotations

import torch
from torch.nn import functional

from .pair import RULES, Pair, broadcast, first, in_place, is_pair, lifted, need_constant, new, rule, value
from .trusted import by_jvp


def product(function, a, b) -> Pair:
    """Of a function that is linear in both, which it broadcasts."""
    like, v = first(a, b), function(value(a), value(b))
    parts = []
    if is_pair(a):
        parts.append(function(lifted(a.d, v.dim()), value(b)))
    if is_pair(b):
        parts.append(function(value(a), lifted(b.d, v.dim())))
    return new(like, v, broadcast(parts[0] if len(parts) == 1 else parts[0] + parts[1], v))


@rule("mul", "__mul__", "__rmul__", "multiply")
def mul(input, other):
    return product(torch.mul, input, other)


@rule("matmul", "__matmul__", "bmm", "mm")
def matmul(input, other):
    if value(other).dim() == 1:
        return matmul(input, other.unsqueeze(-1)).squeeze(-1)
    if value(input).dim() == 1:
        return matmul(input.unsqueeze(0), other).squeeze(-2)
    return product(torch.matmul, input, other)


@rule("__rmatmul__")
def rmatmul(input, other):
    return matmul(other, input)


@rule("linear")
def linear(input, weight, bias=None):
    need_constant(first(input, weight, bias).run, weight, bias)
    return new(input, *layer(input.v, input.d, weight, bias))


def layer(v, d, weight, bias) -> tuple[torch.Tensor, torch.Tensor]:
    """What a linear layer makes of a value and of its derivatives."""
    return functional.linear(v, weight, bias), functional.linear(d, weight)


@rule("addmm", "baddbmm")
def addmm(input, batch1, batch2, *, beta=1, alpha=1):
    return add(mul(alpha, matmul(batch1, batch2)) if alpha != 1 else matmul(batch1, batch2), input, alpha=beta)


@rule("addcmul")
def addcmul(input, tensor1, tensor2, *, value=1):
    return add(mul(tensor1, tensor2), input) if value == 1 else add(input, mul(tensor1, tensor2), alpha=value)


@rule("add", "__add__", "__radd__")
def add(input, other, *, alpha=1):
    like, a, b = first(input, other), value(input), value(other)
    v = torch.add(a, b, alpha=alpha) if isinstance(a, torch.Tensor) else a + alpha * b
    t = broadcast(input.d, v) if is_pair(input) else None
    if is_pair(other):
        more = broadcast(other.d, v)
        t = torch.add(t, more, alpha=alpha) if t is not None else more if alpha == 1 else alpha * more
    return new(like, v, t)


@rule("sub", "__sub__", "subtract")
def sub(input, other, *, alpha=1):
    return add(input, other, alpha=-alpha)


@rule("rsub", "__rsub__")
def rsub(input, other, *, alpha=1):
    return add(other, input, alpha=-alpha)


@rule("div", "__truediv__", "true_divide", "divide")
def div(input, other, *, rounding_mode=None):
    if rounding_mode is not None:
        return torch.div(value(input), value(other), rounding_mode=rounding_mode)
    if not is_pair(other):
        return product(torch.div, input, other)
    v = torch.div(value(input), other.v)
    t = -v * lifted(other.d, v.dim())
    if is_pair(input):
        t = lifted(input.d, v.dim()) + t
    return new(other, v, broadcast(t / other.v, v))


@rule("__rtruediv__", "__rdiv__")
def rdiv(input, other):
    return div(other, input)


@rule("reciprocal")
def reciprocal(input):
    y = input.v.reciprocal()
    return new(input, y, -(y * y) * input.d)


@rule("pow", "__pow__")
def power(input, exponent):
    if is_pair(exponent) or not is_pair(input) or isinstance(exponent, torch.Tensor):
        return by_jvp(torch.pow)(input, exponent)
    if exponent == 0:
        return torch.ones_like(input.v)
    return new(input, input.v**exponent, (exponent * input.v ** (exponent - 1)) * input.d)


@rule("__rpow__")
def rpow(input, other):
    return by_jvp(torch.pow)(other, input)


@rule("einsum")
def einsum(equation, *operands):
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    like, v = first(*operands), value(list(operands))
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return by_jvp(torch.einsum)(equation, *operands)
    ins, out = equation.replace(" ", "").split("->")
    ins, z, t = ins.split(","), next(c for c in "zyxwvu" if c not in equation), None
    for i, x in enumerate(operands):
        if is_pair(x):
            named = ",".join(z + s if j == i else s for j, s in enumerate(ins))
            part = torch.einsum(f"{named}->{z}{out}", [x.d if j == i else a for j, a in enumerate(v)])
            t = part if t is None else t + part
    return new(like, torch.einsum(equation, v), t)


@rule("where", spaces=(torch,))
def where(condition, input=None, other=None):
    if input is None or is_pair(condition):
        first(condition, input, other).run.stop("where without two values")
    like, v = first(input, other), torch.where(condition, value(input), value(other))
    parts = [lifted(x.d, v.dim()) if is_pair(x) else v.new_zeros(()) for x in (input, other)]
    return new(like, v, broadcast(torch.where(condition, *parts), v))


RULES[torch.Tensor.where] = lambda input, condition, other: where(condition, input, other)


@rule("masked_fill")
def masked_fill(input, mask, value):
    if not is_pair(input) or is_pair(mask) or is_pair(value):
        first(input, mask, value).run.stop("masked_fill with what depends on the inputs")
    return new(input, input.v.masked_fill(mask, value), input.d.masked_fill(mask, 0.0))


@rule("clamp", "clip")
def clamp(input, min=None, max=None):
    need_constant(first(input, min, max).run, min, max)
    y = input.v.clamp(min, max)
    inside = (y == input.v).to(y.dtype)
    return new(input, y, broadcast(inside * lifted(input.d, y.dim()), y))


@rule("clamp_min")
def clamp_min(input, min):
    return clamp(input, min)


@rule("clamp_max")
def clamp_max(input, max):
    return clamp(input, None, max)


@rule("maximum", "fmax")
def maximum(input, other):
    return where(value(input) >= value(other), input, other)


@rule("minimum", "fmin")
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


rule("max")(extreme(torch.max, maximum))
rule("min")(extreme(torch.min, minimum))


def farthest(found):
    def reduced(input, dim=(), keepdim=False):
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
        if len(dims) != 1:
            input.run.stop("an extreme over several dims")
        return found(input, dims[0], keepdim)[0]

    return reduced


rule("amax")(farthest(extreme(torch.max, maximum)))
rule("amin")(farthest(extreme(torch.min, minimum)))
for name in ("add", "sub", "mul", "div", "masked_fill", "clamp", "clamp_min", "clamp_max"):
    in_place(name)

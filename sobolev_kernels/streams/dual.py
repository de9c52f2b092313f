"""Pairs within a rule of many operations, as their numbers alone: one by one, by PyTorch's functions and the table of
rules, the operations of a recurrent layer's cell would take twice as long as they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from .pair import Pair, is_pair, new, past
from .pointwise import BY_HAND
from .products import layer
from .twice import is_twice


@dataclass(eq=False, slots=True)
class Dual:
    """A value v and its first derivatives d [P, ...]; another operand is one too, or a constant of v's shape."""

    v: torch.Tensor
    d: torch.Tensor

    def __add__(self, other: Dual | torch.Tensor) -> Dual:
        return Dual(self.v + other.v, self.d + other.d) if type(other) is Dual else Dual(self.v + other, self.d)

    def __sub__(self, other: Dual | torch.Tensor) -> Dual:
        return Dual(self.v - other.v, self.d - other.d) if type(other) is Dual else Dual(self.v - other, self.d)

    def __mul__(self, other: Dual | torch.Tensor) -> Dual:
        if type(other) is Dual:
            return Dual(self.v * other.v, self.d * other.v + self.v * other.d)
        return Dual(self.v * other, self.d * other)

    def along(self, name: str) -> Dual:
        """A function of each number by itself."""
        y = getattr(self.v, name)()
        return Dual(y, BY_HAND[name][0](y, self.v) * self.d)

    def sigmoid(self) -> Dual:
        return self.along("sigmoid")

    def tanh(self) -> Dual:
        return self.along("tanh")

    def relu(self) -> Dual:
        return self.along("relu")

    def chunk(self, count: int, dim: int) -> list[Dual]:
        return list(map(Dual, self.v.chunk(count, dim), self.d.chunk(count, past(dim))))

    def unbind(self, dim: int) -> list[Dual]:
        return list(map(Dual, self.v.unbind(dim), self.d.unbind(past(dim))))

    def transpose(self, a: int, b: int) -> Dual:
        return Dual(self.v.transpose(a, b), self.d.transpose(past(a), past(b)))

    def select(self, dim: int, place: int) -> Dual:
        return Dual(self.v.select(dim, place), self.d.select(past(dim), place))

    def unsqueeze(self, dim: int) -> Dual:
        return Dual(self.v.unsqueeze(dim), self.d.unsqueeze(past(dim)))

    def clone(self) -> Dual:
        return Dual(self.v.clone(), self.d.clone())

    @property
    def shape(self) -> torch.Size:
        return self.v.shape

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        return FUNCTIONS[function](*arguments, **(named or {}))


def joined(function: Callable) -> Callable:
    return lambda duals, dim=0: Dual(function([x.v for x in duals], dim), function([x.d for x in duals], past(dim)))


FUNCTIONS = {
    functional.linear: lambda x, weight, bias=None: Dual(*layer(x.v, x.d, weight, bias)),
    torch.Tensor.sub: lambda constant, x: Dual(constant - x.v, -x.d),
    torch.stack: joined(torch.stack),
    torch.cat: joined(torch.cat),
}


def opened(x: object) -> object:
    if is_pair(x):
        return Dual(x.v, x.d)
    return tuple(map(opened, x)) if isinstance(x, (tuple, list)) else x


def closed(like: Pair, x: object) -> object:
    if type(x) is Dual:
        return new(like, x.v, x.d)
    return tuple(closed(like, each) for each in x) if isinstance(x, (tuple, list)) else x


def by_numbers(rule: Callable) -> Callable:
    """The same rule of inputs and states that are pairs, and of weights that are none; second derivatives, and what
    autocast rounds, go by the table."""

    def applied(input, hx, *weights, **named):
        flowing = [x for x in (input, *(hx if isinstance(hx, (tuple, list)) else (hx,))) if is_pair(x)]
        each = [x for w in (*weights, *named.values()) for x in (w if isinstance(w, (tuple, list)) else (w,))]
        if not flowing or any(map(is_pair, each)) or is_twice(flowing[0]) or flowing[0].run.cast:
            return rule(input, hx, *weights, **named)
        return closed(flowing[0], rule(opened(input), opened(hx), *weights, **named))

    return applied

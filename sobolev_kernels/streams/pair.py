"""A value and its derivatives along P directions, which flow through a forward together.

Each function of PyTorch has a row in the table: the rule that makes of the pairs that come the pair that goes on. A
rule computes with PyTorch, so that parameters get their gradients from autograd.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from .flowing import SPACES, Flowing, Run, register_hook, requires_grad, run_of, spelt, told

RULES: dict[Callable, Callable] = {}
# Those of them that hold of second derivatives, too (twice.py).
TWICE: dict[Callable, Callable] = {}


class Pair(Flowing):
    """v [...] and its derivatives d [P, ...]; `family` is what may share its memory.

    In a run of order 2 the second derivatives follow the P first ones in d, unless they are all 0 (twice.py).
    """

    v: torch.Tensor
    d: torch.Tensor
    family: list[weakref.ref]

    def asks(self) -> bool:
        return self.v.requires_grad or self.d.requires_grad


def start(run: Run, v: torch.Tensor, t: torch.Tensor, family: list[weakref.ref] | None = None) -> Pair:
    if not v.is_floating_point() or t.shape[1:] != v.shape:
        run.stop(f"a value of {v.dtype} {list(v.shape)} with a derivative {list(t.shape)}")
    t = t if t.dtype == v.dtype else t.to(v.dtype)
    pair = wrapper(Pair, run, v.shape, v.dtype, v.device, family)
    pair.v, pair.d = v, t
    return pair


def wrapper(
    kind: type[Pair], run: Run, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device,
    family: list[weakref.ref] | None = None,
) -> Pair:  # fmt: skip
    """A pair whose numbers are still to be told."""
    pair = torch.Tensor._make_wrapper_subclass(kind, sizes, dtype=dtype, device=device, requires_grad=True)
    pair.run, pair.sizes, pair.family = run, sizes, [] if family is None else family
    reference = weakref.ref(pair)
    pair.family.append(reference)
    run.made.append(reference)
    return pair


def rule(*names: str, spaces: tuple = SPACES, twice: bool = False) -> Callable[[Callable], Callable]:
    """For the functions and methods of PyTorch by these names; `twice`, if it holds of second derivatives, too."""

    def register(function: Callable) -> Callable:
        for table in (RULES, TWICE) if twice else (RULES,):
            table.update(dict.fromkeys(spelt(*names, spaces=spaces), function))
        return function

    return register


def is_pair(x: object) -> bool:
    return isinstance(x, Pair)


def value(x: object) -> object:
    """Of a pair its value, also in lists; all else as it is."""
    if isinstance(x, Pair):
        return x.v
    return type(x)(map(value, x)) if type(x) in (tuple, list) else x


def first(*arguments: object) -> Pair:
    """The first of these that is a pair."""
    return next(x for x in arguments if isinstance(x, Pair))


def need_constant(run: Run, *arguments: object) -> None:
    """Only the first argument is what flows."""
    if any(isinstance(x, Pair) for x in arguments):
        run.stop("an operation two of whose arguments depend on the inputs")


def new(like: Pair, v: torch.Tensor, t: torch.Tensor) -> Pair:
    """A new pair of the run of another."""
    return start(like.run, v, t)


def viewed(like: Pair, v: torch.Tensor, t: torch.Tensor) -> Pair:
    """The same, of what may be a view of the other."""
    return start(like.run, v, t, like.family)


def past(dim: int) -> int:
    """A dim of a value as one of its derivatives, which have the directions before it."""
    return dim + 1 if dim >= 0 else dim


def pasts(dims):
    return tuple(map(past, dims)) if isinstance(dims, (tuple, list)) else past(dims)


def lifted(t: torch.Tensor, n: int) -> torch.Tensor:
    """Derivatives of a value of fewer dims than n, so that they broadcast as the value would."""
    return t if t.dim() == n + 1 else t.reshape(t.shape[0], *[1] * (n + 1 - t.dim()), *t.shape[1:])


def broadcast(t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Derivatives of the shape of a value."""
    return t if t.shape[1:] == v.shape else lifted(t, v.dim()).expand(-1, *v.shape)


def as_samples(function: Callable, d: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """function(d, of) of derivatives [P, ...] and of others, or of what has a value's shape.

    A compiler gives channels that lie last no more to what has five dims, and turns around what convolutions take: it
    gets directions as more samples.
    """
    if d.dim() != 5 or not torch.compiler.is_compiling():
        return function(d, of)
    return function(d.flatten(0, 1), of.expand(d.shape).flatten(0, 1)).unflatten(0, d.shape[:2])


def written(pair: Pair, after: Pair | torch.Tensor) -> Pair:
    """What an operation in place makes of a pair that shares its memory with nothing that is still in use; numbers that
    do not depend on the inputs have no derivatives."""
    if not isinstance(pair, Pair):
        raise TypeError("it is written into an ordinary tensor")
    if not isinstance(after, Pair):
        after = new(pair, after.to(pair.v.dtype), pair.d.new_zeros(len(pair.d), *after.shape))
    if sum(reference() is not None for reference in pair.family) > 1:
        pair.run.stop("a part of it is written to that is seen elsewhere")
    if after.v.shape != pair.v.shape:
        pair.run.stop("an operation in place that changes a shape")
    pair.v, pair.d = after.v.to(pair.v.dtype), after.d.to(pair.v.dtype)
    return pair


def in_place(table: dict[Callable, Callable], spaces: tuple = SPACES) -> None:
    """A row for each function and method that writes what another gives, which has one."""
    for home, name in ((space, name) for space in spaces for name in dir(space) if name.endswith("_")):
        plain = name[3:-2] if name.startswith("__i") else name.removesuffix("_")
        rules = [table[function] for function in spelt(plain, f"__{plain}__") if function in table]
        if rules:
            table.setdefault(
                getattr(home, name), lambda input, *a, of=rules[0], **k: written(input, of(input, *a, **k))
            )


for what in (
    "shape dtype device ndim layout is_cuda is_cpu is_nested is_sparse is_quantized is_meta is_mkldnn itemsize"
).split():
    RULES[told(what)] = lambda input, what=what: getattr(input.v, what)
RULES[told("requires_grad")] = requires_grad
RULES[told("_base")] = lambda input: None
RULES[torch.Tensor.register_hook] = register_hook


# Without a derivative: what a tensor is, a number that jumps.
CONSTANT = """
    size dim ndimension numel nelement __len__ is_floating_point is_complex is_contiguous stride element_size
    get_device argmax argmin argsort count_nonzero gt lt ge le eq ne greater less greater_equal less_equal __gt__ __lt__
    __ge__ __le__ __eq__ __ne__ isnan isinf isfinite isposinf isneginf sign sgn signbit floor ceil round trunc fix
    bucketize searchsorted long int bool byte any all allclose isclose equal nonzero argwhere
    floor_divide __floordiv__ __rfloordiv__ heaviside logical_not logical_and logical_or logical_xor histc bincount
"""
# Another tensor like it, of other numbers.
LIKE = """
    zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full new_empty new_tensor
"""


def constant_of(function: Callable) -> Callable:
    return lambda *a, **k: function(*value(a), **{name: value(x) for name, x in k.items()})


def like_of(function: Callable) -> Callable:
    def made(input, *arguments, **named):
        run = run_of((input, *arguments, *named.values()))
        if not isinstance(input, Pair) or run_of((*arguments, *named.values())) is not None:
            run.stop(f"numbers in it that are taken out of what depends on its inputs ({function.__name__})")
        return function(input.v, *arguments, **named)

    return made


for function in spelt(*CONSTANT.split()):
    RULES[function] = constant_of(function)
for function in spelt(*LIKE.split()):
    RULES[function] = like_of(function)
TWICE.update(RULES)

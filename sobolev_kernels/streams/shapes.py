"""Rules of what is the same linear function of a value and of each of its derivatives, also of second ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from . import convolved, images
from .flowing import told
from .pair import (
    RULES,
    TWICE,
    Pair,
    first,
    is_pair,
    lifted,
    need_constant,
    new,
    past,
    pasts,
    rule,
    value,
    viewed,
    written,
)  # fmt: skip
from .twice import levelled

rule = partial(rule, twice=True)


def each(like: Pair, v, t):
    """A pair, or a tuple of them, of which each may be a view."""
    if isinstance(v, (tuple, list)):
        return tuple(viewed(like, a, b) for a, b in zip(v, t, strict=True))
    return viewed(like, v, t)


@rule("transpose", "swapaxes", "swapdims")
def transpose(input, dim0, dim1):
    return viewed(input, input.v.transpose(dim0, dim1), input.d.transpose(past(dim0), past(dim1)))


def transposed(input):
    return transpose(input, 0, 1) if input.v.dim() == 2 else input.run.stop("T in it")


for table in (RULES, TWICE):
    table |= dict.fromkeys(map(told, ("mT", "mH")), lambda input: transpose(input, -2, -1))
    table |= {told("T"): transposed}
rule("adjoint")(lambda input: transpose(input, -2, -1))


@rule("t")
def t(input):
    return transpose(input, 0, 1)


@rule("permute")
def permute(input, *dims):
    dims = dims[0] if isinstance(dims[0], (tuple, list)) else dims
    n = input.v.dim()
    return viewed(input, input.v.permute(dims), input.d.permute(0, *(d % n + 1 for d in dims)))


@rule("unsqueeze")
def unsqueeze(input, dim):
    return viewed(input, input.v.unsqueeze(dim), input.d.unsqueeze(past(dim)))


def reshaped(name: str) -> Callable:
    method = getattr(torch.Tensor, name)

    def same(input, *arguments, **named):
        if not is_pair(input):
            return method(input, *value(arguments), **named)
        if any(
            isinstance(a, torch.dtype) for a in (*arguments, *named.values())
        ):  # of which autograd has no derivative
            input.run.stop(f"{name} as a dtype")
        v = method(input.v, *value(arguments), **named)
        return viewed(input, v, input.d.reshape(-1, *v.shape))

    return same


for name in ("view", "reshape", "flatten", "unflatten", "squeeze", "ravel", "view_as", "reshape_as"):
    rule(name)(reshaped(name))


@rule("expand", "expand_as", "broadcast_to")
def expand(input, *sizes):
    if not is_pair(input):
        return input.expand_as(value(sizes[0]))
    v = input.v.expand_as(value(sizes[0])) if isinstance(sizes[0], torch.Tensor) else input.v.expand(*sizes)
    return viewed(input, v, lifted(input.d, v.dim()).expand(-1, *v.shape))


@rule("broadcast_tensors")
def broadcast_tensors(*tensors):
    tensors = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    return tuple(expand(x, shape) if is_pair(x) else x.expand(shape) for x in tensors)


@rule("contiguous")
def contiguous(input, *, memory_format=torch.contiguous_format):
    return viewed(input, input.v.contiguous(memory_format=memory_format), input.d)


@rule("clone")
def clone(input, *, memory_format=torch.preserve_format):
    return new(input, input.v.clone(memory_format=memory_format), input.d)


@rule("to", "type_as")
def to(input, *arguments, **named):
    if not is_pair(input):
        return input.to(*value(arguments), **named)
    v = input.v.to(*value(arguments), **named)
    if v.is_complex():
        input.run.stop("complex numbers")
    return viewed(input, v, input.d.to(v.dtype).to(v.device)) if v.is_floating_point() else v


for name, dtype in (("float", torch.float32), ("double", torch.float64), ("half", torch.float16)):
    rule(name)(lambda input, dtype=dtype: to(input, dtype))
rule("bfloat16")(lambda input: to(input, torch.bfloat16))
rule("cpu")(lambda input: to(input, "cpu"))
rule("type", spaces=(torch.Tensor,))(
    lambda input, dtype=None, *_: input.v.type() if dtype is None else to(input, input.v.new_empty(0).type(dtype))
)


@rule("positive", "__pos__")
def positive(input):
    return viewed(input, input.v, input.d)


@rule("neg", "__neg__", "negative")
def neg(input):
    return new(input, -input.v, -input.d)


def reduced(name: str) -> Callable:
    function = getattr(torch, name)

    def reduced_by(input, *dims, dim=None, axis=None, keepdim=False, dtype=None):
        if dims and isinstance(dims[-1], bool):
            *dims, keepdim = dims
        dims = dims[0] if len(dims) == 1 else dims or None
        dims = next((d for d in (dims, dim, axis) if d is not None), ())
        n = input.v.dim()
        if not n:
            return new(input, input.v.clone(), input.d)
        dims = [d % n for d in (dims if isinstance(dims, (tuple, list)) else (dims,))] or list(range(n))
        v = function(input.v, dims, keepdim, dtype=dtype)
        return new(input, v, function(input.d, [d + 1 for d in dims], keepdim, dtype=dtype))

    return reduced_by


for name in ("sum", "mean"):
    rule(name)(reduced(name))


@rule("unbind")
def unbind(input, dim=0):
    return each(input, input.v.unbind(dim), input.d.unbind(past(dim)))


RULES[torch.Tensor.__iter__] = TWICE[torch.Tensor.__iter__] = lambda input: iter(unbind(input))


def parted(name: str) -> Callable:
    method = getattr(torch.Tensor, name)
    return lambda input, parts, dim=0: each(input, method(input.v, parts, dim), method(input.d, parts, past(dim)))


for name in ("chunk", "split", "split_with_sizes", "tensor_split"):
    rule(name)(parted(name))


@rule("split", spaces=(torch.functional,))
def split(tensor, split_size_or_sections, dim=0):
    return parted("split")(tensor, split_size_or_sections, dim)


@rule("narrow")
def narrow(input, dim, start, length):
    return viewed(input, input.v.narrow(dim, start, length), input.d.narrow(past(dim), start, length))


@rule("select")
def select(input, dim, index):
    return viewed(input, input.v.select(dim, index), input.d.select(past(dim), index))


@rule("cumsum")
def cumsum(input, dim, *, dtype=None):
    return new(input, input.v.cumsum(dim, dtype=dtype), input.d.cumsum(past(dim), dtype=dtype))


@rule("flip")
def flip(input, *dims):
    dims = dims[0] if isinstance(dims[0], (tuple, list)) else dims
    return new(input, input.v.flip(*dims), input.d.flip(*pasts(dims)))


def mapped(name: str) -> Callable:
    """By one direction after the other, all at once."""
    method = getattr(torch.Tensor, name)

    def along(input, *arguments, **named):
        need_constant(input.run, *arguments, *named.values())
        of_one = lambda t: method(t, *arguments, **named)  # noqa: E731
        return viewed(input, of_one(input.v), torch.vmap(of_one)(input.d))

    return along


for name in (
    "movedim", "diagonal", "diag_embed", "tril", "triu", "index_select", "gather", "take_along_dim",
    "repeat", "tile", "repeat_interleave", "unfold", "rot90", "roll", "fliplr", "flipud", "diag",
):  # fmt: skip
    rule(name, spaces=(torch, torch.Tensor))(mapped(name))


rule("moveaxis")(mapped("movedim"))
rule("diagonal", spaces=(torch.linalg,))(lambda A, *, offset=0, dim1=-2, dim2=-1: A.diagonal(offset, dim1, dim2))


def index_of(i: object) -> tuple[tuple, bool]:
    """An index as a tuple, and whether where its tensors' dims go depends on how many dims are before them."""
    i = i if isinstance(i, tuple) else (i,)
    return i, sum(isinstance(j, (torch.Tensor, list)) for j in i) > 1


@rule("__getitem__")
def getitem(input, index):
    i, several = index_of(index)
    if not is_pair(input) or any(map(is_pair, i)):
        first(input, *i).run.stop("an index that depends on the inputs")
    t = torch.vmap(lambda t: t[i])(input.d) if several else input.d[(slice(None), *i)]
    return viewed(input, input.v[i], t)


@rule("__setitem__")
def setitem(input, index, other):
    i, several = index_of(index)
    run = first(input, other, *i).run
    if not is_pair(input) or any(map(is_pair, i)):
        run.stop("it is written into an ordinary tensor, or by an index that depends on the inputs")
    t, *others = levelled(input, other) if is_pair(other) else levelled(input)
    v, t = input.v.clone(), t.clone()
    v[i] = value(other)
    part = lifted(others[0], input.v[i].dim()) if others else torch.zeros((), dtype=t.dtype, device=t.device)
    if several:  # whose dims go where they would without the directions, if these come last
        i = (*i, slice(None)) if any(j is Ellipsis for j in i) else i
        t.movedim(0, -1)[i] = part.movedim(0, -1) if others else part
    else:
        t[(slice(None), *i)] = part
    written(input, new(input, v, t))


@rule("index_put")
def index_put(input, indices, values, accumulate=False):
    if not is_pair(input) or any(map(is_pair, indices)):
        first(input, values, *indices).run.stop("index_put into an ordinary tensor, or where the inputs say")
    t, *others = levelled(input, values) if is_pair(values) else levelled(input)
    part = lifted(others[0], input.v[tuple(indices)].dim()).movedim(0, -1) if others else t.new_zeros(())
    t = t.movedim(0, -1).index_put(indices, part, accumulate).movedim(-1, 0)
    return new(input, input.v.index_put(indices, value(values), accumulate), t)


def overwritten(input, other, *_, **__):
    """By other numbers, and all of it."""
    if not is_pair(input):
        raise TypeError("it is written into an ordinary tensor")
    if is_pair(other):
        return written(input, clone(expand(other, *input.v.shape)))
    like = {"dtype": input.v.dtype, "device": input.v.device}
    return written(input, torch.as_tensor(other, **like).expand_as(input.v).clone())


rule("copy_", "fill_")(overwritten)
rule("zero_")(lambda input: overwritten(input, 0))


def joined(function: Callable) -> Callable:
    def join(tensors, dim=0, axis=None):
        dim, like = dim if axis is None else axis, first(*tensors)
        v = function(value(list(tensors)), dim)
        each = iter(levelled(*filter(is_pair, tensors)))
        parts = [next(each) if is_pair(x) else None for x in tensors]
        S = next(len(part) for part in parts if part is not None)
        parts = [
            x.new_zeros((1,) * (x.dim() + 1)).expand(S, *x.shape) if part is None else part
            for x, part in zip(tensors, parts, strict=True)
        ]
        return new(like, v, function([part.to(v.dtype) for part in parts], past(dim)))

    return join


for name in ("cat", "concat", "concatenate", "stack"):
    rule(name, spaces=(torch,))(joined(getattr(torch, name)))


def folded(function: Callable, t: torch.Tensor, *arguments, **named) -> torch.Tensor:
    """Of samples that do not depend on each other: the directions are more of them."""
    return function(t.flatten(0, 1), *arguments, **named).unflatten(0, t.shape[:2])


def batched(name: str, dims: int | None, along: Callable) -> Callable:
    """The rule of samples, and of one alone, without their dim."""

    def applied(input, *arguments, **named):
        if not is_pair(input):
            first(*arguments, *named.values()).run.stop(f"{name} by what depends on the inputs")
        if dims is None or input.v.dim() == dims:
            return along(input, *arguments, **named)
        if input.v.dim() != dims - 1:
            input.run.stop(f"{name} of {input.v.dim()} dims")
        result = along(unsqueeze(input, 0), *arguments, **named)
        return tuple(part.squeeze(0) for part in result) if isinstance(result, tuple) else result.squeeze(0)

    return applied


@rule("pad")
def pad(input, pad, mode="constant", value=None):
    if mode == "constant":
        return new(input, functional.pad(input.v, pad, mode, value), functional.pad(input.d, pad))
    return new(input, functional.pad(input.v, pad, mode, value), folded(functional.pad, input.d, pad, mode, value))


def convolution(name: str, dims: int) -> Callable:
    function, transposed = getattr(functional, name), "transpose" in name

    def along(input, weight, bias=None, *arguments, **named):
        need_constant(input.run, weight, bias)
        of = images.arguments_of(dims - 2, transposed, *arguments, **named)
        of_both = convolved.together_of(input.v, input.d, weight, bias, of)
        if of_both is not None:
            return new(input, *convolved.convolved(input.v, input.d, weight, bias, of_both))
        v = function(input.v, weight, bias, *arguments, **named)
        return new(input, v, folded(function, input.d, weight, None, *arguments, **named))

    return batched(name, dims, along)


def sampled(name: str, dims: int | None = None) -> Callable:
    function = getattr(functional, name)

    def along(input, *arguments, **named):
        v = function(input.v, *arguments, **named)
        return new(input, v, folded(function, input.d, *arguments, **named))

    return batched(name, dims, along)


def largest(name: str, dims: int, with_indices: bool = False) -> Callable:
    function = getattr(functional, f"{name}_with_indices")

    def along(input, *arguments, return_indices=with_indices, **named):
        v, i = function(input.v, *arguments, **named)
        places = i.flatten(-dims).expand(input.d.shape[0], *i.flatten(-dims).shape)
        t = torch.gather(input.d.flatten(-dims), -1, places).reshape(-1, *v.shape)
        return (new(input, v, t), i) if return_indices else new(input, v, t)

    return batched(name, dims + 2, along)


for n in (1, 2, 3):
    rule(f"conv{n}d")(convolution(f"conv{n}d", n + 2))
    rule(f"conv_transpose{n}d")(convolution(f"conv_transpose{n}d", n + 2))
    rule(f"avg_pool{n}d")(sampled(f"avg_pool{n}d", n + 2))
    rule(f"adaptive_avg_pool{n}d")(sampled(f"adaptive_avg_pool{n}d", n + 2))
    for name in (f"max_pool{n}d", f"adaptive_max_pool{n}d"):
        rule(name)(largest(name, n))
        rule(f"{name}_with_indices")(largest(name, n, with_indices=True))
for name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate", "unfold", "fold"):
    rule(name, spaces=(functional, torch._C._nn) if "fold" in name else (torch, functional))(sampled(name))
rule("constant_pad_nd")(lambda input, pad_, value=0: pad(input, pad_, "constant", value))

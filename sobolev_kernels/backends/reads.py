"""What takes numbers out of PyTorch's graph, by whatever way: what a function gives that is made of a tensor's numbers
and does not lead back to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import numpy
import torch
from torch.autograd.graph import get_gradient_edge

from .graph import nodes_of

Node = torch.autograd.graph.Node
KERNELS = (__name__.partition(".")[0], "triton")  # packages that read numbers by where they lie
MEMORY = (torch.UntypedStorage, torch.TypedStorage)
# Numbers in Python, in writing, in NumPy, and the memory that they lie in.
NUMBERS = (float, complex, str, bytes, bytearray, memoryview, numpy.ndarray, numpy.generic, *MEMORY)
# By its steps alone, whose derivatives are 0.
STEPWISE = {torch.equal, torch.allclose, torch.is_nonzero}
STEPWISE |= {getattr(torch.Tensor, name) for name in "__bool__ __int__ __index__ __contains__ is_nonzero".split()}
STEPWISE |= {torch.Tensor.equal, torch.Tensor.allclose}
# What gives numbers of a tensor and nothing else, by which a compiler meets it.
GIVING = {getattr(torch.Tensor, name) for name in "item tolist __float__ __complex__ numpy __array__".split()}
GIVING |= {torch.Tensor.__format__, torch.Tensor.__repr__}
# What says that a constant is meant; what has a tensor's kind and none of its numbers, or their steps.
CONSTANT = {torch.detach, torch.detach_copy, torch.Tensor.detach, torch.Tensor.detach_, torch.Tensor.data.__get__}
CONSTANT |= {torch.Tensor.requires_grad_, torch.Tensor.type, torch.histc, torch.Tensor.histc, torch.heaviside}
CONSTANT |= {torch.Tensor.heaviside, torch.Tensor.grad.__get__}
for name in "zeros ones empty full rand randn randint".split():
    found = getattr(torch, f"{name}_like"), getattr(torch.Tensor, f"new_{name}", None)
    CONSTANT |= {function for function in found if function is not None}
CONSTANT |= {torch.Tensor.new_empty_strided, torch.zeros, torch.ones, torch.empty, torch.eye, torch.rand, torch.randn}
CONSTANT |= {torch._make_dual}  # of torch.func.jvp, whose level has the graph
# Of each argument its own, by autograd, also of those that depend on nothing.
CONSTANT |= {torch.broadcast_tensors, torch.meshgrid, torch.atleast_1d, torch.atleast_2d, torch.atleast_3d}
# Of these what makes one of a tensor's own numbers.
CUTTING = {torch.detach, torch.detach_copy, torch.Tensor.detach, torch.Tensor.detach_, torch.Tensor.data.__get__}
# What has another result than a derivative of PyTorch's says; the bits of a number, and where it lies.
SILENT = {torch.normal}
BITS = {torch.Tensor.view, torch.Tensor.data_ptr}
OF_OTHERS = {torch.Tensor.new_tensor, torch.Tensor.new}  # than the tensor whose method it is


def takes_numbers(function: Callable, made: object) -> bool:
    """Whether a function gave numbers that lead no further back."""
    if made.__class__ is torch.Tensor and asks(made):
        return function in SILENT
    if function in CONSTANT:
        return False
    if function not in BITS and not isinstance(made, MEMORY):
        return of_numbers(made)
    return not is_float(made) and not asked_by_kernels()


def is_cut(function: Callable, made: object) -> bool:
    """Whether a function gave a constant, which was meant: detached, or made where no graph is kept."""
    return is_float(made) and not asks(made) and (function in CUTTING or not torch.is_grad_enabled())


def asked_by_kernels() -> bool:
    """Whether this package asks, or that which launches its kernels: they read no number by where it lies elsewhere."""
    frame = sys._getframe(1)
    while frame.f_code.co_name != "__torch_function__":
        frame = frame.f_back
    return frame.f_back.f_globals.get("__name__", "").startswith(KERNELS)


def is_float(made: object) -> bool:
    return isinstance(made, torch.Tensor) and made.is_floating_point()


def of_numbers(made: object) -> bool:
    if isinstance(made, torch.Tensor):
        numbers = made.is_floating_point() or made.is_complex()
        return numbers and not asks(made) and torch.is_grad_enabled()
    if isinstance(made, (tuple, list)) and type(made) is not torch.Size:
        return any(map(of_numbers, made))
    return isinstance(made, NUMBERS)


def tensors_in(data: object) -> Iterator[torch.Tensor]:
    """Those that ask for a gradient."""
    if isinstance(data, torch.Tensor):
        if asks(data):
            yield below(data)
    elif isinstance(data, (tuple, list)):
        for each in data:
            yield from tensors_in(each)


def read_by(function: Callable, args: tuple, kwargs: dict | None) -> Iterator[torch.Tensor]:
    """The tensors with a graph whose numbers a function took."""
    args = args[1:] if function in OF_OTHERS else args
    return tensors_in((*args, *(kwargs or {}).values()))


def asks(tensor: torch.Tensor) -> bool:
    """Whether it asks for a gradient, or within a transform of torch.func what it stands for there."""
    return tensor.requires_grad or (is_transformed(tensor) and below(tensor).requires_grad)


def below(tensor: torch.Tensor) -> torch.Tensor:
    """What it stands for, if that asks: of samples that are mapped over all of them."""
    while not tensor.requires_grad and is_transformed(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a transform of torch.func differentiates what it is of, or something in it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def depend_on(node: Node, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether a graph leads from one of these to a node, which may be its own."""
    return any(node in nodes_of(tensor) or node is leaf_of(tensor) for tensor in map(of_graph, tensors))


def of_graph(tensor: torch.Tensor) -> torch.Tensor:
    """It, or what it is a view of if it was made where no graph is kept: it has no node, but asks for a gradient."""
    base = tensor._base if type(tensor) is torch.Tensor and tensor.grad_fn is None else None
    return tensor if base is None or not base.requires_grad else base


def leaf_of(tensor: torch.Tensor) -> Node | None:
    """Its node, if it has none before it."""
    plain = type(tensor) is torch.Tensor and tensor.grad_fn is None and not is_transformed(tensor)
    return get_gradient_edge(tensor).node if plain else None


def name_of(function: Callable) -> str:
    name = getattr(function, "__name__", str(function))
    # that of a property
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name

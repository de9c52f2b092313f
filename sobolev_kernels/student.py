"""Recognises what a student is made of: linear layers with activations of the table between them, or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm

from .math.activations import is_curved
from .math.table import Formula
from .modules import IDENTITY, KINDS, MLP, from_module

# Half precision is computed in float32.
COMPUTE_DTYPE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
# torch's own activations that are linear between their kinks
FLAT_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink,
)  # fmt: skip

# as scripted modules call themselves
BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")


def widened(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """In the dtype that is computed in; what comes of it is rounded once, last."""
    return tensor if tensor is None or tensor.dtype not in COMPUTE_DTYPE else tensor.to(COMPUTE_DTYPE[tensor.dtype])


@dataclass(frozen=True, eq=False)
class Student:
    """A recognised multi-layer perceptron; `parameters` is weight, bias, weight, … without the missing biases."""

    widths: tuple[int, ...]
    biases: tuple[bool, ...]
    activations: tuple[Formula, ...]
    parameters: tuple[torch.Tensor, ...]
    reason: str = ""

    @property
    def D(self) -> int | None:
        return self.widths[0]

    @property
    def O(self) -> int | None:  # noqa: E743
        return self.widths[-1]

    def computed(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """An input or a parameter in the dtype that the layers are computed in."""
        return widened(tensor)

    def coupled(self) -> None:
        """Nothing in it couples the samples of a batch."""

    def flat(self) -> str | None:
        """An activation whose second derivative is 0 almost everywhere."""
        flat = (a.name for a in self.activations if a.name != "identity" and not is_curved(a))
        return next(flat, None)


@dataclass(frozen=True, eq=False)
class Unrecognised:
    """Any other function, and why it is not a multi-layer perceptron; only running it tells its outputs."""

    reason: str
    function: object
    widths: tuple[int, ...] = ()
    biases: tuple[bool, ...] = ()
    activations: tuple[Formula, ...] = ()
    D: int | None = None
    O: int | None = None

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(self.function, "parameters", tuple)())

    def computed(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """As it is: only the function knows how it computes in half precision."""
        return tensor

    def flat(self) -> str | None:
        """A module like ReLU in it. A function called relu cannot be seen."""
        modules = submodules(self.function)
        return next((type(module).__name__ for module in modules if isinstance(module, FLAT_MODULES)), None)

    def coupled(self) -> str | None:
        """A batch norm in it that would take its statistics from the batch, and what to do about it."""
        found = next(filter(takes_statistics, submodules(self.function)), None)
        if found is None:
            return None
        path = next(path for path, module in self.function.named_modules() if module is found)
        what = f"{kind_of(found)} {path!r}" if path else kind_of(found)
        if found.running_mean is None:
            return f"{what} without running statistics; LayerNorm and GroupNorm need none"
        return f"{what} in train mode; call eval() on it"


def submodules(module: object) -> Iterator[nn.Module]:
    """A module and all below it, as `modules()` but cheaper."""
    if isinstance(module, nn.Module):
        yield module
        for child in module._modules.values():
            yield from submodules(child)


def kind_of(module: nn.Module) -> str:
    return getattr(module, "original_name", type(module).__name__)


def takes_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm, perhaps a scripted one, that uses the mean and deviation of its batch."""
    scripted = isinstance(module, ScriptModule) and kind_of(module) in BATCH_NORMS
    return (scripted or isinstance(module, _BatchNorm)) and (module.training or module.running_mean is None)


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def leaves(module: nn.Module) -> Iterator[nn.Module | str]:
    """The modules of nested Sequentials in order; a string is the reason why there is no such order."""
    if has_hooks(module):
        yield f"{type(module).__name__} has hooks"
    elif type(module).__name__ == "OptimizedModule":
        # what torch.compile was given
        yield from leaves(module._orig_mod)
    elif "forward" in vars(module):
        yield f"{type(module).__name__} has its forward replaced"
    elif type(module) in (nn.Sequential, MLP):
        for child in module._modules.values():
            yield from leaves(child)
    else:
        yield module


def recognise(function: object) -> Student | Unrecognised:
    """The layers of a module, or in words why it is not an MLP of the activation table."""
    layers = layers_of(function)
    return Unrecognised(layers, function) if isinstance(layers, str) else layers


def layers_of(module: object) -> Student | str:
    if not isinstance(module, nn.Module):
        return f"the student is a {type(module).__name__}, not a torch.nn.Sequential"
    widths: list[int] = []
    biases: list[bool] = []
    activations: list[Formula] = []
    parameters: list[torch.Tensor] = []
    fresh = False
    for leaf in leaves(module):
        if isinstance(leaf, str):
            return leaf
        kind = type(leaf)
        if kind is nn.Linear:
            parts = leaf._parameters
            if widths and widths[-1] != leaf.weight.shape[1]:
                return f"a linear layer takes {leaf.weight.shape[1]} features after one that gives {widths[-1]}"
            widths = widths or [leaf.weight.shape[1]]
            widths.append(leaf.weight.shape[0])
            biases.append(parts["bias"] is not None)
            activations.append(IDENTITY)
            parameters += [p for p in (parts["weight"], parts["bias"]) if p is not None]
            fresh = True
        elif kind is nn.Identity:
            continue
        elif (formula := from_module(leaf)) is None:
            known = ", ".join(known.__name__ for known in KINDS)
            return f"{kind.__name__} is not one of Linear and {known}"
        elif not fresh:
            return f"{kind.__name__} does not follow a linear layer"
        else:
            activations[-1] = formula
            fresh = False
    if not parameters:
        return "the student has no linear layer"
    return Student(tuple(widths), tuple(biases), tuple(activations), tuple(parameters))

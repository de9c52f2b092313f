"""Recognises what a module is made of: linear layers with activations of the table between them, or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .errors import need
from .math.activations import ACTIVATIONS
from .math.table import Formula, choose

IDENTITY = Formula("identity")


class Sine(nn.Module):
    """sin(omega * z), the activation of sinusoidal representation networks (Sitzmann et al., 2020)."""

    def __init__(self, omega: float = 1.0):
        super().__init__()
        self.omega = float(omega)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.omega * z)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


def gelu_name(module: nn.GELU) -> str:
    return "gelu" if module.approximate == "none" else "gelu_tanh"


# How a row of the activation table looks as a module, and back.
FROM_MODULE: dict[type[nn.Module], Callable[[nn.Module], Formula]] = {
    nn.Identity: lambda m: IDENTITY,
    nn.ReLU: lambda m: Formula("relu"),
    nn.LeakyReLU: lambda m: Formula("leaky_relu", (float(m.negative_slope),)),
    nn.ELU: lambda m: Formula("elu", (float(m.alpha),)),
    nn.Tanh: lambda m: Formula("tanh"),
    nn.Sigmoid: lambda m: Formula("sigmoid"),
    nn.Softplus: lambda m: Formula("softplus", (float(m.beta), float(m.threshold))),
    nn.SiLU: lambda m: Formula("silu"),
    nn.GELU: lambda m: Formula(gelu_name(m)),
    Sine: lambda m: Formula("sin", (m.omega,)),
    nn.Softsign: lambda m: Formula("softsign"),
}
TO_MODULE: dict[str, Callable[..., nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "sin": Sine,
    "softsign": nn.Softsign,
}
assert set(TO_MODULE) == set(ACTIVATIONS), "every activation has its module"


def choose_activation(argument: str, choice: str | tuple | Formula) -> Formula:
    """An activation by name, with its parameters."""
    activation = choose(ACTIVATIONS, argument, choice)
    need(all(map(math.isfinite, activation.parameters)), argument, "finite parameters", choice)
    return activation


class MLP(nn.Sequential):
    """A multi-layer perceptron: D -> width × depth -> O, an `nn.Sequential` with a shorter constructor.

    Args:
        D, O: input and output features.
        width, depth: features and number of the hidden layers; depth 0 is one linear layer.
        activation: a name of the activation table, or (name, parameter, ...), for example ("sin", 30.0).
        last_activation: the same after the last layer.
        bias: whether the linear layers have one.

    Raises:
        ValueError: a size below 1 (depth: below 0), or an unknown activation.

    Example:
        >>> sum(p.numel() for p in MLP(2, 1, width=16, depth=2).parameters())
        337
    """

    def __init__(
        self, D: int, O: int, *, width: int = 256, depth: int = 2, activation: str | tuple | Formula = "tanh",
        last_activation: str | tuple | Formula = "identity", bias: bool = True, device=None, dtype=None,
    ):  # fmt: skip
        for name, size, least in (("D", D, 1), ("O", O, 1), ("width", width, 1), ("depth", depth, 0)):
            need(type(size) is int and size >= least, name, f"a whole number, at least {least}", size)
        formulas = [choose_activation("activation", activation)] * depth
        formulas.append(choose_activation("last_activation", last_activation))
        widths = [D, *[width] * depth, O]
        layers: list[nn.Module] = []
        for n_in, n_out, formula in zip(widths, widths[1:], formulas, strict=False):
            layers.append(nn.Linear(n_in, n_out, bias=bias, device=device, dtype=dtype))
            if formula.name != "identity":
                layers.append(TO_MODULE[formula.name](*formula.parameters))
        super().__init__(*layers)


@dataclass(frozen=True)
class Student:
    """A recognised multi-layer perceptron; `parameters` is weight, bias, weight, … without the missing biases."""

    widths: tuple[int, ...]
    biases: tuple[bool, ...]
    activations: tuple[Formula, ...]
    parameters: tuple[torch.Tensor, ...]


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def leaves(module: nn.Module) -> Iterator[nn.Module | str]:
    """The modules of nested Sequentials in order; a string is the reason why there is no such order."""
    if has_hooks(module):
        yield f"{type(module).__name__} has hooks"
    elif "forward" in vars(module):
        yield f"{type(module).__name__} has its forward replaced"
    elif type(module) in (nn.Sequential, MLP):
        for child in module._modules.values():
            yield from leaves(child)
    else:
        yield module


def recognise(module: object) -> Student | str:
    """The layers of a module, or in words why it is not an MLP of the activation table."""
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
        elif kind not in FROM_MODULE:
            return f"{kind.__name__} is not one of Linear and {', '.join(k.__name__ for k in FROM_MODULE)}"
        elif not fresh:
            return f"{kind.__name__} does not follow a linear layer"
        else:
            activations[-1] = FROM_MODULE[kind](leaf)
            fresh = False
    if not parameters:
        return "the student has no linear layer"
    return Student(tuple(widths), tuple(biases), tuple(activations), tuple(parameters))

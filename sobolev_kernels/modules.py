"""What students are made of: `MLP`, `Sine`, and the modules that the rows of the activation table look like."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn

from .boundary import PLAIN
from .errors import Fault, describe, in_words, need, whole
from .math.activations import ACTIVATIONS
from .math.table import Formula, choose, is_number
from .typed import ActivationName

IDENTITY = Formula("identity")


class Sine(nn.Module):
    """sin(omega * z), the activation of sinusoidal representation networks (Sitzmann et al., 2020)."""

    @in_words
    def __init__(self, omega: float = 1.0):
        super().__init__()
        need(is_number(omega), "omega", "a plain number", omega, TypeError)
        self.omega = float(omega)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.omega * z)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


class Row(NamedTuple):
    """How a row of the activation table looks as a module.

    Its class, the attributes that are the formula's parameters, and the arguments that tell it from another row.
    """

    kind: type[nn.Module]
    parameters: tuple[str, ...] = ()
    arguments: tuple[tuple[str, object], ...] = ()


MODULES = {
    "identity": Row(nn.Identity),
    "relu": Row(nn.ReLU),
    "leaky_relu": Row(nn.LeakyReLU, ("negative_slope",)),
    "elu": Row(nn.ELU, ("alpha",)),
    "tanh": Row(nn.Tanh),
    "sigmoid": Row(nn.Sigmoid),
    "softplus": Row(nn.Softplus, ("beta", "threshold")),
    "silu": Row(nn.SiLU),
    "gelu": Row(nn.GELU, arguments=(("approximate", "none"),)),
    "gelu_tanh": Row(nn.GELU, arguments=(("approximate", "tanh"),)),
    "sin": Row(Sine, ("omega",)),
    "softsign": Row(nn.Softsign),
    "mish": Row(nn.Mish),
}
assert list(MODULES) == list(ACTIVATIONS), "every activation has its module"
KINDS: dict[type[nn.Module], list[str]] = {}
for name, row in MODULES.items():
    KINDS.setdefault(row.kind, []).append(name)
NAMES = ", ".join(kind.__name__ for kind in KINDS)


def to_module(formula: Formula) -> nn.Module:
    row = MODULES[formula.name]
    return row.kind(*formula.parameters, **dict(row.arguments))


def kind_of(module: nn.Module) -> str:
    """What a module is called by; of a scripted one, what was scripted."""
    return getattr(module, "original_name", type(module).__name__)


def from_module(module: nn.Module) -> Formula | str | Fault:
    """The row of the activation table that a module is, with its parameters; or why it is none.

    A fault, if torch does not compute it either: its own activations take nothing but numbers.
    """
    for name in KINDS.get(type(module), ()):
        row = MODULES[name]
        if all(getattr(module, argument) == value for argument, value in row.arguments):
            numbers = [number(getattr(module, parameter)) for parameter in row.parameters]
            if None in numbers:
                parameter = row.parameters[numbers.index(None)]
                name, value = f"{row.kind.__name__}.{parameter}", getattr(module, parameter)
                if row.kind is Sine or (isinstance(value, torch.Tensor) and not (value.dim() or value.requires_grad)):
                    return f"{name} is {describe(value)}, not a number"
                return Fault("student", f"{name} to be a number", value, TypeError)
            return Formula(name, tuple(numbers))
    return f"{kind_of(module)} is not one of Linear and {NAMES}"


def number(value: object) -> float | None:
    """A parameter of a formula; None if it may have a gradient, differ between features, or not be known yet."""
    if isinstance(value, torch.Tensor):
        known = type(value) in PLAIN and value.device.type != "meta" and not torch.compiler.is_compiling()
        return float(value) if known and value.dim() == 0 and not value.requires_grad else None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


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

    @in_words
    def __init__(
        self, D: int, O: int, *, width: int = 256, depth: int = 2, activation: ActivationName = "tanh",
        last_activation: ActivationName = "identity", bias: bool = True,
        device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        D, O, width, depth = map(whole, (D, O, width, depth))
        for name, size, least in (("D", D, 1), ("O", O, 1), ("width", width, 1), ("depth", depth, 0)):
            need(type(size) is int and size >= least, name, f"a whole number, at least {least}", size)
        formulas = [choose_activation("activation", activation)] * depth
        formulas.append(choose_activation("last_activation", last_activation))
        widths = [D, *[width] * depth, O]
        layers: list[nn.Module] = []
        for n_in, n_out, formula in zip(widths, widths[1:], formulas, strict=False):
            layers.append(nn.Linear(n_in, n_out, bias=bias, device=device, dtype=dtype))
            if formula.name != "identity":
                layers.append(to_module(formula))
        super().__init__(*layers)

    def __getitem__(self, index: slice | int) -> nn.Module:
        # nn.Sequential makes another of its own class of a slice, which here takes sizes
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def own(kind: type, method: str) -> object:
    """A class's method as it was written; None if another has been put in its place already."""
    function, home = getattr(kind, method), next(base for base in kind.__mro__ if method in vars(base))
    return function if function.__module__ == home.__module__ and not hasattr(function, "__wrapped__") else None


CONTAINERS = (nn.Sequential, MLP)
FORWARDS = {kind: own(kind, "forward") for kind in (*CONTAINERS, nn.Linear, *KINDS)}
CALL, CALL_IMPL = own(nn.Module, "__call__"), own(nn.Module, "_call_impl")
# What a module of each class is asked for: of activations the attributes that make it the row of the table that it is.
ATTRIBUTES: dict[type, object] = {nn.Linear: None, **dict.fromkeys(CONTAINERS, "children")}
for row in MODULES.values():
    ATTRIBUTES[row.kind] = (*row.parameters, *(name for name, _ in row.arguments))
# As the core is told it (csrc/reading.h).
RULES = {kind: (FORWARDS[kind], asked) for kind, asked in ATTRIBUTES.items()}, CALL, CALL_IMPL


def patched(kind: type) -> bool:
    """Whether a class of these computes something else than it is known for."""
    if kind.forward is not FORWARDS[kind] or kind._call_impl is not CALL_IMPL:
        return True
    # torch.fx traces with a __call__ of its own
    return kind.__call__ is not CALL and torch._C._len_torch_dispatch_stack() == 0

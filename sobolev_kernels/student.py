"""Recognises what a student is made of: linear layers with activations of the table between them, or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch._subclasses import FakeTensor
from torch.jit import ScriptModule
from torch.nn.modules import module as everywhere
from torch.nn.modules.batchnorm import _BatchNorm

from .boundary import PLAIN
from .errors import Fault, NotProvided
from .heads import inner_of
from .math.activations import is_curved
from .math.table import Formula
from .modules import CONTAINERS, FORWARDS, IDENTITY, from_module, kind_of, patched
from .parts import modules_of

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

    def faults_of_statistics(self, name: str) -> Iterator[Fault]:
        """Nothing in it couples the samples of a batch."""
        return iter(())

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
    fault: Fault | None = None  # of a layer that PyTorch cannot compute either

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(inner_of(self.function), "parameters", tuple)())

    def computed(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """As it is: only the function knows how it computes in half precision."""
        return tensor

    def flat(self) -> str | None:
        """A module like ReLU in it. A function called relu cannot be seen."""
        modules = submodules(inner_of(self.function))
        return next((type(module).__name__ for module in modules if isinstance(module, FLAT_MODULES)), None)

    def faults_of_statistics(self, name: str) -> Iterator[Fault]:
        coupled = self.coupled()
        if coupled is not None:
            what = (
                "each sample's outputs to be its own, since no derivative is provided through statistics of the batch"
            )
            yield Fault(name, what, coupled, NotProvided)

    def coupled(self) -> str | None:
        """A batch norm in it that would take its statistics from the batch, and what to do about it."""
        function = inner_of(self.function)
        found = next(filter(takes_statistics, submodules(function)), None)
        if found is None:
            return None
        path = next(path for path, module in function.named_modules() if module is found)
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


def takes_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm, perhaps a scripted one, that uses the mean and deviation of its batch."""
    scripted = isinstance(module, ScriptModule) and kind_of(module) in BATCH_NORMS
    return (scripted or isinstance(module, _BatchNorm)) and (module.training or module.running_mean is None)


def is_sharded(function: object) -> bool:
    """Whether FSDP, of either kind, keeps a part of it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    kinds = {base.__name__ for module in modules_of(function) for base in type(module).__mro__}
    return not kinds.isdisjoint(("FSDPModule", "FullyShardedDataParallel"))


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def hooks_of_all() -> bool:
    """Whether hooks are registered that torch.nn calls for every module."""
    return bool(
        everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks
    )  # fmt: skip


def leaves(module: nn.Module) -> Iterator[nn.Module | str]:
    """The modules of nested Sequentials in order; a string is the reason why there is no such order."""
    kind = type(module)
    if has_hooks(module):
        yield f"{kind.__name__} has hooks"
    elif kind.__name__ == "OptimizedModule":
        # what torch.compile was given
        yield from leaves(module._orig_mod)
    elif "forward" in vars(module):
        yield f"{kind.__name__} has its forward replaced"
    elif kind in FORWARDS and patched(kind):
        yield f"the class {kind.__name__} has its forward or its call replaced"
    elif kind in CONTAINERS:
        for child in module._modules.values():
            yield from leaves(child)
    else:
        yield module


def recognise(function: object) -> Student | Unrecognised:
    """The layers of a module, or in words why it is not an MLP of the activation table."""
    layers = layers_of(function)
    if isinstance(layers, Fault):
        return Unrecognised(layers.expected, function, fault=layers)
    return Unrecognised(layers, function) if isinstance(layers, str) else layers


def linear(leaf: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None] | str | Fault:
    """Weight [n_out, n_in] and bias [n_out], wherever the module has them from.

    Otherwise why the kernels do not read it, where torch computes it all the same; or a fault, where torch does not.
    """
    weight, bias = part(leaf, "weight"), part(leaf, "bias")
    for name, tensor, dims in (("weight", weight, 2), ("bias", bias, None)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.is_nested or tensor.layout is not torch.strided:
            return Fault("student", f"the {name} of a Linear to be a dense tensor", tensor, TypeError)
        if not plain(tensor):
            return f"the {name} of a Linear is a {type(tensor).__name__}"
        if dims not in (None, tensor.dim()):
            return Fault("student", "the weight of a Linear to be of shape [n_out, n_in]", tensor)
    n_out = weight.shape[0]
    if bias is None or bias.shape == (n_out,):
        return weight, bias
    if bias.dim() > 2 or (bias.dim() and bias.shape[-1] not in (1, n_out)):
        return Fault("student", f"the bias of a Linear to be of shape [{n_out}]", bias)
    return f"a Linear has a bias of {list(bias.shape)} for {n_out} outputs"


def part(leaf: nn.Module, name: str) -> object:
    """What `leaf.name` is, without torch's slow way to a parameter; a tensor put there instead of one goes before."""
    known = name in leaf._parameters and name not in vars(leaf)
    return leaf._parameters[name] if known else getattr(leaf, name, "nothing")


def plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers are what its memory holds; or someone traces the call, and memory is of no matter."""
    if type(tensor) in PLAIN or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return isinstance(tensor, FakeTensor)


def layers_of(module: object) -> Student | str | Fault:
    if not isinstance(module, nn.Module):
        return f"the student is a {type(module).__name__}, not a torch.nn.Sequential"
    if hooks_of_all():
        return "hooks are registered for all modules"
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
            layer = linear(leaf)
            if isinstance(layer, (str, Fault)):
                return layer
            weight, bias = layer
            n_out, n_in = weight.shape
            if widths and widths[-1] != n_in:
                return f"a linear layer takes {n_in} features after one that gives {widths[-1]}"
            widths = widths or [n_in]
            widths.append(n_out)
            biases.append(bias is not None)
            activations.append(IDENTITY)
            parameters += [weight] if bias is None else [weight, bias]
            fresh = True
        elif kind is nn.Identity:
            continue
        elif isinstance(formula := from_module(leaf), (str, Fault)):
            return formula
        elif not fresh:
            return f"{kind.__name__} does not follow a linear layer"
        else:
            activations[-1] = formula
            fresh = False
    if not parameters:
        return "the student has no linear layer"
    return Student(tuple(widths), tuple(biases), tuple(activations), tuple(parameters))

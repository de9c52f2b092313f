"""Whether a whole forward is one chain of linear layers and activations of the table: then its student is an MLP.

The forward is run on a chain that each operation makes longer, at every call: nothing is kept that could be stale.
An affine map of what a linear layer gives is a part of the layer, whose weight then has a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..boundary import PLAIN
from ..math.activations import ACTIVATIONS
from ..math.table import Formula
from ..modules import IDENTITY, number
from ..student import Student
from .flowing import ABOUT, Flowing, is_finite, register_hook, spelt

RULES: dict[Callable, Callable] = dict(ABOUT)


class Layer(NamedTuple):
    weight: torch.Tensor  # [n_out, n_in]
    bias: torch.Tensor | None  # [n_out]
    activation: Formula = IDENTITY
    factor: float = 1.0  # of what it gives, before an activation

    def whole(self) -> Layer:
        """The factor as a part of the weight and the bias."""
        if self.factor == 1.0:
            return self
        bias = None if self.bias is None else self.factor * self.bias
        return Layer(self.factor * self.weight, bias, self.activation)


class Chain(Flowing):
    """[N, n]: what the layers make of the input; [N, …] before them, [N] after a last one of one output."""

    layers: tuple[Layer, ...] = ()
    shares: bool = False  # whether it is a view of another, or another of it

    def longer(self, *layers: Layer) -> Chain:
        """The same with these layers more."""
        n = layers[-1].weight.shape[0] if layers else self.sizes[1]
        chain = Chain.make(self.run, (self.sizes[0], n))
        chain.layers = (*self.layers, *layers)
        return chain

    def changed(self, layer: Layer) -> Chain:
        """The same with another last layer."""
        chain = Chain.make(self.run, self.sizes)
        chain.layers = (*self.layers[:-1], layer)
        return chain

    def asks(self) -> bool:
        weights = (tensor for layer in self.layers for tensor in layer[:2] if tensor is not None)
        return self.run.wanted or any(tensor.requires_grad for tensor in weights)

    @property
    def n(self) -> int:
        """Of numbers of a sample."""
        return self.sizes[1] if len(self.sizes) > 1 else 1

    @property
    def last(self) -> Layer:
        """A linear layer that no activation follows yet."""
        if not self.layers or self.layers[-1].activation is not IDENTITY:
            self.run.stop("an operation that follows no linear layer")
        return self.layers[-1]


def student_of(chain: Chain) -> Student:
    layers = [layer.whole() for layer in chain.layers]
    return Student(
        (layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers)),
        tuple(layer.bias is not None for layer in layers),
        tuple(layer.activation for layer in layers),
        tuple(tensor for layer in layers for tensor in layer[:2] if tensor is not None),
    )


def rule(*names: str) -> Callable[[Callable], Callable]:
    """For the functions and methods of PyTorch by these names."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(spelt(*names), function))
        return function

    return register


def chained(input: object, *others: object) -> Chain:
    """The first argument, and no other one, is what flows."""
    flowing = [argument for argument in (input, *others) if isinstance(argument, Chain)]
    if len(flowing) != 1 or flowing[0] is not input:
        flowing[0].run.stop("an operation that mixes two parts of it, or takes its input for a weight")
    return input


def numbers_for(chain: Chain, tensor: torch.Tensor) -> torch.Tensor:
    """A weight or a bias, of the dtype and on the device of the inputs."""
    run = chain.run
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_nested:
        run.stop(f"a {type(tensor).__name__} in it")
    if tensor.dtype != run.dtype or tensor.device != run.device:
        run.stop(f"a tensor of {tensor.dtype} on {tensor.device} in it")
    return tensor


def row(chain: Chain, tensor: torch.Tensor) -> torch.Tensor:
    """[n], the same for all samples."""
    n, shape = chain.n, tuple(numbers_for(chain, tensor).shape)
    if shape not in ((), (1,)) and (len(chain.sizes) == 1 or shape not in ((n,), (1, 1), (1, n))):
        chain.run.stop("a tensor in it that is not the same for all samples")
    return tensor.reshape(-1).expand(n)


@rule("linear")
def linear(input, weight, bias=None):
    chain = chained(input, weight, bias)
    numbers_for(chain, weight)
    if weight.dim() != 2 or weight.shape[1:] != chain.sizes[1:]:
        chain.run.stop("a weight that is not [n_out, n_in]")
    if bias is not None and numbers_for(chain, bias).shape != weight.shape[:1]:
        chain.run.stop("a bias that is not [n_out]")
    return chain.longer(Layer(weight, bias))


@rule("matmul", "__matmul__", "mm")
def matmul(input, other):
    chain = chained(input, other)
    if numbers_for(chain, other).dim() != 2:
        chain.run.stop("a product that is no linear layer")
    return linear(chain, other.T)


@rule("addmm")
def addmm(input, mat1, mat2, *, beta=1, alpha=1):
    chain = chained(mat1, input, mat2)
    if beta != 1 or alpha != 1:
        chain.run.stop("addmm with factors")
    return add(matmul(chain, mat2), input)


@rule("mul", "__mul__", "__rmul__", "multiply")
def mul(input, other):
    chain, other = (input, other) if isinstance(input, Chain) else (other, input)
    layer = chained(chain, other).last
    if is_finite(other):
        return chain.changed(layer._replace(factor=layer.factor * other))
    if not isinstance(other, torch.Tensor):
        chain.run.stop("a product with what is no tensor")
    factors, layer = row(chain, other), layer.whole()
    bias = None if layer.bias is None else layer.bias * factors
    return chain.changed(Layer(layer.weight * factors[:, None], bias))


@rule("div", "__truediv__", "true_divide", "divide")
def div(input, other, *, rounding_mode=None):
    if rounding_mode is not None or not isinstance(input, Chain):
        chained(other if isinstance(other, Chain) else input).run.stop("a quotient that is not linear")
    return mul(input, 1 / other)


@rule("neg", "__neg__", "negative")
def neg(input):
    return mul(input, -1.0)


@rule("add", "__add__", "__radd__")
def add(input, other, *, alpha=1):
    if isinstance(input, Chain):
        chain, other = input, other if alpha == 1 else alpha * other
    else:
        chain, other = other if alpha == 1 else mul(other, alpha), input
    layer = chained(chain, other).last.whole()
    if is_finite(other):
        added = layer.weight.new_full((chain.n,), other)
    elif isinstance(other, torch.Tensor):
        added = row(chain, other)
    else:
        chain.run.stop("a sum with what is no tensor")
    return chain.changed(layer._replace(bias=added if layer.bias is None else layer.bias + added))


@rule("sub", "__sub__", "subtract")
def sub(input, other, *, alpha=1):
    return add(input, other, alpha=-alpha)


@rule("rsub", "__rsub__")
def rsub(input, other, *, alpha=1):
    return add(other, input, alpha=-alpha)


def activation(*names: str) -> Callable[[Callable], Callable]:
    """A rule of a function of the arguments after the first, which gives a formula of the table."""

    def register(formula_of: Callable) -> Callable:
        def applied(input, *arguments, inplace=False, **named):
            return activated(chained(input), formula_of(*arguments, **named), inplace)

        def applied_inplace(input, *arguments, **named):
            return applied(input, *arguments, inplace=True, **named)

        RULES.update(dict.fromkeys(spelt(*names), applied))
        RULES.update(dict.fromkeys(spelt(*(f"{name}_" for name in names)), applied_inplace))
        return formula_of

    return register


def activated(chain: Chain, formula: Formula, inplace: bool) -> Chain:
    layer, parameters = chain.last, tuple(map(number, formula.parameters))
    if formula.name == "sin":
        layer, parameters = layer._replace(factor=1.0), (layer.factor,)
    if None in parameters:
        chain.run.stop(f"{formula.name} with a parameter that is no number")
    after = chain.changed(layer.whole()._replace(activation=Formula(formula.name, parameters)))
    if not inplace:
        return after
    if chain.shares:
        chain.run.stop("an operation in place on what is seen elsewhere")
    chain.layers = after.layers
    return chain


def of_table(name: str, *parameters: str) -> Callable:
    """The formula of a row whose parameters have these names and the row's own defaults, in the row's order."""
    defaults = dict(zip(parameters, (value for _, value in ACTIVATIONS[name].defaults), strict=True))

    def formula_of(*arguments, **named):
        if len(arguments) > len(parameters) or not named.keys() <= defaults.keys():
            raise TypeError("arguments")
        values = defaults | dict(zip(parameters, arguments, strict=False)) | named
        return Formula(name, tuple(values.values()))

    return formula_of


@activation("gelu")
def gelu(*, approximate="none"):
    return Formula("gelu_tanh" if approximate == "tanh" else "gelu")


@activation("sin")
def sin():
    return Formula("sin", (1.0,))


PARAMETERS = {
    "relu": (), "leaky_relu": ("negative_slope",), "elu": ("alpha",), "tanh": (), "sigmoid": (),
    "softplus": ("beta", "threshold"), "silu": (), "softsign": (), "mish": (),
}  # fmt: skip
assert {*PARAMETERS, "gelu", "gelu_tanh", "sin", "identity"} == {*ACTIVATIONS}, "every activation has its functions"
# By a function's name: the formula of its arguments after the first.
FORMULAS = {name: of_table(name, *parameters) for name, parameters in PARAMETERS.items()} | {"gelu": gelu, "sin": sin}
for name in PARAMETERS:
    activation(name)(FORMULAS[name])


@rule("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d")
def dropout(input, p=0.5, training=True, inplace=False):
    chain = chained(input)
    if training and p != 0:
        chain.run.stop("dropout in train mode")
    return chain


def view(name: str) -> Callable:
    """A rule of a view, of the inputs or of one output, with each sample's numbers in the same order."""
    method = getattr(torch.Tensor, name)

    def seen(input, *arguments, **named):
        chain = chained(input, *arguments)
        before = torch.empty(chain.sizes, dtype=chain.run.dtype, device="meta")
        after = method(before, *arguments, **named)
        if after.shape == before.shape and after.dtype == before.dtype:
            return chain
        N, *sizes = chain.sizes
        kept = after.dtype == before.dtype and after.shape[:1] == (N,) and after.numel() == before.numel()
        if not kept or (chain.layers and (sizes != [1] or after.dim() != 1)):
            chain.run.stop(f"{name} to another shape")
        another = Chain.make(chain.run, after.shape)
        another.layers = chain.layers
        another.shares = chain.shares = True
        return another

    return seen


for name in ("view", "reshape", "flatten", "unflatten", "expand", "squeeze", "contiguous"):
    rule(name)(view(name))


@rule("view_as", "reshape_as", "expand_as")
def like(input, other):
    return view("view")(input, other.sizes if isinstance(other, Chain) else other.shape)


@rule("__getitem__")
def column(input, key):
    """That of one output."""
    chain = chained(input)
    of_column = type(key) is tuple and len(key) == 2 and key[0] in (slice(None), ...) and type(key[1]) is int
    if not (chain.layers and chain.sizes[1:] == (1,) and of_column and key[1] in (0, -1)):
        chain.run.stop("a part of it")
    return view("view")(chain, (chain.sizes[0],))


@rule("to", "type_as")
def to(input, *arguments, non_blocking=False, **named):
    chain, run = chained(input, *arguments, *named.values()), input.run
    for value in (*arguments, *named.values()):
        dtype = value if isinstance(value, torch.dtype) else getattr(value, "dtype", run.dtype)
        device = value if isinstance(value, (str, torch.device)) else getattr(value, "device", run.device)
        known = value is False or isinstance(value, (torch.dtype, str, torch.device, torch.Tensor))
        if not known or run.cast or dtype != run.dtype or torch.device(device) != run.device:
            run.stop("a change of dtype or device")
    return chain


for name, dtype in (("float", torch.float32), ("double", torch.float64), ("bfloat16", torch.bfloat16)):
    rule(name)(lambda input, dtype=dtype: to(input, dtype))


rule("register_hook")(register_hook)


@rule("clone")
def clone(input, *, memory_format=torch.preserve_format):
    return chained(input).longer()

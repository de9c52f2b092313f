"""Chains of linear layers and activations of the table within any forward: each is put off, and is one fused call then.

A pair that such a function gives has no numbers yet. They come when something else asks for them: by one fused call
from the last value that has some, or by one operation after the other where that would cost less. A value that was
passed over, and is asked for as well, is computed by itself; it is an end of its chain in the runs after the first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from ..boundary import PLAIN
from ..math.table import Formula
from ..modules import IDENTITY
from . import products
from .activated import formula_told
from .chain import FORMULAS, Layer
from .flowing import ABOUT, Run, is_finite, spelt
from .pair import Pair, is_pair, start, wrapper
from .rules import RULES, TWICE
from .twice import Twice

CHANGED = "a weight in it is another after it was used"
Numbers = tuple[torch.Tensor, ...]  # a value [..., n], and its derivatives [P or S, ..., n] but of values alone


class Step:
    """Numbers; or an operation, `own`, that gives them of those of the step before.

    `layer` is what the operation makes of the last linear layer, which `begins` with it or is that of the step before.
    """

    __slots__ = ("before", "begins", "layer", "marks", "numbers", "own", "place")

    def __init__(
        self, before: Step | None, layer: Layer | None, place: int, own: Callable[[Numbers], Numbers] | None = None,
        begins: bool = False, marks: Sequence[tuple] = (), numbers: Numbers | None = None,
    ):  # fmt: skip
        self.before, self.layer, self.place, self.own = before, layer, place, own
        self.begins, self.marks, self.numbers = begins, marks, numbers

    def settle(self) -> None:
        """Its numbers by its own operation."""
        self.numbers, self.before = self.own(*self.before.numbers), None

    def holds(self) -> bool:
        """Whether its weights are those that it was made with."""
        for tensor, version, address, copy in self.marks:
            if tensor._version != version or tensor.data_ptr() != address:
                return False
            if copy is not None:
                with torch._C.DisableTorchFunction():  # no mode is told of it, which is no part of the run
                    if not torch.equal(tensor.detach(), copy):
                        return False
        return True


@dataclass(eq=False)
class Segments:
    """The chains of one run of a forward: how they are fused, and what became of them.

    `fuse` gives the name of a backend and its numbers, or None where none of them does it, or it costs more; it is told
    of order 2 how many derivatives are first ones. A run that is `careful` compares weights with copies, since what is
    written to `weight.data` is not seen otherwise.
    """

    fuse: Callable[..., tuple[str, Numbers] | None]  # of layers, numbers, `known`, a place, the P of order 2
    ends: frozenset[int] = frozenset()
    careful: bool = False
    widest: float = math.inf  # features of a layer that may be fused
    known: dict | None = None  # what is known of the fused calls of runs like it, by their places
    places: Iterator[int] = field(default_factory=itertools.count)
    asked: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    fused: dict[tuple[int, str], int] = field(default_factory=dict)

    def next_place(self, after: Step | None = None) -> int:
        """That of an operation after a step of its own layer, or of a layer."""
        return next(self.places)

    def found(self) -> tuple[int, ...]:
        """The places that were passed over, or could have been, and asked for as well."""
        return tuple(sorted(self.ends | (self.asked & self.passed)))

    def settle(self, run: Run, step: Step) -> Numbers:
        """The numbers of a step, computed in the precision that it was put off in."""
        self.asked.add(step.place)
        if step.numbers is None:
            if run.casting():
                with torch.autocast(run.device.type, enabled=False):
                    self.compute(run, step)
            else:
                self.compute(run, step)
        return step.numbers

    def compute(self, run: Run, step: Step) -> None:
        chain = [step]
        while (before := chain[0].before).numbers is None:
            chain.insert(0, before)
        if not all(map(Step.holds, [chain[0].before, *chain])):
            run.stop(CHANGED)
        if step.layer.factor != 1.0:  # which no sine has followed
            self.settle(run, step.before)
            chain = [step]
        while chain and not chain[0].begins:  # its linear layer has its numbers already
            chain.pop(0).settle()
        self.passed.update([each.place for each in chain[:-1]])
        if chain and not self.through(step, chain, run.P if isinstance(run, Twice) else None):
            for part in chain:
                part.settle()

    def through(self, step: Step, chain: list[Step], P: int | None) -> bool:
        """Whether one fused call gave the numbers of the last step of a chain."""
        layers = [part.layer for part, after in itertools.pairwise([*chain, None]) if after is None or after.begins]
        found = self.fuse(layers, *chain[0].before.numbers, self.known, step.place, P)
        if found is None:
            return False
        backend, step.numbers = found
        step.before = None
        kind = len(layers), backend
        self.fused[kind] = self.fused.get(kind, 0) + 1
        return True


class Pending(Pair):
    """A pair whose numbers are computed when they are asked for."""

    step: Step

    @property
    def v(self) -> torch.Tensor:
        return numbers_of(self)[0]

    @v.setter
    def v(self, value: torch.Tensor) -> None:
        self.step = known(value, self.d)

    @property
    def d(self) -> torch.Tensor:
        return numbers_of(self)[1]

    @d.setter
    def d(self, value: torch.Tensor) -> None:
        self.step = known(self.v, value)

    def asks(self) -> bool:
        at, asks = self.step, False
        while at.numbers is None:
            asks = asks or any(tensor.requires_grad for tensor, *_ in at.marks)
            at = at.before
        return asks or any(tensor.requires_grad for tensor in at.numbers)


def numbers_of(pair: Pending) -> Numbers:
    numbers, segments = pair.step.numbers, pair.run.segments
    if numbers is not None and segments.known is not None:
        return numbers  # of a run like others nobody asks what was asked for
    return segments.settle(pair.run, pair.step)


def known(v: torch.Tensor, d: torch.Tensor) -> Step:
    return Step(None, None, -1, numbers=(v, d))


def step_of(input: Pair) -> Step:
    """What a linear layer of it follows."""
    if not isinstance(input, Pending):
        return known(input.v, input.d)
    step, segments = input.step, input.run.segments
    if step.place in segments.ends or (step.layer is not None and step.layer.factor != 1.0):
        segments.settle(input.run, step)
    return step


def is_layer(input: Pair, weight: object, bias: object) -> bool:
    """Whether these are the weight and the bias of a layer that a fused call may have for its own."""
    run = input.run
    if not input.sizes or not are_of_layer(run, input.sizes[-1], weight, bias):
        return False
    # of one that is put off it is known
    return isinstance(input, Pending) or (input.v.dtype is run.dtype and input.v.device == run.device)


def are_of_layer(run: Run, n: int, weight: object, bias: object) -> bool:
    """The same of a layer of n numbers."""
    if not fits(run, weight, 2):
        return False
    n_out, n_in = weight.shape
    if n_in != n or (bias is not None and not (fits(run, bias, 1) and bias.shape[0] == n_out)):
        return False
    return n_out <= run.segments.widest and n_in <= run.segments.widest and not run.casting()


def fits(run: Run, tensor: object, dims: int) -> bool:
    """Whether kernels may read it, now or a little later."""
    kind = type(tensor)
    if kind not in PLAIN or tensor.layout is not torch.strided or tensor.is_inference():
        return False
    if kind is not torch.nn.Parameter and not tensor.requires_grad:
        return False  # as of buffers, which a forward may rightly write to
    return tensor.dtype is run.dtype and tensor.device == run.device and tensor.dim() == dims


def marks_of(segments: Segments, *tensors: torch.Tensor) -> list[tuple]:
    with torch._C.DisableTorchFunction():  # no mode is told of it, which is no part of the run
        return [(t, t._version, t.data_ptr(), t.detach().clone() if segments.careful else None) for t in tensors]


def open_layer(input: object) -> Layer | None:
    """The linear layer that gave a pair which has no numbers yet, and no activation has followed."""
    if not isinstance(input, Pending) or input.step.numbers is not None:
        return None
    step, run = input.step, input.run
    is_open = step.layer.activation is IDENTITY and step.place not in run.segments.ends and not run.casting()
    return step.layer if is_open else None


def unasked(about: Callable, plain: Callable) -> Callable:
    """The rule of what a tensor is, for which one that is put off need have no numbers."""

    def answered(input, *arguments, **named):
        rule = about if isinstance(input, Pending) else plain
        return rule(input, *arguments, **named)

    return answered


@dataclass(frozen=True)
class Delaying:
    """The rules by which layers are put off, and what else is done: of pairs their own rules."""

    kind: type[Pending]
    linear: Callable
    matmul: Callable
    mul: Callable
    add: Callable
    layer: Callable[[torch.Tensor, torch.Tensor | None], Callable[..., Numbers]]  # of numbers, those of a linear layer
    own: Callable[..., Callable[..., Numbers]]  # those of an operation (run, plain, arguments, named)

    def pending(self, run: Run, sizes: tuple[int, ...], step: Step) -> Pending:
        pair = wrapper(self.kind, run, sizes, run.dtype, run.device)
        pair.step = step
        return pair

    def following(self, input: Pending, layer: Layer, plain: Callable, *arguments, **named) -> Step:
        """What an operation makes of a layer, by itself `plain(input, …)`."""
        run = input.run
        return Step(input.step, layer, run.segments.next_place(input.step), self.own(run, plain, arguments, named))

    def a_linear(self, input, weight, bias=None):
        if not is_pair(input) or not is_layer(input, weight, bias):
            return self.linear(input, weight, bias)
        return self.beginning(input.run, step_of(input), input.sizes, weight, bias)

    def beginning(
        self, run: Run, before: Step, sizes: tuple[int, ...], weight: torch.Tensor, bias: torch.Tensor | None
    ) -> Pending:  # fmt: skip
        """A linear layer of what a step gives."""
        segments = run.segments
        marks = marks_of(segments, weight) if bias is None else marks_of(segments, weight, bias)
        own = self.layer(weight, bias)
        step = Step(before, Layer(weight, bias), segments.next_place(), own, begins=True, marks=marks)
        return self.pending(run, (*sizes[:-1], weight.shape[0]), step)

    def a_matmul(self, input, other):
        if is_pair(input) and isinstance(other, torch.Tensor) and not is_pair(other) and other.dim() == 2:
            weight = other.t()
            if is_layer(input, weight, None):
                return self.a_linear(input, weight)
        return self.matmul(input, other)

    def a_mul(self, input, other):
        """By a number: a sine that follows has it for its own."""
        pair, factor = (input, other) if is_pair(input) else (other, input)
        layer = open_layer(pair) if is_finite(factor) else None
        if layer is None or not is_finite(layer.factor * factor):
            return self.mul(input, other)
        step = self.following(pair, layer._replace(factor=float(layer.factor * factor)), self.mul, factor)
        return self.pending(pair.run, pair.sizes, step)

    def an_add(self, input, other, *, alpha=1):
        """Of a product with a weight: its bias."""
        pair, bias = (input, other) if is_pair(input) else (other, input)
        layer = open_layer(pair) if alpha == 1 and isinstance(bias, torch.Tensor) and not is_pair(bias) else None
        if layer is None or layer.bias is not None or layer.factor != 1.0 or not fits(pair.run, bias, 1):
            return self.add(input, other, alpha=alpha)
        if bias.shape != layer.weight.shape[:1]:
            return self.add(input, other, alpha=alpha)
        step = self.following(pair, layer._replace(bias=bias), self.add, bias)
        step.marks = marks_of(pair.run.segments, bias)
        return self.pending(pair.run, pair.sizes, step)

    def activation(self, plain: Callable, formula_of: Callable[..., Formula]) -> Callable:
        """The rule of an activation: after a layer that was put off it is put off, too."""
        default = formula_told(formula_of, (), {})

        def applied(input, *arguments, inplace=False, **named):
            layer, formula = open_layer(input), None
            if layer is not None:
                formula = formula_told(formula_of, arguments, named) if arguments or named else default
            if formula is None or not (layer.factor == 1.0 or formula.name == "sin"):
                return plain(input, *arguments, **named, **({"inplace": True} if inplace else {}))
            if formula.name == "sin":
                formula, layer = Formula("sin", (layer.factor,)), layer._replace(factor=1.0)
            step = self.following(input, layer._replace(activation=formula), plain, *arguments, **named)
            if not inplace:
                return self.pending(input.run, input.sizes, step)
            input.step = step
            return input

        return applied

    def segmented(
        self, rules: dict[Callable, Callable], like: dict[Callable, Callable] | None = None
    ) -> dict[Callable, Callable]:  # fmt: skip
        """These rules where chains of layers are put off; `like` those of pairs, if they are others."""
        about = ABOUT.keys() & rules.keys()
        table = rules | {function: unasked(ABOUT[function], rules[function]) for function in about}
        of_products = {
            products.linear: self.a_linear, products.matmul: self.a_matmul, products.mul: self.a_mul,
            products.add: self.an_add,
        }  # fmt: skip
        table |= {spelling: of_products[plain] for spelling, plain in (like or rules).items() if plain in of_products}
        for name, formula_of in FORMULAS.items():
            for function in spelt(name):
                table[function] = self.activation(rules[function], formula_of)
            for function in spelt(f"{name}_"):
                table[function] = partial(self.activation(rules[function], formula_of), inplace=True)
        return table


def own_of_pairs(run: Run, plain: Callable, arguments: tuple, named: dict) -> Callable[..., Numbers]:
    def own(v, d):
        after = plain(start(run, v, d), *arguments, **named)
        return after.v, after.d

    return own


PAIRS = Delaying(
    Pending, products.linear, products.matmul, products.mul, products.add,
    layer=lambda weight, bias: lambda v, d: products.layer(v, d, weight, bias), own=own_of_pairs,
)  # fmt: skip
SEGMENTED, SEGMENTED_TWICE = PAIRS.segmented(RULES), PAIRS.segmented(TWICE)

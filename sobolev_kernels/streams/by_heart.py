"""A run like one before, in which chains of layers are put off that are known link by link: what comes is compared with
what came, and nothing else is found out again.

What comes otherwise is met by the rules of values.py, to which a part of a chain is a value whose numbers are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import ref

import torch

from ..math.table import Formula
from .chain import Layer
from .flowing import Run
from .segments import CHANGED, Step
from .values import LINEAR, Deferring, Value, called, marks_of

SIMPLE = (bool, int, float, str)
MAKE = torch.Tensor._make_wrapper_subclass


class Link(NamedTuple):
    """A call that takes a chain on: a function of what is before it and of others, which are plain values, or weight
    and bias of a linear layer, by their places among the parameters."""

    function: Callable
    others: tuple
    named: dict
    is_layer: bool
    features: int  # that it gives

    def suits(self, function: Callable, args: tuple, kwargs: Mapping | None, parameters: Sequence) -> bool:
        """Whether a call is such a one."""
        if function is not self.function or len(args) != 1 + len(self.others):
            return False
        if self.is_layer:
            return not kwargs and all([
                came is (None if place is None else parameters[place])
                for came, place in zip(args[1:], self.others, strict=True)
            ])  # fmt: skip
        named = kwargs or {}
        if named.keys() != self.named.keys():
            return False
        pairs = [*zip(args[1:], self.others, strict=True), *[(named[name], self.named[name]) for name in named]]
        return all([type(came) is type(known) and came == known for came, known in pairs])


@dataclass(eq=False, slots=True)
class Heard:
    """A chain as it came once: its links, and its layers, without a tensor; and the passes of it (passes.py), by what
    they depend on."""

    links: tuple[Link, ...]
    widths: tuple[int, ...]
    activations: tuple[Formula, ...]
    biases: tuple[bool, ...]
    passes: dict[tuple, object] = field(default_factory=dict)

    def parameters(self, of_all: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Its own among all."""
        return [of_all[place] for link in self.links if link.is_layer for place in link.others if place is not None]


def heard_of(
    calls: Sequence[tuple[Callable, Sequence, Mapping]], layers: Sequence[Layer], parameters: Sequence[torch.Tensor]
) -> Heard | None:  # fmt: skip
    """Of the calls that made a chain, functions with their arguments after the first; None where one is not of the step
    before, or has other weights than parameters."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)} | {id(None): None}
    links, widths = [], (layers[0].weight.shape[1], *[layer.weight.shape[0] for layer in layers])
    features = iter(widths[1:])
    for function, others, named in calls:
        if function in LINEAR:
            if named or len(others) != 2 or not all(id(other) in places for other in others):
                return None
            links.append(Link(function, tuple(places[id(other)] for other in others), {}, True, next(features)))
        elif all(type(value) in SIMPLE for value in (*others, *named.values())):
            links.append(Link(function, tuple(others), dict(named), False, links[-1].features))
        else:
            return None
    biases = tuple(layer.bias is not None for layer in layers)
    return Heard(tuple(links), widths, tuple(layer.activation for layer in layers), biases)


@dataclass(eq=False, slots=True)
class Begun:
    """A chain of this run: what it begins with, and what was used for it, with the version and the place of each."""

    heard: Heard
    run: Run
    input: torch.Tensor
    parameters: Sequence[torch.Tensor]
    marks: list[tuple] = field(default_factory=list)

    def linked(self, sizes: tuple[int, ...], count: int) -> Chained:
        """What its first links give; the last of them was used just now."""
        link, run = self.heard.links[count - 1], self.run
        if link.is_layer:
            self.marks += marks_of(*[self.parameters[place] for place in link.others if place is not None])
            sizes = (*sizes[:-1], link.features)
        made = MAKE(Chained, sizes, dtype=run.dtype, device=run.device, requires_grad=True)
        made.run, made.sizes, made.chain, made.count, made.settled = run, sizes, self, count, None
        run.made.append(ref(made))
        return made

    def settled(self, count: int) -> Step:
        """The numbers after so many links: of all of them by one operation."""
        with torch._C.DisableTorchFunction():
            if not Step(None, None, -1, marks=self.marks).holds():
                self.run.stop(CHANGED)
            whole = count == len(self.heard.links)
            found = self.run.segments.by_heart(self.heard, self.input, self.parameters) if whole else None
            if found is None:
                with torch.autocast(self.run.device.type, enabled=False):
                    found = self.by_links(count)
            return Step(None, None, -1, numbers=(found,), marks=marks_of(found))

    def by_links(self, count: int) -> torch.Tensor:
        v = self.input
        for link in self.heard.links[:count]:
            others = link.others
            if link.is_layer:
                others = [None if place is None else self.parameters[place] for place in others]
            v = link.function(v, *others, **link.named)
        return v


class Chained(Value):  # without a family: nothing of it shares memory
    """What the first links of a chain give, whose numbers are computed when they are asked for."""

    chain: Begun
    count: int
    settled: Step | None

    @property
    def step(self) -> Step:
        if self.settled is None:
            self.settled = self.chain.settled(self.count)
        return self.settled

    @step.setter
    def step(self, step: Step) -> None:
        self.settled = step


class ByHeart(Deferring):
    """Within it chains of layers are put off that are known, by which call of a linear layer they begin; others as
    ever."""

    def __init__(self, run: Run, heard: Mapping[int, Heard], parameters: Sequence[torch.Tensor]):
        super().__init__(run)
        self.heard, self.parameters = heard, parameters

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if Chained in types:
            at = args[0] if args else None
            if type(at) is Chained and at.settled is None and at.count < len(at.chain.heard.links):
                link = at.chain.heard.links[at.count]
                if link.suits(function, args, kwargs, self.parameters) and self.goes_on():
                    self.run.segments.calls += link.is_layer
                    return at.chain.linked(at.sizes, at.count + 1)
            return called(function, args, kwargs)
        if function in LINEAR and Value not in types:
            segments = self.run.segments
            heard = self.heard.get(segments.calls + 1)
            if heard is not None and heard.links[0].suits(function, args, kwargs, self.parameters):
                x = args[0]
                if self.may_begin(x) and self.goes_on() and x.shape[-1] == heard.widths[0]:
                    segments.calls += 1
                    return Begun(heard, self.run, x, self.parameters, marks_of(x)).linked(x.shape, 1)
        return super().__torch_function__(function, types, args, kwargs)

    def goes_on(self) -> bool:
        """Whether what is computed is what is differentiated, and in the precision of the run."""
        return torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not self.run.casting()

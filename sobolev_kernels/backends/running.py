"""A function is run, and the graph of what it gives is looked at: whether it can be differentiated again and again.

That is done in contexts which make it so. Of a function that needs none of them, and whose graph is like one that was
looked at, the next run is without them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import Node

from .coupling import are_coupled
from .dependence import Alike, Evaluated, Samples
from .exact import Contexts, Eagerly, Needs, exactly, graphs, is_checkpointed, keeps_graphs, tracked
from .graph import leads_elsewhere, places_of, refuse_inexact, wired
from .standard import OWN
from .transformed import transformed

MOST = 64
UNLIKE = 4  # runs that gave graphs of other kinds, after which a function is run exactly each time


class Chains(NamedTuple):
    """Of a run in which layers are put off (streams/values.py): where chains end, where those begin that are one
    operation each, how many there are of so many layers, which other operations are our own, what is known of chains by
    heart (streams/by_heart.py), and its graph, with that where nothing is put off; or why none is put off."""

    ends: tuple[int, ...] = ()
    begun: frozenset[int] = frozenset()
    fused: dict[tuple[int, str], int] = {}  # noqa: RUF012
    singles: frozenset[int] = frozenset()
    reason: str = ""
    heard: dict[int, object] = {}  # noqa: RUF012
    graph: tuple | None = None
    as_it_is: tuple | None = None
    needs: Needs | None = None


@dataclass
class Graphs:
    """What was seen of a function's graphs, by the kinds of their nodes in order, for as long as he lives."""

    needs: Needs | None = None  # those of the contexts that the run before did; None: all
    unlike: int = 0
    seen: dict[tuple, Alike] = field(default_factory=dict)
    samples: dict[tuple, Samples] = field(default_factory=dict)  # by their places and the inputs' shape, too
    chains: dict[int, Chains] = field(default_factory=dict)  # of layers within him, by how many samples there are
    runs: int = 0  # in no more contexts than needed
    # by a number that stands for plain values that it may go by: whether it made constants or numbers of its inputs
    plain: dict[int, bool] = field(default_factory=dict)
    now: int = 0  # which of them
    unseen: int = 0  # how often these were others than ever before
    due: bool = False  # whether it is looked for that in the next run

    def goes_by(self, plain: int) -> None:
        """What it may go by: with other plain values it may make constants of its inputs, or take numbers of them.

        Where one is another each time, as a counter, that is looked for less and less often.
        """
        if plain == self.now:
            return
        self.now, known = plain, self.plain.get(plain)
        if known is None:
            self.unseen += 1
            known = self.unseen <= MOST or not self.unseen & (self.unseen - 1)
        self.due = self.due or known

    def watched(self, contexts: Contexts) -> None:
        """Keep what was seen, if it was looked for."""
        if contexts.cuts is not None:
            if len(self.plain) >= MOST:
                self.plain.clear()
            self.plain[self.now] = contexts.cuts or bool(contexts.read)

    def samples_of(self, kinds: tuple, places: tuple, x: torch.Tensor) -> Samples:
        if len(self.seen) > MOST:  # of one that is another each time
            self.seen = {}
        if len(self.samples) > MOST:
            self.samples = {}
        key = kinds, places, x.shape
        samples = self.samples.get(key)
        if samples is None:
            samples = self.samples[key] = Samples()
        return samples


def by_transforms() -> bool:
    """Whether derivatives are those of torch.func, which dynamo can follow."""
    return torch.compiler.is_compiling()


def evaluate(function: Callable, x: torch.Tensor, seen: Graphs | None = None, again: bool = False) -> Evaluated:
    """Run a function, so that it is known what it gives before anything else happens; `again`, if what is made of it
    has other inputs that ask for a gradient."""
    if by_transforms():
        return transformed(on_copy(function), x)
    return with_graph(function, x, None if again else seen, again)


def with_graph(function: Callable, x: torch.Tensor, seen: Graphs | None = None, again: bool = False) -> Evaluated:
    """y = function(x) of an x that asks for its gradient."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        seen = None
    # a run that is given up would be one more in a checkpoint around the call
    if seen is not None and seen.needs is not None and keeps_graphs() and not is_checkpointed():
        ran = run_again(function, x, seen)
        if ran is not None:
            return ran
    wanted, kept = torch.is_grad_enabled(), x.requires_grad
    with exactly() as contexts:
        x = leaf(x, kept)
        contexts.watch(x)
        copy = x.clone()
        over = None if kept else copy.grad_fn  # as they are where it is given x
        y = function(copy)
    nodes, wiring = wired([y], over)
    kinds = kinds_of(nodes, wiring)
    alike = None if seen is None else seen.seen.get(kinds)
    elsewhere = wanted and (leads_elsewhere(x, nodes) if alike is None else alike.elsewhere)
    kept = wanted and (kept or elsewhere or again)
    cuts = contexts.cuts
    if alike is None:
        refuse_inexact(nodes, again=kept)
        if not all(map(tells, nodes)):  # whose backward may cut a path by what it goes by
            cuts = True
        elif seen is not None and kept:
            alike = seen.seen[kinds] = Alike(elsewhere)
    if alike is not None:
        seen.needs = contexts.needs if seen.unlike < UNLIKE else None
        seen.watched(contexts)
    places = () if seen is None else places_of(y, nodes, tensors=not contexts.checkpointed)
    samples = None if seen is None else seen.samples_of(kinds, places, x)
    alike, told = alike if kept else None, (contexts.read, kinds, places, cuts)
    return Evaluated(on_copy(function), x, y, kept, 0, False, None, None, alike, samples, *told)


def on_copy(function: Callable) -> Callable:
    """The function of a copy of its inputs, which it may write to."""
    return lambda x: function(x.clone())


def run_again(
    function: Callable, x: torch.Tensor, seen: Graphs, before: torch.Tensor | None = None, own: Needs | None = None
) -> Evaluated | None:
    """The same in no more contexts than it needed before; None where the graph is of other kinds, or there is none, and
    the generator is as it was `before`. `own`: what this run needs, if that is other than what one as it is does."""
    kept, before, needs = x.requires_grad, torch.get_rng_state() if before is None else before, seen.needs
    if needs is None:  # as another thread found meanwhile
        return None
    needs = needs if own is None else own._replace(reads=own.reads or needs.reads)
    # of what is no copy autograd says it where it is written to
    x = x if kept else x.detach().clone().requires_grad_()
    # Numbers and constants that are made of inputs from now on, by what a student was told meanwhile where nobody sees
    # it, are looked for now and then.
    seen.runs += 1
    needs = needs if seen.runs & (seen.runs - 1) and not seen.due else needs._replace(reads=True)
    seen.due = False
    try:
        with Contexts(needs) if any(needs) else Eagerly() as contexts:
            contexts.watch(x)
            y = function(x.clone() if kept else x)
        nodes, wiring = wired([y])
        kinds = kinds_of(nodes, wiring)
    except RuntimeError as error:
        if not any(told in str(error) for told in EXACTLY):
            raise
        kinds = None
    alike = seen.seen.get(kinds)
    if alike is None or not (kept or alike.elsewhere):
        seen.needs, seen.unlike = None, seen.unlike + 1
        torch.set_rng_state(before)
        return None
    places = places_of(y, nodes, tensors=not contexts.checkpointed)
    samples, told = seen.samples_of(kinds, places, x), (contexts.read, kinds, places, contexts.cuts)
    seen.watched(contexts)
    if (contexts.read or contexts.cuts) and seen.needs is not None:
        seen.needs = seen.needs._replace(reads=True)
    return Evaluated(on_copy(function), x, y, True, 0, False, None, None, alike, samples, *told)


# What autograd says of a function that must be run in the contexts, or on a copy.
EXACTLY = "Inference tensors", "a leaf Variable that requires grad"


def leaf(x: torch.Tensor, kept: bool) -> torch.Tensor:
    """The inputs, which ask for their gradient."""
    if forward_ad._current_level >= 0:
        # keeps its tangent, and gives a dual tensor made under no_grad the place in the graph that it lacks
        x = x.view_as(x)
    elif not kept:
        x = tracked(x).detach()
    return x if x.requires_grad else x.requires_grad_()


def kinds_of(nodes: Iterable[Node], wiring: Hashable) -> tuple:
    """The kinds of nodes in order, and how they are wired."""
    kinds = tuple(map(type, nodes))
    if not SIMPLE.issuperset(kinds):
        SIMPLE.update(type(node) for node in nodes if tells(node) and "BatchNorm" not in type(node).__name__)
        kinds = tuple(map(kind_of, nodes))
    return wiring, *kinds


SIMPLE: set[type] = set()  # those that were met which are all that there is to be told of a node, of PyTorch's and ours


def kind_of(node: Node) -> type | tuple[type, bool]:
    """Of a batch norm also whether it takes its statistics from the batch."""
    kind = type(node)
    if "BatchNorm" not in kind.__name__:
        return kind
    return kind, getattr(node, "_saved_training", getattr(node, "_saved_train", True))


def tells(node: Node) -> bool:
    """Whether the kind of a node tells what its derivatives are: those of PyTorch's own formulas, and ours."""
    if isinstance(node, torch._C._FunctionBase):
        return getattr(type(node), "_forward_cls", None) in OWN
    return type(node).__name__ != "CppFunction"


def are_mixed(ran: Evaluated) -> bool:
    """Whether samples were seen to see each other, or cannot be seen; not where no gradient is a number."""
    if by_transforms() or not ran.y.requires_grad:
        return False
    with graphs():
        try:
            return are_coupled(ran.y, ran.x) is True
        except RuntimeError:
            return True


def are_own(ran: Evaluated) -> bool:
    """Whether each sample's outputs are its own: once a kind of graph and shape of inputs, and less and less often."""
    samples = ran.samples
    if by_transforms():
        return ran.own
    if not ran.own or samples is None or samples.mixed:
        return False
    samples.calls = calls = samples.calls + 1
    if calls & (calls - 1) or not ran.y.requires_grad:
        return True
    with graphs():
        try:
            coupled = are_coupled(ran.y, ran.x)
        except RuntimeError:
            return False
    samples.mixed = bool(coupled)
    return coupled is False

"""Gradient checkpoints within a forward that pairs flow through: what is between is computed again, as without pairs.

torch.utils.checkpoint keeps the tensors that its function is given, and runs it again in the backward. Of a pair it is
given the value and the derivatives, of which the second run makes a pair again.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from threading import Lock
from types import ModuleType

from torch.utils._pytree import tree_flatten, tree_unflatten

from ..backends.exact import Eagerly
from .flowing import CHECKPOINT, Run, run_of
from .pair import is_pair, start


class Checkpoints:
    """Within it, in any thread, torch.utils.checkpoint takes pairs; nothing else about it is another."""

    lock, within, before = Lock(), 0, None

    def __enter__(self) -> None:
        module, kind = sys.modules.get(CHECKPOINT), Checkpoints
        with kind.lock:
            kind.within += 1
            if kind.before is None and hasattr(module, "_checkpoint_without_reentrant_generator"):
                kind.before = before = module._checkpoint_without_reentrant_generator, module.CheckpointFunction
                module._checkpoint_without_reentrant_generator, module.CheckpointFunction = ways_of(module, *before)

    def __exit__(self, *_) -> None:
        kind = Checkpoints
        with kind.lock:
            kind.within -= 1
            if not kind.within and kind.before is not None:
                module = sys.modules[CHECKPOINT]
                module._checkpoint_without_reentrant_generator, module.CheckpointFunction = kind.before
                kind.before = None


@cache
def ways_of(module: ModuleType, generator: Callable, reentrant: type) -> tuple[Callable, type]:
    """What stands for its two ways: by hooks, and by an autograd.Function, which pairs do not go through."""
    settings = len([p for p in inspect.signature(generator).parameters.values() if p.default is not p.empty])

    def of_pairs(function: Callable, *arguments, **named) -> Iterator[None]:
        about, given = arguments[:settings], arguments[settings:]
        leaves, tree = tree_flatten((given, named), is_leaf=is_pair)
        run = run_of(tuple(leaves))
        if run is None:
            return generator(function, *arguments, **named)
        places = [is_pair(leaf) for leaf in leaves]
        parts = [part for leaf in leaves for part in ((leaf.v, leaf.d) if is_pair(leaf) else (leaf,))]
        return generator(of_parts(function, run, places, tree), *about, *parts)

    class ByHooks:
        @staticmethod
        def apply(function: Callable, preserve: bool, *arguments):
            if run_of(arguments) is None:
                return reentrant.apply(function, preserve, *arguments)
            return module.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve)

    return of_pairs, ByHooks


def of_parts(function: Callable, run: Run, places: list[bool], tree) -> Callable:
    """The function of values and derivatives in the places of pairs, in a run like that one from here on."""
    kind = anew(run)

    def again(*parts):
        like, rest = anew(kind), iter(parts)
        leaves = [start(like, next(rest), next(rest)) if is_of_pair else next(rest) for is_of_pair in places]
        arguments, named = tree_unflatten(leaves, tree)
        with Eagerly(), Checkpoints():
            return function(*arguments, **named)

    return again


def anew(run: Run) -> Run:
    """A run of which nothing has become yet, whose chains are counted from where this one is."""
    segments = run.segments
    if segments is not None:
        place = next(segments.places)
        segments.places = itertools.count(place)
        segments = replace(segments, places=itertools.count(place), asked=set(), passed=set(), fused={})
    return replace(run, reason="", made=[], hooks=[], counts=None, without_rule=None, segments=segments)

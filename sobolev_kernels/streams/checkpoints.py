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

from torch.utils._pytree import tree_flatten, tree_unflatten

from ..backends.exact import Eagerly
from .backward_hooks import BACKWARD_HOOK
from .flowing import CHECKPOINT, Run, run_of
from .pair import is_pair, start
from .replaced import Replaced


@cache
def generating(generator: Callable) -> Callable:
    """What stands for its way by hooks."""
    settings = len([p for p in inspect.signature(generator).parameters.values() if p.default is not p.empty])

    def of_pairs(function: Callable, *arguments, **named) -> Iterator[None]:
        about, given = arguments[:settings], arguments[settings:]
        leaves, tree = tree_flatten((given, named), is_leaf=is_pair)
        if not any(map(is_pair, leaves)):
            return generator(function, *arguments, **named)
        run, places = run_of(tuple(leaves)), [is_pair(leaf) for leaf in leaves]
        parts = [part for leaf in leaves for part in ((leaf.v, leaf.d) if is_pair(leaf) else (leaf,))]
        return generator(of_parts(function, run, places, tree), *about, *parts)

    return of_pairs


@cache
def reentrant(function: type) -> type:
    """What stands for its way by an autograd.Function, which pairs do not go through."""

    class ByHooks:
        @staticmethod
        def apply(of: Callable, preserve: bool, *arguments):
            if not any(map(is_pair, arguments)):
                return function.apply(of, preserve, *arguments)
            checkpoint = sys.modules[CHECKPOINT].checkpoint
            return checkpoint(of, *arguments, use_reentrant=False, preserve_rng_state=preserve)

    return ByHooks


def of_parts(function: Callable, run: Run, places: list[bool], tree) -> Callable:
    """The function of values and derivatives in the places of pairs, in a run like that one from here on."""
    kind = anew(run)

    def again(*parts):
        like, rest = anew(kind), iter(parts)
        leaves = [start(like, next(rest), next(rest)) if is_of_pair else next(rest) for is_of_pair in places]
        arguments, named = tree_unflatten(leaves, tree)
        with Eagerly(), FLOWS:
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


# Within it torch.utils.checkpoint takes pairs, and backward hooks of modules take them and chains.
FLOWS = Replaced(
    {
        (CHECKPOINT, "_checkpoint_without_reentrant_generator"): generating,
        (CHECKPOINT, "CheckpointFunction"): reentrant,
        **BACKWARD_HOOK,
    }
)

"""A function is run, and the graph of what it gives is looked at: whether it can be differentiated again and again.

That is done in contexts which make it so. Of a function that needs none of them, and whose graph is like one that was
looked at, the next run is without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .dependence import Alike, Evaluated
from .exact import ExactNorms, exactly, graphs, tracked
from .graph import leads_elsewhere, nodes_of, refuse_inexact
from .standard import OWN

UNLIKE = 4  # runs that gave graphs of other kinds, after which a function is run exactly each time


@dataclass
class Graphs:
    """What was seen of a function's graphs, by the kinds of their nodes in order, for as long as he lives."""

    plain: bool = False  # whether the run before needed none of the contexts
    unlike: int = 0
    seen: dict[tuple[type, ...], Alike] = field(default_factory=dict)


def by_transforms() -> bool:
    """Whether derivatives are those of torch.func, which dynamo can follow: of results without a gradient."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


def evaluate(function: Callable, x: torch.Tensor, seen: Graphs | None = None) -> Evaluated:
    """Run a function, so that it is known what it gives before anything else happens."""
    if by_transforms():
        with sdpa_kernel(SDPBackend.MATH), ExactNorms():
            return Evaluated(function, x, function(x))
    return with_graph(function, x, seen)


def with_graph(function: Callable, x: torch.Tensor, seen: Graphs | None = None) -> Evaluated:
    """y = function(x) of an x that asks for its gradient."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        seen = None
    if seen is not None and seen.plain and (ran := run_plainly(function, x, seen)) is not None:
        return ran
    wanted, kept = torch.is_grad_enabled(), x.requires_grad
    with exactly() as contexts:
        x = leaf(x, kept)
        y = function(x)
    nodes = nodes_of(y)
    kinds = tuple(map(type, nodes))
    alike = None if seen is None else seen.seen.get(kinds)
    elsewhere = wanted and (leads_elsewhere(x, nodes) if alike is None else alike.elsewhere)
    kept = wanted and (kept or elsewhere)
    if alike is None:
        refuse_inexact(nodes, again=kept)
        if seen is not None and kept and all(map(tells, kinds)):
            alike = seen.seen[kinds] = Alike(elsewhere)
    if alike is not None:
        seen.plain = not contexts.met and seen.unlike < UNLIKE
    return Evaluated(function, x, y, kept, alike=alike if kept else None)


def run_plainly(function: Callable, x: torch.Tensor, seen: Graphs) -> Evaluated | None:
    """The same without the contexts; None where the graph is of other kinds than those before."""
    wanted, kept = torch.is_grad_enabled(), x.requires_grad
    before = torch.get_rng_state()
    with graphs(), torch.compiler.set_stance("force_eager"):
        x = leaf(x, kept)
        y = function(x)
    alike = seen.seen.get(tuple(map(type, nodes_of(y))))
    if alike is None or not (wanted and (kept or alike.elsewhere)):
        seen.plain, seen.unlike = False, seen.unlike + 1
        torch.set_rng_state(before)
        return None
    return Evaluated(function, x, y, True, alike=alike)


def leaf(x: torch.Tensor, kept: bool) -> torch.Tensor:
    """The inputs, which ask for their gradient."""
    if forward_ad._current_level >= 0:
        # keeps its tangent, and gives a dual tensor made under no_grad the place in the graph that it lacks
        x = x.view_as(x)
    elif not kept:
        x = tracked(x).detach()
    return x if x.requires_grad else x.requires_grad_()


def tells(kind: type) -> bool:
    """Whether the kind of a node tells what its derivatives are: those of PyTorch's own formulas, and ours."""
    if issubclass(kind, torch._C._FunctionBase):
        return getattr(kind, "_forward_cls", None) in OWN
    return kind.__name__ != "CppFunction" and "BatchNorm" not in kind.__name__  # which has statistics or takes them

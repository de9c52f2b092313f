"""Whether a function depends on its inputs where autograd finds no path to them: a true zero, or a refusal in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import NotProvided
from .exact import exactly

# y [N, O], derivatives, second derivatives
Jets = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
LOOK_FOR = (
    "look for a forward that detaches its input, runs under torch.no_grad() or leaves PyTorch (NumPy), and for an "
    "autograd.Function whose backward is no part of the graph"
)
SILENT = (
    "autograd: no path leads from what the function gives to its inputs, though it changes with them, and a derivative "
    f"would be a silent zero; {LOOK_FOR}"
)
STILL = 4  # runs at the same inputs, of which none may give other numbers


class Evaluated(NamedTuple):
    """A function and what it gave; x asks for its gradient, but where a compiler follows transforms alone.

    `kept`, if the graph of what follows is: where gradients are on, and something in it asks for one. `looked` is the
    order of derivatives up to which it is known that nothing changes with an input that no path leads to; `own`, if it
    is known that each sample's outputs depend on its inputs alone; `pull`, its VJP where transforms are followed;
    `jet`, its derivatives by pairs of a value and its tangents where these are recorded; `alike` and `samples`, what is
    known of graphs like that of y; `read`, by what numbers were taken out of what depends on x; `kinds`, those of the
    graph's nodes, if they are told, and `places`, where these go; `cuts`, whether constants were made of what depends
    on x, or None where nobody looked.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor
    y: torch.Tensor
    kept: bool = False
    looked: int = 0
    own: bool = False
    pull: Callable | None = None
    jet: Callable | None = None
    alike: Alike | None = None
    samples: Samples | None = None
    read: str = ""
    kinds: tuple | None = None
    places: tuple = ()
    cuts: bool | None = None

    @property
    def graph(self) -> tuple | None:
        """What tells its graph from another in which another path may be cut."""
        return None if self.kinds is None else (self.kinds, self.places)


@dataclass
class Samples:
    """Of one kind of graph and one shape of inputs: whether samples were seen to see each other, in how many calls."""

    mixed: bool = False
    calls: int = 0


@dataclass
class Alike:
    """What was seen of a graph without a fault, and holds of all whose nodes are of the same kinds in the same order.

    `elsewhere`, whether it leads to other leaves than the inputs; `again`, whether the derivatives' own graph has been
    seen to be without a fault.
    """

    elsewhere: bool
    again: bool = False


def refuse_dependence(ran: Evaluated) -> None:
    """Raise unless y, which no path of autograd leads from to x, stays as it is when x moves a little.

    A sample counts if it changes to both sides, since at a step or a kink it changes to one; and one alone may be
    between two of these.
    """
    step = small_steps(ran.x)
    before, *after = (again(ran.function, x) for x in (ran.x, ran.x + step, ran.x - step))
    changed = changes(before, after[0]) & changes(before, after[1])
    if changed.float().mean() <= 1 / 8:
        return
    # a function that keeps state, as spectral_norm in train mode, changes by itself, if not in each run
    if not any(changes(before, again(ran.function, ran.x)).any() for _ in range(STILL)):
        raise NotProvided(SILENT)


def refuse_slope(ran: Evaluated) -> None:
    """Raise unless Jᵀu, which does not depend on the cotangent u, is 0 for all of them."""
    u = torch.linspace(1, 2, ran.y.numel(), dtype=ran.y.dtype, device=ran.y.device).view(ran.y.shape)
    g = torch.autograd.grad(ran.y, ran.x, u, retain_graph=True, allow_unused=True)[0]
    if g is not None and changes(g, torch.zeros_like(g)).any():
        raise NotProvided(
            "autograd: a backward in the function's graph cannot be differentiated, and would be a silent zero"
        )


def small_steps(x: torch.Tensor) -> torch.Tensor:
    """Different ones for all inputs, of a third of the digits of their dtype: what is smooth changes, and few kinks."""
    each = torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)
    return torch.finfo(x.dtype).eps ** (2 / 3) * each * (1 + x.detach().abs())


def again(function: Callable, x: torch.Tensor) -> torch.Tensor:
    """function(x) with the random numbers that come next, which are left to come."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []), exactly():
        return function(x)


def changes(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which samples hold other numbers, below all transforms of torch.func."""
    with torch._C._DisableFuncTorch(), torch.no_grad():
        a, b = plain(a), plain(b)
        return ((a != b) & ~(a.isnan() & b.isnan())).flatten(1).any(1)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor

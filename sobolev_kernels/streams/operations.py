"""What operations of pairs have in common that are one node of autograd: which numbers they take, and what they are in
PyTorch's own operations, where their gradients are differentiated again or of several cotangents at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad

from ..backends import core
from ..boundary import PLAIN
from ..transforms import several


def fits(*tensors: torch.Tensor) -> bool:
    """Whether the core takes a value, and its tangents if there are any, as they lie, and nobody follows the call who
    would have to see PyTorch's operations.

    In float64 it has some functions from the C library, lane by lane, which PyTorch's outrun.
    """
    return suits(*tensors) and all([tensor.is_contiguous() for tensor in tensors]) and bool(tensors[0].numel())


def suits(*tensors: torch.Tensor) -> bool:
    """The same of tensors that may have gaps."""
    if core.MISSING is not None or torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.dtype is not torch.float32 or tensor.is_neg():
            return False
    watched = torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()
    return not watched and forward_ad._current_level < 0


def are_weights(like: torch.Tensor, *weights: torch.Tensor | None) -> bool:
    """Whether the core may read these with such a value, each one without gaps, or None."""
    return all([
        w is None
        or (type(w) in PLAIN and w.dtype is like.dtype and w.is_cpu and w.is_contiguous() and not w.is_neg())
        for w in weights
    ])  # fmt: skip


def saved(ctx) -> list[torch.Tensor | None]:
    """What an operation has saved, without the gaps that a hook of saved tensors may have given it."""
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in ctx.saved_tensors]


def goes_on(*bars: torch.Tensor | None) -> bool:
    """Whether a way back is more than its numbers of the adjoints of both results."""
    return torch.is_grad_enabled() or any([bar is None for bar in bars]) or several(*bars)


def is_wanted(node: torch.autograd.graph.Node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient is what torch.autograd.grad was asked for
        return True


def wants(node: torch.autograd.graph.Node | None, asked: bool) -> bool:
    """Whether a backward comes to what an operation was given, which autograd says where it is `asked`: of a leaf it
    takes some time to say yes, which is the rule where no graph is kept."""
    return node is not None and (is_wanted(node) if asked or node.next_functions else True)


def differentiated(
    function: Callable[..., Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor | None], needs: Sequence[bool],
    bars: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:  # fmt: skip
    """The adjoints of inputs from those of what a function of them gives, None of what none is asked for."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # as they are given: one may depend on another
        alone = lambda x: x.view_as(x) if again else x.detach().requires_grad_(x.requires_grad)  # noqa: E731
        own = [x if x is None else alone(x) for x in inputs]
        asked = [x for x, needed in zip(own, needs, strict=True) if needed]
        given = [(y, bar) for y, bar in zip(function(*own), bars, strict=True) if bar is not None and y.requires_grad]
        if not given:
            return [None] * len(own)
        results, bars = zip(*given, strict=True)
        found = iter(torch.autograd.grad(results, asked, bars, create_graph=again, allow_unused=True))
    return [next(found) if needed else None for needed in needs]

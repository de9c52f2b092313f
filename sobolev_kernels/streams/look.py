"""Once a function it is looked at whether pairs flow through it."""

from __future__ import annotations

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from ..backends.streams import DTYPES, OUTPUTS, propagated
from ..boundary import PLAIN
from ..held import Held
from ..parts import modules_of
from ..paths import NUMBERS, Flow, known_of, unseen
from .flowing import NotFollowed, casting
from .whole import is_traced

UNSEEN = Flow("its forward was not looked at")


def flow_of(function: object, x: torch.Tensor, outputs: int | None = None) -> Flow:
    """What is known of a function of x; at first by one run along a direction of zeros, of which nothing is left.

    It is looked at again if its parameters have other shapes, or its outputs are not as many as someone expects.
    """
    if type(x) not in PLAIN or is_traced(x) or str(x.dtype).removeprefix("torch.") not in DTYPES or not x.numel():
        return UNSEEN
    if casting(x.device.type) is not None:
        return UNSEEN._replace(unfollowed="it is run in autocast")
    modules = list(modules_of(function))
    if isinstance(function, torch.jit.ScriptFunction) or any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return UNSEEN._replace(unfollowed="a part of it is scripted")
    if any(isinstance(m, LazyModuleMixin) for m in modules):
        return UNSEEN._replace(unfollowed="a part of it has no parameters yet")
    known = known_of(function, x)
    shapes = tuple(p.shape for module in modules for p in module._parameters.values() if p is not None)
    if known.flow is None or known.flow.shapes != shapes or outputs not in (None, known.flow.outputs or outputs):
        held, counts, others = held_of(modules, x), {}, {}
        try:
            with unseen():
                y, _ = propagated(function, x.detach(), torch.zeros_like(x)[None], counts, others)
            known.flow = Flow(None, y.shape[1], counts, others, shapes)
        except NotFollowed as reason:
            known.flow = Flow(str(reason), 0, counts, others, shapes)
        finally:
            held.restore()
    return known.flow


def held_of(modules: list, x: torch.Tensor, buffers: bool = True) -> Held:
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    return Held(modules, [] if capturing else [x.device], buffers)


def before_flow(function: object, x: torch.Tensor) -> Held:
    """What a run of a function that pairs were seen to flow through may change, if they do not this time."""
    return held_of(list(modules_of(function)), x, buffers=False)


def flows_no_more(function: object, x: torch.Tensor, reason: str) -> None:
    """It met something without a rule after all, or gives another number of outputs, which is looked at again."""
    known = known_of(function, x)
    known.flow = None if reason == OUTPUTS or known.flow is None else known.flow._replace(unfollowed=reason)
    known.number = next(NUMBERS)

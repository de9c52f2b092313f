"""Once a function it is looked at whether pairs flow through it."""

from __future__ import annotations

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from ..backends.streams import DTYPES, OUTPUTS, propagated
from ..boundary import PLAIN
from ..held import Held
from ..parts import modules_of
from ..paths import NUMBERS, Flow, known_of, unseen
from ..problem import LAZY, UNSEEN
from .flowing import NotFollowed, casting
from .whole import is_traced


def flow_of(function: object, x: torch.Tensor, order: int, outputs: int | None = None) -> Flow:
    """What is known of a function of x; at first by one run along a direction of zeros, of which nothing is left.

    It is looked at again if its parameters have other shapes, or its outputs are not as many as someone expects.
    """
    if type(x) not in PLAIN or is_traced(x) or str(x.dtype).removeprefix("torch.") not in DTYPES or not x.numel():
        return Flow(UNSEEN)
    modules = list(modules_of(function))
    if isinstance(function, torch.jit.ScriptFunction) or any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return Flow("a part of it is scripted")
    if any(isinstance(m, LazyModuleMixin) for m in modules):
        return Flow(LAZY)
    known, cast = known_of(function, x), casting(x.device.type)
    if order > 1 and cast is not None:
        return Flow("second derivatives of it are asked for in autocast")
    flow = known.flows.get((order, cast))
    shapes = tuple(p.shape for module in modules for p in module._parameters.values() if p is not None)
    if flow is None or flow.shapes != shapes or outputs not in (None, flow.outputs or outputs):
        held, counts, others = held_of(modules, x), {}, {}
        try:
            with unseen():
                y, _ = propagated(function, x.detach(), torch.zeros_like(x)[None], counts, others, order)
            flow = Flow(None, y.shape[1], counts, others, shapes)
        except NotFollowed as reason:
            flow = Flow(str(reason), 0, counts, others, shapes)
        finally:
            held.restore()
        known.flows[order, cast] = flow
    return flow


def held_of(modules: list, x: torch.Tensor, buffers: bool = True) -> Held:
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    return Held(modules, [] if capturing else [x.device], buffers)


def before_flow(function: object, x: torch.Tensor) -> Held:
    """What a run of a function that pairs were seen to flow through may change, if they do not this time."""
    return held_of(list(modules_of(function)), x, buffers=False)


def flows_no_more(function: object, x: torch.Tensor, order: int, reason: str) -> None:
    """It met something without a rule after all, or gives another number of outputs, which is looked at again."""
    known, cast = known_of(function, x), casting(x.device.type)
    flow = known.flows.pop((order, cast), None)
    if reason != OUTPUTS and flow is not None:
        known.flows[order, cast] = flow._replace(unfollowed=reason)
    known.number = next(NUMBERS)

"""Once a function it is looked at whether pairs flow through it."""

from __future__ import annotations

import torch

from ..advice import modules_of
from ..backends.streams import DTYPES, propagated
from ..boundary import PLAIN
from ..held import Held
from ..paths import Flow, known_of
from .flowing import NotFollowed
from .whole import is_traced

UNSEEN = Flow("its forward was not looked at")


def flow_of(function: object, x: torch.Tensor) -> Flow:
    """What is known of a function of x; at first by one run along a direction of zeros, of which nothing is left."""
    if type(x) not in PLAIN or is_traced(x) or str(x.dtype).removeprefix("torch.") not in DTYPES or not x.numel():
        return UNSEEN
    if torch.is_autocast_enabled(x.device.type):
        return UNSEEN._replace(unfollowed="it is run in autocast")
    modules = list(modules_of(function))
    if isinstance(function, torch.jit.ScriptFunction) or any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return UNSEEN._replace(unfollowed="a part of it is scripted")
    known = known_of(function, x)
    if known.flow is None:
        held, counts = held_of(modules, x), {}
        try:
            y, _ = propagated(function, x.detach(), torch.zeros_like(x)[None], counts)
            known.flow = Flow(None, y.shape[1], counts)
        except NotFollowed as reason:
            known.flow = Flow(str(reason), 0, counts)
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
    known_of(function, x).flow = Flow(reason)

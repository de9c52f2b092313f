"""Once a function it is looked at whether pairs flow through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from ..autocast import casting
from ..backends import core
from ..backends.dependence import Evaluated
from ..backends.running import Chains, Graphs, with_graph
from ..backends.streams import DTYPES, OUTPUTS, propagated
from ..boundary import PLAIN
from ..held import Held
from ..parts import modules_of, roots_of
from ..paths import Flow, known_of, unseen
from ..problem import LAZY, UNSEEN
from ..student import is_sharded
from .by_heart import Heard, heard_of
from .flowing import NotFollowed
from .fused import FUNCTION, segments_of, values_put_off
from .segments import CHANGED, Segments, Step
from .values import ValueSegments, deferred
from .whole import is_traced

# µs that each function of PyTorch's takes longer where it is met.
MET = 10.0


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
    flow = known.flows.get((order, cast))
    shapes = tuple(p.shape for module in modules for p in module._parameters.values() if p is not None)
    if flow is None or flow.shapes != shapes or outputs not in (None, flow.outputs or outputs):
        held, segments = held_of(modules, x), segments_of(None if is_sharded(function) else (), careful=True)
        flow = looked_at(function, x, held, order, segments)
        if flow.unfollowed == CHANGED:
            flow = looked_at(function, x, held, order)
        elif flow.ends:  # with them other chains are fused
            flow = looked_at(function, x, held, order, segments_of(flow.ends, careful=True))
        flow = known.flows[order, cast] = flow._replace(shapes=shapes)
    return flow


def looked_at(
    function: object, x: torch.Tensor, held: Held, order: int, segments: Segments | None = None
) -> Flow:  # fmt: skip
    counts, others, of_chains = {}, {}, {}
    try:
        with unseen():
            v = torch.zeros_like(x)[None]
            y, _ = propagated(function, x.detach(), v, counts, others, order, segments=segments)
        if segments is not None:
            of_chains = {"fused": segments.fused, "ends": segments.found()}
        return Flow(None, y.shape[1], counts, others, **of_chains)
    except NotFollowed as reason:
        return Flow(str(reason), 0, counts, others)
    finally:
        held.restore()


def held_of(modules: Iterable, x: torch.Tensor, buffers: bool = True, read: list | None = None) -> Held:
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    return Held(modules, [] if capturing else [x.device], buffers, read)


def before_flow(function: object, x: torch.Tensor) -> Held:
    """What a run of a function that pairs were seen to flow through may change, if they do not this time."""
    read = None if core.MISSING else core._C.held(roots_of(function))
    return held_of(modules_of(function), x, buffers=False, read=read)


def flows_no_more(function: object, x: torch.Tensor, order: int, reason: str) -> None:
    """It met something without a rule after all; or gives another number of outputs, or writes to its weights, and is
    looked at again."""
    known, cast = known_of(function, x), casting(x.device.type)
    flow = known.flows.pop((order, cast), None)
    if reason not in (OUTPUTS, CHANGED) and flow is not None:
        known.flows[order, cast] = flow._replace(unfollowed=reason)
    known.lose()


def chains_of(
    function: object, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, graphs: Graphs,
    parameters: Sequence[torch.Tensor],
) -> Chains:  # fmt: skip
    """What is known of chains of layers in a function of which values alone are wanted, with their graph; at first, and
    where there are half or twice as many samples, by a run of which nothing is left. `run` is the function with its
    results checked."""
    about = len(x).bit_length()
    if about not in graphs.chains:
        graphs.chains[about] = chains_seen(function, run, x, graphs, parameters)
    return graphs.chains[about]


def chains_seen(
    function: object, run: Callable, x: torch.Tensor, graphs: Graphs, parameters: Sequence[torch.Tensor]
) -> Chains:  # fmt: skip
    if core.MISSING or not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or is_sharded(function):
        return Chains()
    held, needs, ends, needed = held_of(list(modules_of(function)), x), graphs.needs, (), None

    def values(of: Callable) -> Evaluated:
        """In all contexts, which makes their graph known, and which of them it `needed`."""
        nonlocal needed
        graphs.needs = None
        try:
            return with_graph(of, x.detach().requires_grad_(x.requires_grad), graphs)
        finally:
            needed = graphs.needs
            held.restore()
            graphs.needs = needs

    try:
        for _ in range(2):  # with ends other chains are fused
            segments = values_put_off(ends, careful=True)
            values(deferred(run, lambda of=segments: of))
            if segments.found() == ends:
                break
            ends = segments.found()
        begun = frozenset(segments.taken if segments.saving > FUNCTION * segments.functions else ())
        known = values_put_off(ends, begun, careful=True)
        known.calls_of = {}
        put_off = values(deferred(run, lambda: known))
        if not begun and known.saved <= MET * segments.functions:
            return Chains()
        own, as_it_is = needed, values(run)
        if not are_alike(put_off.y, as_it_is.y):
            return Chains(reason="it gives other values where layers are put off")
        heard = by_heart(known, parameters)
        singles, graph = frozenset(known.done), put_off.graph
        told = {"heard": heard, "graph": graph, "as_it_is": as_it_is.graph, "needs": own}
        return Chains(ends, begun, known.fused, singles, **told)
    except NotFollowed as reason:
        return Chains(reason=str(reason))


def by_heart(segments: ValueSegments, parameters: Sequence[torch.Tensor]) -> dict[int, Heard]:
    """The chains of a run that can be known by heart, by the calls that begin them."""
    found = {}
    for begun, chain in segments.chains.items():
        calls = [segments.calls_of.get(step) for step in chain]
        layers = [step.layer for step, after in zip(chain, [*chain[1:], None], strict=True) if is_last(after)]
        heard = heard_of(calls, layers, parameters) if all(calls) else None
        if heard is not None:
            found[begun] = heard
    return found


def is_last(after: Step | None) -> bool:
    """Whether no more is done to a layer, by the step after it."""
    return after is None or after.begins


def are_alike(y: torch.Tensor, other: torch.Tensor) -> bool:
    """Up to rounding, with half of the digits to spare; a forward may have asked what its tensors are."""
    y, other = y.detach(), other.detach()
    within = torch.finfo(y.dtype).eps ** 0.5
    least = within * float(other.nan_to_num(0.0, 0.0, 0.0).abs().amax())
    return y.shape == other.shape and torch.allclose(y, other, within, least, equal_nan=True)

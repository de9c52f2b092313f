"""What the graph of autograd tells: what its derivatives depend on, and which of them are wrong."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from functools import lru_cache

import torch
from torch.autograd.graph import Node, get_gradient_edge

from ..errors import NotProvided
from . import core

STATISTICS = (
    "batch_norm: no derivative is provided through statistics of the batch, which couple the samples; call eval() on "
    "the module, or use running statistics, LayerNorm or GroupNorm"
)


def nodes_of(*results: torch.Tensor) -> dict[Node, int]:
    """All nodes of the graph that gave the results, in an order that is the same in graphs that are alike."""
    return wired(results)[0]


def wired(results: Sequence[torch.Tensor], over: Node | None = None) -> tuple[dict[Node, int], Hashable]:
    """These with their places, and where their edges lead, which is the same in graphs that are alike: in one where an
    edge is cut, or leads elsewhere, it is another. A node of one edge may be passed `over`."""
    roots = [result.grad_fn for result in results]
    if core.MISSING is None:
        return core._C.nodes(roots, over)
    places, waiting, edges = {}, [], []

    def lead_to(node: Node | None) -> None:
        node = node.next_functions[0][0] if node is not None and node is over else node
        if node is not None and node not in places:
            places[node] = len(places)
            waiting.append(node)
        edges.append(places.get(node, -1))

    for root in roots:
        lead_to(root)
    while waiting:
        after = waiting.pop().next_functions
        edges.append(len(after))
        for node, _ in after:
            lead_to(node)
    return places, tuple(edges)


def leads_to(x: torch.Tensor, nodes: Collection[Node]) -> bool:
    return get_gradient_edge(x).node in nodes


def leads_elsewhere(x: torch.Tensor, nodes: Collection[Node]) -> bool:
    """Whether a graph has other leaves than x that ask for a gradient."""
    own = get_gradient_edge(x).node
    return any(node is not own and "AccumulateGrad" in node.name() for node in nodes)


def refuse_inexact(nodes: Collection[Node], again: bool) -> None:
    """Raise where a node is wrong, or has no second derivative: what cannot be written out in other steps.

    `again`, if first derivatives of the results will be differentiated.
    """
    reason = next(filter(None, (fault_of(node, again) for node in nodes)), None)
    if reason is not None:
        raise NotProvided(reason)


def fault_of(node: Node, again: bool) -> str | None:
    """What is wrong with the derivatives of a node of the graph."""
    name = node.name()
    if again and ("LayerNorm" in name or "RmsNorm" in name):
        return (
            f"{name}: PyTorch's own third derivative of this norm is wrong (pytorch#196700), and within torch.jit it "
            "cannot be replaced; pass the module that was scripted or traced"
        )
    if "BatchNorm" in name and "NoTraining" not in name and "NoUpdate" not in name:
        if getattr(node, "_saved_training", getattr(node, "_saved_train", True)):
            return STATISTICS
    if "CheckpointFunction" in name:
        return "torch.utils.checkpoint: its reentrant form has no second derivative; pass use_reentrant=False"
    if again and "NotImplemented" in name:
        return "an operation in it has no second derivative in PyTorch; write it out in operations that have"
    if "CompiledFunction" in name:
        return f"{name}: what AOTAutograd compiled has no second derivative; pass the function itself"
    return None


# Where an operation goes, as its node of the graph has it: of a roll or a slice along the samples these tell whether it
# mixes them. A convolution's steps and the like are none of these.
PLACES = """
    dim dims dim0 dim1 dim2 dimension start end step shifts index indices offset storage_offset diagonal k pad
    split_size split_sizes repeats
""".split()
# Of those that save tensors for places, which take whole rows, and which single numbers; those of several results.
BY_TENSORS = "IndexBackward0", "IndexSelectBackward0", "TakeBackward0"
IN_PARTS = "Unbind", "Split", "UnsafeSplit"
SINGLE = "GatherBackward0", "ScatterAddBackward0", "ScatterBackward0", "IndexAddBackward0", "IndexCopyBackward0"
MOST_ROWS = 1 << 16


@lru_cache(maxsize=1024)
def places_in(kind: type[Node]) -> tuple[str, ...]:
    """What a kind of node saves of places: numbers, and tensors in a few."""
    found = [f"_saved_{place}" for place in PLACES if hasattr(kind, f"_saved_{place}")]
    whole = [name for name in found if not hasattr(kind, f"_raw{name}")]
    if "_saved_storage_offset" in whole:
        whole.append("_saved_stride")
    return tuple(found if kind.__name__ in BY_TENSORS + SINGLE else whole)


def places_of(y: torch.Tensor, nodes: Collection[Node], tensors: bool = True) -> tuple:
    """All of these in the order of the nodes of y's graph, and which of several results are used.

    Tensors are only read if they may be: under a checkpoint they would be computed again.
    """
    telling = telling_of(frozenset(map(type, nodes)))
    if not tensors:
        telling = {kind: names for kind, names in telling.items() if kind.__name__ not in BY_TENSORS + SINGLE}
    if not telling:
        return ()
    places = [place_of(node, name) for node in nodes if (names := telling.get(type(node))) for name in names]
    if any(kind.__name__.startswith(IN_PARTS) for kind in telling):
        places += [y.output_nr, *(i for node in nodes for _, i in node.next_functions)]
    return tuple(places)


@lru_cache(maxsize=1024)
def telling_of(kinds: frozenset[type[Node]]) -> dict[type[Node], tuple[str, ...]]:
    """Of those kinds that save places what they save."""
    return {kind: names for kind in kinds if (names := places_in(kind))}


def place_of(node: Node, name: str) -> object:
    """Numbers, or what stands for those of the first tensor of places, if it is not far to them."""
    try:
        place = getattr(node, name)
    except RuntimeError:  # one that was written to since, which its backward will not take either
        return None
    if name == "_saved_indices":
        first, *others = place
        return bytes_of(first), *(bytes_of(other, each=first is not None) for other in others)
    return bytes_of(place, each=type(node).__name__ in SINGLE and node._saved_dim != 0)


def bytes_of(place: object, each: bool = False) -> object:
    """What stands for a tensor's numbers; of those that `each` sample has of its own only where they are the same for
    all, since else they are chosen by its numbers."""
    if not isinstance(place, torch.Tensor):
        return place
    if not place.is_cpu or place.numel() > MOST_ROWS:
        return None
    if each and len(place):
        place = place[0] if bool((place == place[:1]).all()) else place[:0]
    return hash(place.numpy().tobytes())

"""What the graph of autograd tells: what its derivatives depend on, and which of them are wrong."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.autograd.graph import Node, get_gradient_edge

from ..errors import NotProvided
from . import core

STATISTICS = (
    "batch_norm: no derivative is provided through statistics of the batch, which couple the samples; call eval() on "
    "the module, or use running statistics, LayerNorm or GroupNorm"
)


def nodes_of(*results: torch.Tensor) -> dict[Node, None]:
    """All nodes of the graph that gave the results, in an order that is the same in graphs that are alike."""
    nodes, seen = [result.grad_fn for result in results], {}
    if core.MISSING is None:
        return core._C.nodes(nodes)
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen[node] = None
            nodes += [before for before, _ in node.next_functions]
    return seen


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
    if "CompiledFunction" in name:
        return f"{name}: what AOTAutograd compiled has no second derivative; pass the function itself"
    return None

"""Operations whose derivatives jump, by what their nodes in the graph are called."""

from __future__ import annotations

import torch

from ..errors import NotProvided
from .graph import nodes_of

# The highest order that is sound with an operation, by the name of its node in the graph: what is above would leave
# out what its jumps give.
KINKS = {
    "Relu": 1, "LeakyRelu": 1, "PreluKernel": 1, "Prelu": 1, "RreluWithNoise": 1, "Threshold": 1, "Hardtanh": 1,
    "Hardsigmoid": 1, "Hardshrink": 1, "Softshrink": 1, "Hardswish": 1, "Clamp": 1, "Maximum": 1, "Minimum": 1,
    "Elu": 2,
}  # fmt: skip


def need_smooth(y: torch.Tensor, order: int, argument: str) -> None:
    """Raise where an operation of the graph has a kink that counts at this order."""
    for node in nodes_of(y):
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if KINKS.get(name, order) < order:
            raise NotProvided(
                f"{argument}: expected derivatives up to order {KINKS[name]} with {name}, whose next derivative jumps "
                f"(what the jump gives would be left out, silently), got order {order}"
            )

"""What is looked at of a student while a compiler traces the call: on numbers of our own, since the inputs are none."""

from __future__ import annotations

from operator import index

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .backends import constant_while_traced, held_by
from .backends.exact import ExactNorms
from .paths import NUMBER, look_times, matter, message_of, untouched
from .recorded import followed_him, numbers_of_ours

# What is told of a function, in one word each, and a message after it if paths are cut: whether that could be looked
# at, whether each sample's outputs are its own, and whether torch.func cannot differentiate it.
LOOKED, OWN, BREAKS = "looked", "own", "breaks"

BROKEN = "student: expected a forward without a graph break, across which this PyTorch's torch.func loses derivatives"


@constant_while_traced
def loses_tangents() -> bool:
    """Whether the trace goes on after a graph break, within whose transforms PyTorch 2.11 gives wrong derivatives."""
    return torch.__version__ < (2, 13) and not followed_him()


def told_of(function: object, x: torch.Tensor) -> tuple[str, str]:
    """The words for a module, or none of what is no module, which a compiler hands to nobody; and a refusal, or ""."""
    if not isinstance(function, nn.Module):
        return "", ""
    told, _, refusal = look(id(function), index(x.shape[1]), str(x.dtype), x.device.type).partition("\n")
    return told, refusal


@constant_while_traced
def look(module: int, D: int, dtype: str, device: str) -> str:
    """What is told of a function of x [N, D], the module of that `id`, anew in each trace, of which something that he
    reads is the cause."""
    return looked_at(held_by(module), numbers_of_ours(D, dtype, device))


def looked_at(function: nn.Module, x: torch.Tensor) -> str:
    with untouched(function), torch.random.fork_rng(), torch.enable_grad():
        try:
            with ExactNorms() as mode:
                mode.watch(x := x.requires_grad_())
                y = function(x)
        except Exception:  # it may know its number of samples; what else it is, it says where it is traced
            return ""
        try:
            with sdpa_kernel(SDPBackend.MATH), ExactNorms():
                torch.func.vjp(function, x.detach())[1](torch.ones_like(y))
        except Exception:
            return BREAKS
    x = x.detach()
    try:
        found = look_times(function, function, x, 1)
    except Exception:
        return ""
    words = [word for word, told in ((LOOKED, found.told), (OWN, found.own)) if told]
    refusal = f"\n{message_of('student', found.cut, 1)}" if found.cut.any() else ""
    if mode.read and matter(function, function, x):
        refusal = f"\n{NUMBER.format('student', mode.read)}"
    return " ".join(words) + refusal

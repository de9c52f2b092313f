"""What PyTorch would answer with a silent zero, or not at all, of a fused step: refused in words."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from .errors import NotProvided

BATCHED, VMAP_MODE = map(torch._C._dispatch_key_parse, ("Batched", "VmapMode"))


class RefuseDoubleBackward(torch.autograd.Function):
    """Gradients pass through, and a backward through them raises: a second derivative is refused, never zero.

    The first `count` tensors are what the gradients depend on; without them autograd would take them for constants.
    """

    @staticmethod
    def forward(count, *tensors):
        return tuple(g.view_as(g) for g in tensors[count:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise NotProvided(
            "double backward: the fused step computes first derivatives of the loss only; "
            'pass backend="reference" to differentiate its gradients again'
        )

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def refuse_forward_mode() -> None:
    raise NotProvided(
        "forward-mode AD: no tangent is provided through the fused step (it would be a silent zero); "
        'pass backend="reference", or use sk.jvp for derivatives of the student'
    )


def is_dual(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


def is_batched(tensor: torch.Tensor | None) -> bool:
    """Whether `torch.autograd.grad(..., is_grads_batched=True)` made it, which is not a transform of torch.func."""
    return tensor is not None and torch._C._dispatch_keys(tensor).has(BATCHED)


def several(*cotangents: torch.Tensor | None) -> bool:
    """Whether a backward is asked for several cotangents at a time."""
    if torch.compiler.is_compiling() or not torch._C._dispatch_tls_is_dispatch_key_included(VMAP_MODE):
        return False  # they are made in this mode alone, which takes less to ask for than each of them
    return any(map(is_batched, cotangents))


def need_no_batch(*cotangents: torch.Tensor | None) -> None:
    """Raise where a backward is asked for several cotangents at a time."""
    if several(*cotangents):
        raise NotProvided(
            "batched gradients: the fused step takes one cotangent at a time, not is_grads_batched=True or "
            'vectorize=True; loop over them, or pass backend="reference"'
        )


def need_no_transforms(*tensors: torch.Tensor | None) -> None:
    """Raise where forward-mode AD is going on in one of the tensors, or a transform of torch.func around the call."""
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    # under vmap a dual tensor cannot be asked for its tangent
    if forward_ad._current_level >= 0 and (transformed or any(map(is_dual, tensors))):
        refuse_forward_mode()
    if transformed:
        raise NotProvided(
            "torch.func: grad, vjp, vmap and what is made of them do not go through the fused step; "
            'use torch.autograd, of an ensemble a call for each member, or pass backend="reference"'
        )

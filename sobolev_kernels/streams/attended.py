"""Attention to few positions as one operation of the core: of a value and its tangents, whose way back is one; and of a
value alone, whose gradient is one, too. By PyTorch it is products of thousands of matrices of a few numbers each, and
softmax beside them, whose second derivatives are ten passes more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..backends import core
from ..backends.standard import OWN
from ..transforms import refuse_forward_mode, several
from .operations import differentiated, goes_on, suits

READ, MADE = "q k v dq dk dv bar_y bar_t".split(), "y t bar_q bar_k bar_v bar_dq bar_dk bar_dv".split()
PLACES = *READ[:6], *MADE[:2], *READ[6:], *MADE[2:]
NONE = 0, 0, 0
# The most scores of a sequence, with those of lanes that stay empty, and numbers of its positions. PyTorch's value,
# gradients and what both owe ÷ these, float32 on one thread of an EPYC with AVX-512, by sequences, positions, numbers:
#
#     512×8×8 11.4    32×8×8 2.2    256×16×16 4.6    256×32×16 1.9    256×16×64 1.0    128×32×32 0.8    8×32×32 0.6
SCORES, NUMBERS, LANES = 1024, 512, 16


class Attention(NamedTuple):
    """What there is to tell beside the tensors."""

    scale: float
    causal: bool

    def run(self, S: int, **tensors: torch.Tensor | None) -> None:
        """What is read may lie anyhow, what is made lies well."""
        dims = tensors["q"].dim()
        tensors |= {name: lying_well(tensors[name], dims) for name in READ if tensors.get(name) is not None}
        q, k, v = (tensors[name] for name in "qkv")
        sizes = math.prod(q.shape[:-2]), q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], S
        found = [tensors.get(name) for name in PLACES]
        strides = [n for tensor in found for n in strides_of(tensor, dims)]
        core._C.attention(
            core.CODES["Dtype"]["float32"], sizes, self.scale, self.causal, torch.get_num_threads(),
            core.instruction_set(), found, strides,
        )  # fmt: skip

    def in_torch(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.weights(q, k) @ v

    def weights(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = self.scale * (q @ k.mT)
        if self.causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(-1)

    def pairs_in_torch(self, q, k, v, dq, dk, dv) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.weights(q, k)
        ds = self.scale * (dq @ k.mT + q @ dk.mT)
        dp = p * (ds - (p * ds).sum(-1, keepdim=True))
        return p @ v, dp @ v + p @ dv


def strides_of(tensor: torch.Tensor | None, dims: int) -> tuple[int, int, int]:
    """From one sequence to the next, from one position, and from one tangent."""
    if tensor is None:
        return NONE
    own = tensor.stride()
    return own[-3] if dims > 2 else 0, own[-2], own[0] if tensor.dim() > dims else 0


def lies_well(tensor: torch.Tensor, dims: int) -> bool:
    """Whether sequences are one stride apart, whatever dims they have, and numbers are adjacent."""
    shape, own = tensor.shape[-dims:], tensor.stride()[-dims:]
    apart = all([own[i] == own[i + 1] * shape[i + 1] for i in range(dims - 3)])
    return apart and own[-1] == 1


def lying_well(tensor: torch.Tensor, dims: int) -> torch.Tensor:
    return tensor if lies_well(tensor, dims) else tensor.contiguous()


def saved(ctx) -> list[torch.Tensor]:
    """What an operation has saved, as its sequences have to lie: a hook of saved tensors may have moved them."""
    tensors = ctx.saved_tensors
    return [lying_well(tensor, tensors[0].dim()) for tensor in tensors]


def attention_of(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Of the arguments of PyTorch's function; None of what the core does not take, or takes no sooner."""
    if attn_mask is not None or dropout_p or enable_gqa or q.dim() < 3:
        return None
    if not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]):
        return None
    L, M, n, sequences = q.shape[-2], k.shape[-2], max(q.shape[-1], v.shape[-1]), math.prod(q.shape[:-2])
    if L * M * LANES > SCORES * min(sequences, LANES) or max(L, M) * n > NUMBERS or not (q.numel() and v.numel()):
        return None
    if not suits(q, k, v):
        return None
    return Attention(1 / math.sqrt(q.shape[-1]) if scale is None else float(scale), bool(is_causal))


def like(x: torch.Tensor, dims: int) -> torch.Tensor:
    """Room for as many numbers, which lie as x does if that is well."""
    made = torch.empty_like(x)
    return made if lies_well(made, dims) else x.new_empty(x.shape)


def room_for(q: torch.Tensor, v: torch.Tensor, dims: int) -> torch.Tensor:
    """For a result, which lies as q does."""
    return like(q, dims) if q.shape[-1] == v.shape[-1] else q.new_empty((*q.shape[:-1], v.shape[-1]))


class Attended(torch.autograd.Function):
    """Of q, k, v and their tangents [S, ...]."""

    @staticmethod
    def forward(ctx, of, q, k, v, dq, dk, dv):
        y, t = room_for(q, v, q.dim()), room_for(dq, dv, q.dim())
        of.run(len(dq), q=q, k=k, v=v, dq=dq, dk=dk, dv=dv, y=y, t=t)
        ctx.set_materialize_grads(False)
        ctx.of = of
        ctx.save_for_backward(q, k, v, dq, dk, dv)
        return y, t

    @staticmethod
    def backward(ctx, *bars):
        tensors = saved(ctx)
        if goes_on(*bars):
            return None, *differentiated(ctx.of.pairs_in_torch, tensors, ctx.needs_input_grad[1:], bars)
        dims = tensors[0].dim()
        made = [like(x, dims) for x in tensors]
        if not any(ctx.needs_input_grad[4:]):
            made[3:] = [None] * 3
        named = dict(zip(PLACES, tensors, strict=False)) | dict(zip(PLACES[10:], made, strict=True))
        ctx.of.run(len(tensors[3]), bar_y=bars[0], bar_t=bars[1], **named)
        return None, *made

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx, of, q, k, v):
        y = room_for(q, v, q.dim())
        of.run(0, q=q, k=k, v=v, y=y)
        ctx.of = of
        ctx.save_for_backward(q, k, v)
        return y

    @staticmethod
    def backward(ctx, bar):
        tensors = saved(ctx)
        if several(bar):
            written_out = lambda q, k, v: (ctx.of.in_torch(q, k, v),)  # noqa: E731
            return None, *differentiated(written_out, tensors, ctx.needs_input_grad[1:], (bar,))
        if torch.is_grad_enabled():
            return None, *gradient(ctx.of, bar, *tensors)
        return None, *gradients_of(ctx.of, bar, tensors)

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def gradients_of(of: Attention, bar: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Adjoints of q, k and v from that of the result."""
    dims = bar.dim()
    made = [like(x, dims) for x in tensors]
    named = dict(zip(PLACES, tensors, strict=False)) | dict(zip(PLACES[10:], made, strict=False))
    of.run(0, bar_y=bar, **named)
    return made


class Gradient(torch.autograd.Function):
    """The adjoints of q, k and v."""

    @staticmethod
    def forward(ctx, of, bar, q, k, v):
        ctx.set_materialize_grads(False)
        ctx.of = of
        ctx.save_for_backward(bar, q, k, v)
        return tuple(gradients_of(of, bar, (q, k, v)))

    @staticmethod
    def backward(ctx, *along):
        of, (bar, *tensors) = ctx.of, saved(ctx)
        if all([c is None for c in along]):
            return (None,) * 5
        if torch.is_grad_enabled() or several(*along):

            def written_out(bar, *tensors):
                tensors = [x if x.requires_grad else x.detach().requires_grad_() for x in tensors]
                return torch.autograd.grad(of.in_torch(*tensors), tensors, bar, create_graph=True)

            return None, *differentiated(written_out, (bar, *tensors), ctx.needs_input_grad[1:], along)
        dims = bar.dim()
        along = [torch.zeros_like(x) if c is None else c for c, x in zip(along, tensors, strict=True)]
        along = [c[None] for c in along]
        made = [like(x, dims) for x in tensors]
        t = room_for(tensors[0], tensors[2], dims) if ctx.needs_input_grad[1] else None
        named = dict(zip(PLACES, (*tensors, *along), strict=False)) | dict(zip(PLACES[10:], made, strict=False))
        of.run(1, bar_t=bar, t=t, **named)
        return None, t, *made

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


OWN.update((Values, Gradient))
# without what torch.func would be told of them
attended, values_of, gradient = [super(torch.autograd.Function, each).apply for each in (Attended, Values, Gradient)]

"""Attention to few positions, by itself or within PyTorch's function of several heads: a forward, a gradient and its
own way back, each one operation of the core."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ...backends.exact import Mathematically
from ..attended import attention_of, values_of
from ..flowing import body_with
from .single import Single

# µs that it saves of each score, and of Python that it takes.
SAVED, PYTHON = 0.03, 150.0


def attention(query, key, value, *arguments, **named) -> torch.Tensor | None:
    of = attention_of(query, key, value, *arguments, **named)
    return None if of is None else values_of(of, query, key, value)


def of_head(*arguments, **named) -> torch.Tensor:
    """One of several heads's, ours or of the kernel that has second derivatives."""
    made = attention(*arguments, **named)
    if made is not None:
        return made
    with Mathematically():
        return functional.scaled_dot_product_attention(*arguments, **named)


def saves(query, key, *arguments, **named) -> float:
    return SAVED * math.prod(query.shape[:-1]) * key.shape[-2] - PYTHON if query.dim() > 2 else 0.0


def saves_of_heads(query, key, value, embed_dim_to_check, num_heads, *arguments, need_weights=True, **named) -> float:
    if query.dim() != 3 or need_weights:
        return 0.0
    return SAVED * query.shape[1] * num_heads * query.shape[0] * key.shape[0] - PYTHON


of_heads = body_with(functional.multi_head_attention_forward, scaled_dot_product_attention=of_head)
TABLE = {
    functional.scaled_dot_product_attention: Single(attention, saves),
    functional.multi_head_attention_forward: Single(of_heads, saves_of_heads),
}

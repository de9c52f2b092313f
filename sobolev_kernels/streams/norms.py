"""Rules of their own: dropout, norms, softmax and attention."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..backends.graph import STATISTICS
from .pair import RULES, Pair, first, is_pair, need_constant, new, rule, written
from .trusted import by_jvp


def masked_alike(name: str):
    """One mask for the value and all directions."""
    function = getattr(functional, name)

    def dropped(input, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return input
        mask = function(torch.ones_like(input.v), p, True)
        after = new(input, mask * input.v, mask * input.d)
        return written(input, after) if inplace else after

    return dropped


for name in ("dropout", "dropout1d", "dropout2d", "dropout3d"):
    rule(name)(masked_alike(name))
for name in ("alpha_dropout", "feature_alpha_dropout"):
    rule(name)(
        lambda input, p=0.5, training=False, inplace=False: input.run.stop("alpha dropout") if training else input
    )


def standardised(v, t, dims: tuple[int, ...], eps: float, centred: bool = True):
    """Without its mean and of mean square 1 over dims counted from the end."""
    if centred:
        v, t = v - v.mean(dims, keepdim=True), t - t.mean(dims, keepdim=True)
    r = (v.square().mean(dims, keepdim=True) + eps).rsqrt()
    n = v * r
    return n, r * (t - n * (n * t).mean(dims, keepdim=True))


def affine(input: Pair, v, t, weight, bias) -> Pair:
    need_constant(input.run, weight, bias)
    if weight is not None:
        v, t = v * weight, t * weight
    return new(input, v if bias is None else v + bias, t)


@rule("layer_norm")
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    dims = tuple(range(-len(normalized_shape), 0))
    return affine(input, *standardised(input.v, input.d, dims, eps), weight, bias)


@rule("rms_norm")
def rms_norm(input, normalized_shape, weight=None, eps=None):
    dims, eps = tuple(range(-len(normalized_shape), 0)), torch.finfo(input.v.dtype).eps if eps is None else eps
    return affine(input, *standardised(input.v, input.d, dims, eps, centred=False), weight, None)


def channelled(input: Pair, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A number for each channel of [N, C, ...]."""
    return None if tensor is None else tensor.view(-1, *[1] * (input.v.dim() - 2))


@rule("group_norm")
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    v, t = input.v.unflatten(1, (num_groups, -1)).flatten(2), input.d.unflatten(2, (num_groups, -1)).flatten(3)
    n, d = standardised(v, t, (-1,), eps)
    weight, bias = channelled(input, weight), channelled(input, bias)
    return affine(input, n.reshape(input.v.shape), d.reshape(input.d.shape), weight, bias)


@rule("batch_norm")
def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):  # fmt: skip
    if training or is_pair(running_mean):
        input.run.stop(STATISTICS)
    scale = channelled(input, (running_var + eps).rsqrt())
    v, t = (input.v - channelled(input, running_mean)) * scale, input.d * scale
    return affine(input, v, t, channelled(input, weight), channelled(input, bias))


RULES.pop(torch.batch_norm)  # whose arguments come in another order


@rule("instance_norm", spaces=(functional,))
def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if running_mean is not None:
        input.run.stop("instance norm with running statistics")
    return group_norm(input, input.v.shape[1], weight, bias, eps)


@rule("softmax")
def softmax(input, dim=None, _stacklevel=3, dtype=None):
    d = needed(input, dim, dtype)
    y = input.v.softmax(d)
    t = y * input.d
    return new(input, y, t - y * t.sum(d, keepdim=True))


@rule("log_softmax")
def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    d = needed(input, dim, dtype)
    y = input.v.log_softmax(d)
    return new(input, y, input.d - (y.exp() * input.d).sum(d, keepdim=True))


@rule("logsumexp")
def logsumexp(input, dim, keepdim=False):
    d = needed(input, dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim, None)
    return new(input, input.v.logsumexp(d, keepdim), (input.v.softmax(d) * input.d).sum(d, keepdim))


def needed(input: Pair, dim, dtype) -> int:
    """A dim counted from the end."""
    if type(dim) is not int or not (dtype is None or dtype == input.v.dtype):
        input.run.stop("a softmax over no dim, or in another dtype")
    return dim if dim < 0 else dim - input.v.dim()


@rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    if enable_gqa:
        first(query, key, value).run.stop("grouped attention")
    scores = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return functional.dropout(scores.softmax(-1), dropout_p, dropout_p > 0) @ value


@rule("vector_norm", spaces=(torch.linalg,))
def vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    if dtype is not None or not is_pair(x):
        first(x).run.stop("a norm in another dtype")
    if ord != 2:
        return by_jvp(torch.linalg.vector_norm)(x, ord, dim, keepdim)
    dims = tuple(range(x.v.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(d if d < 0 else d - x.v.dim() for d in dims)
    y = torch.linalg.vector_norm(x.v, 2, dims, True)
    slope = torch.where(y == 0, 0.0, x.v / torch.where(y == 0, 1.0, y))
    t = (slope * x.d).sum(dims, keepdim=True)
    return new(x, y if keepdim else y.squeeze(dims), t if keepdim else t.squeeze(dims))


@rule("norm", spaces=(torch.linalg,))
def linalg_norm(A, ord=None, dim=None, keepdim=False, *, dtype=None):
    if ord is not None and not isinstance(dim, int) and (dim is not None or A.dim() > 1):
        first(A).run.stop("a norm of matrices")
    return vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)


def norm(input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    return vector_norm(input, 2 if p == "fro" else p, dim, keepdim, dtype=dtype)


RULES[torch.Tensor.norm] = norm
RULES[torch.norm] = RULES[torch.Tensor.norm]


def variance(root: bool):
    def found(input, dim=None, unbiased=None, keepdim=False, *, correction=1):
        if isinstance(dim, bool):
            input.run.stop("a variance whose second argument is no dim")
        correction = correction if unbiased is None else int(unbiased)
        dims = tuple(range(input.v.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
        count = math.prod(input.v.shape[d] for d in dims) - correction
        centred = input - input.mean(dims, keepdim=True)
        result = (centred * centred).sum(dims, keepdim=keepdim) / count
        return result.sqrt() if root else result

    return found


rule("var")(variance(False))
rule("std")(variance(True))

"""Rules of their own: dropout, norms, softmax and attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.nn import functional

from ..backends.graph import STATISTICS
from . import normed
from .attended import attended, attention_of
from .operations import are_weights, fits, suits
from .pair import RULES, TWICE, Pair, as_samples, first, is_pair, need_constant, new, rule, written
from .pair import value as values_of
from .trusted import by_jvp
from .twice import curved, is_twice, tangents


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
    rule(name, twice=True)(masked_alike(name))
for name in ("alpha_dropout", "feature_alpha_dropout"):
    rule(name, twice=True)(
        lambda input, p=0.5, training=False, inplace=False: input.run.stop("alpha dropout") if training else input
    )


def standardised(input: Pair, dims: tuple[int, ...], eps: float, centred: bool = True) -> Pair:
    """Without its mean and of mean square 1 over dims counted from the end."""
    n, d, t, along, r = normed.standardised(input.v, input.d, dims, eps, centred)
    if not is_twice(input):
        return new(input, n, d)
    c, first, along = (a[: input.run.P] for a in (t, d, along))
    return curved(input, n, d, -r * (2 * along * first + n * (first * c).mean(dims, keepdim=True)))


def affine(input: Pair, weight, bias) -> Pair:
    need_constant(input.run, weight, bias)
    return new(input, *normed.scaled(input.v, input.d, weight, bias))


def by_core(input: Pair, weight, bias, n: int) -> bool:
    """Whether a norm of rows of n numbers, each of which fills a register of the core's, is one operation."""
    need_constant(input.run, weight, bias)
    return n >= SHORTEST and not is_twice(input) and fits(input.v, input.d) and are_weights(input.v, weight, bias)


SHORTEST = 16


def over_last(input: Pair, shape, weight, bias, eps: float, centred: bool) -> Pair:
    """Each sample standardised over its last dims, of such a shape."""
    n = math.prod(shape)
    if by_core(input, weight, bias, n) and input.v.shape[-len(shape) :] == tuple(shape):
        return new(input, *normed.normed(input.v, input.d, weight, bias, n, 0, centred, eps))
    return affine(standardised(input, tuple(range(-len(shape), 0)), eps, centred), weight, bias)


@rule("layer_norm", twice=True)
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return over_last(input, normalized_shape, weight, bias, eps, centred=True)


@rule("rms_norm", twice=True)
def rms_norm(input, normalized_shape, weight=None, eps=None):
    eps = torch.finfo(input.v.dtype).eps if eps is None else eps
    return over_last(input, normalized_shape, weight, None, eps, centred=False)


def channelled(input: Pair, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A number for each channel of [N, C, ...]."""
    return None if tensor is None else tensor.view(-1, *[1] * (input.v.dim() - 2))


@rule("group_norm", twice=True)
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    v, t = input.v.unflatten(1, (num_groups, -1)).flatten(2), input.d.unflatten(2, (num_groups, -1)).flatten(3)
    n = over_last(new(input, v, t), v.shape[-1:], None, None, eps, centred=True)
    n = new(input, n.v.reshape(input.v.shape), n.d.reshape(-1, *input.v.shape))
    return affine(n, channelled(input, weight), channelled(input, bias))


@rule("batch_norm", twice=True)
def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):  # fmt: skip
    if training or is_pair(running_mean):
        input.run.stop(STATISTICS)
    need_constant(input.run, weight, bias)
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shift = -running_mean * scale if bias is None else torch.addcmul(bias, running_mean, scale, value=-1)
    n = math.prod(input.v.shape[2:])
    if by_core(input, scale, shift, n):
        return new(input, *normed.normed(input.v, input.d, scale, shift, n, len(scale), False, eps))
    scale, shift = channelled(input, scale), channelled(input, shift)
    return new(input, torch.addcmul(shift, input.v, scale), as_samples(torch.mul, input.d, scale))


RULES.pop(torch.batch_norm), TWICE.pop(torch.batch_norm)  # whose arguments come in another order


@rule("instance_norm", spaces=(functional,), twice=True)
def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        input.run.stop("instance norm with running statistics")
    return group_norm(input, input.v.shape[1], weight, bias, eps)


def of_dims(function: Callable) -> Callable:
    """The rule of a function over dims, also of a single number, which has none: as of a row of one."""

    def applied(input, *arguments, **named):
        if not is_pair(input) or input.v.dim():
            return function(input, *arguments, **named)
        return function(input.unsqueeze(0), *arguments, **named).reshape(())

    return applied


@rule("softmax", twice=True)
@of_dims
def softmax(input, dim=None, _stacklevel=3, dtype=None):
    d = needed(input, dim, dtype)
    y = input.v.softmax(d)
    mean, spread = along_weights(input, y, d)
    t = y * (input.d - mean)
    return new(input, y, t) if spread is None else curved(input, y, t, spread - y * spread.sum(d, keepdim=True))


@rule("log_softmax", twice=True)
@of_dims
def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    d = needed(input, dim, dtype)
    y = input.v.log_softmax(d)
    mean, spread = along_weights(input, y.exp(), d)
    t = input.d - mean
    return new(input, y, t) if spread is None else curved(input, y, t, -spread.sum(d, keepdim=True))


@rule("logsumexp", twice=True)
@of_dims
def logsumexp(input, dim, keepdim=False):
    v, d = input.v, from_end(dim, input.v.dim())
    weights = v.softmax(d[0]) if len(d) == 1 else (v - v.logsumexp(d, True)).exp()
    mean, spread = along_weights(input, weights, d)
    y, t = v.logsumexp(d, keepdim), mean if keepdim else mean.squeeze(d)
    return new(input, y, t) if spread is None else curved(input, y, t, spread.sum(d, keepdim))


def from_end(dim: int | Iterable[int] | None, n: int) -> tuple[int, ...]:
    """Dims of n counted from the end: all, if none are named."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    return tuple(d % n - n for d in dims or range(n))


def along_weights(input: Pair, y: torch.Tensor, d: int | tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean over d, by the weights y of a softmax, of derivatives h; of order 2 also y (h' - mean)²."""
    mean = (y * input.d).sum(d, keepdim=True)
    if not is_twice(input):
        return mean, None
    return mean, y * (tangents(input) - mean[: input.run.P]).square()


def needed(input: Pair, dim, dtype) -> int:
    """A dim counted from the end."""
    if type(dim) is not int or not (dtype is None or dtype == input.v.dtype):
        input.run.stop("a softmax over no dim, or in another dtype")
    return dim if dim < 0 else dim - input.v.dim()


@rule("scaled_dot_product_attention", twice=True)
def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    given = query, key, value
    of = None
    if all(is_pair(x) and not is_twice(x) for x in given) and not query.run.cast:
        of = attention_of(*(x.v for x in given), attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if of is not None and suits(*(x.d for x in given)):
        return new(query, *attended(of, *(x.v for x in given), *(x.d for x in given)))
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        # where all keys are masked, PyTorch has zeros
        nowhere = values_of(scores).amax(-1, keepdim=True) == -math.inf
        weights = scores.masked_fill(nowhere, 0.0).softmax(-1).masked_fill(nowhere, 0.0)
    return functional.dropout(weights, dropout_p, dropout_p > 0) @ value


@rule("vector_norm", spaces=(torch.linalg,), twice=True)
@of_dims
def vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    if dtype is not None or not is_pair(x):
        first(x).run.stop("a norm in another dtype")
    if ord != 2:
        return by_jvp(torch.linalg.vector_norm, linear=ord in (1, math.inf))(x, ord, dim, keepdim)
    dims = from_end(dim, x.v.dim())
    y = torch.linalg.vector_norm(x.v, 2, dims, True)
    slope = torch.where(y == 0, 0.0, x.v / torch.where(y == 0, 1.0, y))
    t = (slope * x.d).sum(dims, keepdim=True)
    if not is_twice(x):
        return new(x, y if keepdim else y.squeeze(dims), t if keepdim else t.squeeze(dims))
    across = tangents(x) - slope * t[: x.run.P]
    n = curved(x, y, t, across.square().sum(dims, keepdim=True) / torch.where(y == 0, torch.inf, y))
    return n if keepdim else new(x, n.v.squeeze(dims), n.d.squeeze(dims))


@rule("norm", spaces=(torch.linalg,), twice=True)
def linalg_norm(A, ord=None, dim=None, keepdim=False, *, dtype=None):
    if ord is not None and not isinstance(dim, int) and (dim is not None or A.dim() > 1):
        return matrix_norm(A, ord, (-2, -1) if dim is None else dim, keepdim, dtype=dtype)
    return vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)


@rule("dist", twice=True)
def dist(input, other, p=2):
    return vector_norm(input - other, p)


@rule("cdist", twice=True)
def cdist(x1, x2, p=2.0, compute_mode=None):
    return vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


@rule("pairwise_distance", twice=True)
def pairwise_distance(x1, x2, p=2.0, eps=1e-6, keepdim=False):
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


@rule("cosine_similarity", twice=True)
def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    (dim,) = from_end(dim, max(1, x1.dim(), x2.dim()))
    if min(x1.dim(), x2.dim()) < -dim or x1.shape[dim] != x2.shape[dim]:
        x1, x2 = torch.broadcast_tensors(x1, x2)
    a, b = (x / torch.linalg.vector_norm(x, 2, dim, True).clamp_min(eps) for x in (x1, x2))
    return (a * b).sum(dim)


@rule("matrix_norm", spaces=(torch.linalg,), twice=True)
def matrix_norm(A, ord="fro", dim=(-2, -1), keepdim=False, *, dtype=None):
    if ord != "fro":
        first(A).run.stop("a norm of matrices")
    return vector_norm(A, 2, dim, keepdim, dtype=dtype)


def norm(input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    return vector_norm(input, 2 if p == "fro" else p, dim, keepdim, dtype=dtype)


for table in (RULES, TWICE):
    table.update(dict.fromkeys((torch.Tensor.norm, torch.norm), norm))


def variance(root: bool):
    @of_dims
    def found(input, dim=None, unbiased=None, keepdim=False, *, correction=1):
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        correction = (1 if correction is None else correction) if unbiased is None else int(unbiased)
        dims = from_end(dim, input.v.dim())
        count = math.prod(input.v.shape[d] for d in dims) - correction
        centred = input - input.mean(dims, keepdim=True)
        if root:  # which has derivatives at 0, where a square root has none
            return torch.linalg.vector_norm(centred, 2, dims, keepdim) / count**0.5
        return (centred * centred).sum(dims, keepdim=keepdim) / count

    return found


rule("var", twice=True)(variance(False))
rule("std", twice=True)(variance(True))

"""Functions without a rule whose forward mode is right: PyTorch's own jvp of them is differentiated again.

Of many it is not, and silently, as of layer_norm and of linalg.det, so each is here by a test that compares value,
tangents and gradients with differences (test_streams_more.py). All give new tensors, no views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from .flowing import name_of, spelt
from .pair import Pair, first, is_pair, new
from .twice import is_twice

NAMES = """
    cumprod logcumsumexp prod atan2 arctan2 hypot xlogy logaddexp logaddexp2 lerp
    mv dot inner outer vdot addmv addr cross linalg_cross kron tensordot trace
    float_power ldexp fmod remainder frac copysign rad2deg deg2rad
    cummax cummin sort topk median kthvalue msort nansum nanmean diff
    scatter scatter_add index_add index_copy index_fill masked_scatter masked_select take
    inverse inv cholesky matrix_power multi_dot solve_triangular eigvalsh pinv
    cov corrcoef cumulative_trapezoid trapezoid quantile addbmm addcdiv block_diag std_mean var_mean aminmax
    vstack hstack dstack column_stack renorm
    i0 i0e i1 digamma polygamma erfcx ndtr log_ndtr entr xlog1py
    bilinear cosine_similarity pairwise_distance mse_loss smooth_l1_loss huber_loss l1_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div cross_entropy_loss nll_loss_nd
""".split()
SPACES = (torch, torch.Tensor, functional, torch._C._nn, torch.special, torch.linalg, torch._C._VariableFunctions)


def by_jvp(function: Callable) -> Callable:
    """The rule of a function of pairs, wherever among its arguments they are, also in a list."""

    def applied(*arguments, **named):
        leaves, tree = torch.utils._pytree.tree_flatten((arguments, named), is_leaf=is_pair)
        places = [i for i, leaf in enumerate(leaves) if is_pair(leaf)]
        like = first(*leaves)
        if is_twice(like):
            like.run.stop(f"{name_of(function)} in it {like.run.lacks}")

        def at(*values):
            given = list(leaves)
            for place, value in zip(places, values, strict=True):
                given[place] = value
            arguments, named = torch.utils._pytree.tree_unflatten(given, tree)
            results = function(*arguments, **named)
            parts = [results] if isinstance(results, torch.Tensor) else list(results)
            kinds.append(type(results))
            return [p for p in parts if p.is_floating_point()], [p for p in parts if not p.is_floating_point()]

        kinds: list[type] = []
        values = tuple(leaves[i].v for i in places)
        results, others = at(*values)
        # one direction after the other, since many of these cannot be mapped
        each = (
            torch.func.jvp(at, values, d, has_aux=True)[1] for d in zip(*(leaves[i].d for i in places), strict=True)
        )
        derivatives = [torch.stack(part) for part in zip(*each, strict=True)]
        pairs: list[Pair] = [new(like, v, t) for v, t in zip(results, derivatives, strict=True)]
        if kinds[0] is torch.Tensor and pairs:
            return pairs[0]
        # values come before their places, in all that give both
        return kinds[0]((*pairs, *others))

    return applied


TRUSTED: dict[Callable, Callable] = {
    function: by_jvp(function) for name in NAMES for function in spelt(name, spaces=SPACES)
}

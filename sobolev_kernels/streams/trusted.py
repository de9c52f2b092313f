"""Functions without a rule whose forward mode is right: PyTorch's own jvp of them is differentiated again.

Of many it is not, and silently, as of layer_norm and of linalg.det, so each is here by a test that compares value,
tangents and gradients with differences (test_streams_more.py). All give new tensors, no views.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from .flowing import name_of, run_of, spelt
from .pair import Pair, broadcast, first, in_place, is_pair, lifted, new
from .twice import curved, is_twice, levelled

NAMES = """
    logcumsumexp atan2 arctan2 hypot xlogy logaddexp logaddexp2 lerp
    inner addmv addr cross linalg_cross kron tensordot trace
    float_power ldexp fmod remainder frac copysign rad2deg deg2rad
    cummax cummin sort topk median kthvalue msort nansum nanmean diff
    scatter scatter_add scatter_reduce index_add index_copy index_fill masked_scatter masked_select take put
    diagonal_scatter select_scatter slice_scatter diagflat max_unpool1d max_unpool2d max_unpool3d gradient trapz
    cholesky matrix_power multi_dot solve_triangular eigvalsh pinv cholesky_solve svdvals qr
    inv_ex cholesky_ex vecdot
    cov corrcoef cumulative_trapezoid trapezoid quantile addbmm addcdiv block_diag std_mean var_mean aminmax
    vstack hstack dstack column_stack renorm
    i0 i0e i1 digamma polygamma erfcx ndtr log_ndtr entr xlog1py
    mse_loss smooth_l1_loss huber_loss l1_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div cross_entropy_loss nll_loss_nd
""".split()
# Those of them that are linear in all that depends on the inputs together, but for kinks and jumps: what maps first
# derivatives maps second ones.
LINEAR = """
    trace cummax cummin sort topk median kthvalue msort nansum nanmean diff aminmax scatter scatter_add index_add
    index_copy index_fill masked_scatter masked_select take put diagonal_scatter select_scatter slice_scatter diagflat
    max_unpool1d max_unpool2d max_unpool3d gradient copysign vstack hstack dstack column_stack block_diag l1_loss
""".split()
# Those that are linear, or affine, in each argument while the others stay.
IN_EACH = """
    inner addmv addr cross linalg_cross kron tensordot multi_dot vecdot addbmm trapz
    trapezoid cumulative_trapezoid quantile nll_loss_nd
""".split()
# Of each number by itself, and of those in its place of other arguments: by autograd, twice.
ELEMENTWISE = """
    atan2 arctan2 hypot xlogy logaddexp logaddexp2 lerp ldexp fmod remainder frac rad2deg deg2rad
    i0 i0e i1 digamma polygamma erfcx ndtr log_ndtr entr xlog1py addcdiv
""".split()
SPACES = (torch, torch.Tensor, functional, torch._C._nn, torch.special, torch.linalg, torch._C._VariableFunctions)


def called(function: Callable, arguments: tuple, named: dict) -> tuple[list[Pair], Callable]:
    """The pairs, wherever among the arguments they are, also in a list; and the function of what is in their places."""
    leaves, tree = torch.utils._pytree.tree_flatten((arguments, named), is_leaf=is_pair)
    places = [i for i, leaf in enumerate(leaves) if is_pair(leaf)]

    def at(*values):
        given = list(leaves)
        for place, value in zip(places, values, strict=True):
            given[place] = value
        arguments, named = torch.utils._pytree.tree_unflatten(given, tree)
        return function(*arguments, **named)

    return [leaves[i] for i in places], at


def by_jvp(function: Callable, linear: float = 0) -> Callable:
    """The rule of a function of pairs; of second derivatives where it is `linear` in as many of them together."""

    def applied(*arguments, **named):
        pairs, of_values = called(function, arguments, named)
        like = pairs[0]
        if is_twice(like) and len(pairs) > linear:
            like.run.stop(f"{name_of(function)} in it {like.run.lacks}")

        def at(*values):
            results = of_values(*values)
            parts = [results] if isinstance(results, torch.Tensor) else list(results)
            kinds.append(type(results))
            numbers = [
                p for p in parts if p.is_floating_point() or p.is_complex()
            ]  # and no places; complex ones end it
            return numbers, [p for p in parts if not (p.is_floating_point() or p.is_complex())]

        kinds: list[type] = []
        values = tuple(pair.v for pair in pairs)
        results, others = at(*values)
        # one direction after the other, since many of these cannot be mapped
        each = (torch.func.jvp(at, values, d, has_aux=True)[1] for d in zip(*levelled(*pairs), strict=True))
        derivatives = [torch.stack(part) for part in zip(*each, strict=True)]
        made = [new(like, v, t) for v, t in zip(results, derivatives, strict=True)]
        if kinds[0] is torch.Tensor and made:
            return made[0]
        # values come before their places, in all that give both
        return kinds[0]((*made, *others))

    return applied


def elementwise(function: Callable) -> Callable:
    """The rule of a function of numbers, of which one or two in each place are a pair's."""

    def applied(*arguments, **named):
        pairs, at = called(function, arguments, named)
        like = pairs[0]
        y = at(*(pair.v for pair in pairs))
        values = [pair.v.expand(y.shape) for pair in pairs]
        values = [z if z.requires_grad else z.detach().requires_grad_() for z in values]
        y = at(*values)
        slopes = slopes_of(y, values)
        streams = [lifted(d, y.dim()) for d in levelled(*pairs)]
        t = sum(slope * d for slope, d in zip(slopes, streams, strict=True))
        if not is_twice(like):
            return new(like, y, broadcast(t, y))
        firsts, bent = [d[: like.run.P] for d in streams], 0
        for slope, along in zip(slopes, firsts, strict=True):
            if slope.requires_grad:
                bent = bent + sum(c * along * d for c, d in zip(slopes_of(slope, values), firsts, strict=True))
        return curved(like, y, t, bent) if isinstance(bent, torch.Tensor) else new(like, y, broadcast(t, y))

    return applied


def slopes_of(y: torch.Tensor, values: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(y, values, torch.ones_like(y), create_graph=True, materialize_grads=True)


TRUSTED: dict[Callable, Callable] = {
    function: by_jvp(function) for name in NAMES for function in spelt(name, spaces=SPACES)
}
TRUSTED_TWICE: dict[Callable, Callable] = {
    function: elementwise(function) if names is ELEMENTWISE else by_jvp(function, math.inf if names is LINEAR else 1)
    for names in (LINEAR, IN_EACH, ELEMENTWISE)
    for name in names
    for function in spelt(name, spaces=SPACES)
}


def scatter_reduce(input, dim, index, src, reduce, *, include_self=True):
    """Of products PyTorch's jvp is wrong."""
    if reduce == "prod":
        first(input, src).run.stop("scatter_reduce by prod")
    return by_jvp(torch.scatter_reduce)(input, dim, index, src, reduce, include_self=include_self)


def binary_cross_entropy(input, target, *arguments, **named):
    """PyTorch's jvp of its targets cannot be differentiated."""
    if is_pair(target):
        target.run.stop("binary_cross_entropy to targets that depend on the inputs")
    return by_jvp(torch._C._nn.binary_cross_entropy)(input, target, *arguments, **named)


def mirrored(A, upper: bool):
    """The symmetric matrix of one triangle: functions that read no more have derivatives in PyTorch by both."""
    return A.triu() + A.triu(1).mT if upper else A.tril() + A.tril(-1).mT


def cholesky(A, upper=False):
    return by_jvp(torch.linalg.cholesky)(mirrored(A, upper), upper=upper)


def cholesky_ex(A, *, upper=False, check_errors=False):
    return by_jvp(torch.linalg.cholesky_ex)(mirrored(A, upper), upper=upper, check_errors=check_errors)


def cholesky_solve(B, L, upper=False):
    return by_jvp(torch.cholesky_solve)(B, L.triu() if upper else L.tril(), upper)


def eigvalsh(A, UPLO="L"):
    return by_jvp(torch.linalg.eigvalsh)(mirrored(A, UPLO in "Uu"), UPLO)


def pinv(A, *arguments, hermitian=False, **named):
    hermitian = hermitian or True in arguments
    arguments = [a for a in arguments if not isinstance(a, bool)]
    return by_jvp(torch.linalg.pinv)(mirrored(A, False) if hermitian else A, *arguments, hermitian=hermitian, **named)


def gradient_twice(input, *, spacing=1, **named):
    """What it divides by, it is not linear in."""
    if not is_pair(input) or any(map(is_pair, spacing if isinstance(spacing, (tuple, list)) else (spacing,))):
        run = run_of((input, spacing))
        run.stop(f"gradient in it {run.lacks}")
    return by_jvp(torch.gradient, math.inf)(input, spacing=spacing, **named)


for own in (scatter_reduce, binary_cross_entropy, cholesky, cholesky_ex, cholesky_solve, eigvalsh, pinv):
    TRUSTED |= dict.fromkeys(spelt(own.__name__, spaces=SPACES), own)
TRUSTED_TWICE |= dict.fromkeys(spelt("gradient"), gradient_twice)
for table in (TRUSTED, TRUSTED_TWICE):
    in_place(table)

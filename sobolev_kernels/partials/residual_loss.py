"""`residual_loss`: how far a student is from making residuals zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch

from ..backends.residuals import term
from ..checks import faults_of_range
from ..errors import Fault, in_words, nearest, need, need_tensor, one_of, refuse
from ..math.losses import LOSSES
from ..math.table import Formula, choose
from ..typed import Function
from .evaluate import found_of, partials, results_at, results_of_core
from .fused_loss import fused_loss, is_provided
from .loss import Comparison
from .residual import Read, Residual, Values, named_columns

REDUCTIONS = ("mean", "sum", "none")


class ResidualTerms(NamedTuple):
    """What `return_terms=True` gives: the loss, and by name each term without its weight; all can be differentiated."""

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]


Residuals = Residual | Sequence[Residual]


@overload
def residual_loss(
    student: Function, x: torch.Tensor, residual: Residuals, *, loss: str | tuple[Any, ...] = ..., target: Any = ...,
    weights: Any = ..., scales: Any = ..., sample_weight: torch.Tensor | None = ..., reduction: str = ...,
    backend: str | None = ..., return_terms: Literal[False] = ...,
) -> torch.Tensor: ...  # fmt: skip
@overload
def residual_loss(
    student: Function, x: torch.Tensor, residual: Residuals, *, loss: str | tuple[Any, ...] = ..., target: Any = ...,
    weights: Any = ..., scales: Any = ..., sample_weight: torch.Tensor | None = ..., reduction: str = ...,
    backend: str | None = ..., return_terms: Literal[True],
) -> ResidualTerms: ...  # fmt: skip
@in_words
def residual_loss(
    student: Function, x: torch.Tensor, residual: Residuals, *, loss: str | tuple[Any, ...] = "mse",
    target: Any = None, weights: Any = None, scales: Any = None, sample_weight: torch.Tensor | None = None,
    reduction: str = "mean", backend: str | None = None, return_terms: bool = False,
) -> torch.Tensor | ResidualTerms:  # fmt: skip
    """Σ over terms of weight · mean over samples of ρ((residual - target) / scale), from one call of `partials`.

    Args:
        student: as of `partials`; x: inputs [N, D].
        residual: a `Residual`, or several of the same fields, as `[r, r.diff("x")]`; all that they read comes of one
            pass.
        loss: ρ, "mse", "l1", "huber" or "log_cosh", or a name with parameters as ("huber", 0.5).
        target: what residuals should be instead of 0, [N, 1].
        weights: of the terms, by default 1.
        scales: units of the terms, by default 1; `residual_scales` finds those in which each term is of size 1.
        sample_weight: [N]. What has weight 0 is masked: its target, or its residual, may be no number.
        reduction: "mean" or "sum" over samples, or "none" for [N].
        backend: as of `partials`.
        return_terms: give a `ResidualTerms`.

    `target`, `weights` and `scales` are by name, {"burgers": 2.0}; or, of one term alone, the thing itself; weights and
    scales of several terms also a list in their order. Weights may be tensors, which get gradients.

    Returns:
        The loss of x's dtype, differentiable with respect to the student's parameters, those of the residuals, and x;
        without samples 0.

    Raises:
        TypeError, ValueError, NotImplementedError: bad arguments, in words; or what `partials` refuses.

    Example:
        >>> heat = Residual(lambda p: p.u_t - p.u_xx, "x t -> u", name="heat")
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> loss = residual_loss(student, torch.rand(5, 2), [heat, heat.diff("x")], weights={"heat_x": 0.1})
    """
    residuals = residuals_of(residual)
    names = names_of(residuals)
    if not one_of(reduction, REDUCTIONS):
        hint = nearest(reduction, REDUCTIONS)
        refuse([Fault("reduction", f"one of {', '.join(REDUCTIONS)}", reduction, hint=hint)])
    rho = choose(LOSSES, "loss", loss)
    numbers = {name: by_name(value, name, names) for name, value in (("weights", weights), ("scales", scales))}
    refuse(faults_of_numbers(numbers))
    targets = by_name(target, "target", names)
    by = [[given.get(name) for name in names] for given in (targets, numbers["scales"], numbers["weights"])]
    of = Comparison(rho, *by, sample_weight, reduction == "mean")
    fields, reads = residuals[0].fields, reads_of(residuals)
    found, looked = found_of(student, x, reads, fields, backend)
    refuse(faults_of_samples(targets, sample_weight, x))
    total = None
    if found is not None and reduction != "none" and is_provided(residuals, x, of):
        coordinates = dict.fromkeys(name for one in residuals for name in one.coordinates)
        total, each = fused_loss(found, x, residuals, (*reads, *coordinates), of, compared) or (None, None)
        each = each.unbind() if total is not None and return_terms else ()
    if total is None:
        at = results_at(x, reads, fields, student, looked, backend) if found is None else results_of_core(found, reads)
        values = values_of(x, residuals, at)
        total, each = compared(of, values, reduction)
    return ResidualTerms(total, dict(zip(names, each, strict=True))) if return_terms else total


def compared(
    of: Comparison, values: Sequence[torch.Tensor], reduction: str | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    """The loss and its terms, of residuals [N, 1]."""
    terms = []
    for value, target, scale in zip(values, of.targets, of.scales, strict=True):
        each = each_of(of.rho, value, target, scale, of.sample_weight)
        terms.append(each if reduction == "none" else each.mean() if of.mean and len(each) else each.sum())
    return sum(weighed(term, weight) for term, weight in zip(terms, of.weights, strict=True)), terms


@in_words
@torch.no_grad()
def residual_scales(student: Function, x: torch.Tensor, residual: Residuals) -> dict[str, float]:
    """The size of each term with this student at x: the root mean square of its residual, as `scales` of
    `residual_loss` that make each term 1 here. Of what is zero, or no number, 1.

    Example:
        >>> heat = Residual(lambda p: p.u_t - p.u_xx, "x t -> u", name="heat")
        >>> list(residual_scales(torch.nn.Linear(2, 1), torch.rand(5, 2), [heat, heat.diff("x")]))
        ['heat', 'heat_x']
    """
    residuals = residuals_of(residual)
    found = partials(student, x, reads_of(residuals), fields=residuals[0].fields)
    values = zip(names_of(residuals), values_of(x, residuals, found), strict=True)
    found = {name: float(value.double().square().mean().sqrt()) for name, value in values}
    return {name: size if 0 < size < float("inf") else 1.0 for name, size in found.items()}


def residuals_of(residual: object) -> list[Residual]:
    several = list(residual) if isinstance(residual, (list, tuple)) else [residual]
    for one in several:
        need(isinstance(one, Residual), "residual", "a sobolev_kernels.Residual, or a list of them", one, TypeError)
    need(bool(several), "residual", "a sobolev_kernels.Residual, or a list of them", "none")
    fields = several[0].fields
    for one in several[1:]:
        need(one.fields == fields, "residual", f"residuals of the same fields, {fields.names!r}", one.fields.names)
    return several


def names_of(residuals: Sequence[Residual]) -> tuple[str, ...]:
    names = [name for one in residuals for name in one.names]
    for name in names:
        hint = "Residual(…, name=…) sets one"
        need(names.count(name) == 1, "residual", "terms of different names", f"{name!r} twice", hint=hint)
    return tuple(names)


def reads_of(residuals: Sequence[Residual]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in residuals for name in one.reads))


def values_of(x: torch.Tensor, residuals: Sequence[Residual], found: Values) -> list[torch.Tensor]:
    """All terms [N, 1], of the derivatives that they read."""
    p = Read(named_columns(residuals[0].fields, x) | found)
    return [value for one in residuals for value in one.values(p).values()]


def by_name(value: Any, argument: str, names: Sequence[str]) -> dict[str, Any]:
    """What was given for terms, by their names."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        for name in value:
            need(name in names, argument, f"names of terms, {', '.join(names)}", name, hint=nearest(name, names))
        return dict(value)
    if isinstance(value, (list, tuple)) and argument != "target":
        need(len(value) == len(names), argument, f"{len(names)}, of {', '.join(names)}", value)
        return dict(zip(names, value, strict=True))
    need(len(names) == 1, argument, f"a dict by the names of terms, {', '.join(names)}", value, TypeError)
    return {names[0]: value}


def faults_of_numbers(numbers: dict[str, dict[str, Any]]) -> Iterator[Fault]:
    for argument, by in numbers.items():
        least = "> 0" if argument == "scales" else ">= 0"
        for name, number in by.items():
            if isinstance(number, torch.Tensor) and number.numel() == 1:
                continue
            real = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not real or not (0 <= number < float("inf")) or (argument == "scales" and number == 0):
                yield Fault(argument, f"finite numbers {least}", f"{number!r} of {name!r}", ValueError)


def faults_of_samples(targets: dict[str, Any], sample_weight: object, x: torch.Tensor) -> Iterator[Fault]:
    for name, target in targets.items():
        need_tensor(target, "target", f"a tensor [{len(x)}, 1]")
        if target.shape != (len(x), 1):
            yield Fault("target", f"a tensor [{len(x)}, 1]", f"{tuple(target.shape)} of {name!r}")
    if sample_weight is not None:
        need_tensor(sample_weight, "sample_weight", f"a tensor [{len(x)}]")
        if sample_weight.shape != (len(x),):
            yield Fault("sample_weight", f"a tensor [{len(x)}]", sample_weight)
        if sample_weight.is_complex():
            yield Fault("sample_weight", "real numbers", sample_weight)
        else:
            yield from faults_of_range("sample_weight", sample_weight)


def each_of(
    rho: Formula, value: torch.Tensor, target: torch.Tensor | None, scale: Any, sample_weight: torch.Tensor | None
) -> torch.Tensor:  # fmt: skip
    """ρ of each sample [N], times its weight."""
    target = torch.zeros_like(value) if target is None else target.to(value)
    if scale is not None:
        value, target = value / scale, target / scale
    weight = None if sample_weight is None else sample_weight.to(value)
    return term(rho, value, target, None, weight)


def weighed(value: torch.Tensor, weight: Any) -> torch.Tensor:
    if weight is None:
        return value
    weight = weight.reshape(()).to(value) if isinstance(weight, torch.Tensor) else weight
    return weight * value

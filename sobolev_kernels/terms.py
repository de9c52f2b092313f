"""`SobolevTerms`: a Sobolev loss and the terms it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from . import call
from .alone import along_samples
from .coordinates import loss_of_coordinates
from .errors import need
from .heads import with_head
from .problem import LOSS, PER_SAMPLE
from .rows import are_rows, loss_on_rows
from .settings import Settings
from .targets import Targets
from .weights import Weights


class SobolevTerms(NamedTuple):
    """What `return_terms=True` gives: scalars, or [N] with reduction="none".

    Each can be differentiated for itself, so that weights can be learned or follow the terms' gradients: the gradients
    of a term are computed in its backward, from the start again, those of `loss` beside the loss as ever. A term
    without a target, which a weight of zero allows, is NaN; `second` is None unless `order=2`, and is left out of
    `_asdict()` and `log()` then. Of orders 3 and 4 it is a `JetTerms`.
    """

    loss: torch.Tensor
    value: torch.Tensor
    derivative: torch.Tensor
    second: torch.Tensor | None = None

    def log(self) -> dict[str, float]:
        """Those that there are, by name, as Python's numbers, the mean over samples of reduction="none"; for a logger.

        It waits for the device once.
        """
        return logged(self)


class JetTerms(NamedTuple):
    """The same of a loss of order 3 or 4, as `SobolevTerms`; `fourth` is None of order 3."""

    loss: torch.Tensor
    value: torch.Tensor
    derivative: torch.Tensor
    second: torch.Tensor
    third: torch.Tensor
    fourth: torch.Tensor | None = None

    def log(self) -> dict[str, float]:
        """As `SobolevTerms.log`."""
        return logged(self)


def logged(terms: SobolevTerms | JetTerms) -> dict[str, float]:
    named = terms._asdict()
    numbers = torch.stack([term.detach().double().mean() for term in named.values()]).tolist()
    return dict(zip(named, numbers, strict=True))


def there(terms: SobolevTerms | JetTerms) -> dict[str, torch.Tensor]:
    """As a dict, without what is None."""
    return {name: term for name, term in zip(terms._fields, terms, strict=True) if term is not None}


SobolevTerms._asdict = JetTerms._asdict = there


def loss_of(
    settings: Settings, student: torch.nn.Module, inputs: torch.Tensor, targets: Targets, given: torch.Tensor | None,
    weights: Weights, input_scale: torch.Tensor | None, offset: int | None = None,
    input_jacobian: torch.Tensor | None = None, head: Callable | None = None,
) -> torch.Tensor | SobolevTerms | JetTerms:  # fmt: skip
    """The loss of these settings, of the inputs' dtype, with its terms if the settings return them.

    A `head` that is given is one that is a callable, of which the settings know no more.
    """
    if not isinstance(targets, Targets):
        need(False, "targets", "a sobolev_kernels.Targets", targets, TypeError, "Targets(values=y, jacobian=dy) is one")
    if targets.samples is not None:
        of_outputs = student if head is None else None
        settings, targets, offset = along_samples(settings, of_outputs, targets, inputs, offset, input_jacobian)
    if head is not None:
        student, targets = with_head(student, targets, head)
    if input_jacobian is not None:
        targets = targets.like(inputs)
        of_all = loss_of_coordinates(
            settings, student, inputs, targets, given, weights, input_scale, offset, input_jacobian
        )
        settings, student, inputs, targets, given, weights = of_all
        input_scale = offset = None
    elif not are_rows(inputs, settings):
        of_all = loss_on_rows(settings, student, inputs, targets, given, weights, input_scale)
        settings, student, inputs, targets, given, weights, input_scale = of_all
    result = PER_SAMPLE if settings.reduction == "none" else LOSS
    (loss, *terms), known = call.evaluate(
        result, student, inputs, settings, given, targets, weights, input_scale, offset=offset
    )
    loss = loss if loss.dtype is inputs.dtype else loss.to(inputs.dtype)
    if not settings.return_terms:
        return loss
    nothing = torch.full_like(loss.detach(), torch.nan)
    known = (*known, *known[2:] * 2)[: 1 + settings.order]  # above order 2 there is a target for all of them, or none
    each = [terms[0][i].to(inputs.dtype) if k else nothing for i, k in enumerate(known)]
    return (SobolevTerms if settings.order < 3 else JetTerms)(loss, *each)

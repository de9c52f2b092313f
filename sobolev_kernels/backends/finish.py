"""From the terms of each sample to the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..problem import PER_SAMPLE, Problem


def finish(
    problem: Problem, weights: Sequence[float], terms: Sequence[torch.Tensor] | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the terms [1 + order] of a batch, or each sample's, [N] and [1 + order, N]; differentiable.

    `terms` are [N] each, and have the mean's 1 / N in them. One of weight 0 is left out, since it may be NaN.
    """
    if problem.result != PER_SAMPLE:
        terms = (
            terms.sum(1) if isinstance(terms, torch.Tensor) else [term.sum() if term.dim() else term for term in terms]
        )
    weighted = [term if w == 1 else w * term for w, term in zip(weights, terms, strict=False) if w]
    loss = sum(weighted[1:], weighted[0]) if weighted else terms[0].new_zeros(terms[0].shape)
    return loss, terms if isinstance(terms, torch.Tensor) else torch.stack(list(terms))

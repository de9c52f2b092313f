"""A training whose loss is no number any more: why, and what to try."""

from __future__ import annotations

import torch
from torch import nn

from ..loss import SobolevLoss
from .batches import Data
from .settings import with_settings

TRY = (
    "Try a lower learning rate (lr=), scale=True, or gradients that are clipped (a hook by "
    "optimizer.register_step_pre_hook)"
)
TERMS = {"value": "the value term", "derivative": "the derivative term", "second": "the second-derivative term"}


@torch.no_grad()
def reason(student: nn.Module, loss: SobolevLoss, batch: Data) -> str:
    """Which number is none: of the data, of the parameters, or a term of the loss."""
    broken = [name for name, p in student.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        return f"parameters are not finite since the step before ({', '.join(broken[:3])}): its gradient was not"
    try:
        with_settings(loss, check_finite=True)(student, *batch)
    except ValueError as error:
        return f"the data are not finite: {error}"
    terms = with_settings(loss, return_terms=True)(student, *batch)
    named = {name: term for name, term in zip(terms._fields[1:], terms[1:], strict=True) if term is not None}
    broken = [TERMS[name] for name, term in named.items() if not bool(term.isfinite())]
    return f"{' and '.join(broken)} overflowed" if broken else "its terms are finite, so that a weight is not"


def stop(student: nn.Module, loss: SobolevLoss, batch: Data, epoch: int, step: int, number: float) -> None:
    """Raise, in words.

    Raises:
        FloatingPointError: always.
    """
    why = reason(student, loss, batch)
    hint = TRY if "data" not in why else "Leave these samples out, or mark them by sample_weight"
    raise FloatingPointError(
        f"fit: the loss is {number} at epoch {epoch}, step {step}: {why}. The student has the parameters from before "
        f"this step. {hint}"
    )

"""A loss of polynomial residuals with all its gradients, made at once by the backend that takes the streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backends.exact import graphs
from ..boundary import PLAIN
from .core_loss import CoreLoss
from .known import WHOLE, Found
from .launched_loss import LaunchedLoss
from .loss import Compared, Comparison
from .one_pass import Terms, apply
from .residual import Read, Residual, ordinary, sampled
from .tape import Recording, Tape

BY = {"cpu": CoreLoss, "triton": LaunchedLoss}

LARGEST = 1e30  # of a unit and its inverse: products of some are numbers of float32


def fused_loss(
    found: Found, inputs: torch.Tensor, residuals: Sequence[Residual], names: tuple[str, ...], of: Comparison,
    compared: Compared,
) -> Terms | None:  # fmt: skip
    """The loss and its terms [T], differentiable; None where the residuals are no polynomials.

    `names` of derivatives are the results of the streams; those of coordinates follow, which are columns of `inputs`.
    `compared` makes the same loss of residuals by PyTorch's operations.
    """
    recorded = record(residuals, names, found.x)
    if recorded is None:
        return None
    recording, coefficients = recorded
    columns = names[len(found.frame.call.streams.outputs) :]
    columns = tuple(residuals[0].fields.inputs.index(name) for name in columns)
    loss = BY[found.frame.way](found, recording, columns, of, compared)
    learnt = [weight for weight in of.weights if isinstance(weight, torch.Tensor)]
    tensors = found.x, inputs if columns else None, *found.parameters, *coefficients, *learnt
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors]):
        return apply(loss, *tensors)
    return loss.run(tensors, None)[:2]


def is_provided(residuals: Sequence[Residual], x: torch.Tensor, of: Comparison) -> bool:
    """Whether the backends make such a loss, of polynomials."""
    constant = [t for t in (*of.targets, of.sample_weight) if isinstance(t, torch.Tensor)]
    weights = [weight for weight in of.weights if isinstance(weight, torch.Tensor)]
    scales = [scale for scale in of.scales if isinstance(scale, torch.Tensor)]
    if not all([residual.recorded for residual in residuals]) or not len(x) or x.dtype not in WHOLE:
        return False
    if not all([type(t) in PLAIN and not t.is_complex() for t in (x, *constant, *weights, *scales)]):
        return False
    if not all([t.device == x.device for t in (*constant, *weights)]) or not all([scale.is_cpu for scale in scales]):
        return False
    units = [1.0 if scale is None else float(scale) for scale in of.scales]
    in_reach = all([1 / LARGEST <= abs(unit) <= LARGEST for unit in units])
    return in_reach and not any([t.requires_grad for t in (*constant, *scales)])


def record(
    residuals: Sequence[Residual], names: Sequence[str], x: torch.Tensor
) -> tuple[Recording, list[torch.Tensor]] | None:  # fmt: skip
    """Residuals as sums, with their coefficients; None where they are none."""
    tape = Tape({name: i for i, name in enumerate(names)}, x)
    try:
        recording = tape.recording([value for residual in residuals for value in residual.on(tape)])
    except Exception:  # a symbol is no tensor, so that a function may fail at it in any way
        return None
    form = recording.form()
    if not all([form in residual.agreed for residual in residuals]):
        if not agrees(residuals, names, recording, tape.coefficients, x):
            return None
        for residual in residuals:
            residual.agreed.add(form)
    return recording, tape.coefficients


def agrees(
    residuals: Sequence[Residual], names: Sequence[str], recording: Recording, coefficients: list[torch.Tensor],
    x: torch.Tensor,
) -> bool:  # fmt: skip
    """Whether the sums are, at some numbers, what the functions make of tensors, and have their gradients."""
    with graphs():
        coefficients = [*map(ordinary, coefficients)]
        p = {name: sampled(i, x).requires_grad_() for i, name in enumerate(names)}
        values = [value for residual in residuals for value in residual.values(Read(p)).values()]
        leaves = list(p.values())
        sums = recording.values([leaf[:, 0] for leaf in leaves], coefficients)
        pairs = [(value[:, 0], found) for value, found in zip(values, sums, strict=True)]
        for pair in list(pairs):
            slopes = [
                torch.autograd.grad(part.sum(), leaves, retain_graph=True, materialize_grads=True) for part in pair
            ]
            pairs += zip(*slopes, strict=True)
    within = 1e3 * torch.finfo(x.dtype).eps
    return all(torch.allclose(a, b, rtol=within, atol=within, equal_nan=True) for a, b in pairs)

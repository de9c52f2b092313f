"""The one rule by which a result counts as right, for the tests, the benchmark and users' own checks."""

from __future__ import annotations

import torch

# Another order of summation is not an error: so many units in the last place of the largest number are allowed.
EPSILONS = 64


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference, in float64; infinite where one is NaN and the other is not."""
    difference = (got.detach().double() - expected.detach().double()).abs()
    return float(torch.nan_to_num(difference, nan=torch.inf).max()) if difference.numel() else 0.0


def allowed(expected: torch.Tensor, dtype: torch.dtype, baseline: torch.Tensor | None = None) -> float:
    """Twice the error of plain PyTorch in the dtype, plus one epsilon term, plus what may be flushed to 0."""
    scale = float(expected.detach().double().abs().max()) if expected.numel() else 0.0
    own = 0.0 if baseline is None else error(baseline, expected)
    numbers = torch.finfo(dtype)
    return 2 * own + EPSILONS * numbers.eps * scale + 2 * numbers.tiny


def assert_within_rule(
    name: str, got: torch.Tensor, expected: torch.Tensor, baseline: torch.Tensor | None = None
) -> None:
    """Raise AssertionError unless `got` is as close to the float64 result `expected` as the rule asks.

    Args:
        name: what is compared, for the message.
        got: any floating dtype.
        expected: the same shape, from the reference in float64.
        baseline: the same computed by plain PyTorch in the dtype of `got`; without it its error counts as 0.
    """
    if got.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    limit, found = allowed(expected, got.dtype, baseline), error(got, expected)
    if not found <= limit:
        raise AssertionError(f"{name}: error {found:.3g} to the float64 reference, allowed {limit:.3g}")

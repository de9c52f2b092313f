"""The one rule by which a result counts as right, for the tests, the benchmark and users' own checks."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .problem import PRECISIONS

# Another order of summation is not an error: so many units in the last place of the largest number are allowed.
EPSILONS = 64
# Bits of a product's operands, and as many of their own units; that they are cut or rounded is not an error either.
BITS = dict(zip(PRECISIONS, (None, 10, 7, 10), strict=True))
EPSILONS_OF_PRECISION = 4
PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm")}


class multiplies_in(TorchDispatchMode):
    """Within it, PyTorch rounds what it multiplies to a precision of `sobolev_loss`, and sums as it always does."""

    def __init__(self, precision: str):
        super().__init__()
        self.precision = precision

    def rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.precision == "fp16":
            return tensor.half().to(tensor.dtype)
        drop = 23 - BITS[self.precision]
        bits = tensor.float().contiguous().view(torch.int32)
        bits = (bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)) >> drop << drop
        return bits.view(torch.float32).to(tensor.dtype)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS and BITS[self.precision]:
            *first, a, b = args
            args = (*first, self.rounded(a), self.rounded(b))
        return function(*args, **(kwargs or {}))


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference, in float64; infinite where one is NaN and the other is not."""
    difference = (got.detach().double() - expected.detach().double()).abs()
    return float(torch.nan_to_num(difference, nan=torch.inf).max()) if difference.numel() else 0.0


def allowed(
    expected: torch.Tensor, dtype: torch.dtype, baseline: torch.Tensor | None = None, precision: str = "ieee"
) -> float:
    """Twice the error of plain PyTorch in the dtype, plus one epsilon term, plus what may be flushed to 0."""
    scale = float(expected.detach().double().abs().max()) if expected.numel() else 0.0
    own = 0.0 if baseline is None else error(baseline, expected)
    numbers = torch.finfo(dtype)
    epsilon = EPSILONS * numbers.eps
    if BITS[precision]:
        epsilon += EPSILONS_OF_PRECISION * 2.0 ** -BITS[precision]
    return 2 * own + epsilon * scale + 2 * numbers.tiny


def assert_within_rule(
    name: str, got: torch.Tensor, expected: torch.Tensor, baseline: torch.Tensor | None = None,
    precision: str = "ieee",
) -> None:  # fmt: skip
    """Raise AssertionError unless `got` is as close to the float64 result `expected` as the rule asks.

    Args:
        name: what is compared, for the message.
        got: any floating dtype.
        expected: the same shape, from the reference in float64.
        baseline: the same computed by plain PyTorch in the dtype of `got`, within `multiplies_in(precision)`; without
            it its error counts as 0.
        precision: of the products that made `got`, as for `sobolev_loss`.
    """
    if got.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    limit, found = allowed(expected, got.dtype, baseline, precision), error(got, expected)
    if not found <= limit:
        raise AssertionError(f"{name}: error {found:.3g} to the float64 reference, allowed {limit:.3g}")

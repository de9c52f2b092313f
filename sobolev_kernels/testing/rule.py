"""The one rule by which a result counts as right, for the tests, the benchmark and users' own checks."""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..enums import PRECISIONS

# Another order of summation is not an error: so many units in the last place of the largest number are allowed.
EPSILONS = 64
# Bits of a product's operands, and as many of their own units; that they are cut or rounded is not an error either.
BITS = dict(zip(PRECISIONS, (None, 10, 7, 10), strict=True))
EPSILONS_OF_PRECISION = 4
PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm")}
# What two machines round differently: products and sums, by their order, and functions, by the library.
MACHINE = PRODUCTS | {
    operation
    for name in ("sum", "mean", "exp", "expm1", "log1p", "tanh", "sigmoid", "sin", "cos", "erf", "sqrt", "rsqrt")
    for operation in (getattr(getattr(torch.ops.aten, name), o) for o in getattr(torch.ops.aten, name).overloads())
    if "out" not in operation._overloadname
}
# How often an expectation is computed again, each time with other errors, of up to so many units in the last place: few
# enough to stay on one side of a kink.
DRAWS, UNITS = 8, 4
# Of float64 beside the same mathematics by another way, as torch.func's, of numbers of about 1 whose rounding nobody
# follows: for `torch.testing.assert_close` and `torch.allclose`.
ANOTHER_WAY = {"rtol": 1e-9, "atol": 1e-11}
ROUNDED_WITHIN = {"rtol": 1e-5, "atol": 1e-6}  # the same, of a function that rounds to float32 on its way
# Of float64 beside central differences of fourth order: what is left of the step, in numbers of about 1.
BY_DIFFERENCES = {"a rule": 1e-7, "a network": 1e-6, "second derivatives": 1e-5}
BY_DIFFERENCE = {"rtol": 1e-6, "atol": 1e-7}  # the same, for `torch.testing.assert_close`
CLOSE_IN_SINGLE = {"rtol": 1e-4, "atol": 1e-5}  # of float32 numbers of about 1 whose rounding nobody follows
IN_SINGLE = 1e-3  # of a result's largest number, in float32 beside float32 by another way: what is a fault is more
IN_HALF = 0.05  # of a result's largest number, computed in half precision by a chain of calls
SEARCHED = {"rtol": 0.05, "atol": 0.02}  # parameters after 40 steps with a line search, which part at rounding errors
ODD = 0x2545F4914F6CDD1D  # of xorshift64*, a multiplier that mixes well
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class multiplies_in(TorchDispatchMode):
    """Within it, PyTorch rounds what it multiplies to a precision of `sobolev_loss`, and sums as it always does.

    In "ieee" there is nothing to round, and no operation takes the way through Python.
    """

    def __init__(self, precision: str):
        super().__init__()
        self.precision = precision

    def __enter__(self):
        return super().__enter__() if BITS[self.precision] else self

    def __exit__(self, *error):
        return super().__exit__(*error) if BITS[self.precision] else None

    def rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.precision == "fp16":
            return tensor.half().to(tensor.dtype)
        drop = 23 - BITS[self.precision]
        bits = tensor.float().contiguous().view(torch.int32)
        bits = (bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)) >> drop << drop
        return bits.view(torch.float32).to(tensor.dtype)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            *first, a, b = args
            args = (*first, self.rounded(a), self.rounded(b))
        return function(*args, **(kwargs or {}))


class perturbed(TorchDispatchMode):
    """Within it, every new float32 or float64 result of PyTorch is off by up to `units` units in its last place, or of
    the size `eps` beside the number, whatever its dtype.

    With `operations`, only those of torch.ops.aten among them. This is stochastic arithmetic (Vignes, 1993): how far a
    result moves tells what its sums and differences were made of, where the result itself, in which they may cancel,
    does not. The errors are a function of `seed` and of the numbers alone, so that the same operation on the same
    numbers gives the same result. Within transforms of torch.func nothing is moved, since PyTorch crashes there.
    """

    def __init__(
        self, units: float, seed: int = 0, operations: Container | None = None, eps: float | None = None
    ):  # fmt: skip
        super().__init__()
        self.units, self.seed, self.operations, self.eps = units, seed, operations, eps

    def moved(self, tensor: object) -> object:
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in INTEGERS or tensor.device.type == "meta":
            return tensor
        # autograd's zeros without memory, in which there is nothing to move, and whose bits PyTorch crashes on
        if tensor._is_zerotensor():
            return tensor
        bits = tensor.contiguous().view(INTEGERS[tensor.dtype]).to(torch.int64)
        mixed = (bits + (self.seed << 40)) * ODD
        mixed = (mixed ^ (mixed >> 29)) * ODD
        noise = ((mixed >> 24) & 0xFFFF).to(tensor.dtype) / 0x8000 - 1  # in [-1, 1)
        off = tensor * (self.units * (self.eps or torch.finfo(tensor.dtype).eps)) * noise
        return torch.where(torch.isfinite(tensor), tensor + off, tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        fresh = all(part.alias_info is None for part in function._schema.returns)
        known = self.operations is None or function in self.operations
        if not (fresh and known) or torch._C._are_functorch_transforms_active():
            return result
        many = isinstance(result, (tuple, list))
        return type(result)(map(self.moved, result)) if many else self.moved(result)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference, in float64; infinite where one is NaN and the other is not."""
    difference = (got.detach().double() - expected.detach().double()).abs()
    return float(torch.nan_to_num(difference, nan=torch.inf).max()) if difference.numel() else 0.0


def largest(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0


def allowed(
    expected: torch.Tensor, dtype: torch.dtype, baseline: torch.Tensor | None = None, precision: str = "ieee",
    again: Callable[[], torch.Tensor] | None = None,
) -> float:  # fmt: skip
    """The largest error that the rule allows; its parts are told at `assert_within_rule`."""
    plain = 0.0 if baseline is None else error(baseline, expected)
    numbers, scale = torch.finfo(dtype), largest(expected)
    if again is not None:
        scale = max(scale, *(spread(again, expected, numbers.eps, seed) for seed in range(DRAWS)))
    epsilon = EPSILONS * numbers.eps
    if BITS[precision]:
        epsilon += EPSILONS_OF_PRECISION * 2.0 ** -BITS[precision]
    return 2 * plain + epsilon * scale + 2 * numbers.tiny


def spread(again: Callable[[], torch.Tensor], expected: torch.Tensor, eps: float, seed: int) -> float:
    """The size of the numbers that `expected` was summed of: how far it moves, over how far they were moved: by what
    are units of another dtype, also where `again` copies numbers of that one."""
    with perturbed(UNITS, seed, eps=eps):
        return error(again(), expected) / (UNITS * eps)


def assert_within_rule(
    name: str, got: torch.Tensor, expected: torch.Tensor, baseline: torch.Tensor | None = None,
    precision: str = "ieee", again: Callable[[], torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Raise AssertionError unless `got` is as close to the float64 result `expected` as the rule asks.

    Allowed is twice the error of plain PyTorch in the same dtype, and 64 units in the last place of the largest number
    of `expected`, since sums of another order differ. A sum that cancels is smaller than what was summed: a bias
    gradient of 2e-3 made of terms of 0.1 differs between two CPUs by more than 64 of its own units, and no float64
    baseline tells, having rounded as `expected` did. So before it says no the rule computes `expected` again, with
    every operation of PyTorch off by a few units (`perturbed`), several times, and takes how far that moves it for the
    size of what was summed. (Of float64 there is no better measure at hand: torch has no long double, another order of
    summation is one draw where a single number needs several, and absolute values would take every formula twice.)

    Args:
        name: what is compared, for the message.
        got: any floating dtype.
        expected: the same shape, from the reference in float64.
        baseline: the same computed by plain PyTorch in the dtype of `got`, within `multiplies_in(precision)`; without
            it its error counts as 0.
        precision: of the products that made `got`, as for `sobolev_loss`.
        again: computes `expected` anew, in PyTorch; without it nothing is known of what was summed.
    """
    if got.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    limit, found = allowed(expected, got.dtype, baseline, precision), error(got, expected)
    if not found <= limit and again is not None:
        limit = allowed(expected, got.dtype, baseline, precision, again)
    if not found <= limit:
        raise AssertionError(f"{name}: error {found:.3g} to the float64 reference, allowed {limit:.3g}")

"""The one rule itself: what it lets pass, and what it does not."""

import pytest
import torch

from sobolev_kernels.backends import core
from sobolev_kernels.testing import assert_within_rule, perturbed, problems
from sobolev_kernels.testing.compare import beside_reference
from sobolev_kernels.testing.problems import Shape, data, directions_of
from sobolev_kernels.testing.rule import spread

ISAS = [name for name, _ in core._C.instruction_sets()]
DTYPES = (torch.float32, torch.float64)


def cancelling():
    """Terms of the size of 1 that sum to about 1e-4, in float64."""
    terms = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return terms - terms.mean() + 2e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_that_cancels_is_judged_by_what_was_summed(dtype):
    terms = cancelling()
    expected = terms.sum()
    again = lambda: (terms * 1).sum()  # noqa: E731
    off = 20 * torch.finfo(dtype).eps
    got = (expected + off).to(dtype)
    with pytest.raises(AssertionError, match="allowed"):
        assert_within_rule("sum", got, expected)
    assert_within_rule("sum", got, expected, again=again)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_term_that_is_missing_is_an_error_all_the_same(dtype):
    terms = cancelling()
    again = lambda: (terms * 1).sum()  # noqa: E731
    for wrong in (terms[1:].sum(), terms.sum() * (1 + 1e5 * torch.finfo(dtype).eps) + 2000 * torch.finfo(dtype).eps):
        with pytest.raises(AssertionError, match="allowed"):
            assert_within_rule("sum", wrong.to(dtype), terms.sum(), again=again)


def test_nan_is_an_error():
    x = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="error inf"):
        assert_within_rule("x", torch.tensor([1.0, torch.nan, 1.0]), x, again=lambda: x * 1)


def test_perturbed_results_are_off_by_the_units_asked_for_and_always_the_same():
    x = torch.randn(10_000, dtype=torch.float64)
    results = []
    for seed in (1, 1, 2):
        with perturbed(8, seed):
            results.append(x * 1)
    units = (results[0] - x) / x.abs() / torch.finfo(torch.float64).eps
    assert 7 < units.max() < 9 and -9 < units.min() < -7 and units.mean().abs() < 0.2
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_zeros_of_autograd_without_memory_are_left_as_they_are():
    """As in the second derivative of an absolute value: PyTorch crashes on the bits of one."""
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    with perturbed(8):
        (slope,) = torch.autograd.grad((x * x.abs()).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x)
        assert not torch._efficientzerotensor((5,), dtype=torch.float64).any()
    assert (curvature - 2 * x.sign()).abs().max() < 1e-13


# The case that failed on an Intel CPU: the gradient of its last bias, one number, is a sum that cancels.
CANCELS = Shape(65, 7, 15, 2, 1, 4, "two tiles, scalar")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("units", [2, 8])
def test_a_reference_of_another_machine_is_as_good(monkeypatch, isa, count, units):
    """Every operation of the reference is off by a few units in its last place, in three ways."""
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    monkeypatch.setattr(problems, "THREADS", count)
    targets = ("values", "jacobian", "hessian")
    for dtype in DTYPES:
        numbers, v = data(CANCELS, "silu").to(dtype), directions_of("given", CANCELS)
        done = beside_reference(numbers, v, targets, order=2, weights=(0.7, 1.3, 0.4))
        for seed in range(3):
            with perturbed(units, seed):
                done.expected = done.again()
            done.check()


@pytest.mark.parametrize("off", [1e-3, 0.1])
def test_what_is_wrong_is_not_excused_by_what_was_summed(off):
    """Of a step in float32: the expectation, computed again with errors, is moved by units of float32 alone."""
    shape = Shape(20, 3, 9, 2, 2, 2, "small")
    comparison = beside_reference(data(shape, "tanh"), directions_of("sphere", shape)).check()
    assert (
        spread(lambda: comparison.again()["loss"], comparison.expected["loss"], torch.finfo(torch.float32).eps, 0) < 100
    )
    for name in ("loss", "d2.weight"):
        before = comparison.got[name]
        comparison.got[name] = before * (1 + off)
        with pytest.raises(AssertionError, match=name):
            comparison.check()
        comparison.got[name] = before

"""Second derivatives by rules: each rule and whole networks beside second differences of the forward.

The oracle knows no rule, as in test_streams.py; autograd differentiates its differences.
"""

import pytest
import torch

from python_tests.test_streams import CASES, KERNEL, POINTWISE, WEIGHT, B, D, N, around, differences, numbers
from sobolev_kernels.backends.streams import propagated
from sobolev_kernels.testing.rule import BY_DIFFERENCES


X = numbers(N, D, seed=11)  # from which no step goes over a kink


def second_differences(function, x, v, step=1e-3):
    """D²f(x)[v, v] [P, ...] with a graph, by a formula of fourth order."""

    def along(d):
        a, b = (function(x + h * d) + function(x - h * d) for h in (step, 2 * step))
        return (16 * a - b - 30 * function(x)) / (12 * step * step)

    return torch.stack([along(d) for d in v])


def assert_right(function, x, v, inputs, collapsed=False, tolerance=BY_DIFFERENCES["second derivatives"]):
    """Value, tangents, second derivatives, and the gradients of a function of all."""
    x = x.clone().requires_grad_()
    seconds = second_differences(function, x, v)
    expected = torch.cat([differences(function, x, v), seconds.sum(0, keepdim=True) if collapsed else seconds])
    results = []
    for y, t in (propagated(function, x, v, order=2, collapsed=collapsed), (function(x), expected)):
        cy, ct = numbers(*y.shape, seed=8), numbers(*t.shape, seed=9)
        loss = (cy * y.sin()).sum() + (ct * t.sin()).sum()
        gradients = torch.autograd.grad(loss, [x, *inputs], materialize_grads=True)
        results.append([y, t[: len(v)], t[len(v) :], *gradients])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert got.shape == expected.shape
        # what cancels in a second difference is of the size of the value
        error = (got - expected).abs().max() / torch.maximum(expected.abs().max(), results[1][0].abs().max()).clamp(min=1e-2)
        assert error <= tolerance, f"number {i}: {error:.2g}"


def bent(case):
    """With inputs that have second derivatives themselves, which a linear rule maps."""
    size = 0.3 if case == "tan" else 1.2
    return lambda x: around(case)(size * x.sin())


@pytest.mark.parametrize("case", CASES)
def test_every_rule(case):
    assert_right(bent(case), X, numbers(2, N, D, seed=6), [WEIGHT, B, KERNEL])
    if case not in POINTWISE:
        assert_right(bent(case), X, numbers(2, N, D, seed=6), [WEIGHT, B, KERNEL], collapsed=True)

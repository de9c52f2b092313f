"""The activations and coupled losses as Triton computes them: at their joins and far out, in Triton's interpreter."""

import math

import pytest
import torch
import triton
import triton.language as tl

import sobolev_kernels as sk
from sobolev_kernels.backends.triton.formulas import activation_of, whole_jet
from sobolev_kernels.math.activations import DERIVATIVES, activation_jet, is_curved
from sobolev_kernels.modules import choose_activation
from sobolev_kernels.testing import assert_within_rule

ACTIVATIONS = [*sk.ACTIVATIONS, ("softplus", 2.0, 5.0), ("elu", -1.5)]
SOME = [0.0, 1e-30, 0.3, 1.0, 2.5, 5.0, 20.0, 88.0, 89.0, 104.0, 801.0, 1e7, 1e10, 1e18, 3e19, 3e38]


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy's, of what ends as 0 or infinity as it should
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_at_joins_and_far_out(activation):
    """Number by number: a rule for them all would take the largest for their scale."""
    formula = choose_activation("activation", activation)
    order = 2 if formula.name != "identity" and is_curved(formula) else 1
    z = torch.tensor(SOME + [-a for a in SOME])
    if formula.name == "sin":
        z = z[z.abs() < 1e4]
    rows = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "triton")):
        student = sk.MLP(1, 1, depth=0, last_activation=formula, bias=False, dtype=dtype)
        torch.nn.init.ones_(student[0].weight)
        x = z[:, None].to(dtype).requires_grad_()
        results = sk.jet(student, x, torch.ones(1, len(x), 1, dtype=dtype), order=order, backend=backend)
        slope = torch.zeros_like(x)
        if results[-1].requires_grad:
            (slope,) = torch.autograd.grad(results[-1].sum(), x, allow_unused=True)
        rows.append([*(r.detach().reshape(-1) for r in results), torch.zeros_like(z) if slope is None else slope[:, 0]])
    for k, (expected, got) in enumerate(zip(*rows, strict=True)):
        scale = expected[z.abs() < 50].abs().max().clamp(min=1.0)
        for number, e, g in zip(z.tolist(), expected, got, strict=True):
            assert_within_rule(f"derivative {k} at {number}", torch.stack([g, scale.float()]), torch.stack([e, scale]))


@triton.jit
def jet_kernel(Z, TO, activation, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    z = tl.load(Z + at)
    jet = whole_jet(activation, z)
    for k in tl.static_range(6):
        tl.store(TO + k * COUNT + at, 0.0 * at + jet[k])


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_all_derivatives(activation):
    """σ to σ⁽⁵⁾, which no kernel takes whole, number by number."""
    formula = choose_activation("activation", activation)
    z = torch.tensor(SOME + [-a for a in SOME])
    if formula.name == "sin":
        z = torch.where(z.abs() < 1e4, z, 0.0)
    results = torch.full((DERIVATIVES + 1, len(z)), torch.nan)
    jet_kernel[(1,)](z, results, activation_of(formula), len(z))
    wanted = (torch.as_tensor(d).double().expand_as(z) for d in activation_jet(formula, z.double(), DERIVATIVES))
    for k, expected in enumerate(wanted):
        scale = expected[z.abs() < 50].abs().max().clamp(min=1.0)
        for number, e, g in zip(z.tolist(), expected, results[k], strict=True):
            assert_within_rule(f"derivative {k} at {number}", torch.stack([g, scale.float()]), torch.stack([e, scale]))


@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_nan_stays_nan(activation):
    student = sk.MLP(1, 1, depth=0, last_activation=activation, bias=False)
    assert sk.jvp(student, torch.full((3, 1), math.nan), torch.ones(1, 3, 1), backend="triton")[0].isnan().all()


@pytest.mark.parametrize("loss", sk.COUPLED)
def test_coupled_losses_of_short_and_long_vectors(loss):
    direction, other = torch.randn(2, 1, 4)
    length = torch.tensor([1e-36, 1e-18, 1e-6, 1.0, 1e8, 4e9, 1e15, 1e20, 1e31])[:, None]
    student = sk.MLP(4, 4, depth=0, bias=False)
    torch.nn.init.eye_(student[0].weight)
    for a, t in ((direction, direction), (-direction, direction), (other, direction), (0 * other, direction)):
        a, t = length * a / 4, length * t / 4
        rows = []
        for dtype, backend in ((torch.float64, "reference"), (torch.float32, "triton")):
            x = a.to(dtype).requires_grad_()
            options = {"value_loss": loss, "weights": (1, 0), "reduction": "none", "backend": backend}
            values = sk.sobolev_loss(student.to(dtype), x, sk.Targets(values=t.to(dtype)), **options)
            rows.append([values.detach(), *torch.autograd.grad(values.sum(), x)[0]])
        assert_within_rule("values", rows[1][0], rows[0][0])
        # of cosine a difference of two vectors of this length
        a, t = a.double(), t.double()
        sizes = t.norm(dim=1) / (a.norm(dim=1) * t.norm(dim=1) + 1e-6)
        for size, expected, got in zip(sizes, rows[0][1:], rows[1][1:], strict=True):
            assert_within_rule("slopes", torch.cat([got, size[None].float()]), torch.cat([expected, size[None]]))


@pytest.mark.parametrize("loss", sk.COUPLED)
def test_a_sample_without_a_number_that_counts_is_zero(loss):
    x, student = torch.randn(3, 2), sk.MLP(2, 2, width=4)
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 1.0]])
    settings = {"derivatives": "exact", "weights": (0, 1), "derivative_loss": loss, "reduction": "none"}
    targets = sk.Targets(jacobian=torch.randn(3, 2, 2))
    rows = sk.sobolev_loss(student, x, targets, derivative_weight=weight, backend="triton", **settings)
    assert (rows == 0).tolist() == [False, True, False]
    assert not any(
        g.any() for g in torch.autograd.grad(rows[1], list(student.parameters()), allow_unused=True) if g is not None
    )

"""The equations of `examples/pde`: losses beside nested autograd by hand, and whether their solutions are such."""

import numpy as np
import pytest
import torch

import sobolev_kernels as sk
from examples.pde import solutions
from examples.pde.equations import BURGERS, EQUATIONS, KS
from examples.pde.learner import Learner
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

METHODS = [
    (name, m)
    for name, equation in EQUATIONS.items()
    for m in ("residual", "with derivatives")[: 1 + bool(equation.enhanced)]
]


@pytest.mark.parametrize("name, method", METHODS)
def test_a_step_by_hand_is_the_same_step(name, method):
    learner = Learner(EQUATIONS[name], method, 7, 0)
    learner.x = learner.x.double()
    learner.inside.x = learner.x
    student = learner.first().double()
    got, exact = (
        (loss.detach(), *torch.autograd.grad(loss, [*student.parameters()], materialize_grads=True))
        for loss in (learner.loss(student), learner.by_hand(student))
    )
    for i, pair in enumerate(zip(got, exact, strict=True)):
        assert_within_rule(f"tensor {i}", *pair)


def exact_poisson(x):
    u = x + torch.sin(8 * x) / 8
    return u + sum(torch.sin(i * x) / i for i in range(1, 5))


@pytest.mark.parametrize(
    "name, solution",
    [("poisson", exact_poisson), ("plate", lambda x: torch.sin(torch.pi * x).prod(1, keepdim=True))],
)
def test_closed_forms_solve_their_equations(name, solution):
    equation = EQUATIONS[name]
    x = equation.draw(9, torch.Generator().manual_seed(0)).double()
    residual = sk.Residual(equation.inside, equation.fields)(solution, x) / equation.size
    torch.testing.assert_close(residual, torch.zeros_like(residual), **CLOSE_IN_SINGLE)
    points, values, _ = equation.exact()
    torch.testing.assert_close(solution(torch.from_numpy(points)), torch.from_numpy(values))
    for border in equation.borders.values():
        x = border.at(8, torch.Generator().manual_seed(0)).double()
        found = sk.Residual(border.function, equation.fields)(solution, x)
        for part in found if isinstance(found, tuple) else (found,):
            target = torch.zeros_like(part) if border.target is None else border.target(x)
            torch.testing.assert_close(part, target, **CLOSE_IN_SINGLE)


def slope(f, h):
    """Of five values, a step apart, by central differences of fourth order; and the second derivative."""
    a, b, c, d, e = f
    return (a - 8 * b + 8 * d - e) / (12 * h), (-a + 16 * b - 30 * c + 16 * d - e) / (12 * h * h)


def test_the_quadrature_solves_burgers():
    h, x, t = 1e-3, np.array([-0.7, 0.2, 0.45, 0.9]), np.array([0.1, 0.3, 0.5, 0.8])
    u_x, u_xx = slope([solutions.cole_hopf(x + k * h, t, BURGERS) for k in range(-2, 3)], h)
    u_t, _ = slope([solutions.cole_hopf(x, t + k * h, BURGERS) for k in range(-2, 3)], h)
    np.testing.assert_allclose(u_t + solutions.cole_hopf(x, t, BURGERS) * u_x, BURGERS * u_xx, **CLOSE_IN_SINGLE)
    np.testing.assert_allclose(solutions.cole_hopf(x, t * 1e-9, BURGERS), -np.sin(np.pi * x), **CLOSE_IN_SINGLE)


def test_the_modes_solve_kuramoto_sivashinsky():
    u = solutions.sivashinsky(KS, 64, 201, 0.5)
    u_t, _ = slope([u[100 + k] for k in range(-2, 3)], 0.5 / 200)
    v, k = np.fft.rfft(u[100]), np.fft.rfftfreq(64, 1 / 64)
    u_x, others = np.fft.irfft(1j * k * v, 64), np.fft.irfft((-(k**2) + KS * k**4) * v, 64)
    np.testing.assert_allclose(u_t, -u[100] * u_x - others, **CLOSE_IN_SINGLE)
    np.testing.assert_allclose(u[:, 1:], -u[:, :0:-1], **CLOSE_IN_SINGLE)  # odd, as its borders say


def test_the_flow_converges_with_the_second_order():
    coarse, middle, fine = (solutions.cavity(100.0, n)[:, :: (n - 1) // 16, :: (n - 1) // 16] for n in (17, 33, 65))
    assert np.linalg.norm(coarse - middle) > 3 * np.linalg.norm(middle - fine)

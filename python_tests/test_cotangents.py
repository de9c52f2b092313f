"""Cotangents: drawn like directions, the same bits in a step as in a tensor, and unbiased estimates."""

import pytest
import torch
from torch.func import jacrev, vmap

import sobolev_kernels as sk
from sobolev_kernels.backends import core
from sobolev_kernels.math import directions as formulas
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, step
from sobolev_kernels.testing.problems import DTYPES, RANDOM, SMALL, Shape, cotangents_of, data


@pytest.mark.parametrize("isa", [name for name, _ in core._C.instruction_sets()])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("distribution", RANDOM)
def test_the_core_draws_what_the_formulas_say(distribution, shared, isa, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    O, N, R = 7, 75, 5
    cotangents = getattr(sk.Cotangents, distribution)(R, seed=2**61 + 12345, shared=shared).at(2**31 + 7)
    key, offset = cotangents.draw_seed().tolist()
    for dtype in DTYPES:
        got = cotangents.tensor(torch.zeros(N, O, dtype=dtype))
        make = lambda dtype: formulas.draw(distribution, key, offset, R, N, O, shared, 1.0, dtype, got.device)  # noqa: B023, E731
        assert_within_rule(distribution, got, make(torch.float64), make(dtype))
        same = getattr(sk.Directions, distribution)(R, seed=2**61 + 12345, shared=shared).at(2**31 + 7)
        assert torch.equal(got, same.tensor(torch.zeros(N, O, dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", [*RANDOM, "basis"])
def test_a_step_uses_the_very_bits_of_the_tensor(distribution, dtype):
    shape = Shape(101, 2, 12, 2, 5, 3, "more than a tile, fewer cotangents than outputs")
    numbers = data(shape).to(dtype)
    make = getattr(sk.Cotangents, distribution)
    cotangents = make(unbiased=True) if distribution == "basis" else make(3, seed=9, unbiased=True)
    drawn = step(numbers, cotangents, "cpu")
    given = step(numbers, sk.Cotangents.given(cotangents.tensor(numbers.y)), "cpu")
    for name, tensor in drawn.items():
        if distribution == "basis":  # whose products with 0 a step leaves out of the target
            assert_within_rule(name, tensor, given[name].double())
        else:
            assert torch.equal(tensor, given[name]), name


def test_a_shared_tensor_is_the_expanded_one():
    numbers = data(Shape(70, 3, 9, 1, 4, 2, "more than a tile"))
    u = torch.randn(2, 4)
    shared = step(numbers, sk.Cotangents.given(u), "cpu")
    expanded = step(numbers, sk.Cotangents.given(u[:, None, :].expand(2, 70, 4).contiguous()), "cpu")
    assert all(torch.equal(tensor, expanded[name]) for name, tensor in shared.items())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_call_takes_the_draw_that_tensor_shows(backend):
    numbers = data(SMALL)
    torch.manual_seed(4)
    u = sk.Cotangents.sphere(2).tensor(numbers.y)
    torch.manual_seed(4)
    drawn = step(numbers, sk.Cotangents.sphere(2), backend)
    assert torch.equal(drawn["loss"], step(numbers, sk.Cotangents.given(u), backend)["loss"])
    torch.manual_seed(4)
    gradients = sk.vjp(numbers.student, numbers.x, sk.Cotangents.sphere(2), backend=backend)[1]
    assert torch.equal(gradients, sk.vjp(numbers.student, numbers.x, u, backend=backend)[1])


def test_a_function_as_student_draws_the_same():
    """Its number of outputs is known only when it has run."""
    numbers = data(SMALL, "tanh").to(torch.float64)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    for cotangents in (sk.Cotangents.sphere(2, seed=3), sk.Cotangents.basis(), cotangents_of("given", SMALL)):
        exact = sk.Cotangents.given(cotangents.values.double()) if cotangents.values is not None else cotangents
        expected = sk.sobolev_loss(numbers.student, numbers.x, targets, cotangents=exact)
        got = sk.sobolev_loss(lambda x: numbers.student(x), numbers.x, targets, cotangents=exact)
        assert_within_rule("loss", got, expected)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("O", [1, 3, 10])
@pytest.mark.parametrize("distribution", RANDOM)
def test_unbiased_by_convergence(distribution, O, unbiased):
    """The derivative term times W goes to |J|² c within five standard errors, at ever more samples of one point."""
    shape = Shape(1, 4, 9, 1, O, 1, "one point")
    numbers = data(shape, "sin").to(torch.float64)
    jacobian = vmap(jacrev(numbers.student))(numbers.x) - numbers.jacobian
    squares = jacobian.square().sum().detach()
    c = 1.0 if unbiased or distribution in ("normal", "rademacher") else 1 / O
    cotangents = getattr(sk.Cotangents, distribution)(1, seed=1, unbiased=unbiased)
    for N in (1_000, 10_000, 50_000):
        targets = sk.Targets(jacobian=numbers.jacobian.expand(N, -1, -1))
        terms = sk.sobolev_loss(
            numbers.student, numbers.x.expand(N, -1), targets, cotangents=cotangents, weights=(0.0, 1.0),
            reduction="none", return_terms=True,
        ).derivative * shape.D  # fmt: skip
        standard_error = terms.std() / N**0.5 + 64 * torch.finfo(torch.float64).eps * squares
        assert (terms.mean() - c * squares).abs() < 5 * standard_error


@pytest.mark.parametrize("O", [1, 2, 5, 16])
def test_a_whole_frame_is_the_exact_loss(O):
    """Orthonormal cotangents, as many as outputs: Σ |Jᵀu_r|² = |J|², whatever the frame."""
    numbers = data(Shape(45, 3, 9, 1, O, O, "as many cotangents as outputs"), "silu").to(torch.float64)
    expected = step(numbers, None, "cpu", derivatives="exact")
    got = step(numbers, sk.Cotangents.orthonormal(O, seed=2), "cpu")
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name])
    u = sk.Cotangents.orthonormal(O, seed=2).tensor(numbers.y)
    gram = torch.einsum("pno,qno->npq", u, u)
    assert_within_rule("gram", gram, torch.eye(O, dtype=torch.float64).expand(45, O, O))


@pytest.mark.parametrize("distribution", ["sphere", "normal"])
def test_one_cotangent_gives_a_scalar_student_its_gradient(distribution):
    numbers = data(Shape(45, 6, 9, 2, 1, 1, "scalar"), "silu").to(torch.float64)
    cotangents = getattr(sk.Cotangents, distribution)(1, seed=1)
    u = cotangents.tensor(numbers.y)
    gradient = vmap(jacrev(numbers.student))(numbers.x)[:, 0]
    assert_within_rule("gradient", sk.vjp(numbers.student, numbers.x, cotangents)[1][0], u[0] * gradient)
    got = step(numbers, cotangents, "cpu")
    assert_within_rule("term", got["derivative"], (u[0] * (gradient - numbers.jacobian[:, 0])).square().mean())


def test_many_more_cotangents_than_outputs():
    compare(data(SMALL), cotangents_of("normal", SMALL, P=23))

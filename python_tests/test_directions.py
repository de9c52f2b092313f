"""Directions: the same integers everywhere, the same bits in a step as in a tensor, and unbiased estimates."""

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends import core
from sobolev_kernels.enums import SIDES
from sobolev_kernels.math import directions as formulas
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import computed_from, step
from sobolev_kernels.testing.problems import Shape, data

RANDOM = ["sphere", "normal", "rademacher", "coordinate", "orthonormal"]

# counter, key, output: the known answers published with Random123 (Salmon et al.)
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    numbers = lambda text: [int(word, 16) for word in text.split()]  # noqa: E731
    low, high = numbers(key)
    got = formulas.philox([torch.tensor(word) for word in numbers(counter)], low | high << 32)
    assert got.tolist() == numbers(expected)


@pytest.mark.parametrize("isa", [name for name, _ in core._C.instruction_sets()])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("distribution", RANDOM)
def test_the_core_draws_what_the_formulas_say(distribution, shared, isa, monkeypatch):
    """In float64 a direction tells the 23 or more bits it was made of, so equality there is that of the integers."""
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    D, N, P = 7, 75, 5
    directions = getattr(sk.Directions, distribution)(P, seed=2**61 + 12345, shared=shared).at(2**31 + 7)
    key, offset = directions.draw_seed().tolist()
    for dtype in (torch.float32, torch.float64):
        got = directions.tensor(torch.zeros(N, D, dtype=dtype))
        make = lambda dtype: formulas.draw(distribution, key, offset, P, N, D, shared, 1.0, dtype, got.device)  # noqa: B023, E731
        assert_within_rule(distribution, got, make(torch.float64), make(dtype))
        if distribution in ("rademacher", "coordinate"):
            assert torch.equal(got, make(dtype))


def test_coordinates_of_many_columns():
    """The column is the upper bits of a word, so many columns compare many of its bits."""
    directions = sk.Directions.coordinate(3, seed=5)
    got = directions.tensor(torch.zeros(50, 4096))
    assert torch.equal(got, formulas.draw("coordinate", 5, 0, 3, 50, 4096, False, 1.0, torch.float32, got.device))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", [*RANDOM, "basis"])
def test_a_step_uses_the_very_bits_of_the_tensor(distribution, dtype, side):
    """From one side: the planner may take another for directions that are drawn than for the same ones given."""
    shape = Shape(101, 5, 12, 2, 2, 3, "more than a tile, fewer directions than columns")
    numbers = data(shape).to(dtype)
    make = getattr(sk.Directions, distribution)
    directions = make(unbiased=True) if distribution == "basis" else make(3, seed=9, unbiased=True)
    with computed_from(side):
        drawn = step(numbers, directions, "cpu")
        given = step(numbers, sk.Directions.given(directions.tensor(numbers.x)), "cpu")
    for name, tensor in drawn.items():
        assert torch.equal(tensor, given[name]), name


@pytest.mark.parametrize("kind", [sk.Directions, sk.Cotangents])
def test_a_tensor_is_as_given_ones(kind):
    """Of a tensor they are made anew at each step, in fewer words, and say the same."""
    values = torch.randn(3, 5, 2)
    short, long = kind.of(values, "directions"), kind.given(values)
    assert short.bare() == long.bare()
    fields = {name: value for name, value in vars(short).items() if name != "known"}
    assert fields == {name: value for name, value in vars(long).items() if name != "known"}
    with pytest.raises(ValueError, match="at least one"):
        kind.of(values[:0], "directions")


def test_a_shared_tensor_is_the_expanded_one():
    numbers = data(Shape(70, 3, 9, 1, 2, 2, "more than a tile"))
    v = torch.randn(2, 3)
    shared = step(numbers, sk.Directions.given(v), "cpu")
    expanded = step(numbers, sk.Directions.given(v[:, None, :].expand(2, 70, 3).contiguous()), "cpu")
    assert all(torch.equal(tensor, expanded[name]) for name, tensor in shared.items())


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("D", [1, 3, 10])
@pytest.mark.parametrize("distribution", RANDOM)
def test_unbiased_by_convergence(distribution, D, unbiased):
    """The mean of (g·v)² goes to |g|² c within five standard errors, at ever more samples."""
    g = torch.linspace(-1, 2, D, dtype=torch.float64)
    directions = getattr(sk.Directions, distribution)(1, seed=1, unbiased=unbiased)
    c = 1.0 if unbiased or distribution in ("normal", "rademacher") else 1 / D
    for N in (1_000, 10_000, 100_000):
        squares = (directions.tensor(torch.zeros(N, D, dtype=torch.float64))[0] @ g).square()
        standard_error = squares.std() / N**0.5 + torch.finfo(torch.float64).eps * g.square().sum() * D
        assert (squares.mean() - c * g.square().sum()).abs() < 5 * standard_error


@pytest.mark.parametrize("D", [1, 2, 5, 16])
def test_orthonormal_directions_are(D):
    v = sk.Directions.orthonormal(D, seed=2).tensor(torch.zeros(100, D))
    gram = torch.einsum("pnd,qnd->npq", v, v)
    assert_within_rule("gram", gram, torch.eye(D, dtype=torch.float64).expand(100, D, D))


def test_directions_of_a_call_are_independent():
    v = sk.Directions.normal(2, seed=3).tensor(torch.zeros(1000, 6))
    assert v.flatten().unique().numel() > 0.99 * v.numel()
    correlation = torch.corrcoef(v.permute(0, 2, 1).reshape(12, 1000)) - torch.eye(12)
    assert correlation.abs().max() < 5 / 1000**0.5


def test_the_default_generator_gives_fresh_reproducible_directions():
    x, directions = torch.zeros(4, 3), sk.Directions.sphere(2)
    torch.manual_seed(0)
    first, second = directions.tensor(x), directions.tensor(x)
    torch.manual_seed(0)
    assert torch.equal(first, directions.tensor(x))
    assert not torch.equal(first, second)


def test_a_call_takes_the_draw_that_tensor_shows():
    numbers = data(Shape(20, 3, 8, 1, 1, 2, "small"))
    torch.manual_seed(4)
    v = sk.Directions.sphere(2).tensor(numbers.x)
    torch.manual_seed(4)
    drawn = step(numbers, sk.Directions.sphere(2), "cpu")
    assert torch.equal(drawn["loss"], step(numbers, sk.Directions.given(v), "cpu")["loss"])


def test_an_offset_moves_on():
    directions = sk.Directions.normal(1, seed=8)
    x = torch.zeros(3, 3)
    assert torch.equal(directions.tensor(x), directions.at(0).tensor(x))
    assert not torch.equal(directions.tensor(x), directions.at(1).tensor(x))

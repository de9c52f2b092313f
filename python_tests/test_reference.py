"""The reference itself against torch.func in float64; and that it can be differentiated again."""

import pytest
import torch
from problems import Shape, data

import sobolev_kernels as sk
from sobolev_kernels.backends import reference
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule

SHAPE = Shape(6, 3, 7, 2, 2, 4, "small and odd")


@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_streams_against_torch_func(activation):
    numbers = data(SHAPE, activation, last=activation).to(torch.float64)
    v = torch.randn(4, 6, 3, dtype=torch.float64)
    layers = recognise(numbers.student)
    y, tangents, _ = reference.mlp_jet(layers, list(layers.parameters), numbers.x, v)
    by_torch = [torch.func.jvp(numbers.student, (numbers.x,), (direction,)) for direction in v]
    assert_within_rule("y", y, by_torch[0][0])
    assert_within_rule("tangents", tangents, torch.stack([t for _, t in by_torch]))
    jacobian = torch.func.vmap(torch.func.jacrev(numbers.student))(numbers.x)
    assert_within_rule("projection", reference.project(jacobian, v), tangents)


def written_out(student, x, y, jacobian, v, weights):
    """The loss as the issue of the paper states it, by autograd: one backward for each output."""
    prediction = student(x)
    rows = [torch.autograd.grad(prediction[:, o].sum(), x, create_graph=True)[0] for o in range(y.shape[1])]
    difference = torch.stack(rows, 1) - jacobian  # [N, O, D]
    slopes = torch.einsum("nod,pnd->pno", difference, v)
    return weights[0] * (prediction - y).square().mean() + weights[1] * slopes.square().mean()


@pytest.mark.parametrize("distribution", ["sphere", "basis"])
def test_loss_against_double_backward(distribution):
    numbers = data(SHAPE, "silu").to(torch.float64)
    directions = sk.Directions.basis() if distribution == "basis" else sk.Directions.sphere(3, seed=1)
    x = numbers.x.requires_grad_()
    inputs = (x, *numbers.student.parameters())
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    options = {"directions": directions, "weights": (0.7, 1.9), "backend": "reference"}
    loss = sk.sobolev_loss(numbers.student, x, targets, **options)
    expected = written_out(numbers.student, x, numbers.y, numbers.jacobian, directions.tensor(x), (0.7, 1.9))
    assert_within_rule("loss", loss, expected)
    got, wanted = (torch.autograd.grad(f, inputs) for f in (loss, expected))
    for i, (g, w) in enumerate(zip(got, wanted, strict=True)):
        assert_within_rule(f"gradient {i}", g, w)


def test_the_reference_can_be_differentiated_again():
    numbers = data(Shape(3, 2, 4, 1, 1, 2, "tiny: gradgradcheck"), "tanh").to(torch.float64)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    x = numbers.x.requires_grad_()

    def loss(x, *_):
        return sk.sobolev_loss(
            numbers.student, x, targets, directions=sk.Directions.normal(2, seed=1), backend="reference"
        )

    assert torch.autograd.gradgradcheck(loss, (x, *numbers.student.parameters()))

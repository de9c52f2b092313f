"""Hessians and divergences beside torch.func in float64."""

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY


class Gated(nn.Module):
    def __init__(self, D, O):
        super().__init__()
        self.a, self.b = nn.Linear(D, O), nn.Linear(D, O)

    def forward(self, x):
        return self.a(x).sigmoid() * self.b(x).sin()


STUDENTS = {"mlp": lambda D, O: sk.MLP(D, O, width=6, depth=2), "gated": Gated}


def made(kind, D, O):
    torch.manual_seed(0)
    return STUDENTS[kind](D, O).double(), torch.rand(4, D, dtype=torch.float64, requires_grad=True)


def agree(got, expected, asking):
    """Values, and gradients of a loss of all of them."""
    found = []
    for results in (got, expected):
        loss = sum((result.sin() + result.square()).sum() for result in results)
        gradients = torch.autograd.grad(loss, asking, materialize_grads=True)
        found.append([*(result.detach() for result in results), *gradients])
    for i, pair in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"tensor {i}", *pair)


@pytest.mark.parametrize("wrt", [None, [2, 0]])
@pytest.mark.parametrize("kind", STUDENTS)
def test_the_hessian(kind, wrt):
    student, x = made(kind, 3, 2)
    columns = [0, 1, 2] if wrt is None else wrt
    first = torch.func.vmap(torch.func.jacrev(student))(x)[..., columns]
    second = torch.func.vmap(torch.func.hessian(student))(x)[..., columns, :][..., columns]
    agree(sk.hessian(student, x, wrt=wrt), (student(x), first, second), [x, *student.parameters()])


@pytest.mark.parametrize("wrt", [None, [2, 0]])
@pytest.mark.parametrize("kind", STUDENTS)
def test_the_divergence(kind, wrt):
    columns = [0, 1, 2] if wrt is None else wrt
    student, x = made(kind, 3, len(columns))
    rows = torch.func.vmap(torch.func.jacrev(student))(x)[..., columns]
    expected = rows.diagonal(dim1=1, dim2=2).sum(-1)
    agree(sk.divergence(student, x, wrt=wrt), (student(x), expected), [x, *student.parameters()])


def test_the_hessian_is_a_target():
    student, x = made("mlp", 2, 1)
    y, jacobian, hessian = (part.detach() for part in sk.hessian(student, x))
    targets = sk.Targets(values=y, jacobian=jacobian, hessian=hessian)
    loss = sk.sobolev_loss(student, x, targets, order=2, directions=sk.Directions.sphere(1))
    torch.testing.assert_close(loss.detach(), torch.zeros_like(loss), **ANOTHER_WAY)


def test_what_is_refused():
    student, x = made("mlp", 3, 2)
    with pytest.raises(ValueError, match="student: expected 3 outputs, one for each column, got 2"):
        sk.divergence(student, x)
    with pytest.raises(NotImplementedError, match="relu"):
        sk.hessian(sk.MLP(2, 1, activation="relu"), torch.rand(3, 2))
    with pytest.raises(ValueError, match="wrt"):
        sk.hessian(student, x, wrt=[5])

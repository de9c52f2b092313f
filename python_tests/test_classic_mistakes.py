"""How earlier re-implementations of Sobolev training went wrong: each test fails if the mistake is made again."""

import pytest
import torch
from test_reference import written_out

import sobolev_kernels as sk
from examples.regression.experiment import ACTIVATIONS, make_student
from examples.regression.functions import FUNCTIONS
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import gradients
from sobolev_kernels.testing.problems import Shape, data

BACKENDS = ["cpu", "reference"]
SHAPE = Shape(7, 3, 6, 2, 2, 2, "small and odd")
SCALAR = Shape(7, 3, 6, 2, 1, 2, "one output, where an axis of one can broadcast")


def slopes_of(numbers, weights, backend, reduction="mean"):
    """Every parameter's gradient of the loss."""
    numbers.student.zero_grad(set_to_none=True)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    loss = sk.sobolev_loss(
        numbers.student, numbers.x, targets, directions=sk.Directions.basis(), weights=weights, reduction=reduction,
        backend=backend,
    )  # fmt: skip
    loss.sum().backward()
    return gradients(numbers.student)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_derivative_prediction_is_not_detached(reduction, activation, backend):
    """A detached one has no gradient, and Sobolev training is then ordinary training."""
    numbers = data(SHAPE, activation).to(torch.float64)
    ordinary = slopes_of(numbers, (1.0, 0.0), backend, reduction)
    derivative = slopes_of(numbers, (0.0, 1.0), backend, reduction)
    both = slopes_of(numbers, (1.0, 1.0), backend, reduction)
    weights = [name for name in both if name.endswith("weight")]
    assert weights and all(derivative[name].any() for name in weights)
    for name, gradient in both.items():
        assert_within_rule(name, gradient, ordinary[name] + derivative[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_that_of_the_loss_written_out(backend):
    numbers = data(SHAPE).to(torch.float64)
    got = slopes_of(numbers, (0.0, 1.0), backend)
    x = numbers.x.requires_grad_()
    v = sk.Directions.basis().tensor(x)
    loss = written_out(numbers.student, x, numbers.y, numbers.jacobian, v, (0.0, 1.0))
    expected = torch.autograd.grad(loss, numbers.student.parameters(), materialize_grads=True)
    for (name, gradient), e in zip(got.items(), expected, strict=True):
        assert_within_rule(name, gradient, e)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_output_does_not_broadcast_to_samples_by_samples(backend):
    """[N, 1] - [N] is [N, N]; an axis of one output may be left out and changes nothing."""
    numbers = data(SCALAR).to(torch.float64)
    y, jacobian, directions = numbers.y, numbers.jacobian, sk.Directions.sphere(2, seed=1)
    v = directions.tensor(numbers.x)
    expected = written_out(numbers.student, numbers.x.requires_grad_(), y, jacobian, v, (1.0, 1.0))
    tangents = torch.einsum("nod,pnd->pno", jacobian, v)
    every = [
        sk.Targets(values=y, jacobian=jacobian),
        sk.Targets(values=y[:, 0], jacobian=jacobian),
        sk.Targets(values=y, jacobian=jacobian[:, 0]),
        sk.Targets(values=y[:, 0], jacobian=jacobian[:, 0]),
        sk.Targets(values=y[:, 0], tangents=tangents),
    ]
    for targets in every:
        loss = sk.sobolev_loss(numbers.student, numbers.x, targets, directions=directions, backend=backend)
        assert_within_rule("loss", loss, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_teacher_may_leave_out_its_one_output(backend):
    numbers, directions = data(SCALAR).to(torch.float64), sk.Directions.sphere(2, seed=1)
    losses = []
    for teacher in (lambda x: x.sin().sum(-1), lambda x: x.sin().sum(-1, keepdim=True)):
        targets = sk.Targets(teacher=teacher)
        losses.append(sk.sobolev_loss(numbers.student, numbers.x, targets, directions=directions, backend=backend))
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    "values, jacobian",
    [
        ((1, 7), (7, 1, 3)), ((7, 7), (7, 1, 3)), ((1,), (7, 1, 3)),
        ((7, 1), (1, 1, 3)), ((7, 1), (7, 7, 3)), ((7, 1), (7, 1, 1)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("student", ["recognised", "not recognised"])
def test_targets_that_would_broadcast_are_refused(values, jacobian, student):
    numbers = data(SCALAR)
    module = numbers.student if student == "recognised" else lambda x: numbers.student(x)
    targets = sk.Targets(values=torch.zeros(values), jacobian=torch.zeros(jacobian))
    with pytest.raises(ValueError, match=r"expected .*, got "):
        sk.sobolev_loss(module, numbers.x, targets)


def test_each_axis_has_its_own_box():
    """One box made of either axis would leave out a part of the other's, or go beyond it."""
    for name, lower, upper in (("McCormick", (-1.5, -3), (4, 4)), ("Bukin N.6", (-15, -3), (-5, 3))):
        x = FUNCTIONS[name].sample(10_000, torch.Generator().manual_seed(0))
        low, high = torch.tensor((lower, upper), dtype=x.dtype)
        assert (x >= low).all() and (x <= high).all()
        # and they fill it: some in each of its four corners, a tenth of its sides wide
        unit = (x - low) / (high - low)
        corners = {(left, bottom) for left in (0, 1) for bottom in (0, 1)}
        assert {tuple(c) for c in unit[((unit - 0.5).abs() > 0.4).all(1)].round().int().tolist()} == corners


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_gradients_are_matched_and_not_those_of_the_parameters(backend):
    """Of m(x) = <w, x> the input gradient is w and the parameter gradient is x, of the same shape if N is 1."""
    student = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False, dtype=torch.float64))
    x = torch.tensor([[0.5, -2.0, 3.0]], dtype=torch.float64)
    w = student[0].weight.detach()

    def terms(jacobian):
        targets = sk.Targets(values=student(x).detach(), jacobian=jacobian)
        return sk.sobolev_loss(
            student, x, targets, directions=sk.Directions.basis(), return_terms=True, backend=backend
        )

    assert terms(w).derivative == 0
    assert_within_rule("derivative", terms(x).derivative, (w - x).square().mean())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("student", ["recognised", "not recognised"])
def test_a_derivative_target_is_not_forgotten(student, backend):
    numbers = data(SHAPE)
    module, backend = (numbers.student, backend) if student == "recognised" else (lambda x: numbers.student(x), None)
    message = "targets: expected a derivative target, since its weight is not zero"
    with pytest.raises(ValueError, match=message):
        sk.sobolev_loss(module, numbers.x, sk.Targets(values=numbers.y), backend=backend)
    with pytest.raises(ValueError, match=message):
        sk.SobolevLoss(backend=backend)(module, numbers.x, sk.Targets(values=numbers.y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_derivative_target_counts(backend):
    """Another one gives another loss and other gradients."""
    numbers = data(SHAPE)
    first = slopes_of(numbers, (1.0, 1.0), backend)
    numbers.jacobian = numbers.jacobian + 1
    second = slopes_of(numbers, (1.0, 1.0), backend)
    assert all(not torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_students_of_the_demo_end_in_a_linear_layer(activation):
    """After a ReLU no value would be negative, and where it is zero the student would have no gradient at all."""
    torch.manual_seed(0)
    student = make_student(activation)
    assert [f.name for f in recognise(student).activations] == [activation, activation, "identity"]
    y = student(4 * torch.randn(500, 2))
    assert y.min() < 0 < y.max()


@pytest.mark.parametrize("depth", range(4))
def test_an_mlp_ends_in_a_linear_layer_unless_asked(depth):
    assert recognise(sk.MLP(3, 2, width=4, depth=depth, activation="relu")).activations[-1].name == "identity"

"""The fused CPU step against the float64 reference, by the one rule, over the whole of every table."""

import pytest
import torch
from problems import SHAPES, Shape, data, directions_of, gradients, step

import sobolev_kernels as sk
from sobolev_kernels.math.directions import DISTRIBUTIONS
from sobolev_kernels.testing import assert_within_rule

LOSS_NAMES = list(sk.LOSSES)
DTYPES = (torch.float32, torch.float64)


def compare(numbers, directions, **settings):
    """Every output and gradient of the fused step, in the dtype of `numbers`, with the very directions it draws."""
    exact = numbers.to(torch.float64)
    v = sk.Directions.given(directions.tensor(numbers.x).double())
    expected = step(exact, v, "reference", **settings)
    baseline = None
    if numbers.x.dtype != torch.float64:
        baseline = step(numbers, sk.Directions.given(directions.tensor(numbers.x)), "reference", **settings)
    got = step(numbers, directions, "cpu", **settings)
    for name, tensor in got.items():
        assert tensor.dtype == numbers.x.dtype
        assert_within_rule(name, tensor, expected[name], None if baseline is None else baseline[name])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_row_of_every_table(activation, shape):
    for bias in (True, False):
        base = data(shape, activation, bias)
        for dtype in DTYPES:
            numbers = base.to(dtype)
            for i, value_loss in enumerate(LOSS_NAMES):
                derivative_loss = LOSS_NAMES[(i + 1) % len(LOSS_NAMES)]
                for distribution in [*DISTRIBUTIONS, "given"]:
                    directions = directions_of(distribution, shape)
                    if distribution == "given":
                        directions = sk.Directions.given(directions.values.to(dtype))
                    compare(numbers, directions, value_loss=value_loss, derivative_loss=derivative_loss)


SMALL = Shape(45, 3, 19, 2, 2, 3, "odd, more than a panel")


@pytest.mark.parametrize(
    "activation",
    [("leaky_relu", 0.2), ("elu", 0.7), ("softplus", 3.0, 5.0), ("sin", 7.5)],
    ids=lambda a: a[0],
)
def test_parameters_of_activations(activation):
    compare(data(SMALL, activation), directions_of("sphere", SMALL))


@pytest.mark.parametrize("last", sk.ACTIVATIONS)
def test_activation_after_the_last_layer(last):
    compare(data(SMALL, "tanh", last=last), directions_of("normal", SMALL))


@pytest.mark.parametrize("delta", [0.1, 2.0])
def test_huber_delta(delta):
    compare(data(SMALL), directions_of("sphere", SMALL), value_loss=("huber", delta), derivative_loss=("huber", delta))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 2.5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_reductions(weights, reduction):
    compare(data(SMALL), directions_of("sphere", SMALL), weights=weights, reduction=reduction)


@pytest.mark.parametrize("P", range(1, 10))
def test_number_of_directions(P):
    shape = Shape(45, 3, 19, 2, 2, P, "P from 1 to 9")
    compare(data(shape), directions_of("sphere", shape))


@pytest.mark.parametrize("distribution", ["sphere", "normal", "rademacher", "coordinate", "orthonormal"])
def test_shared_and_unbiased_directions(distribution):
    make = getattr(sk.Directions, distribution)
    compare(data(SMALL), make(2, seed=3, shared=True))
    compare(data(SMALL), make(2, seed=3, unbiased=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_jvp_and_its_gradients(dtype):
    """A loss of the user's own on top of jvp, with cotangents for both outputs or for one of them."""
    numbers = data(SMALL, "silu").to(dtype)
    v = directions_of("given", SMALL).values
    losses = [
        lambda y, t: (y**2).sum() + (t**3).sum() + (y * t[0]).sum(),
        lambda y, t: (t.sin()).sum(),
        lambda y, t: (y.cos()).sum(),
    ]
    for loss in losses:
        results = []
        for d, backend in [(numbers, "cpu"), (numbers.to(torch.float64), "reference"), (numbers, "reference")]:
            x = d.x.detach().requires_grad_()
            d.student.zero_grad(set_to_none=True)
            y, t = sk.jvp(d.student, x, v.to(d.x.dtype), backend=backend)
            loss(y, t).backward()
            results.append([y.detach(), t.detach(), x.grad, *gradients(d.student).values()])
        for i, (got, expected, baseline) in enumerate(zip(*results, strict=True)):
            assert_within_rule(f"output {i}", got, expected, baseline)


def test_gradcheck_of_loss_and_jvp():
    shape = Shape(5, 3, 6, 2, 2, 2, "small: gradcheck goes through every number")
    numbers = data(shape).to(torch.float64)
    parameters = list(numbers.student.parameters())
    directions = sk.Directions.normal(2, seed=1)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    x = numbers.x.requires_grad_()

    def loss(x, *_):
        return sk.sobolev_loss(numbers.student, x, targets, directions=directions, backend="cpu")

    def per_sample(x, *_):
        return sk.sobolev_loss(numbers.student, x, targets, directions=directions, reduction="none", backend="cpu")

    def jvp(x, *_):
        return sk.jvp(numbers.student, x, directions, backend="cpu")

    for function in (loss, per_sample, jvp):
        assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("kind", ["jacobian", "tangents", "mlp teacher", "function teacher"])
def test_targets_of_every_kind_give_the_same_loss(kind):
    teacher = sk.MLP(3, 2, width=11, activation="sin")
    numbers = data(SMALL)
    directions = directions_of("sphere", SMALL)
    with torch.no_grad():
        numbers.y = teacher(numbers.x)
    numbers.jacobian = torch.func.vmap(torch.func.jacrev(teacher))(numbers.x).detach()
    v = directions.tensor(numbers.x)
    targets = {
        "jacobian": sk.Targets(values=numbers.y, jacobian=numbers.jacobian),
        "tangents": sk.Targets(
            values=numbers.y, tangents=torch.einsum("nod,pnd->pno", numbers.jacobian, v), directions=directions
        ),
        "mlp teacher": sk.Targets(teacher=teacher),
        "function teacher": sk.Targets(teacher=lambda x: teacher(x)),
    }[kind]
    exact = numbers.to(torch.float64)
    expected = step(exact, sk.Directions.given(v.double()), "reference")
    baseline = step(numbers, sk.Directions.given(v), "reference")
    got = step(numbers, None if targets.directions is not None else directions, "cpu", targets=targets)
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name], baseline[name])
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    numbers = data(SMALL).to(dtype)
    directions = sk.Directions.sphere(2, seed=5)
    got = step(numbers, directions, "cpu")
    single = step(numbers.to(torch.float32), directions, "cpu")
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, single[name].to(dtype)), name

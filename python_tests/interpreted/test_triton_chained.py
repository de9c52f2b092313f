"""Steps and derivatives along directions by the kernels of general streams, interpreted: all layers in one launch each
way, and collapsed Laplacians layer by layer; beside the float64 reference, values and gradients."""

import copy

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends.triton import chained, jets, layerwise
from sobolev_kernels.math.directions import DISTRIBUTIONS
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, forget, gradients
from sobolev_kernels.testing.problems import Shape, asking, data, directions_of

SMALL = Shape(37, 3, 9, 2, 2, 2, "a tile and a part of one, odd sizes")
WIDTHS = (3, 17, 5, 2)  # which the one launch refuses
generator = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731


@pytest.fixture(autouse=True)
def written(monkeypatch):
    """What was written by this way."""
    results, plain = [], chained.write
    monkeypatch.setattr(chained, "write", lambda script, problem, *rest: results.append(problem.result) or plain(
        script, problem, *rest))  # fmt: skip
    forget()
    yield results
    forget()


@pytest.fixture(params=["one launch", "own multiply", "torch's multiply"])
def multiply(request, monkeypatch):
    jets.kept_by.cache_clear()
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * (request.param == "one launch"))
    monkeypatch.setattr(jets, "is_fused", lambda asked: request.param != "torch's multiply")
    for module in (chained, layerwise):
        monkeypatch.setattr(module, "fuses", lambda problem, *_: request.param != "torch's multiply")
    yield request.param
    jets.kept_by.cache_clear()


def student_of(widths, *activations):
    torch.manual_seed(0)
    layers = [m for a, b, of in zip(widths, widths[1:], activations, strict=False) for m in (torch.nn.Linear(a, b), of)]
    return torch.nn.Sequential(*layers)


def agree(call, student, x, vectors=None):
    """Outputs of a call and gradients of x, the parameters and vectors, forced onto Triton."""
    found = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference"), (torch.float32, "reference")):
        at, of = x.detach().to(dtype).requires_grad_(), copy.deepcopy(student).to(dtype)
        v = None if vectors is None else vectors.detach().to(dtype).requires_grad_()
        outputs = call(of, at, v, backend)
        sum((k + 1) * output.sin().sum() for k, output in enumerate(outputs)).backward()
        along = [] if v is None else [v.grad]
        found.append([*(o.detach() for o in outputs), at.grad, *along, *gradients(of).values()])
    for i, (got, expected, baseline) in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"tensor {i}", got, expected, baseline)


LAPLACIANS = {
    "exact": (None, lambda s, x, v, b: sk.laplacian(s, x, backend=b)),
    "some columns": (None, lambda s, x, v, b: sk.laplacian(s, x, wrt=[2, 0], backend=b)),
    "along given ones": ((2, 37, 3), lambda s, x, v, b: sk.laplacian(s, x, v, backend=b)),
    "along shared ones": ((4, 3), lambda s, x, v, b: sk.laplacian(s, x, v, backend=b)),
    "an estimate": (None, lambda s, x, v, b: sk.laplacian(s, x, sk.Directions.rademacher(2, seed=3), backend=b)),
    "values alone": (None, lambda s, x, v, b: sk.laplacian(s, x, backend=b)[:1]),
    "no values": (None, lambda s, x, v, b: sk.laplacian(s, x, backend=b)[1:]),
}


@pytest.mark.parametrize("case", LAPLACIANS)
def test_laplacians(multiply, case, written):
    shape, call = LAPLACIANS[case]
    student = student_of(WIDTHS, torch.nn.Tanh(), torch.nn.GELU(), torch.nn.Identity())
    vectors = None if shape is None else torch.randn(shape, generator=generator(1))
    agree(call, student, torch.randn(37, 3, generator=generator(2)), vectors)
    assert written == ["derivatives", "derivatives_gradients"]


DERIVATIVES = {
    "jvp": lambda s, x, v, b: sk.jvp(s, x, v, backend=b),
    "jvp along shared ones": lambda s, x, v, b: sk.jvp(s, x, sk.Directions.given(v[:, 0]), backend=b),
    "jvp along columns": lambda s, x, v, b: sk.jvp(s, x, v[..., :2], wrt=[2, 1], backend=b),
    "jet": lambda s, x, v, b: sk.jet(s, x, v, backend=b),
    "second alone": lambda s, x, v, b: sk.jet(s, x, v, backend=b)[2:],
}


@pytest.mark.parametrize("activations", [("tanh", "identity"), ("sin", "softplus")])
@pytest.mark.parametrize("case", DERIVATIVES)
def test_derivatives(case, activations, written):
    numbers = data(SMALL, activations[0], last=activations[1])
    agree(DERIVATIVES[case], numbers.student, numbers.x, torch.randn(2, 37, 3, generator=generator(1)))
    assert written == ["derivatives", "derivatives_gradients"]


LOSSES = {
    "order 2": {"order": 2, "weights": (1.0, 0.5, 0.2)},
    "order 2 of each sample": {"order": 2, "reduction": "none", "sample_weight": torch.linspace(0, 2, 37)},
    "cosine": {"derivative_loss": "cosine"},
    "relative_mse of outputs that count differently": {
        "derivative_loss": "relative_mse", "output_weight": torch.tensor([0.3, 2.0])},
    "a sum": {"order": 2, "reduction": "sum", "derivative_loss": "huber", "wrt": [2, 0]},
    "no derivative": {"order": 2, "weights": (1.0, 0.0, 0.5)},
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_losses(case, written):
    settings, shape = LOSSES[case], SMALL
    hessian = torch.randn(37, 2, 3, 3, generator=generator(2))
    if "wrt" in settings:
        make = lambda n: sk.Targets(  # noqa: E731
            values=n.y, jacobian=n.jacobian[..., :2], hessian=hessian[..., :2, :2].to(n.x.dtype))  # fmt: skip
    elif "order" in settings:
        make = lambda n: sk.Targets(values=n.y, jacobian=n.jacobian, hessian=hessian.to(n.x.dtype))  # noqa: E731
    else:
        make = ("values", "jacobian")
    compare(data(shape, "silu"), directions_of("normal", shape), make, "triton", **settings)
    assert "loss" in written or "per_sample_gradients" in written


def test_every_distribution_and_gradients_of_given_ones(written):
    shape = Shape(19, 4, 8, 1, 3, 2, "one hidden layer")
    numbers = data(shape, "sin")
    for distribution in DISTRIBUTIONS:
        compare(numbers, directions_of(distribution, shape), backend="triton", derivative_loss="cosine")
    compare(numbers, asking(directions_of("given", shape)), ("values", "tangents"), "triton", derivative_loss="cosine")
    assert set(written) == {"loss"}


def test_what_goes_elsewhere(written):
    """Linear students, whose second derivatives are no streams, and more directions than a program has numbers for."""
    x, v = torch.randn(5, 3, generator=generator(1)), torch.randn(25, 5, 3, generator=generator(2))
    linear = student_of((3, 4, 2), torch.nn.Identity(), torch.nn.Identity())
    agree(lambda s, x, v, b: sk.laplacian(s, x, backend=b), linear, x)
    for widths in ((3, 4, 2), (3, 40, 2)):
        curved = student_of(widths, torch.nn.Tanh(), torch.nn.Tanh())
        for order in (1, 2):
            agree(lambda s, x, v, b, order=order: sk.jet(s, x, v, order=order, backend=b), curved, x, v)
        agree(lambda s, x, v, b: sk.laplacian(s, x, v, backend=b), curved, x, v)
    assert not written
    assert sk.laplacian(curved.float(), x[:0], backend="triton")[1].shape == (0, 2)


def test_laplacians_are_differentiated_twice(written):
    student, x = sk.MLP(2, 1, width=9), torch.rand(7, 2, requires_grad=True)
    slopes = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        at = x.detach().to(dtype).requires_grad_()
        _, total = sk.laplacian(student.to(dtype), at, backend=backend)
        (slope,) = torch.autograd.grad(total.sum(), at, create_graph=True)
        slopes.append(torch.autograd.grad(slope.square().sum(), at)[0])
    assert_within_rule("twice", *slopes)
    assert written

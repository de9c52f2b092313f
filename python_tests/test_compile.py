"""`torch.compile(fullgraph=True)` at more than one batch size, with sizes that are numbers or variables."""

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule

STUDENT, TEACHER = sk.MLP(3, 2, width=8).double(), sk.MLP(3, 2, width=4).double()
NORMED = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2), nn.Tanh()).double()
FIXED, UP = sk.Directions.sphere(2, seed=1), sk.Cotangents.sphere(2, seed=1)
# numbers that dynamo takes for variables where sizes are
CURVES = [("sin", 3.0), ("softplus", 2.0, 5.0), ("elu", 0.5), ("leaky_relu", 0.2)]
OTHERS = [sk.MLP(3, 2, width=4, activation=curve).double() for curve in CURVES]
WEIGHTED = {"weights": (0.5, 1.5), "value_loss": ("huber", 0.3)}
FUNCTION = lambda x: torch.stack((x.prod(1), x.sum(1)), 1)  # noqa: E731

# (the second derivative of torch's prod is off by 1e-6 near 0)
WAVES = lambda x: torch.stack((x[:, 0] * x[:, 1].sin(), x.exp().sum(1)), 1)  # noqa: E731


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: torch.compile wants the real allocator, and dynamo a fresh cache."""
    torch._dynamo.reset()


def dense(x, student=STUDENT, **settings):
    t = x.detach()
    targets = sk.Targets(values=t[:, :2].sin(), jacobian=torch.stack([t, t], 1))
    return sk.sobolev_loss(student, x, targets, **settings)


def columns(x, **settings):
    t = x.detach()[:, :2]
    return sk.sobolev_loss(STUDENT, x, sk.Targets(values=t, jacobian=torch.stack([t, t], 1)), **settings)


def teach(x, teacher=FUNCTION, **settings):
    return sk.sobolev_loss(STUDENT, x, sk.Targets(teacher=teacher), **settings)


def vectors(x):
    return torch.stack([x, 2 * x, x + 1]).detach()


CALLS = {
    "check_finite": lambda x: dense(x, directions=FIXED, check_finite=True),
    "drawn": lambda x: dense(x, directions=FIXED),
    "basis": lambda x: dense(x, directions=sk.Directions.basis()),
    "exact": lambda x: dense(x, derivatives="exact"),
    "cotangents": lambda x: dense(x, cotangents=UP),
    "given": lambda x: dense(x, directions=sk.Directions.given(vectors(x))),
    "none": lambda x: dense(x, directions=FIXED, reduction="none"),
    "units": lambda x: dense(x, derivatives="exact", weights="differential-ml"),
    "columns": lambda x: columns(x, wrt=[2, 0], derivatives="exact"),
    "laplacian": lambda x: sk.laplacian(STUDENT, x)[1],
    "jvp": lambda x: sk.jvp(STUDENT, x, vectors(x))[1],
    "vjp": lambda x: sk.vjp(STUDENT, x, sk.Cotangents.basis())[1],
    "jet": lambda x: sk.jet(STUDENT, x, sk.Directions.basis())[2],
    "hvp": lambda x: sk.hvp(STUDENT, x, vectors(x), vectors(x).flip(0))[1],
    "reference": lambda x: dense(x, directions=FIXED, backend="reference"),
    "teacher": lambda x: teach(x, TEACHER, directions=FIXED),
    "numbers of activations": lambda x: sum(dense(x, net, directions=FIXED) for net in (STUDENT, *OTHERS)),
    "numbers of a loss": lambda x: dense(x, directions=FIXED, value_loss="relative_mse", derivative_loss="cosine"),
    "numbers in a closure": lambda x: dense(x, directions=FIXED, **WEIGHTED),
    "function": lambda x: teach(x, directions=FIXED),
    "function, cotangents": lambda x: teach(x, cotangents=UP),
    "function, exact": lambda x: teach(x, derivatives="exact"),
    "function, module": lambda x: teach(x, NORMED, directions=FIXED),
    "function, in a closure": lambda x: teach(x, lambda t: NORMED(t) + t[:, :2], derivatives="exact"),
    "function, order 2": lambda x: teach(x, WAVES, directions=FIXED, order=2),
    "function, order 2, module": lambda x: teach(x, NORMED, directions=FIXED, order=2),
}  # fmt: skip
# What failed, as variables from the first and from the second size on, the first being a number; one, numbers alone. Of
# all else the way that has the most variables.
ALWAYS = ("check_finite", "basis", "function", "function, exact", "function, order 2")
SIZES = dict.fromkeys(ALWAYS, (True, None)) | {"laplacian": (True, False, None)}
ROWS = [(name, dynamic) for name in CALLS for dynamic in SIZES.get(name, (True,))]


@pytest.mark.parametrize("name, dynamic", ROWS, ids=str)
def test_two_batch_sizes(name, dynamic):
    call = CALLS[name]
    compiler = "aot_eager" if dynamic is None else "eager"
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=compiler)
    for N in (7, 5):
        x = torch.linspace(-1, 1, 3 * N, dtype=torch.float64).reshape(N, 3).requires_grad_()
        results = []
        for function in (call, compiled):
            value = function(x)
            results.append([value, *torch.autograd.grad(value.sum(), (x, *STUDENT.parameters()))])
        for i, (eager, traced) in enumerate(zip(*results, strict=True)):
            assert_within_rule(f"{name} {i}", traced, eager)


def test_weights_that_change_from_call_to_call():
    """The second makes them variables to dynamo."""
    call = lambda x, w, delta: dense(x, directions=FIXED, weights=(1.0, w), value_loss=("huber", delta))  # noqa: E731
    compiled, x = torch.compile(call, fullgraph=True, backend="eager"), torch.rand(5, 3, dtype=torch.float64)
    for numbers in ((0.5, 1.0), (0.25, 0.5), (0.75, 0.125)):
        assert_within_rule(str(numbers), compiled(x, *numbers), call(x, *numbers))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_check_finite_finds_what_it_is_for(compiler):
    call = lambda x, y: sk.sobolev_loss(  # noqa: E731
        STUDENT, x, sk.Targets(values=y, jacobian=torch.stack([x, x], 1)), directions=FIXED, check_finite=True
    )
    compiled, x = torch.compile(call, fullgraph=True, backend=compiler), torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(compiled(x, x[:, :2]), call(x, x[:, :2]))
    y = x[:, :2].clone()
    y[1, 1] = torch.nan
    with pytest.raises(ValueError, match="values: expected finite numbers, got 1 that are not, in a tensor float64"):
        compiled(x, y)

"""The Triton kernels in Triton's interpreter, against the float64 reference by the one rule, values and gradients.

Run by python_tests/test_triton.py in a process of its own, because Triton reads TRITON_INTERPRET when it is imported.
Tensor cores, memory and barriers are not seen here: for those see ptx/.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sobolev_kernels as sk
from sobolev_kernels.backends import triton as backend
from sobolev_kernels.backends.triton import launches, layers, layerwise, script
from sobolev_kernels.math import directions as math_directions
from sobolev_kernels.math.directions import DISTRIBUTIONS
from sobolev_kernels.problem import Problem
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare as compare_with_reference
from sobolev_kernels.testing.compare import computed_from, gradients, layer_by_layer, step
from sobolev_kernels.testing.problems import SHAPES, Shape, data, directions_of

PATHS = ("on chip", "on chip, by gradients", "in cache", "in cache, by gradients", "layer-wise")
LOSS_NAMES = list(sk.LOSSES)
SMALL = Shape(37, 3, 9, 2, 2, 2, "a tile and a part of one, odd sizes")


@pytest.fixture
def path(request, monkeypatch):
    """The path of a call; what one launch refuses (a student without hidden layer, frames) goes layer by layer."""
    if request.param == "layer-wise":
        layer_by_layer(monkeypatch)
    if request.param.startswith("in cache"):
        monkeypatch.setattr(launches, "ON_CHIP", ())
    with computed_from("gradients" if request.param.endswith("by gradients") else "tangents"):
        yield request.param


def each_path(function):
    return pytest.mark.parametrize("path", PATHS, indirect=True, ids=str)(function)


def compare(numbers, directions=None, targets=("values", "jacobian"), **settings):
    compare_with_reference(numbers, directions, targets, "triton", **settings)


@each_path
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_every_activation_and_loss(path, activation):
    """On each path all activations and all losses, in turn."""
    i = PATHS.index(path) + list(sk.ACTIVATIONS).index(activation)
    value, derivative = (LOSS_NAMES[k % len(LOSS_NAMES)] for k in (i, i + 1))
    numbers = data(SMALL, activation, last=activation)
    compare(numbers, directions_of("sphere", SMALL), value_loss=value, derivative_loss=derivative)


@each_path
@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "given"])
def test_every_distribution(path, distribution):
    compare(data(SMALL, "silu", bias=False), directions_of(distribution, SMALL))


@each_path
@pytest.mark.parametrize("shape", SHAPES[:9], ids=str)
def test_shapes(path, shape):
    compare(data(shape, "tanh"), directions_of("normal", shape), weights=(0.7, 1.6))


@each_path
@pytest.mark.parametrize("P", [1, 9])
@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name not in ("basis", "orthonormal")])
def test_every_distribution_of_cotangents(path, distribution, P):
    shape = Shape(19, 4, 8, 2, 3, P, "cotangents in three dimensions")
    compare(data(shape, "sin"), getattr(sk.Cotangents, distribution)(P, seed=5))


@each_path
@pytest.mark.parametrize("P", [1, 2, 5, 9])
def test_number_of_directions(path, P):
    shape = Shape(19, 4, 8, 2, 2, P, "few and many")
    compare(data(shape, "sin"), directions_of("sphere", shape))


@each_path
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions_and_weights(path, reduction):
    numbers = data(SMALL, "softplus")
    weights = {"sample_weight": torch.rand(SMALL.N), "output_weight": torch.rand(SMALL.O)}
    compare(numbers, directions_of("given", SMALL), reduction=reduction, weights=(0.3, 2.0), **weights)


@each_path
@pytest.mark.parametrize("activation", ["tanh", "silu", "sin"])
@pytest.mark.parametrize("mode", ["cotangents", "exact"])
def test_gradients(path, mode, activation):
    numbers = data(SMALL, activation)
    if mode == "cotangents":
        compare(numbers, sk.Cotangents.sphere(3, seed=4), derivative_loss="huber")
    else:
        compare(numbers, derivatives="exact", reduction="none")


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus", "sin", "gelu", "elu"])
@pytest.mark.parametrize("mode", ["order 2", "cosine", "relative_mse"])
def test_modes_layer_by_layer(mode, activation, monkeypatch):
    layer_by_layer(monkeypatch)
    numbers = data(SMALL, activation)
    generator = torch.Generator().manual_seed(2)
    hessian = torch.randn(SMALL.N, SMALL.O, SMALL.D, SMALL.D, generator=generator)
    if mode == "order 2":
        make = lambda n: sk.Targets(values=n.y, jacobian=n.jacobian, hessian=hessian.to(n.x.dtype))  # noqa: E731
        compare(numbers, directions_of("normal", SMALL), make, order=2, weights=(1.0, 0.5, 0.2))
    else:
        compare(numbers, directions_of("normal", SMALL), derivative_loss=mode)


@pytest.mark.parametrize("multiply", ["own", "torch's"])
def test_more_inputs_than_a_program_takes(multiply, monkeypatch):
    """Streams and vectors are PyTorch's then, and so are targets along long vectors."""
    layer_by_layer(monkeypatch)
    monkeypatch.setattr(layerwise, "fuses", lambda problem: multiply == "own")
    for module, name in ((layers, "WIDEST_DRAWN"), (layerwise, "WIDEST_DRAWN"), (layerwise, "LONGEST_ALONG")):
        monkeypatch.setattr(module, name, 1)
    make = lambda n: sk.Targets(values=n.y, jacobian=n.jacobian, hessian=n.hessian)  # noqa: E731
    for directions in (directions_of("sphere", SMALL), directions_of("orthonormal", SMALL)):
        compare(data(SMALL, "tanh"), directions, make, order=2)
    compare(data(SMALL, "tanh"), sk.Cotangents.sphere(3, seed=4))


@pytest.mark.parametrize("path", ["in cache", "layer-wise"], indirect=True)
def test_more_layers_than_a_launch_packs(path):
    shape = Shape(5, 3, 9, 17, 2, 1, "18 linear layers")
    compare(data(shape, "sin"), directions_of("sphere", shape))


@pytest.mark.parametrize("function", ["jvp", "vjp", "jet", "laplacian"])
def test_derivatives_as_outputs(function, monkeypatch):
    layer_by_layer(monkeypatch)
    numbers = data(SMALL, "tanh")
    u = torch.randn(2, SMALL.N, SMALL.O, generator=torch.Generator().manual_seed(3))
    vector = {"vjp": u, "laplacian": None}.get(function, directions_of("given", SMALL).values)
    results = []
    for d, name in ((numbers, "triton"), (numbers.to(torch.float64), "reference"), (numbers, "reference")):
        x = d.x.detach().requires_grad_()
        d.student.zero_grad(set_to_none=True)
        outputs = getattr(sk, function)(d.student, x, None if vector is None else vector.to(x.dtype), backend=name)
        sum((output.sin()).sum() for output in outputs).backward()
        results.append([*(o.detach() for o in outputs), x.grad, *gradients(d.student).values()])
    for i, (got, expected, baseline) in enumerate(zip(*results, strict=True)):
        assert_within_rule(f"{function}, output {i}", got, expected, baseline)


def test_columns_and_order_of_inputs():
    numbers = data(SMALL, "tanh")
    v = sk.Directions.given(torch.randn(2, SMALL.N, 2, generator=torch.Generator().manual_seed(3)))
    compare(numbers, v, wrt=[2, 0])


def test_the_same_bits_on_every_run():
    numbers = data(SMALL, "tanh")
    first, second = (step(numbers, directions_of("sphere", SMALL), "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@each_path
@pytest.mark.parametrize("projections", [sk.Directions.sphere(2, seed=2**40 + 3), sk.Cotangents.rademacher(2, seed=5)])
def test_a_seed_in_the_memory_of_the_device(path, projections, monkeypatch):
    """As while a CUDA graph is captured: the same bits as of a seed that the host knows."""
    numbers = data(SMALL, "tanh")
    plain = step(numbers, projections, "triton")
    monkeypatch.setattr(math_directions, "in_memory_of_device", lambda seed: True)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in step(numbers, projections, "triton").items())


def test_float64_and_devices_are_refused_in_words():
    with pytest.raises(NotImplementedError, match=r"triton .* float64 is not float32"):
        step(data(SMALL).to(torch.float64), directions_of("sphere", SMALL), "triton")
    problem = Problem("loss", (1, 1), (False,), (), "float32", "mps")
    assert "tensors are on mps, not on a GPU" in backend.supports(problem)


def test_the_plan_names_the_path():
    numbers = data(SMALL)
    text = sk.explain(numbers.student, numbers.x, backend="triton")
    assert "-> triton     one launch" in text
    text = sk.explain(numbers.student, numbers.x, backend="triton", order=2)
    assert "all layers in one launch each way" in text and "since order 2" in text
    wide = sk.explain(sk.MLP(3, 1, width=80), numbers.x, backend="triton", order=2)
    assert "layer-wise" in wide and "since order 2" in wide


@each_path
def test_a_term_of_weight_0_may_have_any_target(path):
    numbers = data(SMALL, "tanh")
    plain = step(numbers, directions_of("sphere", SMALL), "triton", weights=(1.0, 0.0))
    nothing = sk.Targets(values=numbers.y, jacobian=torch.full_like(numbers.jacobian, torch.nan))
    got = step(numbers, directions_of("sphere", SMALL), "triton", weights=(1.0, 0.0), targets=nothing)
    assert got.pop("derivative").isnan()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in got.items())


@each_path
@pytest.mark.parametrize("projections", [directions_of("sphere", SMALL), sk.Cotangents.sphere(2)], ids=["v", "u"])
def test_an_empty_batch(path, projections):
    numbers = data(Shape(0, 3, 9, 2, 2, 2, "no sample"), "tanh")
    assert all((tensor == 0).all() for tensor in step(numbers, projections, "triton").values())


@each_path
def test_a_whole_graph_of_torch_compile(path):
    numbers = data(SMALL, "tanh")
    targets, v = sk.Targets(values=numbers.y, jacobian=numbers.jacobian), directions_of("given", SMALL)

    def loss(x):
        return sk.sobolev_loss(numbers.student, x, targets, directions=v, backend="triton")

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    got, expected = (torch.autograd.grad(f(numbers.x), tuple(numbers.student.parameters())) for f in (compiled, loss))
    assert all(map(torch.equal, got, expected))


class NoNumberIsRead(TorchDispatchMode):
    """Raises where a number of a tensor goes to Python, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default and "nonzero" not in str(function), function
        return function(*args, **(kwargs or {}))


@each_path
@pytest.mark.parametrize(
    "settings", [{}, {"derivatives": "exact"}, {"order": 2}, {"derivative_loss": "cosine"}], ids=str
)
def test_nothing_waits_for_the_gpu(path, settings, monkeypatch):
    """As the capture of a CUDA graph needs it. The kernels are left out: here they are Python, and read numbers."""
    numbers = data(SMALL, "tanh")
    hessian = torch.zeros(SMALL.N, SMALL.O, SMALL.D, SMALL.D)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=hessian if "order" in settings else None)
    v = None if "derivatives" in settings else directions_of("sphere", SMALL)
    monkeypatch.setattr(script.Launch, "by_jit", lambda self, arrays: None)
    with NoNumberIsRead():
        sk.sobolev_loss(numbers.student, numbers.x, targets, directions=v, backend="triton", **settings).backward()


@each_path
def test_weights_of_any_strides(path):
    """Also the cotangent of a sum of losses for each sample, which has stride 0."""
    numbers, directions = data(SMALL, "tanh"), directions_of("sphere", SMALL)
    v, wide = directions.tensor(numbers.x), torch.linspace(0.5, 2, 3 * SMALL.N).reshape(SMALL.N, 3)
    several = (
        {"sample_weight": wide[:, 1], "output_weight": torch.linspace(2, 1, 2 * SMALL.O)[::2]},
        {"sample_weight": torch.tensor(2.0).expand(SMALL.N)},
        {"reduction": "none"},
    )

    def step_of(n, backend, settings):
        n.student.zero_grad()
        targets = sk.Targets(values=n.y, jacobian=n.jacobian)
        tensors = {k: t if isinstance(t, str) else t.to(n.x.dtype) for k, t in settings.items()}
        given = sk.Directions.given(v.to(n.x.dtype))
        loss = sk.sobolev_loss(n.student, n.x, targets, directions=given, backend=backend, **tensors)
        loss.sum().backward()
        return {"loss": loss.detach(), **{name: p.grad for name, p in n.student.named_parameters()}}

    for settings in several:
        expected = step_of(numbers.to(torch.float64), "reference", settings)
        baseline, got = (step_of(numbers, backend_name, settings) for backend_name in ("reference", "triton"))
        for name in expected:
            assert_within_rule(name, got[name], expected[name], baseline[name])


# NumPy's warnings, of the branch that is not taken
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@each_path
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softsign"])
def test_infinite_pre_activations(path, activation):
    """Where σ is a number, and its derivative 0."""
    student, x = sk.MLP(2, 1, width=5, depth=2, activation=activation), torch.randn(3, 2)
    for layer in (student[0], student[2]):
        layer.bias.data[:2] = torch.tensor([torch.inf, -torch.inf])
    targets = sk.Targets(values=torch.ones(3, 1), jacobian=torch.ones(3, 1, 2))
    options = {"directions": sk.Directions.basis(), "return_terms": True}
    with torch.no_grad():
        expected, got = (sk.sobolev_loss(student, x, targets, backend=b, **options) for b in ("reference", "triton"))
    for e, g in zip(expected[:3], got[:3], strict=True):
        assert_within_rule("term", g, e.double())


N, O, D = SMALL.N, SMALL.O, SMALL.D
WEIGHTS = {"samples": (N,), "outputs": (N, O), "entries": (N, O, D), "columns": (N, D)}


def missing(kind, samples, outputs):
    """A derivative weight, and targets that are NaN where it, or a weight of a sample or an output, is 0."""
    weight = torch.rand(WEIGHTS[kind], generator=torch.Generator().manual_seed(1))
    weight = weight > 0.3 if kind == "columns" else torch.where(weight > 0.3, weight, 0.0)
    known = weight[:, None] if kind == "columns" else weight[(...,) + (None,) * (3 - weight.dim())] != 0
    counts = samples[:, None] * outputs != 0
    known = known & counts[..., None]

    def targets(numbers, order=1):
        twice = known[..., None] & known[..., None, :]
        return sk.Targets(
            values=torch.where(counts, numbers.y, torch.nan), jacobian=torch.where(known, numbers.jacobian, torch.nan),
            hessian=torch.where(twice, numbers.hessian, torch.nan) if order == 2 else None,
        )  # fmt: skip

    return weight, targets


@each_path
@pytest.mark.parametrize("kind", WEIGHTS)
def test_missing_labels(path, kind):
    numbers, samples, outputs = data(SMALL, "tanh"), (torch.arange(N) % 4 > 0).float(), torch.tensor([0.0, 1.5])
    weight, targets = missing(kind, samples, outputs)
    weights = {"sample_weight": samples, "derivative_weight": weight}
    compare(numbers, None, targets, derivatives="exact", output_weight=outputs, **weights)
    compare(numbers, sk.Directions.basis(), targets, derivative_loss="l1", output_weight=outputs, **weights)
    if kind != "entries":
        more = {"derivative_loss": "cosine"} if path == "layer-wise" else {"reduction": "none"}
        compare(numbers, directions_of("given", SMALL), targets, output_weight=outputs, **weights, **more)
    if kind in ("samples", "columns"):
        _, targets = missing(kind, samples, torch.ones(O))
        compare(numbers, sk.Cotangents.sphere(2, seed=1), targets, **weights)


@pytest.mark.parametrize("kind", ["samples", "outputs", "columns"])
def test_missing_labels_of_order_2(kind):
    weight, targets = missing(kind, torch.ones(N), torch.ones(O))
    for loss in ("mse", "relative_mse"):
        settings = {"order": 2, "derivative_loss": loss, "derivative_weight": weight}
        compare(data(SMALL, "silu"), directions_of("given", SMALL), lambda n: targets(n, 2), **settings)


@each_path
def test_nan_stays_nan_in_every_precision(path):
    """Rounding to TF32 adds to the bits of a number, which must not make a number of what is none."""
    numbers = data(SMALL, "tanh")
    with torch.no_grad():
        numbers.student[0].weight.view(torch.int32).fill_(0x7FFFFFFF)  # the NaN that CUDA makes
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    for precision in ("ieee", "tf32"):
        options = {"directions": directions_of("sphere", SMALL), "backend": "triton", "precision": precision}
        assert sk.sobolev_loss(numbers.student, numbers.x, targets, **options).isnan()

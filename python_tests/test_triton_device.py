"""The Triton backend on a GPU, where there is one: on every path the float64 reference's numbers; graphs, devices."""

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends import triton
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.math.activations import ACTIVATIONS
from sobolev_kernels.math.table import choose
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, computed_from, forget, layer_by_layer, step
from sobolev_kernels.testing.graphs import assert_draws_anew, assert_follows, captured, whole_step
from sobolev_kernels.testing.named import PLANS, Named, agree
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, directions_of

pytestmark = pytest.mark.skipif(triton.MISSING is not None or not torch.cuda.is_available(), reason="no GPU, or triton")
SHAPES = [Shape(1000, 3, width, 3, 1, 2, "many programs, the last tile not whole") for width in (16, 50, 128)]
PATHS = ("on chip", "in cache", "layer by layer", "torch's multiply")


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    from sobolev_kernels.backends.triton import launches, layerwise

    if request.param == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    if request.param in PATHS[2:]:
        layer_by_layer(monkeypatch)
        monkeypatch.setattr(layerwise, "fuses", lambda problem: request.param == "layer by layer")
    forget()
    yield request.param
    forget()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", [directions_of, cotangents_of])
def test_numbers(path, side, shape, precision):
    """And the same bits by what is kept of the first call."""
    numbers, projections = data(shape, "tanh"), side("sphere", shape)
    first = compare(numbers, projections, backend="triton", device="cuda", precision=precision)
    second, third = (step(numbers.on("cuda"), projections, "triton", precision=precision) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("multiply", ["own", "torch's"])
def test_named_derivatives(plan, precision, multiply, monkeypatch):
    from sobolev_kernels.backends.triton import jets

    forget()
    jets.kept_by.cache_clear()
    monkeypatch.setattr(jets, "is_fused", lambda asked: multiply == "own")
    formulas = tuple(choose(ACTIVATIONS, "activation", name) for name in ("tanh", "silu", "identity"))
    first, second = (
        agree(Named(*PLANS[plan], (64, 50), formulas, 1000), "triton", precision, "cuda") for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
    forget()
    jets.kept_by.cache_clear()


@pytest.mark.parametrize("side", ["tangents", "gradients"])
def test_both_sides(path, side):
    with computed_from(side):
        compare(data(SHAPES[1], "silu"), directions_of("normal", SHAPES[1]), backend="triton", device="cuda")


@pytest.mark.parametrize("settings", [{"reduction": "none"}, {"order": 2}, {"derivative_loss": "cosine"}], ids=str)
def test_modes(path, settings):
    """Losses of each sample, whose backward is a step of its own; and what goes layer by layer."""
    numbers, shape = data(SHAPES[0], "tanh"), SHAPES[0]
    targets = ("values", "jacobian", "hessian") if "order" in settings else ("values", "jacobian")
    compare(numbers, directions_of("sphere", shape), targets, backend="triton", device="cuda", **settings)


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("function", ["laplacian", "jet", "jvp"])
def test_derivatives(function, one, monkeypatch):
    """All layers in one launch each way, or one after the other, beside float64 on the CPU: values and gradients."""
    if not one:
        layer_by_layer(monkeypatch)
    whole, results = data(SHAPES[1], "tanh"), []
    v = directions_of("given", SHAPES[1]).values
    exact = whole.to(torch.float64)
    for numbers, backend in ((whole.on("cuda"), "triton"), (exact, "reference"), (whole, "reference")):
        x = numbers.x.detach().requires_grad_()
        numbers.student.zero_grad(set_to_none=True)
        vectors = () if function == "laplacian" else (v.to(x),)
        outputs = getattr(sk, function)(numbers.student, x, *vectors, backend=backend)
        sum(output.sin().sum() for output in outputs).backward()
        found = [*outputs, x.grad, *(p.grad for p in numbers.student.parameters())]
        results.append([tensor.detach().cpu() for tensor in found])
    for i, (got, expected, baseline) in enumerate(zip(*results, strict=True)):
        assert_within_rule(f"{function}, tensor {i}", got, expected, baseline)


def test_batches_of_other_sizes_and_places(path):
    """By the same compiled kernels: a last batch that is smaller, a batch that is a view, weights in a flat buffer."""
    whole, directions = data(SHAPES[1], "tanh"), sk.Directions.sphere(2, seed=3)
    flat = torch.cat([torch.zeros(1), *[p.detach().flatten() for p in whole.student.parameters()]]).cuda()
    on_gpu, at = whole.on("cuda"), 1
    for k, p in enumerate(on_gpu.student.parameters()):
        p.data, at = flat[at : at + p.numel()].view_as(p) if k else p.data, at + p.numel()
    for batch in (slice(0, 512), slice(512, 1000), slice(1, 513), slice(0, 1000, 2)):
        losses = [
            sk.sobolev_loss(
                n.student, n.x[batch], sk.Targets(values=n.y[batch], jacobian=n.jacobian[batch]),
                directions=directions, backend=backend,
            ).detach().cpu()
            for n, backend in ((on_gpu, "triton"), (whole, "cpu"))
        ]  # fmt: skip
        assert_within_rule("loss", losses[0], losses[1].double())


@pytest.mark.parametrize("kind", ["given", "seeded"])
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"reduction": "none"}], ids=str)
def test_a_graph_of_a_whole_step(path, kind, settings):
    """With its backward: replayed after inputs and weights have changed it gives what a step then gives."""
    numbers, directions = data(SHAPES[1], "tanh").on("cuda"), sk.Directions.sphere(2, seed=5)
    if kind == "given":
        directions = sk.Directions.given(torch.randn(2, SHAPES[1].N, SHAPES[1].D, device="cuda"))
    assert_follows(numbers, whole_step(numbers, directions, "triton", **settings))


def test_a_graph_draws_anew_at_each_replay(path):
    """Other directions each time, those of torch's generator; and no kernel is compiled for them in the capture."""
    from triton import knobs

    loaded, hook = [], lambda *_: loaded.append(torch.cuda.is_current_stream_capturing())
    knobs.runtime.kernel_load_end_hook.add(hook)
    numbers = data(SHAPES[0], "tanh").on("cuda")
    try:
        graph, results = captured(whole_step(numbers, sk.Directions.sphere(1), "triton"))
    finally:
        knobs.runtime.kernel_load_end_hook.remove(hook)
    assert not any(loaded)
    assert_draws_anew(graph, results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_tensors_of_another_device_than_the_current_one(path):
    numbers, projections = data(SHAPES[0], "tanh"), directions_of("sphere", SHAPES[0])
    first, second = (step(numbers.on(f"cuda:{i}"), projections, "triton") for i in (0, 1))
    assert all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first)

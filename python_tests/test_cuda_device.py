"""The CUDA backend on a GPU, where there is one: the numbers of the float64 reference, graphs, several devices."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels import call, dispatch
from sobolev_kernels.backends import core, cuda, triton
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.math.table import Formula
from sobolev_kernels.problem import Problem
from sobolev_kernels.testing.compare import compare, forget, step
from sobolev_kernels.testing.graphs import assert_draws_anew, assert_follows, captured, replayed, whole_step
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, directions_of

BUILT = core._C is not None and hasattr(core._C, "cuda_step_at")
on_gpu = pytest.mark.skipif(not (BUILT and torch.cuda.is_available()), reason="no GPU, or built without CUDA")
SHAPES = [Shape(1000, 3, width, 3, 1, 2, "many blocks, the last tile not whole") for width in (16, 50, 128)]


@pytest.mark.skipif(not BUILT, reason="built without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_errors_name_the_call():
    assert core._C.cuda_devices() == 0
    with pytest.raises(RuntimeError, match=r"cudaGetDevice.*driver"):
        core._C.cuda_blocks(0, (32, 4, 4, 1, False, 1), 1024, 0)


@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", [directions_of, cotangents_of])
def test_numbers(side, shape, precision):
    numbers, projections = data(shape, "tanh"), side("sphere", shape)
    first = compare(numbers, projections, backend="cuda", device="cuda", precision=precision)
    second = step(numbers.on("cuda"), projections, "cuda", precision=precision)
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_order_2(shape, precision):
    targets = ("values", "jacobian", "hessian")
    more = {"backend": "cuda", "device": "cuda", "precision": precision, "order": 2}
    compare(data(shape, "gelu"), directions_of("sphere", shape), targets, **more)


@on_gpu
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_a_loss_for_each_sample(precision):
    """Written by the step itself, its backward with a cotangent of each."""
    numbers, projections = data(SHAPES[1], "tanh"), directions_of("sphere", SHAPES[1])
    compare(numbers, projections, backend="cuda", device="cuda", precision=precision, reduction="none")


@on_gpu
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_call_like_one_before_has_the_same_bits(reduction):
    numbers, projections = data(SHAPES[1], "tanh").on("cuda"), directions_of("sphere", SHAPES[1])
    forget()
    first = step(numbers, projections, "cuda", reduction=reduction)
    with patch.object(call, "prepare", side_effect=AssertionError("the long way")):
        second = step(numbers, projections, "cuda", reduction=reduction)
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_gpu
def test_launches():
    """Of a whole step two, and two of autograd's own. (That outputs begin as NaN is the tests': conftest.py.)"""
    numbers, projections = data(SHAPES[0], "tanh").on("cuda"), directions_of("sphere", SHAPES[0])
    run = lambda: loss_of(numbers, projections).backward()  # noqa: E731
    run(), torch.cuda.synchronize()
    numbers.student.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as recorded:
        run(), torch.cuda.synchronize()
    names = [event.name for event in recorded.events() if str(event.device_type).endswith("CUDA")]
    ours = [name for name in names if "sk::cuda" in name]
    if names:  # a profiler without the rights to look sees nothing
        others = [name for name in names if name not in ours and "FillFunctor" not in name]
        assert len(ours) == 2 and len(others) <= 1, "\n".join(names)


def loss_of(numbers, directions, **settings):
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    return sk.sobolev_loss(numbers.student, numbers.x, targets, directions=directions, backend="cuda", **settings)


# ---- Graphs ----


@on_gpu
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize("kind", ["given", "seeded"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_of_a_whole_step(reduction, kind, precision):
    """With its backward: replayed after inputs and weights have changed it gives what a step then gives."""
    numbers, directions = data(SHAPES[1], "tanh").on("cuda"), sk.Directions.sphere(2, seed=5)
    if kind == "given":
        directions = sk.Directions.given(torch.randn(2, 1000, 3, device="cuda"))
    assert_follows(numbers, whole_step(numbers, directions, "cuda", reduction=reduction, precision=precision))


@on_gpu
def test_a_graph_draws_anew_at_each_replay():
    """Other directions each time, those of torch's generator, in the middle those of the whole Jacobian."""
    numbers = data(SHAPES[0], "tanh").on("cuda")
    graph, results = captured(whole_step(numbers, sk.Directions.sphere(1), "cuda"))
    assert_draws_anew(graph, results)
    exact = loss_of(numbers, sk.Directions.basis()).item()
    mean = sum(replayed(graph, results)[0].item() for _ in range(30)) / 30
    assert abs(mean - exact) < 0.5 * exact


FIRST_CALL = """
import torch
import sobolev_kernels as sk
student, x = sk.MLP(3, 1, width=40).cuda(), torch.randn(64, 3, device="cuda")
targets = sk.Targets(values=torch.randn(64, 1, device="cuda"), jacobian=torch.randn(64, 1, 3, device="cuda"))
loss = lambda: sk.sobolev_loss(student, x, targets, directions=sk.Directions.sphere(1, seed=2), backend="cuda")
torch.ones(3, device="cuda").sum(), torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph), torch.no_grad():
    captured = loss()
graph.replay()
torch.cuda.synchronize()
assert torch.equal(captured, loss().detach())
"""


@on_gpu
def test_the_first_call_of_all_may_be_captured():
    """Kernels are loaded, and shared memory is allowed, in the middle of a capture that knows nothing of it."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@on_gpu
def test_two_threads_with_different_shared_memory():
    """Of the same kernel: neither sets what a block may have to less than the other's takes."""
    each = [data(shape, "tanh").on("cuda") for shape in (SHAPES[0], SHAPES[2])]
    directions = sk.Directions.sphere(2, seed=1)
    expected = [loss_of(numbers, directions).item() for numbers in each]

    def repeat(k):
        return all(loss_of(each[k], directions).item() == expected[k] for _ in range(200))

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(repeat, (0, 1)))


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_tensors_of_another_device_than_the_current_one():
    numbers, projections = data(SHAPES[0], "tanh"), directions_of("sphere", SHAPES[0])
    first, second = (step(numbers.on(f"cuda:{i}"), projections, "cuda") for i in (0, 1))
    assert all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first)


def test_built_without_cuda_it_says_so(monkeypatch):
    monkeypatch.setattr(cuda, "MISSING", "the compiled core was built without CUDA")
    problem = Problem("loss", (2, 3, 1), (True, True), (), "float32", "cuda")
    assert "without CUDA" in cuda.supports(problem)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(cuda, "MISSING", None)
    problem = Problem("loss", (2, 3, 1), (True, True), (), "float32", "cuda")
    assert "no GPU" in cuda.supports(problem)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "AMD" in cuda.supports(problem)


@pytest.mark.skipif(triton.MISSING is not None, reason="no triton")
@pytest.mark.skipif(not BUILT, reason="built without CUDA")
@pytest.mark.parametrize(
    "widths, precision, taken",
    [
        ((2, 64, 64, 1), "ieee", "cuda"), ((2, 64, 64, 1), "tf32", "cuda"), ((2, 64, 64, 1), "bf16", "cuda"),
        ((2, 128, 128, 1), "tf32", "cuda"), ((2, 128, 128, 1), "fp16", "cuda"), ((2, 64, 32, 1), "ieee", "cuda"),
        ((20, 128, 64, 1), "bf16", "triton"),
    ],
)  # fmt: skip
def test_it_is_taken_where_it_computes_a_step(monkeypatch, widths, precision, taken):
    """Triton, if that is there, where no GPU has timed how it would go about it."""
    monkeypatch.setattr(cuda, "supports", lambda problem: cuda.refusal(problem, 0))
    monkeypatch.setattr(cuda, "hardware", lambda device: (232448, 132))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(triton, "STARTED", [True])
    activations = tuple(map(Formula, ("tanh", "tanh", "identity")))
    problem = Problem(
        "loss", widths, (True,) * 3, activations, "float32", "cuda", P=2, precision=precision, gradients=True
    )
    assert dispatch.free(problem) == taken
    for name, value in (("MISSING", "triton is not installed"), ("unable", lambda: "no C compiler")):
        with monkeypatch.context() as context:
            context.setattr(triton, name, value)
            assert dispatch.free(problem) == "cuda"


@pytest.mark.skipif(triton.MISSING is not None, reason="no triton")
def test_a_triton_that_does_not_start_is_refused_in_words(monkeypatch):
    """As without the C compiler with which it builds what launches its kernels: another backend is taken."""
    from triton.runtime import driver

    def fail():
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(triton, "STARTED", [])
    monkeypatch.setattr(type(driver), "active", property(lambda self: fail()))
    problem = Problem("loss", (2, 3, 1), (True, True), (("tanh",), ("identity",)), "float32", "cuda", P=2)
    assert triton.supports(problem) == (
        "triton does not start here: Failed to find C compiler. Please specify via CC environment variable"
    )
    monkeypatch.setattr(cuda, "supports", lambda problem: None)
    assert dispatch.free(problem) == "cuda"

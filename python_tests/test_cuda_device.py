"""The CUDA backend on a GPU, where there is one: the numbers of the float64 reference, graphs, several devices."""

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends import core, cuda
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.problem import Problem
from sobolev_kernels.testing.compare import compare, step
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, directions_of

BUILT = core._C is not None and hasattr(core._C, "cuda_step")
on_gpu = pytest.mark.skipif(not (BUILT and torch.cuda.is_available()), reason="no GPU, or built without CUDA")
SHAPES = [Shape(1000, 3, width, 3, 1, 2, "many blocks, the last tile not whole") for width in (16, 50, 128)]


@pytest.mark.skipif(not BUILT, reason="built without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_errors_name_the_call():
    assert core._C.cuda_devices() == 0
    with pytest.raises(RuntimeError, match=r"cudaGetDevice.*driver"):
        core._C.cuda_blocks(0, 1024, 0)


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
def test_a_graph_captures_it():
    numbers = data(SHAPES[0], "tanh").on("cuda")
    v = torch.randn(2, 1000, 3, device="cuda")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    directions = sk.Directions.given(v)
    loss = lambda: sk.sobolev_loss(numbers.student, numbers.x, targets, directions=directions, backend="cuda")  # noqa: E731
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = loss().detach()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss().detach()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


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

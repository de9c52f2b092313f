"""The Triton kernels on tensors of any strides, on each path, in Triton's interpreter; what lies between is NaN."""

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends.triton import launches, layerwise
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import computed_from, gradients, layer_by_layer
from sobolev_kernels.testing.problems import Shape, data

SHAPE = Shape(21, 3, 9, 2, 2, 2, "a tile and a part of one, odd sizes")


def every_second(tensor):
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]


def transposed(tensor):
    """The first dimension last in memory, in an odd place of it."""
    order = [*range(1, tensor.dim()), 0]
    room = torch.full((*(tensor.shape[d] for d in order[:-1]), tensor.shape[0] + 1), torch.nan)
    view = room[..., 1:].permute(tensor.dim() - 1, *range(tensor.dim() - 1))
    return view.copy_(tensor)


def of_stride_0(tensor):
    return tensor[..., :1].expand_as(tensor)


def one_sample_for_all(tensor):
    return tensor[:1].expand_as(tensor)


LAYOUTS = [every_second, transposed, of_stride_0, one_sample_for_all]
PATHS = ["on chip", "on chip, by gradients", "in cache", "layer by layer", "torch's multiply"]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    if request.param == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    if request.param in PATHS[3:]:
        layer_by_layer(monkeypatch)
    if request.param == "torch's multiply":
        monkeypatch.setattr(layerwise, "fuses", lambda problem: False)
    with computed_from("gradients" if request.param.endswith("by gradients") else "tangents"):
        yield request.param


def laid_out(layout):
    """A student and all other operands in a layout."""
    numbers, generator = data(SHAPE, "tanh"), torch.Generator().manual_seed(3)
    for layer in numbers.student:
        if isinstance(layer, torch.nn.Linear):
            layer.weight, layer.bias = (torch.nn.Parameter(layout(p.detach())) for p in (layer.weight, layer.bias))
    assert numbers.student[0].bias.stride() != (1,) or layout is transposed
    numbers.x, numbers.y, numbers.jacobian = map(layout, (numbers.x, numbers.y, numbers.jacobian))
    random = lambda *shape: layout(torch.rand(*shape, generator=generator) + 0.5)  # noqa: E731
    return numbers, random


def settings_of(mode, random):
    N, D, O = SHAPE.N, SHAPE.D, SHAPE.O
    if mode == "cotangents":
        return {"sample_weight": random(N), "cotangents": random(2, N, O)}
    if mode == "rows":
        return {"output_weight": random(O), "cotangents": sk.Cotangents.basis()}
    more = {"order 2": {"order": 2, "hessian": random(N, O, D, D)}, "coupled": {"derivative_loss": "cosine"}}.get(
        mode, {}
    )
    return {"sample_weight": random(N), "output_weight": random(O), "directions": random(2, N, D), **more}


def step_of(numbers, settings, backend):
    convert = lambda v: v.to(numbers.x.dtype) if isinstance(v, torch.Tensor) else v  # noqa: E731
    settings = {name: convert(v) for name, v in settings.items()}
    for kind, make in (("directions", sk.Directions.given), ("cotangents", sk.Cotangents.given)):
        if isinstance(settings.get(kind), torch.Tensor):
            settings[kind] = make(settings[kind])
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=settings.pop("hessian", None))
    x = numbers.x.detach().requires_grad_()
    numbers.student.zero_grad(set_to_none=True)
    loss = sk.sobolev_loss(numbers.student, x, targets, backend=backend, **settings)
    loss.backward()
    return {"loss": loss.detach(), "dx": x.grad, **gradients(numbers.student)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["directions", "cotangents", "rows", "order 2", "coupled"])
def test_everything_of_any_strides(path, mode, layout):
    numbers, random = laid_out(layout)
    settings = settings_of(mode, random)
    expected = step_of(numbers.to(torch.float64), settings, "reference")
    baseline, got = (step_of(numbers, settings, backend) for backend in ("reference", "triton"))
    for name in expected:
        assert_within_rule(name, got[name], expected[name], baseline[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", ["jvp", "vjp", "jet", "laplacian", "hvp"])
def test_derivatives_of_any_strides(function, layout, monkeypatch):
    """And their gradients, for cotangents of the same strides."""
    numbers, random = laid_out(layout)
    vectors = [random(2, SHAPE.N, SHAPE.O if function == "vjp" else SHAPE.D) for _ in range(1 + (function == "hvp"))]
    for multiply in ("own", "torch's"):
        monkeypatch.setattr(layerwise, "fuses", lambda problem, own=multiply == "own": own)
        rows = []
        for n, backend in ((numbers.to(torch.float64), "reference"), (numbers, "reference"), (numbers, "triton")):
            n.student.zero_grad(set_to_none=True)
            dtype = n.x.dtype
            results = getattr(sk, function)(n.student, n.x, *(v.to(dtype) for v in vectors), backend=backend)
            torch.autograd.backward(results, [layout(torch.ones_like(r).float()).to(dtype) for r in results])
            rows.append([*(r.detach() for r in results), *gradients(n.student).values()])
        for i, (expected, baseline, got) in enumerate(zip(*rows, strict=True)):
            assert_within_rule(f"{function}, tensor {i}", got, expected, baseline)


def test_a_weight_whose_numbers_lie_far_apart():
    """Further than 32-bit integers reach: it is copied, and not read from where it is not."""
    far, near = (torch.empty(9, 9, device="meta").as_strided((9, 9), (stride, stride)) for stride in (2**27, 2**27 - 1))
    assert layerwise.near(far).is_contiguous() and layerwise.near(near) is near

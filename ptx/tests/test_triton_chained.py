"""Steps and derivatives along directions by the kernels of general streams, as compiled PTX; and their launches."""

from contextlib import ExitStack

import pytest
import torch

import sobolev_kernels as sk
from ptx import PtxFailure, missing
from ptx.compile import missing as missing_tool
from ptx.mutate import masks
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, gradients, layer_by_layer
from sobolev_kernels.testing.problems import Shape, data, directions_of

reason = missing() or missing_tool("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import triton_on_ptx  # noqa: E402
from ptx.triton_driver import driven  # noqa: E402
from sobolev_kernels.backends.triton import SCRIPTS  # noqa: E402

SHAPE = Shape(21, 2, 18, 1, 2, 2, "a tile and 5 samples of one; nothing a power of two")


@pytest.fixture
def on_ptx():
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(triton_on_ptx.on_ptx(*args, **named))


FUNCTIONS = {
    "laplacian": lambda s, x, b: sk.laplacian(s, x, backend=b),
    "jet": lambda s, x, b: sk.jet(s, x, directions_of("given", SHAPE).values.to(x.dtype), backend=b),
}


@pytest.mark.parametrize(
    "function, target, schedule", [("laplacian", "sm_90", "random:1"), ("jet", "sm_80", "reverse")]
)
def test_derivatives(on_ptx, function, target, schedule):
    """And their gradients: no race, nothing out of bounds, right numbers."""
    results, found, numbers = on_ptx(schedule, target=target), [], data(SHAPE, "silu")
    for of, backend in ((numbers, "triton"), (numbers.to(torch.float64), "reference"), (numbers, "reference")):
        x = of.x.detach().requires_grad_()
        of.student.zero_grad(set_to_none=True)
        outputs = FUNCTIONS[function](of.student, x, backend)
        sum(output.sin().sum() for output in outputs).backward()
        found.append([*(o.detach() for o in outputs), x.grad, *gradients(of.student).values()])
    for i, (got, expected, baseline) in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"{function}, tensor {i}", got, expected, baseline)
    assert sum(r.kernel.startswith("jets_") for r in results) == 1 + 2


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_losses(on_ptx, precision):
    """Of order 2 and coupled, on tensor cores."""
    results, numbers = on_ptx("random:3", target="sm_90"), data(SHAPE, "tanh")
    make = lambda n: sk.Targets(values=n.y, jacobian=n.jacobian, hessian=n.hessian)  # noqa: E731
    settings = {"order": 2} if precision == "bf16" else {"derivative_loss": "cosine"}
    targets = make if precision == "bf16" else ("values", "jacobian")
    compare(numbers, directions_of("normal", SHAPE), targets, "triton", precision=precision, **settings)
    layers = [r for r in results if r.kernel.startswith("jets_")]
    assert layers and all(r.count("mma.") + r.count("wgmma.") for r in layers)


def test_a_dropped_mask_is_found(on_ptx):
    """Of what takes the outputs' streams apart, and puts their cotangents together."""
    texts, numbers = [], data(SHAPE, "tanh")

    def step():
        sum(output.sum() for output in sk.jet(numbers.student, numbers.x, v, backend="triton")).backward()

    v = directions_of("given", SHAPE).values
    on_ptx(change=lambda text: texts.append(text) or text)
    step()
    for kind in ("results_kernel", "slopes_kernel"):
        text = next(text for text in texts if kind in text)
        _, mutant = next(m for m in masks(text) if "st.global" in m[0])
        on_ptx(change=lambda other, text=text, mutant=mutant: mutant if other == text else other)
        with pytest.raises(PtxFailure, match=r"bounds|race"):
            step()


CALLS = {
    "laplacian": lambda student, x: sk.laplacian(student, x, backend="triton")[1].sum(),
    "jvp": lambda student, x: sk.jvp(student, x, torch.ones(2, len(x), 2), backend="triton")[1].sum(),
    "order 2": lambda student, x: loss_of(student, x, order=2),
    "coupled": lambda student, x: loss_of(student, x, derivative_loss="cosine"),
}


def loss_of(student, x, **settings):
    second = {"hessian": torch.zeros(len(x), 1, 2, 2)} if "order" in settings else {}
    targets = sk.Targets(values=torch.zeros(len(x), 1), jacobian=torch.zeros(len(x), 1, 2), **second)
    return sk.sobolev_loss(
        student, x, targets, directions=sk.Directions.sphere(2), backend="triton", **settings
    )  # fmt: skip


# Of five linear layers: all of them in one launch each way, and layer by layer
FEWER = {"laplacian": (9, 21), "jvp": (9, 21), "order 2": (10, 18), "coupled": (8, 16)}


@pytest.mark.parametrize("call", FEWER)
def test_launches(call, monkeypatch):
    """With gradients of parameters; no operation of PyTorch stands among them."""
    student, x, counted = sk.MLP(2, 1, width=18, depth=4), torch.rand(32, 2), []
    for one in (True, False):
        if not one:
            layer_by_layer(monkeypatch)
        with triton_on_ptx.recorded() as launches:
            CALLS[call](student, x).backward()
            assert all(script.needs_addresses_alone for script in SCRIPTS.values())
        counted.append(len(launches))
        chains = sum(kernel.fn.__name__.startswith("jets_layers") for kernel, *_ in launches)
        assert chains == one * (2 if call in ("order 2", "coupled") else 3)
    assert tuple(counted) == FEWER[call]


def test_a_call_like_one_before_is_launched_as_that_was():
    """Which derivatives are for the first time, since nothing of them is left to PyTorch: at the new addresses."""
    student = sk.MLP(2, 1, width=18, depth=1)
    with driven() as driver:
        for _ in range(3):  # a step is kept at its second sight
            driver.launches.clear()
            CALLS["laplacian"](student, torch.rand(32, 2)).backward()
        first = driver.names()
        for script in SCRIPTS.values():
            script.by_jit = None  # would be an error
        driver.launches.clear()
        x = torch.rand(32, 2)
        CALLS["laplacian"](student, x).backward()
    assert driver.names() == first and len(first) == 3 + 6
    read = [launched for launched in driver.launches if x.data_ptr() in launched.arguments]
    assert [launched.kernel for launched in read] == ["start_kernel"] * 2

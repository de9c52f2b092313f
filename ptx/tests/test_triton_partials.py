"""Named derivatives by the Triton kernels as compiled PTX, executed on the CPU; and what they take of a GPU."""

from contextlib import ExitStack

import pytest
import torch

import sobolev_kernels as sk
from bench.equations import EQUATIONS
from ptx import PtxFailure, missing
from ptx.compile import missing as missing_tool
from ptx.mutate import barriers, masks
from sobolev_kernels.math.activations import ACTIVATIONS
from sobolev_kernels.math.table import choose
from sobolev_kernels.partials.along import evaluated
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.named import PLANS, Named, agree

reason = missing() or missing_tool("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import triton_on_ptx  # noqa: E402
from ptx.compile import variant  # noqa: E402
from ptx.report import LIMITS, usage  # noqa: E402
from ptx.triton_driver import driven  # noqa: E402
from sobolev_kernels.backends.triton import jets  # noqa: E402

SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]
TARGETS = ["sm_80", "sm_90", "sm_100"]
IDENTITY, TANH, GELU = (choose(ACTIVATIONS, "activation", name) for name in ("identity", "tanh", "gelu"))


@pytest.fixture
def on_ptx():
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(triton_on_ptx.on_ptx(*args, **named))
        jets.kept_by.cache_clear()


# Each target that the machine knows, schedule and precision is some plan's, in one launch of all layers or in several.
CASES = [
    ("Burgers", "sm_80", "tf32", "round_robin", True),
    ("Kuramoto-Sivashinsky", "sm_90", "bf16", "ahead", False),
    ("biharmonic", "sm_80", "ieee", "reverse", False),
    ("Navier-Stokes", "sm_90", "tf32", "random:1", False),
    ("KdV", "sm_90", "ieee", "random:2", True),
]


@pytest.mark.parametrize("plan, target, precision, schedule, one", CASES)
def test_plans(on_ptx, monkeypatch, plan, target, precision, schedule, one):
    """Of sizes that nothing divides, with a part of a tile; no race, nothing out of bounds, right numbers."""
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * one)
    results = on_ptx(schedule, target=target)
    agree(Named(*PLANS[plan], (18, 7), (TANH, GELU, IDENTITY), 37), "triton", precision)
    launched = [r for r in results if r.kernel.startswith("jets_")]
    assert len(launched) == (1 + 1 if one else 3 + 2)
    assert all((r.count("mma.") + r.count("wgmma.") > 0) == (precision != "ieee") for r in launched)


def test_every_deleted_barrier_that_matters_is_found(on_ptx):
    """Of the launch of all layers; those not found change no number."""
    texts, named = [], Named("x t -> u", "u", (18,), (TANH, IDENTITY), 37)
    on_ptx("ahead", change=lambda text: texts.append(text) or text)
    expected, found, silent = agree(named, "triton"), 0, 0
    text = next(text for text in texts if "jets_layers" in text)
    for name, mutant in barriers(text):
        on_ptx("ahead", change=lambda other, mutant=mutant: mutant if other == text else other)
        try:
            got = agree(named, "triton")
        except PtxFailure:
            found += 1
            continue
        silent += 1
        assert all(map(torch.equal, got, expected)), name
    assert found > 2 * silent, f"{found} found, {silent} not"


def test_a_dropped_mask_is_found(on_ptx, monkeypatch):
    monkeypatch.setattr(jets, "MOST_CHAINED", 0)
    texts, named = [], Named(*PLANS["Burgers"], (18,), (TANH, IDENTITY), 37)
    on_ptx(change=lambda text: texts.append(text) or text)
    agree(named, "triton")
    for kind in ("jets_forward", "jets_adjoint"):
        text = next(text for text in texts if kind in text)
        _, mutant = next(m for m in masks(text) if "st.global" in m[0])
        on_ptx(change=lambda other, text=text, mutant=mutant: mutant if other == text else other)
        with pytest.raises(PtxFailure, match=r"bounds|race"):
            agree(named, "triton")


def all_of_a_loss(equation, dtype, N=131, width=6):
    """A loss with all that it may have, and the gradients of all that gets one."""
    torch.manual_seed(0)
    fields = sk.Fields(equation.fields)
    nu, weight = (torch.tensor(c, dtype=dtype, requires_grad=True) for c in (0.3, 2.0))
    first = lambda p: equation.residuals(p)[0]  # noqa: E731
    residual = sk.Residual(lambda p: (nu * first(p), first(p) * p[fields.inputs[0]] + nu), fields, name="r")
    student = sk.MLP(len(fields.inputs), len(fields.outputs), width=width, depth=2)
    x, target, samples = torch.rand(N, len(fields.inputs)), torch.rand(N, 1), torch.rand(N) * (torch.rand(N) < 0.7)
    student, x, target, samples = student.to(dtype), x.to(dtype).requires_grad_(), target.to(dtype), samples.to(dtype)
    loss = sk.residual_loss(student, x, residual, weights={"r_0": weight, "r_1": 0.5}, scales=[1.0, 3.0],
                            target={"r_1": target}, sample_weight=samples, loss="log_cosh")  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, [x, nu, weight, *student.parameters()], materialize_grads=True)]


LOSSES = [("Burgers", "sm_90", "random:1"), ("Navier-Stokes", "sm_80", "ahead")]


@pytest.mark.parametrize("name, target, schedule", LOSSES)
def test_losses_of_residuals(on_ptx, monkeypatch, name, target, schedule):
    """By one script, with a part of a block; no race, nothing out of bounds, right numbers, twice the same."""
    equation = EQUATIONS[name]
    expected, baseline = (all_of_a_loss(equation, dtype) for dtype in (torch.float64, torch.float32))
    monkeypatch.setenv("SOBOLEV_BACKEND", "triton")
    results = on_ptx(schedule, target=target)
    got = all_of_a_loss(equation, torch.float32)
    kinds = ["_".join(r.kernel.split("_")[:2]) for r in results]
    assert kinds[:4] == ["start_kernel", "jets_layers", "jets_loss", "jets_layers"] and kinds[-1] == "jets_total"
    for i, tensors in enumerate(zip(got, expected, baseline, strict=True)):
        assert_within_rule(f"{name}, tensor {i}", *tensors)
    assert all(map(torch.equal, got, all_of_a_loss(equation, torch.float32)))


@pytest.mark.parametrize("name", ["stream-function", "Burgers"])
def test_what_a_loss_takes(name, monkeypatch):
    """All numbers of a sample in registers, so that 8 programs of 4 warps are resident."""
    monkeypatch.setenv("SOBOLEV_BACKEND", "triton")
    with triton_on_ptx.recorded() as launches:
        all_of_a_loss(EQUATIONS[name], torch.float32)
    kernels = {kernel.fn.__name__: (kernel, values, more) for kernel, values, more in launches}
    names = [kernel for kernel in kernels if kernel.startswith(("jets_loss", "jets_total"))]
    assert len(names) == 2
    for kernel in names:
        used = usage(kernel, name, "sm_90", variant(*kernels[kernel], "sm_90").compiled())
        assert used.stack == 0 and used.registers <= 64 and used.shared <= 4096, used


def step(student, x, names="u, u_t, u_xx"):
    sum(p.square().sum() for p in sk.partials(student, x, names, fields="x t -> u").values()).backward()


@pytest.mark.parametrize("one", [True, False])
def test_a_loop_compiles_each_kernel_once_and_launches_few(monkeypatch, one):
    """Steps, a last batch of another size, a batch that is a view: of L layers L + 2 launches, and L + 2 back; with all
    layers in one launch 3 and 4."""
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * one)
    monkeypatch.setenv("SOBOLEV_BACKEND", "triton")
    student, x = sk.MLP(2, 1, width=18, depth=2), torch.rand(65, 2)
    with driven() as driver:
        step(student, x[:32])
        compiled = [*driver.compiled]
        names = [name.split("_")[1] if name.startswith("jets_") else name for name in driver.names()]
        forward = ["start_kernel", *(["layers"] if one else ["forward"] * 3), "sums_kernel"]
        back = ["sums_kernel", *(["layers"] if one else ["adjoint"] * 2), "outer_kernel", "finish_kernel"]
        assert names == forward + back
        for batch in [slice(0, 32)] * 3 + [slice(32, 49), slice(1, 33)]:
            step(student, x[batch])
        assert driver.compiled == compiled and len(driver.launches) == 6 * len(names)


def test_a_loop_of_losses_compiles_each_kernel_once(monkeypatch):
    """Of batches of other sizes and of views, with weights, targets and numbers that change: eight launches."""
    monkeypatch.setenv("SOBOLEV_BACKEND", "triton")
    student, x, nu = sk.MLP(2, 1, width=18, depth=2), torch.rand(65, 2), [0.1]
    residual = sk.Residual(lambda p: p.u_t + p.x * p.u * p.u_x - nu[0] * p.u_xx, "x t -> u")

    def step(batch, weight):
        samples, target = torch.arange(65.0), torch.ones(65, 1)
        sk.residual_loss(student, x[batch], residual, weights=weight, sample_weight=samples[batch],
                         target=target[batch]).backward()  # fmt: skip

    with driven() as driver:
        step(slice(0, 32), 0.5)
        compiled, names = [*driver.compiled], ["_".join(name.split("_")[:2]) for name in driver.names()]
        around = ["start_kernel", "jets_layers", "jets_loss", "jets_layers"]
        assert names == [*around, "outer_kernel", "finish_kernel", "jets_total"]
        for batch in [slice(0, 32)] * 3 + [slice(32, 49), slice(1, 33)]:
            nu[0] += 0.1
            step(batch, nu[0])
        assert driver.compiled == compiled and len(driver.launches) == 6 * len(names)


# The hidden layers' kernels of the plan of the most streams, and of a common one.
TAKES = [
    ("sm_80", "tf32", "biharmonic, closure", False), ("sm_90", "ieee", "Kuramoto-Sivashinsky", False),
    ("sm_100", "bf16", "Kuramoto-Sivashinsky", True),
]  # fmt: skip


@pytest.mark.parametrize("target, precision, plan, one", TAKES)
def test_what_a_layer_takes(target, precision, plan, one, monkeypatch):
    """All streams of a tile in registers: no stack but what ptxas takes to halve them, so that two programs are
    resident."""
    student, x, v = (named := Named(*PLANS[plan], (64,) * 3, (TANH,) * 3 + (IDENTITY,), 64)).numbers(torch.float32)
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * one)
    with triton_on_ptx.recorded() as launches:
        results = evaluated(named.streams, student, x, v, "triton", precision)
        torch.autograd.grad(results, student.parameters, torch.ones_like(results), materialize_grads=True)
    kernels = {kernel.fn.__name__: (kernel, values, more) for kernel, values, more in launches}
    layers = [name for kernel, *_ in launches if (name := kernel.fn.__name__).startswith("jets_")]
    for name in layers if one else (layers[1], layers[-2]):
        used = usage(name, plan, target, variant(*kernels[name], target).compiled())
        assert used.stack <= ((64 if one else 8) if used.registers == 128 else 0), used
        assert used.registers <= 255 and used.shared <= LIMITS[target], used
        assert (used.tensor > 0) == (precision != "ieee"), used

"""What the host does for the Triton backend: how many launches, how many variants, and what a step like one before is.

By a driver whose kernels do nothing (`ptx/triton_driver.py`); the JIT, its variants and the arguments are real.
"""

from collections import Counter

import pytest
import torch

import sobolev_kernels as sk
from ptx.compile import missing
from sobolev_kernels import directions, kept
from sobolev_kernels.backends import core, triton
from sobolev_kernels.math import directions as math_directions
from sobolev_kernels.testing.compare import computed_from, forget, layer_by_layer
from sobolev_kernels.testing.problems import Shape, data

reason = missing("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

from triton import knobs  # noqa: E402

from ptx.triton_driver import STREAM, driven  # noqa: E402
from sobolev_kernels.backends.triton import SCRIPTS, launches, layers, layerwise, one_launch  # noqa: E402

SHAPE = Shape(64, 3, 18, 2, 2, 2, "a batch that 16 divides, of rows that it does not")
WHOLE, ODD, VIEW = slice(0, 32), slice(32, 49), slice(1, 33)


def loss_of(numbers, batch=WHOLE, **settings):
    targets = sk.Targets(values=numbers.y[batch], jacobian=numbers.jacobian[batch])
    settings = {"directions": None if "cotangents" in settings else sk.Directions.sphere(2), **settings}
    return sk.sobolev_loss(numbers.student, numbers.x[batch], targets, backend="triton", **settings)


def step(*arguments, **settings):
    loss_of(*arguments, **settings).sum().backward()


@pytest.fixture(params=["on chip", "in cache", "layer by layer", "torch's multiply"])
def path(request, monkeypatch):
    if request.param == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    if request.param in ("layer by layer", "torch's multiply"):
        layer_by_layer(monkeypatch)
        monkeypatch.setattr(layerwise, "fuses", lambda problem: request.param == "layer by layer")
    return request.param


def test_a_loop_compiles_each_kernel_once(path):
    """Steps without a seed, a last batch of another size, a batch that is a view: only the first one compiles."""
    numbers = data(SHAPE, "tanh")
    with driven() as driver:
        step(numbers)
        first = [*driver.compiled]
        for batch in [WHOLE] * 20 + [ODD, VIEW]:
            step(numbers, batch)
        assert driver.compiled == first and len(driver.launches) % 23 == 0
        if path in ("on chip", "in cache"):
            assert sorted(first) == ["finish_kernel", "pack_kernel", "step_kernel"]


@pytest.mark.parametrize(
    "settings", [{}, {"sample_weight": torch.ones(32)}, {"reduction": "none"}, {"precision": "tf32"}], ids=str
)
def test_a_step_in_one_launch_is_three(settings):
    """Packing with the casts, the step, and the sums, the loss, its terms and dx: no operation of PyTorch beside."""
    numbers = data(SHAPE, "tanh")
    numbers.x.requires_grad_()
    with driven() as driver:
        loss = loss_of(numbers, **settings)
        forward = ["pack_kernel", "step_kernel", "finish_kernel"]
        assert driver.names() == forward
        loss.sum().backward()
        assert driver.names() == forward * (2 if "reduction" in settings else 1)


def test_a_seed_in_memory_is_of_the_same_variant(path, monkeypatch):
    """As while a CUDA graph is captured: nothing is compiled then, and the kernel reads what each replay draws."""
    numbers = data(SHAPE, "tanh")
    with driven() as driver:
        for _ in range(3):
            step(numbers)
        compiled = [*driver.compiled]
        driver.launches.clear()
        monkeypatch.setattr(math_directions, "in_memory_of_device", lambda seed: True)
        for module in (directions, kept):
            monkeypatch.setattr(module, "is_capturing", lambda device: True, raising=False)
        step(numbers)
    assert driver.compiled == compiled
    kernels = {"step_kernel": one_launch.step_kernel, "start_kernel": layerwise.start_kernel}
    (drawing,) = [launched for launched in driver.launches if launched.kernel in kernels]
    of = dict(zip(kernels[drawing.kernel].arg_names, drawing.arguments, strict=True))
    assert of["SEED"] != 0 and (of["seed_in_memory"], of["seed"], of["place"]) == (1, 0, 0)


ONCE = {"start_kernel", "along_kernel", "residual_kernel", "adjoint_kernel", "outer_kernel", "finish_kernel"}


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize("depth", [1, 4])
def test_layer_by_layer_each_linear_layer_is_two_launches(monkeypatch, depth, precision):
    layer_by_layer(monkeypatch)
    monkeypatch.setattr(layers, "into", None)  # no multiply of torch's
    numbers = data(Shape(64, 3, 18, depth, 2, 2, ""), "tanh")
    with driven() as driver:
        step(numbers, precision=precision)
    counts = Counter(driver.names())
    assert counts.pop("forward_kernel") == depth + 1 and counts.pop("backward_kernel") == depth
    assert set(counts) == ONCE and counts.pop("residual_kernel") == 2 and set(counts.values()) == {1}


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_by_torchs_multiply_each_linear_layer_is_five_launches(monkeypatch, precision):
    """Three products, and what lies between them; weights are cast in one launch, all else where it is written."""
    layer_by_layer(monkeypatch)
    monkeypatch.setattr(layerwise, "fuses", lambda problem: False)
    products, multiply = [], layers.into
    monkeypatch.setattr(layers, "into", lambda *tensors: (products.append(tensors), multiply(*tensors)))
    numbers = data(Shape(64, 3, 18, 3, 2, 2, ""), "tanh")
    with driven() as driver:
        step(numbers, precision=precision)
    counts = Counter(driver.names())
    assert counts.pop("activate_kernel") == counts.pop("adjoint_kernel") == 4 and len(products) == 3 * 4 - 1
    casts = {"cast_kernel"} if precision == "bf16" else set()
    assert set(counts) == ONCE - {"adjoint_kernel"} | casts and sum(counts.values()) == len(counts) + 1
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    assert all(a.dtype == b.dtype == half and out.dtype == torch.float32 for out, a, b in products)


def test_a_step_like_one_before_is_launched_as_that_was(path):
    """By the compiled kernels alone, at the new addresses, with the new seed, on the current stream."""
    numbers = data(SHAPE, "tanh")
    with driven() as driver:
        step(numbers, directions=sk.Directions.sphere(2, seed=5))
        first = [*driver.launches]
        for script in SCRIPTS.values():
            script.by_jit = None  # would be an error
        driver.launches.clear()
        moved = data(SHAPE, "tanh")
        step(moved, directions=sk.Directions.sphere(2, seed=2**62 + 1))
        again = [*driver.launches]
    assert [(a.kernel, a.grid, a.stream) for a in again] == [(a.kernel, a.grid, STREAM) for a in first]
    flat = [tuple(torch.utils._pytree.tree_flatten(launched.arguments)[0]) for launched in (*first, *again)]
    for a, b in zip(flat[: len(first)], flat[len(first) :], strict=True):
        kinds = zip(a, b, strict=True)
        assert all(type(y) is int if isinstance(x, torch.Tensor) else type(x) is type(y) for x, y in kinds)
    read = [p for p in moved.student.parameters() if p.dim() == 1 or path != "torch's multiply"]
    known = {t.data_ptr() for t in (moved.x, moved.y, *read)}
    assert known <= {n for launched in flat[len(first) :] for n in launched if type(n) is int}
    assert any(2**62 + 1 in launched for launched in flat[len(first) :])


@pytest.mark.parametrize("settings", [{}, {"reduction": "none"}], ids=str)
def test_a_call_like_one_before_goes_the_short_way(path, settings, monkeypatch):
    """From the call straight to the launches (`kept.py`); but for PyTorch's multiplies, which want tensors."""
    numbers = data(SHAPE, "tanh")
    with driven() as driver:
        for _ in range(3):  # a step is kept at its second sight
            driver.launches.clear()
            step(numbers, **settings)
        first = driver.names()
        driver.launches.clear()
        ran, run = [], triton.run
        monkeypatch.setattr(triton, "run", lambda *arguments: (ran.append(arguments), run(*arguments)))
        step(numbers, **settings)
    assert driver.names() == first and bool(ran) == (path == "torch's multiply" or "reduction" in settings)


def test_without_the_compiled_core_nothing_is_kept(path, monkeypatch):
    """As in a pure install, where the core is not there to read where tensors lie: every step goes the long way."""
    numbers = data(SHAPE, "tanh")
    monkeypatch.setattr(core, "_C", None)
    monkeypatch.setattr(core, "MISSING", "the compiled core is missing")
    with driven() as driver:
        step(numbers)
        first = driver.names()
        for _ in range(3):
            step(numbers)
    assert driver.names() == first * 4


def test_parameters_that_are_not_aligned_take_a_variant_of_their_own():
    """As those of a flat buffer; each of both patterns is compiled once, and never taken for the other."""
    numbers = data(SHAPE, "tanh")
    aligned = {name: p.detach().clone() for name, p in numbers.student.named_parameters()}
    buffer = torch.zeros(sum(p.numel() + 4 for p in aligned.values()))
    at, shifted = 1, {}
    for name, p in aligned.items():
        shifted[name] = buffer[at : at + p.numel()].view_as(p).copy_(p)
        at += -(-p.numel() // 4) * 4

    def with_parameters(tensors):
        for name, p in numbers.student.named_parameters():
            p.data = tensors[name]
        step(numbers)

    with driven() as driver:
        for tensors in (aligned, aligned, aligned, shifted, aligned):  # the fourth by what is kept
            with_parameters(tensors)
        assert Counter(driver.compiled) == {"pack_kernel": 2, "step_kernel": 1, "finish_kernel": 1}
        for script in SCRIPTS.values():
            script.by_jit = None
        with_parameters(aligned)
        with_parameters(shifted)


def test_whoever_watches_launches_is_told_of_each():
    """A profiler's hook: the JIT calls it."""
    numbers, told = data(SHAPE, "tanh"), []
    hook = told.append
    with driven() as driver:
        step(numbers)
        step(numbers), step(numbers)
        script = [*SCRIPTS.values()][-1]  # of the short way
        plain = script.by_jit
        script.by_jit = lambda *arguments: (told.append("by the JIT"), plain(*arguments))
        step(numbers)
        assert not told
        knobs.runtime.launch_enter_hook.add(hook)
        try:
            step(numbers)
        finally:
            knobs.runtime.launch_enter_hook.remove(hook)
    assert told == ["by the JIT"] and driver.names()[:3] == driver.names()[-3:]


def test_scripts_are_few_and_hold_no_tensor():
    import gc
    import weakref

    numbers = data(SHAPE, "tanh")
    with driven() as driver:
        driver.recording = False
        for _ in range(3):
            step(numbers)
        x = weakref.ref(numbers.x)
        del numbers
        gc.collect()
        assert x() is None and len(SCRIPTS) == 2  # of the long way, and of the short one
        forget()
        assert not SCRIPTS


def test_cotangents_layer_by_layer_are_four_launches_for_each_layer(monkeypatch):
    """Four ways through the layers follow each other: values, gradients, along their adjoints, and back."""
    layer_by_layer(monkeypatch)
    numbers = data(Shape(64, 3, 18, 3, 2, 2, ""), "tanh")
    with driven() as driver, computed_from(None):
        step(numbers, cotangents=sk.Cotangents.normal(2))
    counts = Counter(driver.names())
    assert [counts[f"{name}_kernel"] for name in ("forward", "pull", "push", "backward")] == [4, 3, 4, 3]
    assert sum(counts.values()) == 14 + 11

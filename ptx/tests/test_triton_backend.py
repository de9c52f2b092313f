"""The Triton backend's kernels as compiled PTX, executed on the CPU: no race, nothing out of bounds, right numbers."""

from contextlib import ExitStack

import pytest
import torch

import sobolev_kernels as sk
from ptx import PtxFailure, missing
from ptx.compile import missing as missing_tool
from ptx.mutate import barriers, masks
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, computed_from, layer_by_layer, step
from sobolev_kernels.testing.problems import Shape, asking, cotangents_of, data, directions_of

reason = missing() or missing_tool("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import triton_on_ptx  # noqa: E402
from ptx.triton_on_ptx import OnPtx, backend, layerwise, one_launch  # noqa: E402
from sobolev_kernels.backends.triton import launches  # noqa: E402

SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]
SHAPE = Shape(37, 3, 18, 2, 2, 2, "a tile and 5 samples of one; nothing a power of two")


@pytest.fixture
def on_ptx():
    """Send the backend's kernels to the PTX machine; returns the results of their launches."""
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(triton_on_ptx.on_ptx(*args, **named))


@pytest.fixture(params=["on chip", "in cache"])
def place(request, monkeypatch):
    """Where a tile of the one launch is."""
    if request.param == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    return request.param


@pytest.fixture
def one_program(monkeypatch):
    """One program takes all tiles in turn."""
    monkeypatch.setattr(one_launch, "count_programs", lambda tiles, warps, device: 1)


ONE_LAUNCH = {
    "drawn": ("tanh", "identity", lambda shape: directions_of("sphere", shape), {}),
    "given, per sample": (
        "silu", "sigmoid", lambda shape: directions_of("given", shape),
        {"reduction": "none", "derivative_loss": "huber"},
    ),
    "cotangents": ("softplus", "tanh", lambda shape: sk.Cotangents.sphere(shape.P, seed=3), {}),
    "by gradients": ("tanh", "sigmoid", lambda shape: directions_of("sphere", shape), {}),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", ONE_LAUNCH)
def test_one_launch(on_ptx, place, one_program, case, schedule):
    activation, last, projections, settings = ONE_LAUNCH[case]
    results = on_ptx(schedule)
    with computed_from("gradients" if case == "by gradients" else "tangents"):
        compare(data(SHAPE, activation, last=last), projections(SHAPE), backend="triton", **settings)
    assert {r.kernel for r in results} == {"pack_kernel", "step_kernel", "finish_kernel"}


def test_many_programs(on_ptx, place):
    shape = Shape(170, 3, 18, 2, 2, 2, "three programs with two tiles each")
    on_ptx("random:5")
    compare(data(shape, "tanh"), directions_of("sphere", shape), backend="triton")


@pytest.mark.parametrize("kind", ["directions", "cotangents"])
def test_gradients_of_given_vectors(on_ptx, place, one_program, kind):
    """Of directions in another precision, too."""
    along = "tangents" if kind == "directions" else "vjps"
    vectors = asking(directions_of("given", SHAPE) if kind == "directions" else cotangents_of("given", SHAPE))
    for precision in ("ieee", "tf32") if kind == "directions" else ("bf16",):
        results = on_ptx("random:4")
        numbers, settings = data(SHAPE, "silu", last="tanh"), {"precision": precision, "derivative_loss": "huber"}
        compare(numbers, vectors, ("values", along), "triton", **settings)
        assert {r.kernel for r in results} == {"pack_kernel", "step_kernel", "finish_kernel"}


def test_gradients_of_given_vectors_layer_by_layer(on_ptx, monkeypatch):
    layer_by_layer(monkeypatch)
    on_ptx("random:4")
    for vectors, along in ((directions_of("given", SHAPE), "tangents"), (cotangents_of("given", SHAPE), "vjps")):
        compare(data(SHAPE, "silu", last="tanh"), asking(vectors), ("values", along), "triton")


# Of each row along drawn directions every precision, of those of 16 bits one, on sm_80 where it has that row; the other
# ways on sm_90.
ROWS = [
    (target, row, case, precision)
    for row in launches.ON_CHIP + launches.IN_CACHE
    for precision in row.precisions
    for case, of in {
        "drawn": [name for name in row.precisions if name != "fp16" or "bf16" not in row.precisions],
        "cotangents": row.precisions[:1],
        "by gradients": row.precisions[-1:],
    }.items()
    for target in [launches.SM_80 if case == "drawn" and launches.SM_80 in row.targets else launches.SM_90]
    if target in row.targets and precision in of
]


@pytest.mark.parametrize("target, row, case, precision", ROWS, ids=lambda value: getattr(value, "label", value))
def test_every_row_of_the_launch_table(on_ptx, monkeypatch, target, row, case, precision):
    shape = Shape(21, 5, row.width - 3, row.layers or 3, 2, 2, "as deep as the row takes")
    activation, last, projections, settings = ONE_LAUNCH[case]
    results = on_ptx("random:2", target=target)
    monkeypatch.setattr(one_launch, "launch_of", lambda problem: row)
    with computed_from("gradients" if case == "by gradients" else "tangents"):
        numbers = data(shape, activation, last=last)
        compare(numbers, projections(shape), backend="triton", precision=precision, **settings)
    steps = [r for r in results if r.kernel == "step_kernel"]
    assert all((r.count("mma.") + r.count("wgmma.") > 0) == (precision != "ieee") for r in steps)


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "ieee"])
def test_layer_by_layer_in_every_precision(on_ptx, monkeypatch, precision):
    layer_by_layer(monkeypatch)
    results = on_ptx("random:3")
    compare(data(SHAPE, "silu"), directions_of("normal", SHAPE), backend="triton", precision=precision)
    assert any(r.count("mma.") for r in results)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fused", [True, False], ids=["fused multiply", "torch's multiply"])
def test_layer_by_layer(on_ptx, monkeypatch, fused, schedule):
    monkeypatch.setattr(layerwise, "fuses", lambda problem: fused)
    layer_by_layer(monkeypatch)
    on_ptx(schedule)
    numbers = data(SHAPE, "softplus")
    compare(numbers, directions_of("normal", SHAPE), backend="triton", derivative_loss="cosine")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    exact = sk.sobolev_loss(numbers.student, numbers.x, targets, derivatives="exact", backend="triton")
    plain = sk.sobolev_loss(numbers.student, numbers.x, targets, derivatives="exact", backend="reference")
    assert_within_rule("exact", exact.detach(), plain.detach().double())


@pytest.mark.parametrize("way", ["tangents", "gradients", "cotangents", "layer by layer"])
def test_missing_labels(on_ptx, place, monkeypatch, way):
    """Weights of samples, outputs and entries, or of derivatives [N, O]; targets are NaN where they are 0."""
    if way == "layer by layer":
        layer_by_layer(monkeypatch)
    on_ptx("random:2")
    entries = way in ("cotangents", "layer by layer")
    known = torch.arange(SHAPE.N * SHAPE.O * SHAPE.D).reshape(SHAPE.N, SHAPE.O, SHAPE.D) % 5 > 1
    known = known if entries else known[..., :1]
    samples, outputs = (torch.arange(SHAPE.N) % 3).float(), torch.tensor([0.0, 1.5])
    counts = samples[:, None] * outputs != 0

    def targets(numbers):
        jacobian = torch.where(known & counts[..., None], numbers.jacobian, torch.nan)
        return sk.Targets(values=torch.where(counts, numbers.y, torch.nan), jacobian=jacobian)

    weights = {"sample_weight": samples, "output_weight": outputs}
    weights["derivative_weight"] = 1.5 * (known if entries else known[..., 0])
    settings = {"derivatives": "exact"} if entries else {}
    projections = None if entries else directions_of("sphere", SHAPE)
    with computed_from("tangents" if way == "tangents" else "gradients"):
        compare(data(SHAPE, "tanh"), projections, targets, "triton", **settings, **weights)


@pytest.mark.parametrize("kind", ["tangents", "gradients", "cotangents"])
def test_bytes_are_those_of_the_count_whatever_P_is(on_ptx, place, one_program, monkeypatch, kind):
    """Each input once and each output once; on chip that is all there is (docs/triton.md)."""
    problems, plain = [], backend.run
    monkeypatch.setattr(backend, "run", lambda problem, *rest: (problems.append(problem), plain(problem, *rest)))
    for P in (1, 3):
        shape = Shape(256, 16, 32, 2, 16, P, "nothing is padded; parameters, read in two orders, are few")
        on_ptx()
        projections = sk.Cotangents.sphere(P, seed=3) if kind == "cotangents" else directions_of("sphere", shape)
        with computed_from("tangents" if kind == "tangents" else "gradients"):
            step(data(shape, "tanh"), projections, "triton")
        arrays = {name: t for name, t in OnPtx.traffic["step_kernel"].items() if t}
        if place == "in cache":
            del arrays["room.scratch"]
        slots = [arrays[name] for name in ("room.slots", "room.bias_slots")]
        moved = sum(t.unique_read + t.unique_written for t in arrays.values()) - sum(t.unique_read for t in slots)
        expected = problems[-1].bytes(shape.N)
        assert abs(moved - expected) < 0.05 * expected, arrays
        for name in ("X", "Y"):
            assert arrays[name].read == arrays[name].unique_read
        if place == "on chip":
            assert "room.scratch" not in arrays
            for t in slots:
                assert t.read == 0
                assert t.written == t.unique_written


def test_every_deleted_barrier_that_matters_is_found(on_ptx, place):
    """Each fourth barrier of the one launch deleted in turn; those not found change no number (docs/triton.md)."""
    shape = Shape(33, 3, 18, 2, 2, 1, "small: the step runs once for every barrier")
    numbers, directions, texts = data(shape, "tanh"), directions_of("sphere", shape), []
    on_ptx(change=lambda text: texts.append(text) or text)
    expected = step(numbers, directions, "triton")
    found, silent = 0, 0
    for name, mutant in list(barriers(texts[0]))[::4]:
        on_ptx(change=lambda _, mutant=mutant: mutant)
        try:
            got = step(numbers, directions, "triton")
        except PtxFailure:
            found += 1
            continue
        silent += 1
        assert all(torch.equal(got[key], expected[key]) for key in expected), name
    assert found > 2 * silent, f"{found} found, {silent} not"


def test_a_dropped_mask_is_found(on_ptx):
    numbers, directions = data(SHAPE, "tanh"), directions_of("sphere", SHAPE)
    texts = []
    on_ptx(change=lambda text: texts.append(text) or text)
    step(numbers, directions, "triton")
    _, mutant = next(m for m in masks(texts[0]) if "st.global" in m[0] or "ld.global" in m[0])
    on_ptx(change=lambda _: mutant)
    with pytest.raises(PtxFailure, match="bounds"):
        step(numbers, directions, "triton")

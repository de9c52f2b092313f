"""Students that other ways of a block have no room for, by the CUDA step in registers, as compiled PTX executed on the
CPU."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels import planner
from sobolev_kernels.backends import cuda, triton
from sobolev_kernels.testing.problems import Shape, asking, cotangents_of, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import cuda_on_ptx  # noqa: E402
from ptx.cuda_on_ptx import HOPPER, SCHEDULES, on_ptx  # noqa: E402
from ptx.cuda_report import student  # noqa: E402

NARROW, WIDE = (64, 2, 0, 1), (128, 2, 0, 1)
SIDES = {"tangents": directions_of, "gradients": directions_of, "cotangents": cotangents_of}
DEEP = Shape(35, 5, 28, 7, 3, 2, "seven layers, weights by turns")
TURNS = Shape(19, 65, 20, 2, 17, 5, "65 inputs, 17 outputs, all by turns")
CASES = [
    (Shape(35, 18, 20, 3, 9, 2, "pieces, which all weights have room beside"), "gelu", "bf16", NARROW),
    (Shape(20, 18, 70, 2, 9, 2, "wide, kept, and in pieces"), "silu", "tf32", WIDE),
    (TURNS, "tanh", "bf16", NARROW),
    (Shape(5, 100, 70, 1, 33, 2, "100 inputs, 33 outputs"), "tanh", "ieee", WIDE),
    (Shape(3, 784, 28, 2, 3, 6, "784 inputs by turns"), "tanh", "fp16", NARROW),
    (Shape(3, 20, 30, 1, 128, 2, "128 outputs by turns"), "tanh", "tf32", NARROW),
]
# Bytes of a block, where other ways have no room for their arrays, or this one for all weights at a time
LIMITS = {
    "pieces, which all weights have room beside": 90 << 10, DEEP.why: 50 << 10, TURNS.why: 17_000,
    "784 inputs by turns": 17_000, "128 outputs by turns": 33_000,
}  # fmt: skip


def compare(shape, side, precision="bf16", activation="tanh", way=NARROW, kind="sphere", *, asked=False, **settings):
    projections = SIDES[side](kind, shape)
    numbers = data(shape, activation, last=activation if asked else "identity")
    return cuda_on_ptx.compare(
        numbers, asking(projections) if asked else projections, *settings.pop("targets", ()), precision=precision,
        way=way, outputs=side == "gradients", limit=LIMITS.get(shape.why, HOPPER), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("shape", "activation", "precision", "way"), CASES, ids=lambda of: getattr(of, "why", ""))
def test_shapes(shape, activation, precision, way, side):
    if shape.O == 128 and side == "gradients":
        pytest.skip("a round for each output takes its time; 33 outputs go so")
    compare(shape, side, precision, activation, way)


@pytest.mark.parametrize(("side", "depth", "precision"), [
    ("tangents", 70, "bf16"), ("gradients", 25, "ieee"), ("cotangents", 20, "fp16"), ("tangents", 25, "tf32"),
])  # fmt: skip
def test_any_depth(side, depth, precision):
    """Layers are told in a table; of no sample, too, a block has its zeros to leave."""
    for N in (3, 0) if precision == "tf32" else (3,):
        width, way = (70, WIDE) if precision == "ieee" else (8, NARROW)
        done = compare(Shape(N, 2, width, depth, 1, 1, ""), side, precision, "tanh", way)
        assert ("table" in done.backend.results) and cuda.is_roomy(done.backend.layout)


MODES = {
    "a loss of each sample": {"reduction": "none", "sample_weight": torch.linspace(0.5, 2, DEEP.N)},
    "no derivatives": {"targets": (("values",),), "weights": (1.0, 0.0)},
    "a weight of 0": {"kind": "given", "weights": (1.0, 0.0), "asked": True},
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, side):
    settings = dict(MODES[mode])
    if mode == "no derivatives" and side != "tangents":
        pytest.skip("the sides are one there")
    if settings.get("asked"):
        if side == "gradients":
            pytest.skip("given vectors have no gradient there")
        settings["targets"] = (("values", "tangents" if side == "tangents" else "vjps"),)
    compare(DEEP, side, **settings)


@pytest.mark.parametrize("side", SIDES)
def test_schedules(side):
    """The bits of another schedule are those of the first, and none has a race, nor any product a conflict of banks."""
    done = [compare(TURNS, side, schedule=schedule) for schedule in SCHEDULES[1:3]]
    expected, got = [of.got for of in done]
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert sum(line.bank_conflicts for line in done[0].backend.results["step"].lines) == 0


@pytest.mark.parametrize("limit", [99, 163])
def test_room_is_for_any(limit):
    """Of any student a tile fits on all GPUs that there are, until a block's slot is more than 32 bits count."""
    for precision in ("ieee", "bf16"):
        for hidden, width, D, O in ((300, 128, 3, 1), (2, 128, 5000, 1), (2, 64, 3, 2000)):
            of = replace(student(width, precision, hidden), widths=(D, *[width] * hidden, O))
            assert cuda.is_roomy(cuda.layout(of, planner.side(of), limit << 10))
    with pytest.raises(ValueError, match=r"20000 hidden layers of 128 .* bytes of a block's slot, it has 2147483647"):
        cuda.layout(student(128, "ieee", 20000), "tangents", limit << 10)


def test_what_others_have_room_for_they_take():
    way_of = lambda *of: cuda.layout(student(*of), planner.side(student(*of)), HOPPER)["way"]  # noqa: E731
    assert way_of(64, "bf16", 5)[2] and way_of(128, "bf16", 3)[2] and way_of(128, "ieee", 3)[2]
    assert way_of(64, "bf16", 6)[:4] == NARROW and way_of(128, "bf16", 4)[:4] == WIDE


@pytest.mark.parametrize("hidden", [5, 6])
def test_a_free_choice_goes_by_triton(hidden):
    """Where a block is roomy, if Triton is there."""
    of = student(64, "bf16", hidden)
    with on_ptx(), patch.object(torch.cuda, "current_device", lambda: 0):
        for reason in ("there is no Triton", None):
            with patch.object(triton, "supports", lambda problem, reason=reason: reason):
                assert bool(cuda.gives_way(of)) == (hidden == 6 and reason is None)
        assert ("cache" if hidden == 6 else "registers") in cuda.plan(of, 64).path

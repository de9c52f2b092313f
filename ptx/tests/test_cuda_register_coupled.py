"""Losses that couple all numbers of a sample, by the CUDA step in registers, as compiled PTX executed on the CPU."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.backends import cuda, triton
from sobolev_kernels.math.losses import choose_loss
from sobolev_kernels.testing.problems import Shape, asking, cotangents_of, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import cuda_on_ptx  # noqa: E402
from ptx.compile import compile_file  # noqa: E402
from ptx.cuda_on_ptx import HOPPER, KERNEL, SCHEDULES, on_ptx, options_of  # noqa: E402
from ptx.cuda_report import student  # noqa: E402

NARROW, WIDE = (64, 2, 0, 1, True), (128, 2, 0, 1, True)
SIDES = {"tangents": directions_of, "gradients": directions_of, "cotangents": cotangents_of}
VALUES, DERIVATIVES = ("value_loss",), ("derivative_loss",)
BOTH = VALUES + DERIVATIVES
SMALL = Shape(19, 3, 20, 2, 3, 5, "directions in batches")
PIECES = Shape(35, 18, 20, 1, 9, 2, "two tiles, pieces of inputs and outputs")
TURNS = Shape(3, 19, 20, 1, 33, 2, "weights and pieces by turns")
BROAD = Shape(5, 3, 70, 2, 2, 2, "two layers of 128")
EMPTY = Shape(0, 3, 20, 1, 2, 2, "no sample")
LIMITS = {TURNS.why: 17_000}


def compare(shape, side, losses, name="cosine", precision="bf16", kind="sphere", *, asked=False, **settings):
    projections = SIDES[side](kind, shape)
    settings |= dict.fromkeys(losses, name) | {"outputs": side == "gradients"}
    numbers = data(shape, "tanh", last="tanh")
    return cuda_on_ptx.compare(
        numbers, asking(projections) if asked else projections, *settings.pop("targets", ()), precision=precision,
        limit=LIMITS.get(shape.why, HOPPER), **settings,
    )  # fmt: skip


CASES = [
    (SMALL, "tangents", BOTH, "cosine", "bf16", NARROW), (SMALL, "gradients", BOTH, "relative_mse", "bf16", NARROW),
    (SMALL, "cotangents", VALUES, "relative_mse", "tf32", NARROW),
    (SMALL, "gradients", VALUES, "cosine", "fp16", NARROW),
    (PIECES, "tangents", DERIVATIVES, "relative_mse", "ieee", NARROW),
    (PIECES, "gradients", DERIVATIVES, "cosine", "tf32", NARROW),
    (PIECES, "cotangents", BOTH, "cosine", "fp16", NARROW), (TURNS, "tangents", BOTH, "cosine", "bf16", NARROW),
    (TURNS, "cotangents", DERIVATIVES, "relative_mse", "bf16", NARROW),
    (BROAD, "tangents", BOTH, "relative_mse", "ieee", WIDE), (BROAD, "gradients", DERIVATIVES, "cosine", "ieee", WIDE),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "side", "losses", "name", "precision", "way"), CASES, ids=str)
def test_losses(shape, side, losses, name, precision, way):
    compare(shape, side, losses, name, precision, way=way)


def not_a_number(numbers):
    """Of the first sample all, of the others some."""
    y, jacobian = numbers.y.clone(), numbers.jacobian.clone()
    y[0], jacobian[0], y[1:, 1], jacobian[1:, 1] = (torch.nan,) * 4
    return sk.Targets(values=y, jacobian=jacobian)


ramp = torch.linspace(0.5, 2, SMALL.N)
some = torch.tensor([1.0, 0.0, 2.0]).repeat(SMALL.N, 1)
MODES = {
    "weights": {"sample_weight": ramp, "output_weight": torch.tensor([1.0, 2.0, 0.5]), "weights": (0.25, 3.0)},
    "a loss of each sample": {"reduction": "none", "sample_weight": ramp},
    "nothing of a sample counts": {
        "targets": (not_a_number,), "output_weight": some[0], "sample_weight": (ramp > 0.5).float(),
    },
    "weight 0 of NaN": {"targets": (lambda d: sk.Targets(values=d.y, jacobian=d.jacobian * torch.nan),),
                        "weights": (1.0, 0.0)},
    "given, without derivatives' weight": {"kind": "given", "weights": (1.0, 0.0), "asked": True},
    "given": {"kind": "given", "asked": True},
}  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, side):
    settings = dict(MODES[mode])
    if settings.get("asked"):
        if side == "gradients":
            pytest.skip("given vectors have no gradient there")
        settings["targets"] = (("values", "tangents" if side == "tangents" else "vjps"),)
    if side == "cotangents" and "output_weight" in settings:
        settings["kind"] = "basis"
    compare(SMALL, side, BOTH, **settings)


def test_weights_of_derivatives():
    """Along tangents and projected gradients of each output; of a whole Jacobian's rows of each entry."""
    for side in ("tangents", "gradients"):
        compare(SMALL, side, DERIVATIVES, derivative_weight=some)
    entries = (torch.arange(SMALL.N * SMALL.O * SMALL.D) % 5 > 1).float().reshape(SMALL.N, SMALL.O, SMALL.D)
    compare(SMALL, "cotangents", DERIVATIVES, kind="basis", derivative_weight=entries)


def test_no_sample():
    for side in SIDES:
        compare(EMPTY, side, BOTH)


@pytest.mark.parametrize("side", SIDES)
def test_schedules(side):
    """The bits of another schedule are those of the first, and none has a race."""
    expected, got = [compare(SMALL, side, BOTH, schedule=schedule).got for schedule in SCHEDULES[1:3]]
    assert all(torch.equal(got[name], expected[name]) for name in expected)


MEET = "finish_sums(Term term) const {\n    meet();"
BROKEN = {
    "sums of one warp": ("k < kParts; ++k) of +=", "k < 1; ++k) of +=", ""),
    "sums that nobody waits for": (MEET, MEET[:-7], "race"),
    "a weight that is forgotten": ("float(w * (rr", "float((rr", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources_are_found(name):
    right, wrong, kind = BROKEN[name]
    told = []
    ptx = compile_file(
        KERNEL, options=options_of("bf16", NARROW),
        change=lambda text: (told.append(right in text), text.replace(right, wrong))[1],
    )  # fmt: skip
    assert any(told)
    with pytest.raises(AssertionError, match=kind or None):
        compare(SMALL, "gradients", BOTH, output_weight=torch.tensor([1.0, 2.0, 0.5]), ptx=ptx)


def test_only_a_roomy_way_has_them():
    """And so a free choice goes by Triton, if it is there."""
    done = compare(SMALL, "tangents", VALUES)
    assert cuda.is_roomy(done.backend.layout)
    of = replace(student(64, "bf16"), value_loss=choose_loss("value_loss", "cosine"))
    with on_ptx(), patch.object(torch.cuda, "current_device", lambda: 0):
        with patch.object(triton, "supports", lambda problem: None):
            assert cuda.gives_way(of) and not cuda.gives_way(student(64, "bf16"))
        assert "cache" in cuda.plan(of, 64).path
    numbers = data(SMALL, "tanh")
    with on_ptx() as backend, pytest.raises(NotImplementedError, match="order 2"):
        targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=numbers.hessian)
        sk.sobolev_loss(numbers.student, numbers.x, targets, backend="cuda", order=2, derivative_loss="cosine")
    assert not backend.results

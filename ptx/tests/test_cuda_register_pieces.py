"""Up to 64 inputs and 16 outputs, in pieces, by the CUDA step in registers, as compiled PTX executed on the CPU."""

import pytest
import torch

from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.backends import cuda
from sobolev_kernels.testing.problems import Shape, asking, cotangents_of, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_on_ptx import SCHEDULES, compare_in_registers  # noqa: E402

NARROW, DEEP = (32, 4, 4, 1, True), (64, 2, 4, 1, True)
CASES = [
    (Shape(37, 17, 28, 2, 1, 3, "an input more than a piece"), "bf16", NARROW),
    (Shape(70, 33, 30, 1, 9, 5, "an output more than a piece"), "bf16", NARROW),
    (Shape(35, 64, 32, 2, 16, 2, "nothing to pad"), "ieee", NARROW),
    (Shape(35, 50, 28, 1, 12, 5, "two pieces of outputs"), "ieee", NARROW),
    (Shape(35, 20, 60, 3, 2, 4, "four warps share rows"), "tf32", DEEP),
    (Shape(20, 3, 28, 1, 12, 2, "few inputs, many outputs"), "bf16", NARROW),
]
SIDES = {"tangents": directions_of, "gradients": directions_of, "cotangents": cotangents_of}


def compare(shape, side, precision="bf16", kind="sphere", *arguments, **settings):
    projections = SIDES[side](kind, shape)
    if settings.pop("asked", False):
        projections = asking(projections)
    settings["outputs"] = side == "gradients"
    return compare_in_registers(data(shape, "tanh"), projections, *arguments, precision=precision, **settings)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("shape", "precision", "way"), CASES, ids=lambda of: getattr(of, "why", ""))
def test_shapes(shape, precision, way, side):
    compare(shape, side, precision, way=way, tile=16 * way[1])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["normal", "rademacher", "coordinate", "basis", "given"])
def test_directions(kind, side):
    shape = CASES[3][0]
    compare(shape, side, "bf16", kind)


@pytest.mark.parametrize("side", SIDES)
def test_losses_of_each_sample_and_gradients_of_given_vectors(side):
    shape = CASES[3][0]
    compare(shape, side, reduction="none")
    if side != "gradients":
        target = "tangents" if side == "tangents" else "vjps"
        assert "dgiven" in compare(shape, side, "bf16", "given", ("values", target), asked=True).got


@pytest.mark.parametrize("side", SIDES)
def test_schedules(side):
    """The bits of any schedule are those of the first, and none has a race."""
    expected, *others = [compare(CASES[3][0], side, "bf16", schedule=schedule).got for schedule in SCHEDULES]
    for got in others:
        assert all(torch.equal(got[name], expected[name]) for name in expected)

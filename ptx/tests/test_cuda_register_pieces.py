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

from ptx import cuda_on_ptx  # noqa: E402
from ptx.cuda_on_ptx import SCHEDULES  # noqa: E402

WAY = (64, 2, 4, 1, True)
PIECES = Shape(35, 34, 28, 2, 12, 5, "three pieces of inputs and two of outputs")
CASES = [
    (Shape(37, 17, 60, 3, 1, 3, "an input more than a piece"), "bf16"),
    (Shape(20, 3, 28, 1, 9, 2, "few inputs, an output more than a piece"), "bf16"),
    (Shape(33, 64, 64, 2, 16, 2, "nothing to pad"), "ieee"),
]
SIDES = {"tangents": directions_of, "gradients": directions_of, "cotangents": cotangents_of}


def compare(shape, side, precision="bf16", kind="sphere", *arguments, activation="tanh", asked=False, **settings):
    projections = SIDES[side](kind, shape)
    return cuda_on_ptx.compare(
        data(shape, activation, last=activation if asked else "identity", bias=settings.get("reduction") != "sum"),
        asking(projections) if asked else projections, *arguments, precision=precision, way=WAY,
        outputs=side == "gradients", **settings,
    )  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("shape", "precision"), CASES, ids=lambda of: getattr(of, "why", of))
def test_shapes(shape, precision, side):
    compare(shape, side, precision)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["normal", "coordinate", "given"])
def test_directions(kind, side):
    compare(PIECES, side, "bf16", kind)


ramp = torch.linspace(0.5, 2, PIECES.N)
MODES = {
    "a loss of each sample": {"reduction": "none", "derivative_loss": "log_cosh", "sample_weight": ramp},
    "sum, no bias, weights": {
        "reduction": "sum", "kind": "basis", "output_weight": torch.linspace(2, 1, PIECES.O), "weights": (0.25, 3.0),
    },
    "derivatives that are kept": {"activation": "gelu"},
}  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, side):
    compare(PIECES, side, **MODES[mode])


@pytest.mark.parametrize(("side", "target"), [("tangents", "tangents"), ("cotangents", "vjps")])
def test_gradients_of_given_vectors(side, target):
    assert "dgiven" in compare(PIECES, side, "bf16", "given", ("values", target), asked=True).got


@pytest.mark.parametrize("side", SIDES)
def test_schedules(side):
    """The bits of another schedule are those of the first, and none has a race."""
    expected, got = [compare(PIECES, side, schedule=schedule).got for schedule in SCHEDULES[1:3]]
    assert all(torch.equal(got[name], expected[name]) for name in expected)

"""Losses that couple all numbers of a sample, by the CUDA step in registers, as compiled PTX executed on the CPU."""

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.backends import cuda
from sobolev_kernels.testing.problems import Shape, asking, cotangents_of, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import cuda_on_ptx  # noqa: E402
from ptx.compile import compile_file  # noqa: E402
from ptx.cuda_on_ptx import HOPPER, KERNEL, SCHEDULES, on_ptx, options_of  # noqa: E402

NARROW, WIDE = (64, 2, 0, 1, True), (128, 2, 0, 1, True)
SIDES = {"tangents": directions_of, "gradients": directions_of, "cotangents": cotangents_of}
VALUES, DERIVATIVES = ("value_loss",), ("derivative_loss",)
BOTH = VALUES + DERIVATIVES
SMALL = Shape(19, 3, 20, 2, 3, 5, "directions in batches")
PIECES = Shape(35, 18, 20, 1, 9, 2, "two tiles, pieces of inputs and outputs")
TURNS = Shape(3, 19, 20, 1, 33, 2, "weights and pieces by turns")
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
    (SMALL, "tangents", BOTH, "cosine", "bf16"), (SMALL, "gradients", DERIVATIVES, "relative_mse", "bf16"),
    (SMALL, "cotangents", VALUES, "relative_mse", "bf16"), (PIECES, "tangents", DERIVATIVES, "relative_mse", "ieee"),
    (PIECES, "gradients", BOTH, "cosine", "tf32"), (PIECES, "cotangents", DERIVATIVES, "cosine", "fp16"),
    (TURNS, "tangents", BOTH, "relative_mse", "bf16"), (TURNS, "cotangents", BOTH, "cosine", "bf16"),
    (SMALL, "gradients", VALUES, "cosine", "ieee"), (SMALL, "cotangents", BOTH, "relative_mse", "tf32"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "side", "losses", "name", "precision"), CASES, ids=str)
def test_losses(shape, side, losses, name, precision):
    compare(shape, side, losses, name, precision, way=NARROW)

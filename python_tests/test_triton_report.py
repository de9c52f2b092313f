"""Bounds on what the Triton kernels take of a GPU, for the targets that ptxas knows here (docs/triton.md)."""

import pytest
from ptx.compile import missing

reason = missing("triton") or missing("cuobjdump") or missing("nvdisasm")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.report import LIMITS, one_launch, usage  # noqa: E402

from sobolev_kernels.backends.triton.launches import ONE_LAUNCH  # noqa: E402


@pytest.mark.parametrize("kind", [0, 6], ids=["drawn", "given"])
@pytest.mark.parametrize("row", ONE_LAUNCH, ids=lambda row: f"width {row.width}")
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_one_launch(target, row, kind):
    """No more than 64 bytes of stack: 32 of them are the local array of sin and cos, where directions are drawn."""
    used = usage("step_kernel", str(row), target, one_launch(row, target, kind))
    assert used.registers <= 255
    assert used.stack <= (64 if kind == 0 else 8)
    assert used.shared <= LIMITS[target]
    wide, _, every = used.wide.split()
    assert int(wide) > 0.6 * int(every)

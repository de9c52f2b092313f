"""Bounds on what the Triton kernels take of a GPU, for the targets that can be compiled for here (docs/triton.md)."""

import pytest
from ptx.compile import missing

reason = missing("triton") or missing("cuobjdump") or missing("nvdisasm")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.report import LIMITS, one_launch, rows_for, usage  # noqa: E402

CASES = [(target, row) for target in LIMITS if not target.startswith("gfx") for row in rows_for(target)]


@pytest.mark.parametrize("projection", ["drawn", "cotangents", "gradients"])
@pytest.mark.parametrize("target, row", CASES, ids=lambda value: getattr(value, "width", value))
def test_one_launch(target, row, projection):
    """In the row's first and last precision: no spill, no stack, tensor cores where promised, wide accesses."""
    for precision in sorted({row.precisions[0], row.precisions[-1]})[: 1 if projection == "gradients" else 2]:
        used = usage("step_kernel", str(row), target, one_launch(row, target, projection, precision))
        assert used.registers <= 255
        assert used.stack == used.spills == 0
        assert used.shared <= LIMITS[target]
        assert (used.tensor > 0) == (precision != "ieee")
        wide, _, every = used.wide.split()
        assert int(wide) > 0.6 * int(every)

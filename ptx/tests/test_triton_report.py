"""Bounds on what the Triton kernels take of a GPU, for the targets that can be compiled for here (docs/triton.md)."""

import subprocess
import sys
from pathlib import Path

import pytest

from ptx.compile import missing

reason = missing("triton") or missing("cuobjdump") or missing("nvdisasm")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.report import LIMITS, LINEAR, compiled_step, linear, rows_for, usage  # noqa: E402

CASES = [(target, row) for target in LIMITS if not target.startswith("gfx") for row in rows_for(target)]


PROJECTIONS = ("drawn", "given", "cotangents", "gradients", "asking")


@pytest.mark.parametrize("target, row", CASES, ids=lambda value: getattr(value, "label", value))
def test_one_launch(target, row):
    """In one precision of a row, from one side: no stack but what launches.py says, tensor cores, vectors."""
    index = CASES.index((target, row))
    precision = row.precisions[index % len(row.precisions)]
    projection = PROJECTIONS[(index + index // 5) % len(PROJECTIONS)]
    used = usage("step_kernel", row.label, target, compiled_step(row, target, projection, precision))
    assert used.registers <= 255
    assert used.stack <= row.most_stack + (16 if projection == "asking" else 0)
    assert used.shared <= LIMITS[target]
    assert (used.tensor > 0) == (precision != "ieee")
    wide, _, every = used.wide.split()
    assert int(wide) > 0.5 * int(every)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_layer_by_layer(target):
    """No stack but what ptxas takes to halve the registers, so that two programs are resident."""
    for name, order in LINEAR:
        used = usage(name, f"order {order}", target, linear(name, target, order))
        assert used.stack <= (8 if used.registers == 128 else 0), name
        assert used.shared <= LIMITS[target]


def test_one_launch_on_amd():
    """No spill to memory in any row, in float32 and in a precision that rounds; one of a register to another. In a
    process of its own, which an error in AMD's compiler may end."""
    precisions = {"ieee", "bf16"}
    command = [sys.executable, "-m", "ptx.report", "gfx942", "drawn", *precisions]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    steps = [row for row in rows if row[0] == "step_kernel"]
    assert len(steps) == sum(len(precisions & {*row.precisions}) for row in rows_for("gfx942"))
    for kernel, row, _, _, stack, spills, tensor, shared, _ in rows:
        assert stack == "0" and int(spills) <= 1, row
        assert int(tensor) > 0 or kernel != "step_kernel", row
        assert int(shared) <= LIMITS["gfx942"]

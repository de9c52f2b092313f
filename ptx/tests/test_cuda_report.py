"""Bounds on what the CUDA kernel takes of a GPU (docs/cuda.md)."""

import pytest

from ptx.compile import missing

reason = missing("nvcc") or missing("ptxas")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_report import PRECISIONS, TARGETS, WAYS, code, most_layers  # noqa: E402


@pytest.mark.parametrize(("precision", "taken"), [row for row in WAYS if row[1][0] > 32 and row[0] != "fp16"], ids=str)
def test_streams_in_registers(precision, taken):
    """As many blocks as its way says, and hardly a spill; the stack is that of sin and cos."""
    used = code(precision, taken, "sm_90")
    assert used.registers <= (128 if taken[-1] == 2 else 255) and used.spills <= 64 and used.stack <= 64
    assert used.finish <= 64  # four blocks of a multiprocessor: they wait for memory


@pytest.mark.parametrize("target", TARGETS)
def test_students_that_have_a_place(target):
    """Two hidden layers of 64 on every target; in 16 bits three of 128 where a block has 163 KiB."""
    for precision in PRECISIONS:
        assert most_layers(32, precision, target) >= 4 and most_layers(64, precision, target) >= 1
        half = precision in ("bf16", "fp16")
        assert most_layers(128, precision, target) >= (3 if half else 2) * (TARGETS[target] > 99)

"""Bounds on what the CUDA kernel takes of a GPU (docs/cuda.md)."""

import pytest

from ptx.compile import missing

reason = missing("nvcc") or missing("ptxas") or missing("nvdisasm")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_report import PRECISIONS, TARGETS, WAYS, WIDTHS, blocks, code, in_registers, way  # noqa: E402


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_code(target, precision):
    """No spill: the 32 bytes of stack are the local array of sin and cos of arguments above 10^5."""
    used = code(precision, target)
    assert used.spills == 0 and used.stack <= 32
    assert used.registers <= (255 if precision == "ieee" else 128)
    assert max(used.pack, used.finish) <= 64  # four blocks of a multiprocessor: they wait for memory
    # product and outer product: four fragments of 8 columns each
    assert used.tensor == {"ieee": 0, "tf32": 16, "bf16": 8, "fp16": 8}[precision]
    assert (used.matrices > 0) == (precision != "ieee") and used.wide > 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_width_has_a_place(target, width):
    """Three hidden layers of up to 128 fit on every target."""
    for precision in PRECISIONS:
        chosen = way(width, precision, target)
        assert chosen["shared"] <= TARGETS[target][0] << 10
        assert blocks(128, chosen["shared"], target) >= 1
        assert chosen["parameters"] or width > 32


@pytest.mark.parametrize(("precision", "taken"), [row for row in WAYS if row[1][0] > 32 and row[0] != "fp16"], ids=str)
def test_streams_in_registers(precision, taken):
    """As many blocks as its way says, and hardly a spill; the stack is that of sin and cos."""
    registers, stack, spills = in_registers(precision, taken, "sm_90")
    assert registers <= (128 if taken[-1] == 2 else 255) and spills <= 64 and stack <= 64

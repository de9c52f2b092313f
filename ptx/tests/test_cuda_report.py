"""Bounds on what the CUDA kernel takes of a GPU (docs/cuda.md)."""

import pytest

from ptx.compile import missing

reason = missing("nvcc") or missing("ptxas")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_report import PRECISIONS, ROOMY, SECOND, TARGETS, WAYS, code, most_layers  # noqa: E402

# fp16 is as bf16; of pieces one precision is enough, and of roomy ways those whose registers are full, or have been
COMPILED = [
    (name, way) for name, way in WAYS if way[0] > 32 and way[2] and name != "fp16" and (len(way) == 4 or name == "bf16")
]
COMPILED += [("ieee", SECOND[1])]
COMPILED = [(*of, "sm_90") for of in COMPILED] + [("ieee", ROOMY[1], "sm_80")]  # which spills most


@pytest.mark.parametrize(("precision", "taken", "target"), COMPILED, ids=str)
def test_streams_in_registers(precision, taken, target):
    """As many blocks as its way says, and hardly a spill; the stack is that of sin and cos."""
    used = code(precision, taken, target)
    assert used.registers <= (128 if taken[3] == 2 else 255) and used.spills <= 64 and used.stack <= 64
    assert used.finish <= 64  # four blocks of a multiprocessor: they wait for memory


FIT = {99: ((2, 1, 1), (3, 3, 1)), 163: ((3, 3, 2), (5, 5, 2)), 227: ((5, 4, 3), (5, 5, 3))}  # by KiB of a block


@pytest.mark.parametrize("target", TARGETS)
def test_hidden_layers_that_fit(target):
    """Of 32, 64 and 128 features, in 32 bits and in 16."""
    for precision in PRECISIONS:
        wanted = FIT[TARGETS[target]][precision in ("bf16", "fp16")]
        assert tuple(most_layers(width, precision, target) for width in (32, 64, 128)) == wanted

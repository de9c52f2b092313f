"""Named derivatives by the Triton kernels as compiled PTX, executed on the CPU; and what they take of a GPU."""

from contextlib import ExitStack

import pytest

from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.math.activations import ACTIVATIONS
from sobolev_kernels.math.table import choose
from sobolev_kernels.testing.named import PLANS, Named, agree

reason = missing() or missing_tool("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import triton_on_ptx  # noqa: E402
from sobolev_kernels.backends.triton import jets  # noqa: E402

SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]
TARGETS = ["sm_80", "sm_90", "sm_100"]
IDENTITY, TANH, GELU = (choose(ACTIVATIONS, "activation", name) for name in ("identity", "tanh", "gelu"))


@pytest.fixture
def on_ptx():
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(triton_on_ptx.on_ptx(*args, **named))
        jets.kept_by.cache_clear()


# Each target that the machine knows, schedule and precision is some plan's.
CASES = [
    ("Burgers", "sm_80", "tf32", "round_robin"),
    ("Kuramoto-Sivashinsky", "sm_90", "bf16", "ahead"),
    ("biharmonic", "sm_80", "ieee", "reverse"),
    ("Navier-Stokes", "sm_90", "tf32", "random:1"),
]


@pytest.mark.parametrize("plan, target, precision, schedule", CASES)
def test_plans(on_ptx, plan, target, precision, schedule):
    """Of sizes that nothing divides, with a part of a tile; no race, nothing out of bounds, right numbers."""
    results = on_ptx(schedule, target=target)
    agree(Named(*PLANS[plan], (18, 7), (TANH, GELU, IDENTITY), 37), "triton", precision)
    launched = [r for r in results if r.kernel.startswith("jets_")]
    assert len(launched) == 3 + 2
    assert all((r.count("mma.") + r.count("wgmma.") > 0) == (precision != "ieee") for r in launched)

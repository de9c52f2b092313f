"""Gradients for cotangents by the CUDA step whose streams live in registers, as compiled PTX executed on the CPU."""

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.backends import cuda
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, targets_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_on_ptx import HOPPER, SCHEDULES, compare_in_registers  # noqa: E402

WIDE = Shape(45, 7, 60, 2, 3, 5, "four warps share rows and cotangents, of two batches")
WAYS = [
    (Shape(141, 8, 64, 3, 8, 3, "each warp has rows of its own"), 128, (64, 8, 2, 1), "bf16"),
    (Shape(70, 16, 128, 3, 1, 2, "the widest, one output"), 32, (128, 2, 2, 1), "fp16"),
    (Shape(45, 5, 60, 4, 8, 5, "deep, float32"), 32, (64, 2, 4, 1), "ieee"),
    (Shape(20, 16, 128, 3, 3, 2, "the widest of float32"), 16, (128, 1, 2, 1), "ieee"),
    (Shape(20, 7, 128, 2, 8, 5, "the widest of TF32"), 16, (128, 1, 2, 1), "tf32"),
    (Shape(70, 3, 20, 1, 3, 3, "narrow, two warps share rows"), 64, (32, 4, 4, 1), "tf32"),
    (Shape(1, 1, 1, 1, 1, 1, "the smallest there is"), 64, (32, 4, 4, 1), "tf32"),
    (Shape(0, 3, 5, 1, 2, 2, "no sample"), 64, (32, 4, 4, 1), "tf32"),
]


@pytest.mark.parametrize(("shape", "tile", "way", "precision"), WAYS, ids=lambda of: getattr(of, "why", ""))
def test_ways_of_a_block(shape, tile, way, precision):
    limit = 300 << 10 if tile == 128 else HOPPER
    numbers, cotangents = data(shape, "tanh"), cotangents_of("sphere", shape)
    compare_in_registers(numbers, cotangents, tile=tile, way=way, precision=precision, limit=limit)


@pytest.mark.parametrize("kind", ["normal", "sphere", "rademacher", "coordinate", "basis", "given"])
def test_cotangents(kind):
    """Drawn inside the kernel, also where warps that share rows share them; a dense target and one pulled back."""
    numbers, cotangents = data(WIDE, "sigmoid", last="tanh"), cotangents_of(kind, WIDE)
    for precision in ("bf16", "ieee"):
        compare_in_registers(numbers, cotangents, precision=precision)
        if kind != "basis":
            compare_in_registers(numbers, cotangents, ("values", "vjps"), precision=precision)


some = (torch.arange(WIDE.N * WIDE.O * WIDE.D) % 5 > 1).float().reshape(WIDE.N, WIDE.O, WIDE.D)
ramp = torch.linspace(0.5, 2, WIDE.N), torch.linspace(2, 1, WIDE.O)
nan_jacobian = lambda d: sk.Targets(values=d.y, jacobian=d.jacobian * torch.nan)  # noqa: E731
MODES = {
    "sum, no bias": ("normal", None, {"reduction": "sum"}),
    "weights": ("sphere", None, {"sample_weight": ramp[0], "weights": (0.25, 3.0), "derivative_loss": "huber"}),
    "weights of outputs": ("basis", None, {"output_weight": ramp[1], "derivative_loss": "l1"}),
    "weight 0 of NaN": ("normal", nan_jacobian, {"weights": (1.0, 0.0), "derivative_loss": "l1"}),
    "no values": ("normal", lambda d: targets_of(d, ["jacobian"]), {"weights": (0.0, 1.0)}),
    "two of the inputs": ("sphere", lambda d: targets_of(d, ["values", "jacobian"], wrt=[2, 0]), {"wrt": [2, 0]}),
    "missing entries": ("basis", None, {"derivative_weight": 1.5 * some, "derivative_loss": "log_cosh"}),
    "half precision's sizes": ("normal", None, {"weights": (1e-6, 1e-5), "sample_weight": ramp[0] * 1e-3}),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    kind, targets, settings = MODES[mode]
    numbers = data(WIDE, "tanh", bias=mode != "sum, no bias")
    for precision in PRECISIONS:
        compare_in_registers(numbers, cotangents_of(kind, WIDE), targets, precision=precision, **settings)


@pytest.mark.parametrize(("shape", "precision"), [(WIDE, "bf16"), (WIDE, "ieee"), (WAYS[3][0], "ieee")], ids=str)
def test_schedules(shape, precision):
    """The bits of any schedule are those of the first, and none has a race."""
    numbers, cotangents = data(shape, "tanh"), cotangents_of("sphere", shape)
    expected, *others = [
        compare_in_registers(numbers, cotangents, schedule=schedule, precision=precision).got for schedule in SCHEDULES
    ]
    for got in others:
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_numbers_that_lie_apart():
    numbers = data(WIDE, "tanh")
    numbers.jacobian = numbers.jacobian.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    given = cotangents_of("given", WIDE).values
    cotangents = sk.Cotangents.given(torch.stack([given, given], -1)[..., 0])
    for precision in ("bf16", "ieee"):
        compare_in_registers(numbers, cotangents, precision=precision)


def test_bytes_and_banks():
    """Each input is read once and each output written once, however many cotangents there are."""
    for P, precision in ((1, "bf16"), (5, "ieee")):
        shape = Shape(640, 4, 20, 1, 2, P, "of many samples, the weights are little")
        done = compare_in_registers(data(shape, "tanh"), cotangents_of("given", shape), precision=precision)
        result, problem = done.backend.results["step"], done.backend.problem
        parameters = 4 * 2 * (problem.multiplies + 22)
        moved = result.unique_bytes_read + result.unique_bytes_written - 2 * done.backend.layout["slot"]
        assert abs(moved - (problem.bytes(shape.N) - parameters)) < 0.05 * problem.bytes(shape.N)
        assert sum(line.bank_conflicts for line in result.lines) < 0.02 * sum(line.passes for line in result.lines)

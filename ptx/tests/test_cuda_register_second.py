"""Losses of order 2 by the CUDA step, as compiled PTX executed on the CPU."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.backends import cuda, triton
from sobolev_kernels.enums import DENSE
from sobolev_kernels.testing.problems import KINKED, SMALL, Shape, asking, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx import cuda_on_ptx  # noqa: E402
from ptx.cuda_on_ptx import HOPPER, SCHEDULES, on_ptx  # noqa: E402
from ptx.cuda_report import student  # noqa: E402

NARROW, WIDE = (64, 2, 0, 1, True, 2), (128, 2, 0, 1, True, 2)
DENSE_TARGETS, PROJECTED = ("values", "jacobian", "hessian"), ("values", "tangents", "seconds")
FEW = Shape(3, 4, 10, 2, 2, 2, "few samples")
DEEP = Shape(35, 5, 20, 5, 3, 3, "five layers, two tiles, weights by turns")
TURNS = Shape(3, 65, 20, 1, 17, 2, "65 inputs, 17 outputs, all by turns")
LIMITS = {DEEP.why: 50_000, TURNS.why: 34_000}  # bytes of a block; of 16 bits half as many


def compare(shape, precision="ieee", activation="tanh", way=NARROW, kind="sphere", targets=DENSE_TARGETS, **settings):
    directions = directions_of(kind, shape)
    if settings.pop("asked", False):
        directions = asking(directions)
    numbers = data(shape, activation, bias=settings.pop("bias", True), last=settings.pop("last", "identity"))
    limit = LIMITS.get(shape.why, HOPPER) // (2 if precision in ("bf16", "fp16") else 1)
    return cuda_on_ptx.compare(
        numbers, directions, targets, order=2, precision=precision, way=way, limit=limit, **settings
    )


@pytest.mark.parametrize("activation", [name for name in sk.ACTIVATIONS if name not in (*KINKED, "identity")])
def test_every_activation(activation):
    """Of hidden layers and of the last one, in float32, whose rule sees every formula."""
    compare(FEW, activation=activation, last=activation)


SHAPES = [
    (DEEP, "gelu", "ieee", NARROW, "rademacher"),
    (TURNS, "silu", "ieee", NARROW, "sphere"),
    (TURNS, "tanh", "fp16", NARROW, "given"),
    (DEEP, "tanh", "bf16", NARROW, "normal"),
    (Shape(5, 18, 100, 2, 9, 3, "wide, in pieces"), "mish", "tf32", WIDE, "coordinate"),
    (Shape(0, 2, 5, 1, 1, 1, "no sample"), "tanh", "ieee", NARROW, "sphere"),
]


@pytest.mark.parametrize(
    ("shape", "activation", "precision", "way", "kind"), SHAPES, ids=lambda of: getattr(of, "why", "")
)
def test_shapes(shape, activation, precision, way, kind):
    compare(shape, precision, activation, way, kind, last=activation)


FOR_SAMPLES = {"sample_weight": torch.linspace(0.5, 2, FEW.N)}
MODES = {
    "given, their gradients": {"kind": "given", "targets": PROJECTED, "asked": True},
    "projected": {"targets": PROJECTED},
    "the diagonal": {"kind": "basis"},
    "a loss of each sample": {"reduction": "none", **FOR_SAMPLES},
    "sums": {"reduction": "sum", **FOR_SAMPLES},
    "weights of outputs": {"output_weight": torch.tensor([0.25, 0.0]), "value_loss": "huber", "derivative_loss": "l1"},
    "some inputs": {"derivative_weight": torch.eye(FEW.N, FEW.D) < 0.5},
    "no first derivatives": {"targets": ("values", "hessian"), "weights": (1.0, 0.0, 2.0)},
    "no second derivatives": {"targets": ("values", "jacobian"), "weights": (1.0, 2.0, 0.0)},
    "no values": {"weights": (0.0, 1.0, 0.5)},
    "values alone": {"weights": (1.0, 0.0, 0.0), "kind": "given", "targets": PROJECTED, "asked": True},
    "no biases": {"bias": False, "shape": DEEP},
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    settings = {"shape": FEW, **MODES[mode]}
    compare(settings.pop("shape"), **settings)


def test_schedules():
    """The bits of another schedule are those of the first, and none has a race."""
    expected, got = [compare(TURNS, schedule=schedule, kind="given").got for schedule in SCHEDULES[1:3]]
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_bytes():
    """Those of more samples, without what a block has in its slot, however many there are."""
    moved, counted = [], []
    for N in (64, 192):
        shape = Shape(N, 4, 20, 1, 2, 2, "")
        done = compare(shape, kind="given", targets=DENSE_TARGETS)
        result = done.backend.results["step"]
        assert sum(line.bank_conflicts for line in result.lines) == 0
        moved.append(result.unique_bytes_read + result.unique_bytes_written)
        counted.append(done.backend.problem.bytes(N))
    more = counted[1] - counted[0]
    assert abs(moved[1] - moved[0] - more) < 0.05 * more


def second_student(*of):
    return replace(student(*of), order=2, second_target=DENSE)


@pytest.mark.parametrize("limit", [99, 163, 227])
def test_room_is_for_any(limit):
    """On all GPUs that there are, in the way of order 2, of which the last layout's room is not less."""
    for precision in ("ieee", "bf16"):
        for hidden, width in ((1, 64), (3, 128), (300, 128)):
            layout = cuda.layout(second_student(width, precision, hidden), "tangents", limit << 10)
            assert layout["way"] == (WIDE if width == 128 else NARROW)


def test_what_is_said_of_it():
    """A free choice goes by Triton where it is, and the path says where arrays are."""
    with on_ptx(), patch.object(torch.cuda, "current_device", lambda: 0):
        of = second_student(64, "bf16", 3)
        assert cuda.refusal(of, 0) is None and "cache" in cuda.plan(of, 64).path
        with patch.object(triton, "supports", lambda problem: None):
            assert cuda.gives_way(of)
        numbers = data(SMALL, "tanh")
        targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=numbers.hessian)
        asked = {"order": 2, "backend": "cuda", "directions": directions_of("sphere", SMALL)}
        assert "one launch, arrays in the second-level cache" in sk.explain(numbers.student, numbers.x, **asked)
        with pytest.raises(NotImplementedError, match="couples"):
            sk.sobolev_loss(numbers.student, numbers.x, targets, derivative_loss="cosine", **asked)

"""The CUDA step whose streams live in registers, as compiled PTX executed on the CPU."""

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels import planner
from sobolev_kernels.backends import cuda
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing.problems import SMALL, Shape, asking, cotangents_of, data, directions_of, targets_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_on_ptx import HOPPER, SCHEDULES, compare  # noqa: E402
from ptx.cuda_report import student  # noqa: E402

WAYS = [
    (Shape(141, 8, 64, 3, 1, 4, "two tiles of 128"), 128, (64, 8, 2, 1)),
    (Shape(141, 8, 60, 4, 8, 3, "tiles of 64, deep"), 64, (64, 4, 4, 1)),
    (Shape(70, 8, 64, 2, 2, 4, "two blocks of a multiprocessor"), 32, (64, 2, 2, 2)),
    (Shape(70, 8, 64, 4, 8, 4, "one block, deep"), 32, (64, 2, 4, 1)),
    (Shape(70, 16, 128, 3, 1, 5, "the widest"), 32, (128, 2, 2, 1)),
    (Shape(141, 3, 20, 3, 3, 2, "narrow"), 128, (32, 8, 4, 1)),
]
WIDEST = (128, 1, 2, 1)  # of float32: all warps share the samples
FLOAT_WAYS = [
    (Shape(70, 8, 64, 3, 1, 4, "three tiles of 32"), 32, (64, 2, 4, 1)),
    (Shape(45, 5, 60, 4, 8, 2, "deep"), 32, (64, 2, 4, 1)),
    (Shape(141, 3, 20, 3, 3, 2, "narrow, three tiles of 64"), 64, (32, 4, 4, 1)),
    (Shape(37, 16, 128, 3, 1, 5, "the widest, three tiles of 16"), 16, WIDEST),
]
FLOATS = ("ieee", "tf32")
PIECES = (Shape(20, 34, 60, 3, 9, 2, "three pieces of inputs and two of outputs"), 32, (64, 2, 4, 1, True))


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize(("shape", "tile", "way"), WAYS, ids=lambda of: of.why if isinstance(of, Shape) else "")
def test_every_way_of_a_block(shape, tile, way, outputs):
    limit = 300 << 10 if tile == 128 and not outputs else HOPPER
    compare(data(shape, "tanh"), directions_of("sphere", shape), tile=tile, way=way, outputs=outputs, limit=limit)


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize(("shape", "tile", "way"), FLOAT_WAYS, ids=lambda of: of.why if isinstance(of, Shape) else "")
def test_every_way_of_a_block_of_float32(shape, tile, way, outputs, precision):
    numbers, directions = data(shape, "tanh"), directions_of("sphere", shape)
    compare(numbers, directions, tile=tile, way=way, outputs=outputs, precision=precision)


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("depth", [1, 2])
def test_widest_of_float32_where_shared_memory_is_less(depth, precision):
    """Of 163 KiB two layers of 128 fit, three go by a roomy way."""
    shape = Shape(20, 7, 120, depth, 3, 2, "padded")
    for outputs in (False, True):
        numbers, directions = data(shape, "tanh"), directions_of("normal", shape)
        compare(numbers, directions, way=WIDEST, limit=163 << 10, outputs=outputs, precision=precision)
    problem = student(128, precision)
    assert cuda.layout(problem, planner.side(problem), HOPPER)["way"][:4] == WIDEST
    assert cuda.is_roomy(cuda.layout(problem, planner.side(problem), 163 << 10))


# Their row of `CURVES` does not hold for these parameters
NO_CURVES = [("leaky_relu", -0.5), ("elu", -0.5), ("softplus", 2.0, 1.0)]


SIDES = ["tangents", "gradients", "cotangents"]
ACTIVATIONS = [*sk.ACTIVATIONS, *NO_CURVES]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation, side):
    """Those whose derivatives are functions of the value, and those whose derivatives are kept beside it: each side in
    another precision."""
    made = cotangents_of if side == "cotangents" else directions_of
    precision = PRECISIONS[(ACTIVATIONS.index(activation) + SIDES.index(side)) % len(PRECISIONS)]
    compare(
        data(SMALL, activation, last=activation), made("normal", SMALL), outputs=side == "gradients",
        precision=precision,
    )  # fmt: skip


KEPT_WAYS = [
    ("gelu", Shape(70, 8, 64, 3, 1, 3, ""), 64, (64, 4, 4, 1), "bf16"),
    ("mish", Shape(40, 8, 64, 2, 2, 1, ""), 32, (64, 2, 2, 2), "fp16"),
    (("sin", 5.0), Shape(40, 5, 30, 2, 1, 2, ""), 64, (32, 4, 4, 1), "fp16"),
    ("silu", Shape(40, 8, 50, 3, 1, 2, ""), 32, (64, 2, 4, 1), "ieee"),
]


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize(("activation", "shape", "tile", "way", "precision"), KEPT_WAYS, ids=str)
def test_derivatives_that_are_kept(activation, shape, tile, way, precision, outputs):
    """Of each layer, also of one between others that have none."""
    for mixed in (False, True):
        numbers = data(shape, activation)
        if mixed:
            numbers.student[1] = torch.nn.Sigmoid()
        kind = directions_of("sphere", shape)
        compare(numbers, kind, tile=tile, way=way, outputs=outputs, precision=precision)


ZERO = -0.7517916  # of the slope of gelu


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_curvatures_where_slopes_are_0(precision, outputs):
    """They are kept over the slopes."""
    numbers = data(SMALL, "gelu")
    numbers.student[0].bias.data.fill_(ZERO)
    numbers.x[::2] = 0.0
    compare(numbers, directions_of("sphere", SMALL), outputs=outputs, precision=precision)


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("kind", ["normal", "sphere", "rademacher", "coordinate", "basis", "given"])
def test_directions(kind, outputs):
    """Drawn inside the kernel, also where warps that share rows share directions."""
    compare(data(WIDE, "tanh"), directions_of(kind, WIDE), outputs=outputs)
    for precision in ("bf16", "tf32"):
        compare(data(SMALL, "tanh"), directions_of(kind, SMALL), outputs=outputs, precision=precision)


THREE = Shape(20, 5, 120, 3, 2, 3, "two tiles of 16 that eight warps share")
WIDE = Shape(45, 7, 60, 2, 3, 5, "four warps share rows")
SHAPES = [
    Shape(0, 3, 5, 1, 2, 2, "empty batch"),
    Shape(1, 1, 1, 1, 1, 1, "the smallest there is"),
    Shape(129, 16, 32, 5, 8, 2, "a sample more than a tile; nothing to pad"),
    Shape(37, 3, 100, 2, 2, 9, "odd"),
]


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, outputs):
    compare(data(shape, "tanh"), directions_of("sphere", shape), outputs=outputs)


some = (torch.arange(WIDE.N * WIDE.O * WIDE.D) % 5 > 1).float().reshape(WIDE.N, WIDE.O, WIDE.D)
ramp = torch.linspace(0.5, 2, WIDE.N), torch.linspace(2, 1, WIDE.O)
nan_jacobian = lambda d: sk.Targets(values=d.y, jacobian=d.jacobian * torch.nan)  # noqa: E731
MODES = {
    "sum, no bias": ("normal", None, {"reduction": "sum"}),
    "weights": ("sphere", None, {"sample_weight": ramp[0], "output_weight": ramp[1], "weights": (0.25, 3.0)}),
    "weight 0 of NaN": ("normal", nan_jacobian, {"weights": (1.0, 0.0), "derivative_loss": "l1"}),
    "no values": ("normal", lambda d: targets_of(d, ["jacobian"]), {"weights": (0.0, 1.0)}),
    "tangents": ("rademacher", lambda d: targets_of(d, ["values", "tangents"], WIDE.P), {"value_loss": "huber"}),
    "two of the inputs": ("sphere", lambda d: targets_of(d, ["values", "jacobian"], wrt=[2, 0]), {"wrt": [2, 0]}),
    "missing entries": ("basis", None, {"derivative_weight": 1.5 * some, "derivative_loss": "log_cosh"}),
    "half precision's sizes": ("normal", None, {"weights": (1e-6, 1e-5), "sample_weight": ramp[0] * 1e-3}),
}


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, outputs):
    kind, targets, settings = MODES[mode]
    numbers = data(WIDE, "tanh", bias=mode != "sum, no bias")
    for precision in PRECISIONS:
        compare(numbers, directions_of(kind, WIDE), targets, outputs=outputs, precision=precision, **settings)


EACH = {
    "sum of both terms": ("normal", None, {"sample_weight": ramp[0], "weights": (0.25, 3.0)}),
    "weight 0 of NaN": ("sphere", nan_jacobian, {"weights": (1.0, 0.0)}),
    "no derivatives": (None, lambda d: targets_of(d, ["values"]), {"value_loss": "huber", "weights": (1.0, 0.0)}),
    "no values": ("basis", lambda d: targets_of(d, ["jacobian"]), {"weights": (0.0, 1.0)}),
}


@pytest.mark.parametrize("side", ["tangents", "gradients", "cotangents"])
@pytest.mark.parametrize("mode", EACH)
def test_losses_of_each_sample(mode, side):
    """Written by the step itself, with their terms; the backward is a step with a weight of each."""
    kind, targets, settings = EACH[mode]
    made = cotangents_of if side == "cotangents" else directions_of
    for shape, precision in ((WIDE, "bf16"), (SMALL, "ieee"), (SMALL, "tf32"), (THREE, "ieee")):
        projections = kind and made(kind, shape)
        some = {**settings, "sample_weight": ramp[0][: shape.N]} if "sample_weight" in settings else settings
        compare(
            data(shape, "tanh"), projections, targets, precision=precision, outputs=side == "gradients",
            reduction="none", **some,
        )  # fmt: skip


@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize(("made", "kind"), [(directions_of, "tangents"), (cotangents_of, "vjps")])
def test_gradients_of_given_directions(made, kind, weights):
    """Of a projected target, also by a weight of 0."""
    for shape, precision in ((WIDE, "bf16"), (WIDE, "tf32"), (SMALL, "ieee"), (THREE, "tf32"), (THREE, "ieee")):
        done = compare(
            data(shape, "tanh", last="tanh"), asking(made("given", shape)), ("values", kind), precision=precision,
            weights=weights, sample_weight=ramp[0][: shape.N],
        )  # fmt: skip
        assert "dgiven" in done.got


def test_numbers_that_lie_apart():
    numbers = data(WIDE, "tanh")
    numbers.x = torch.stack([numbers.x, numbers.x], 2)[:, :, 0]
    numbers.jacobian = numbers.jacobian.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for parameter in numbers.student.parameters():
        parameter.data = torch.stack([parameter.data, parameter.data], -1)[..., 0]
    for outputs in (False, True):
        for precision in ("bf16", "ieee"):
            compare(numbers, directions_of("given", WIDE), outputs=outputs, precision=precision)


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize(
    ("shape", "tile", "precision", "activation"),
    [(WAYS[0][0], 128, "bf16", "tanh"), (WIDE, 32, "bf16", "tanh"), (WIDE, 32, "ieee", "tanh"),
     (THREE, 16, "tf32", "tanh"), (SMALL, 64, "bf16", "gelu"), (SMALL, 64, "ieee", "gelu")],
    ids=["by itself", "shared", "float32", "the widest of float32", "kept", "float32, kept"],
)  # fmt: skip
def test_schedules(shape, tile, precision, activation, outputs):
    """The bits of any schedule are those of the first, and none has a race; from outputs two are enough."""
    limit = 300 << 10 if tile == 128 else HOPPER
    expected, *others = [
        compare(data(shape, activation), directions_of("sphere", shape), tile=tile, schedule=schedule,
                  outputs=outputs, limit=limit, precision=precision).got
        for schedule in (SCHEDULES[1:3] if outputs else SCHEDULES)
    ]  # fmt: skip
    for got in others:
        assert all(torch.equal(got[name], expected[name]) for name in expected)


PRODUCTS = ("halves.cuh", "floats.cuh", "half_products.cuh", "float_products.cuh", "outer.cuh")


@pytest.mark.parametrize("outputs", [False, True])
def test_products_have_no_bank_conflicts(outputs):
    """Every other way from either side: of what a product reads and writes the side says nothing."""
    ways = [(*taken, "bf16") for taken in WAYS[1:]] + [(*taken, "ieee") for taken in FLOAT_WAYS]
    ways += [(*PIECES, "bf16"), (*PIECES, "ieee")]
    for shape, tile, way, precision in ways[outputs::2]:
        numbers, directions = data(shape, "tanh"), directions_of("sphere", shape)
        done = compare(numbers, directions, tile=tile, way=way, outputs=outputs, precision=precision)
        lines = done.backend.results["step"].lines
        products = [line for line in lines if any(file in str(line.location) for file in PRODUCTS)]
        assert sum(line.passes for line in products) > 0.3 * sum(line.passes for line in lines)
        assert sum(line.bank_conflicts for line in products) == 0
        few = 0.07 if True in way else 0.05  # directions of several pieces are read again for each output
        assert sum(line.bank_conflicts for line in lines) < few * sum(line.passes for line in lines)


@pytest.mark.parametrize("outputs", [False, True])
def test_bytes(outputs):
    """Each input is read once and each output written once, however many directions there are."""
    for D, O, P, precision in ((4, 2, 1, "bf16"), (4, 2, 5, "tf32"), (36, 9, 1, "bf16")):
        shape = Shape(640, D, 20, 1, O, P, "of many samples, the weights are little")
        numbers, directions = data(shape, "tanh"), directions_of("given", shape)
        done = compare(numbers, directions, precision=precision, outputs=outputs)
        result, problem = done.backend.results["step"], done.backend.problem
        parameters = 4 * 2 * (problem.multiplies + sum(problem.widths[1:]))
        state = 2 * done.backend.layout["slot"]
        moved = result.unique_bytes_read + result.unique_bytes_written - state
        assert abs(moved - (problem.bytes(shape.N) - parameters)) < 0.05 * problem.bytes(shape.N)


@pytest.mark.parametrize("outputs", [False, True])
def test_bytes_of_the_widest_of_float32(outputs):
    """The same of more samples, without what a block has in its slot, however many there are."""
    moved, counted = [], []
    for N in (160, 480):
        shape = Shape(N, 4, 68, 1, 2, 2, "")
        done = compare(data(shape, "tanh"), directions_of("given", shape), precision="ieee", outputs=outputs)
        result = done.backend.results["step"]
        moved.append(result.unique_bytes_read + result.unique_bytes_written)
        counted.append(done.backend.problem.bytes(N))
    more = counted[1] - counted[0]
    assert abs(moved[1] - moved[0] - more) < 0.05 * more

"""The CUDA kernel as compiled PTX, executed on the CPU: right in every precision, no race, nothing out of bounds."""

from dataclasses import replace
from itertools import cycle
from unittest.mock import patch

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import compile_file
from ptx.compile import missing as missing_tool
from ptx.mutate import programs_without_barriers, waits
from sobolev_kernels import call
from sobolev_kernels.backends import cuda
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing.compare import computed_from, step
from sobolev_kernels.testing.problems import (
    RANDOM,
    SMALL,
    Shape,
    asking,
    cotangents_of,
    data,
    directions_of,
    targets_of,
)

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_on_ptx import KERNELS, LIMIT, NAMES, SCHEDULES, compare, on_ptx  # noqa: E402

LOSSES = ["mse", "l1", "huber", "log_cosh"]
DRAWN = [*(kind for kind in RANDOM if kind != "orthonormal"), "basis", "given"]

# "outputs": directions that project the outputs' gradients
SIDES = {"directions": directions_of, "cotangents": cotangents_of, "outputs": directions_of}


def compared(side, numbers, kind, shape, *args, **settings):
    projections = SIDES[side](kind, shape, **{k: settings.pop(k) for k in ("P",) if k in settings})
    return compare(numbers, projections, *args, outputs=side == "outputs", **settings)


SHAPES = [
    Shape(0, 3, 5, 1, 2, 2, "empty batch"),
    Shape(1, 1, 20, 1, 1, 1, "the smallest tile; width padded by 12"),
    Shape(37, 3, 18, 2, 2, 2, "the last tile of 5 samples; nothing a power of two"),
    Shape(64, 16, 16, 2, 16, 1, "nothing to pad"),
    Shape(70, 2, 20, 0, 3, 2, "one linear layer, no hidden one"),
    Shape(17, 33, 20, 1, 21, 3, "more than 16 inputs and outputs"),
    Shape(20, 3, 50, 6, 1, 9, "deep; more directions than inputs"),
    Shape(18, 3, 128, 2, 1, 3, "the widest; weights and gradients not on chip"),
    Shape(2, 190, 20, 1, 20, 2, "operators: many inputs and outputs"),
]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_activations(activation, side):
    loss = LOSSES[list(sk.ACTIVATIONS).index(activation) % 4]
    compared(side, data(SMALL, activation, last=activation), "normal", SMALL, derivative_loss=loss)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", DRAWN)
def test_directions(kind, side):
    """Drawn inside the kernel: as given ones would be, which the CPU drew."""
    compared(side, data(SMALL, "tanh"), kind, SMALL)


@pytest.mark.parametrize(("precision", "shape"), [(p, s) for p in PRECISIONS for s in SHAPES], ids=str)
def test_shapes(precision, shape):
    side = list(SIDES)[(SHAPES.index(shape) + PRECISIONS.index(precision)) % 3]
    compared(side, data(shape, "silu"), "sphere", shape, precision)


@pytest.mark.parametrize(("loss", "precision"), [*zip(LOSSES, PRECISIONS, strict=True)])
def test_losses(loss, precision):
    """In every precision; the derivative's are in test_activations too."""
    numbers = data(SMALL, "softplus", last="tanh")
    for side in SIDES:
        compared(side, numbers, "sphere", SMALL, precision, value_loss=loss, derivative_loss=loss)


def strided(numbers):
    numbers.x = torch.stack([numbers.x, numbers.x], 2).transpose(0, 1).contiguous().transpose(0, 1)[:, :, 0]
    numbers.jacobian = numbers.jacobian.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for parameter in numbers.student.parameters():
        parameter.data = torch.stack([parameter.data, parameter.data], -1)[..., 0]
    assert not numbers.x.is_contiguous() and not numbers.jacobian.is_contiguous()
    return numbers


def nan_jacobian(numbers):
    return sk.Targets(values=numbers.y, jacobian=numbers.jacobian * torch.nan)


SOME = (torch.arange(SMALL.N * SMALL.O * SMALL.D) % 5 > 1).float().reshape(SMALL.N, SMALL.O, SMALL.D)


def missing_labels(numbers, known=SOME):
    """NaN, where the first of three samples, the first output and `known` say so."""
    counts = ((torch.arange(SMALL.N) % 3 > 0)[:, None] & torch.tensor([False, True]))[..., None]
    jacobian = torch.where(counts & (known != 0), numbers.jacobian, torch.nan)
    return sk.Targets(values=torch.where(counts[..., 0], numbers.y, torch.nan), jacobian=jacobian)


MISSING = {"sample_weight": (torch.arange(SMALL.N) % 3).float(), "output_weight": torch.tensor([0.0, 1.5])}
ramp = torch.linspace(0.5, 2, SMALL.N), torch.linspace(2, 1, SMALL.O)
MODES = {
    "sum": ("normal", None, {"reduction": "sum"}),
    "for each sample": ("normal", None, {"reduction": "none"}),
    "weights": ("sphere", None, {"sample_weight": ramp[0], "output_weight": ramp[1], "weights": (0.25, 3.0)}),
    "weight 0 of NaN": ("normal", nan_jacobian, {"weights": (1.0, 0.0), "derivative_loss": "l1"}),
    "no values": ("normal", lambda d: targets_of(d, ["jacobian"]), {"weights": (0.0, 1.0)}),
    "tangents": ("rademacher", lambda d: targets_of(d, ["values", "tangents"], 3), {}),
    "two of three inputs": ("sphere", lambda d: targets_of(d, ["values", "jacobian"], wrt=[2, 0]), {"wrt": [2, 0]}),
    "missing labels": (
        "sphere",
        lambda d: missing_labels(d, SOME[..., :1]),
        {**MISSING, "derivative_weight": 2 * SOME[..., 0]},
    ),
    "half precision's sizes": ("normal", None, {"weights": (1e-6, 1e-5), "sample_weight": ramp[0] * 1e-3}),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    kind, targets, settings = MODES[mode]
    for precision, side in (("ieee", "directions"), ("fp16", "directions"), ("ieee", "outputs"), ("fp16", "outputs")):
        numbers = strided(data(SMALL, "tanh", bias=mode != "sum"))
        compared(side, numbers, kind, SMALL, precision, targets, **settings)


@pytest.mark.parametrize("side", SIDES)
def test_strides_of_0(side):
    """Numbers that torch expands; and weights of samples and outputs of which every second number is meant."""
    numbers = data(SMALL, "tanh")
    for parameter in numbers.student.parameters():
        parameter.data = parameter.data[..., :1].expand_as(parameter.data)
    numbers.x, numbers.y = numbers.x[:, :1].expand_as(numbers.x), numbers.y[:1].expand_as(numbers.y)
    numbers.jacobian = numbers.jacobian[:1].expand_as(numbers.jacobian)
    wide = [torch.stack([weight, weight * torch.nan], -1)[..., 0] for weight in ramp]
    compared(
        side, numbers, "given" if side == "directions" else "basis", SMALL, sample_weight=wide[0], output_weight=wide[1]
    )


def test_modes_of_cotangents():
    numbers = data(SMALL, "gelu", last="sigmoid")
    vjps = lambda d: targets_of(d, ["values", "vjps"], 3)  # noqa: E731
    compare(numbers, cotangents_of("given", SMALL), targets=vjps, reduction="none")
    compare(numbers, sk.Cotangents.basis(), output_weight=ramp[1], sample_weight=ramp[0], weights=(0.5, 2.0))
    compare(numbers, sk.Cotangents.basis(), targets=nan_jacobian, weights=(1.0, 0.0))
    shared = sk.Directions.sphere(3, seed=5, shared=True)
    compare(numbers, shared)


@pytest.mark.parametrize("outputs", [False, True])
def test_missing_entries(outputs):
    """Each with a weight of its own, and a Jacobian of NaN where it is 0."""
    numbers = data(SMALL, "tanh")
    for projections in (sk.Directions.basis(), sk.Cotangents.basis()):
        compare(numbers, projections, "ieee", missing_labels, outputs=outputs, derivative_weight=1.5 * SOME, **MISSING)
    columns = SOME[:, 0] != 0
    known = lambda d: missing_labels(d, columns[:, None])  # noqa: E731
    compare(
        numbers, directions_of("sphere", SMALL), "ieee", known, outputs=outputs, derivative_weight=columns, **MISSING
    )


ASKING = {  # shape, activation, whether all samples share the vectors, settings
    "one, two tiles": (Shape(70, 3, 20, 1, 2, 1, "a tile of 64 and a part"), "tanh", False, {}),
    "four, some columns": (Shape(17, 33, 20, 3, 21, 4, "padded"), "silu", False, {"wrt": [30, 2], "reduction": "none"}),
    "shared, x does not ask": (Shape(9, 4, 18, 2, 1, 2, "one output"), "gelu", True, {"input_gradient": False}),
    "no weight, one layer": (Shape(5, 2, 8, 0, 3, 2, "all 0"), "softplus", False, {"weights": (1.0, 0.0)}),
}


@pytest.mark.parametrize("case", ASKING)
@pytest.mark.parametrize("side", ["directions", "cotangents"])
def test_gradients_of_given_vectors(side, case):
    """In every precision."""
    shape, activation, shared, settings = ASKING[case]
    vectors = SIDES[side]("given", shape)
    values = vectors.values[:, 0] if shared else vectors.values
    if side == "directions" and "wrt" in settings:
        values = values[..., : len(settings["wrt"])]
    given, targets = asking(type(vectors).given(values)), ("values", "tangents" if side == "directions" else "vjps")
    for precision in PRECISIONS:
        done = compare(data(shape, activation, last="tanh"), given, precision, targets, **settings)
        assert done.got["dgiven"].any() == ("weights" not in settings)


def test_layers_may_differ():
    torch.manual_seed(0)
    numbers = data(SMALL, "tanh")
    numbers.student = torch.nn.Sequential(
        torch.nn.Linear(3, 40), torch.nn.SiLU(), torch.nn.Linear(40, 7, bias=False), torch.nn.Sigmoid(),
        torch.nn.Linear(7, 17), torch.nn.Tanh(), torch.nn.Linear(17, 2),
    )  # fmt: skip
    for side in SIDES:
        compared(side, numbers, "sphere", SMALL, "tf32")


# What a block's shared memory leaves on chip: tile, weights, gradients, the target's Jacobian
@pytest.mark.parametrize(
    ("limit", "way"),
    {
        200 << 10: (64, True, True, True), 160 << 10: (32, True, True, True), 95 << 10: (32, True, False, False),
        65 << 10: (32, False, False, False), 60 << 10: (16, False, False, True),
    }.items(),
    ids=str,
)  # fmt: skip
def test_every_way_of_a_block(limit, way):
    shape = Shape(41, 9, 40, 2, 3, 3, "more than a tile of any size")
    for precision in ("ieee", "bf16"):
        done = compare(data(shape, "tanh"), directions_of("sphere", shape), precision, on={"limit": limit})
        if precision == "ieee":
            chosen = done.backend.layout
            assert tuple(chosen[key] for key in ("samples", "parameters", "gradients", "jacobian")) == way


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_schedules(precision, side):
    """Three tiles for two blocks; the bits of any schedule are those of the first."""
    shape = Shape(77, 3, 40, 2, 2, 2, "three tiles of 32, the last of 13")
    limit = {"bf16": 90 << 10}.get(precision, LIMIT)
    expected, *others = [
        compared(side, data(shape, "tanh"), "sphere", shape, precision, on={"limit": limit, "schedule": schedule}).got
        for schedule in SCHEDULES
    ]
    for got in others:
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_what_many_blocks_have_left():
    """Of 19 of them a warp of finish_step sums two or three."""
    shape = Shape(20 * 64 - 3, 2, 16, 1, 1, 1, "20 tiles")
    done = compare(data(shape, "tanh"), directions_of("sphere", shape), on={"blocks": 19})
    assert list(done.backend.results) == ["pack", "step", "finish"]


REFUSED = {
    "order 2": {"order": 2},
    "depend on each other": {"directions": sk.Directions.orthonormal(2, seed=1)},
    "couples": {"derivative_loss": "cosine"},
    "directions that require grad, which a dense": {"directions": asking(directions_of("given", SMALL))},
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_words(words):
    numbers = data(SMALL, "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=numbers.hessian)
    if words != "order 2":
        targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    with on_ptx(), pytest.raises(NotImplementedError, match=words):
        sk.sobolev_loss(numbers.student, numbers.x, targets, backend="cuda", **REFUSED[words])


def test_a_student_that_does_not_fit_is_refused_with_both_sizes():
    shape = Shape(4, 3, 300, 4, 2, 1, "wide and deep")
    numbers = data(shape, "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    with on_ptx(), pytest.raises(NotImplementedError, match=r"take \d+ bytes of shared memory, a block has 166912"):
        sk.sobolev_loss(numbers.student, numbers.x, targets, backend="cuda")


def test_without_a_gpu_the_backend_refuses():
    with on_ptx() as backend:
        numbers = data(SMALL, "tanh")
        sk.sobolev_loss(
            numbers.student, numbers.x, sk.Targets(values=numbers.y, jacobian=numbers.jacobian), backend="cuda"
        )
    assert "on cpu, not on an NVIDIA GPU" in cuda.supports(backend.problem)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("P", [1, 5])
def test_bytes(P, side):
    """Each input is read once and each output written once, however many directions there are."""
    shape = Shape(640, 4, 16, 1, 2, P, "of many samples, the weights are little")
    done = compared(side, data(shape, "tanh"), "given", shape, on={"limit": LIMIT}, P=P)
    result, problem = done.backend.results["step"], done.backend.problem
    parameters = 4 * 2 * (problem.multiplies + 18)
    state = done.backend.layout["packed"] + 2 * done.backend.layout["slot"]
    moved = result.unique_bytes_read + result.unique_bytes_written - state
    assert abs(moved - (problem.bytes(shape.N) - parameters)) < 0.05 * problem.bytes(shape.N)
    # nothing is asked for twice, but the target's Jacobian by each cotangent, and directions by each output
    if side == "directions":
        assert result.bytes_read < 1.1 * result.unique_bytes_read


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_have_no_bank_conflicts(precision):
    for width, side in zip((16, 32, 50, 128), cycle(SIDES)):
        shape = Shape(16, 3, width, 2, 2, 1, "one tile")
        done = compared(side, data(shape, "tanh"), "sphere", shape, precision)
        lines = done.backend.results["step"].lines
        products = [line for line in lines if "tile.cuh" in str(line.location)]
        assert sum(line.passes for line in products) > 0
        assert sum(line.bank_conflicts for line in products) == 0
        assert sum(line.bank_conflicts for line in lines) < 0.01 * sum(line.passes for line in lines)


@pytest.mark.parametrize("settings", [{}, {"reduction": "none"}, {"sample_weight": ramp[0], "weights": (0.5, 0.0)}])
def test_a_call_like_one_before(settings):
    """By the step that is kept, its backward too: the same bits, at other addresses."""
    numbers, projections = data(SMALL, "tanh"), directions_of("sphere", SMALL)
    with on_ptx():
        first = step(numbers, projections, "cuda", **settings)
        numbers.x, numbers.y = numbers.x.clone(), numbers.y.clone()
        with patch.object(call, "prepare", side_effect=AssertionError("the long way")):
            second = step(numbers, projections, "cuda", **settings)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_whole_graphs():
    """torch.compile(fullgraph=True), through the choice of a backend too."""
    numbers = data(SMALL, "tanh")
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    v = directions_of("sphere", SMALL).tensor(numbers.x)

    def loss(x):
        return sk.sobolev_loss(numbers.student, x, targets, directions=sk.Directions.given(v), backend="cuda")

    with on_ptx():
        torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(numbers.x), loss(numbers.x))


def test_a_loss_for_each_sample_is_refused_if_its_backward_does_not_fit():
    numbers, v = data(replace(SMALL, H=32, depth=2), "tanh"), directions_of("sphere", SMALL)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    options = {"directions": v, "backend": "cuda", "precision": "bf16", "reduction": "none"}
    with on_ptx(limit=20 << 10), pytest.raises(NotImplementedError, match="of shared memory"):
        sk.sobolev_loss(numbers.student, numbers.x, targets, **options)


# ---- Broken on purpose ----

MUTANT = Shape(18, 17, 18, 2, 18, 2, "two tiles of 16 for one block, the last of 2; rows of more than four chunks")
SHALLOW = replace(MUTANT, depth=1)  # operands take turns, and end with the other one
# Of the second the tile is 32, and the weights are on chip
WITH_THEIRS = ", asking"  # for their gradient
STEPS = (
    (MUTANT, "directions", "sphere", 40 << 10, False), (MUTANT, "directions", "given", LIMIT, True),
    (MUTANT, "cotangents", "sphere", 40 << 10, True), (SHALLOW, "outputs", "sphere", 40 << 10, False),
    (MUTANT, "directions", "given" + WITH_THEIRS, LIMIT, True),
)  # fmt: skip


def for_mutants(precision="bf16", change=lambda source: source) -> str:
    """A kernel that only knows tanh and mse, which is decoded faster."""
    rows = {"SK_ACTIVATIONS(SK_CASE)": "SK_CASE(4, ActTanh)", "SK_LOSSES(SK_CASE)": "SK_CASE(0, LossMse)"}

    def changed(source):
        for every, one in rows.items():
            source = source.replace(every, one)
        return change(source)

    return compile_file(KERNELS, options=(f"-DSK_PRECISION={NAMES[precision]}",), change=changed)


def run_mutant(ptx, shape, side, kind, limit, input_gradient, precision="bf16"):
    """Findings, and the numbers, of a step with other kernels."""
    numbers = data(shape, "tanh", last="tanh")
    x = numbers.x.clone().requires_grad_(input_gradient)
    numbers.student.zero_grad(set_to_none=True)
    vectors = SIDES[side](kind.removesuffix(WITH_THEIRS), shape)
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    if kind.endswith(WITH_THEIRS):
        v = vectors.values.clone().requires_grad_()
        tangents = torch.einsum("nod,pnd->pno", numbers.jacobian, v.detach())
        vectors, targets = sk.Directions.given(v), sk.Targets(values=numbers.y, tangents=tangents)
    projections = {"cotangents" if side == "cotangents" else "directions": vectors}
    from_outputs = computed_from("gradients" if side == "outputs" else "tangents")
    with from_outputs, on_ptx(findings="return", ptx=ptx, blocks=1, limit=limit) as backend:
        loss = sk.sobolev_loss(
            numbers.student, x, targets, precision=precision, backend="cuda", reduction="sum", **projections
        )
        loss.backward()
    return backend.kinds, [loss.detach(), *(p.grad for p in numbers.student.parameters())]


@pytest.mark.long
def test_every_deleted_barrier_and_wait_is_found():
    """Each barrier of the step deleted in turn, and the wait for the weights shortened: found by one of five steps."""
    original = for_mutants()
    found = lambda ptx: any(run_mutant(ptx, *step)[0] for step in STEPS)  # noqa: E731
    assert not found(original)
    broken = [*programs_without_barriers(original), *waits(original)]
    assert len(broken) > 20
    assert [name for name, ptx in broken if not found(ptx)] == []


BROKEN = {
    "the fragments of B swapped": ("b[0] = B{{r.x, r.y}}", "b[0] = B{{r.y, r.x}}", None),
    "rows of A by the wrong lanes": ("at(row, lane % 16, k / 8", "at(row, lane / 2, k / 8", None),
    "the tail of a tile not masked": ("return first + row < step.N;", "return true;", "out of bounds"),
    "a column too many": ("column + i < step.D ?", "column + i <= step.D ?", "out of bounds"),
    "q not cleared": ("four(q, row, column) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);", "", "uninitialised"),
    "gradients not cleared": ("gradients()[i] = 0.0f;", "gradients();", "uninitialised"),
    "two lanes for one gradient": ("column / 8) * 32 + lane;", "column / 8) * 32 + lane / 2;", "race"),
    "a slot too many": ("block < a.blocks; block += kWarps", "block <= a.blocks; block += kWarps", "out of bounds"),
    # where an operand is made in place of floats
    "a product where z̄ is read": ("__syncthreads();  // the next product goes where z̄ was", "{}", "race"),
    "a product where ḣ is read": ("__syncthreads();  // the next product goes where `below` was", "{}", "race"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources_are_found(name):
    right, wrong, kind = BROKEN[name]
    precision = "tf32" if "a product" in name else "bf16"
    original = for_mutants(precision)
    broken = for_mutants(precision, lambda source: source.replace(right, wrong))
    assert broken != original
    pairs = [[run_mutant(ptx, *step, precision) for ptx in (broken, original)] for step in STEPS[1:]]
    if kind:
        assert any(kind in found for (kinds, _), _ in pairs for found in kinds)
    else:
        numbers = [pair for (_, got), (_, expected) in pairs for pair in zip(got, expected, strict=True)]
        assert any((got - expected).abs().max() > 0.1 * expected.abs().max() for got, expected in numbers)

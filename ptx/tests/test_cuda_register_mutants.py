"""The CUDA step in registers, broken on purpose: what does not find it does not check."""

from functools import cache
from typing import NamedTuple

import pytest
import torch

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels.backends import cuda
from sobolev_kernels.math.coarse import COARSE
from sobolev_kernels.testing.compare import computed_from
from sobolev_kernels.testing.problems import SMALL, Shape, cotangents_of, data, directions_of

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.compile import compile_file  # noqa: E402
from ptx.cuda_on_ptx import KERNEL, compare, on_ptx, options_of  # noqa: E402
from ptx.mutate import programs_without_barriers  # noqa: E402

SHARED, OWN = ("tf32", (32, 4, 4, 1)), ("bf16", (64, 8, 2, 1))  # rows of two warps, of one
ROOMY = ("bf16", (64, 2, 0, 1, True))  # weights and pieces by turns
SECOND = ("bf16", (64, 2, 0, 1, True, 2))


ROOM = 17_000  # bytes of a block, for weights and pieces by turns


class Step(NamedTuple):
    side: str
    kind: str
    activation: str = "tanh"
    depth: int = 2
    gradients: bool = True
    derivatives: bool = True
    each: bool = False  # a loss of each sample


STEPS = (
    Step("tangents", "given"), Step("gradients", "sphere"), Step("tangents", "given", "sigmoid"),
    Step("gradients", "sphere", "sigmoid"), Step("tangents", "given", depth=1, gradients=False),
    Step("gradients", "given", depth=1), Step("gradients", "given", depth=1, gradients=False, derivatives=False),
    Step("gradients", "given", depth=1, gradients=False, each=True),
    Step("cotangents", "given", depth=1, gradients=False), Step("cotangents", "given"),
    Step("tangents", "given", "silu"), Step("gradients", "given", "silu", depth=1),
)  # fmt: skip


def source(precision, way, change=lambda text: text) -> str:
    """A kernel that knows three activations and mse, which is decoded faster."""
    rows = {
        "SK_ACTIVATIONS(SK_CASE)": "SK_CASE(4, ActTanh) SK_CASE(5, ActSigmoid) SK_CASE(7, ActSilu)",
        "SK_LOSSES(SK_CASE)": "SK_CASE(0, LossMse)",
    }

    def changed(text):
        for every, some in rows.items():
            text = text.replace(every, some)
        return change(text)

    return compile_file(KERNEL, options=options_of(precision, way), change=changed)


@cache
def run(ptx, precision, way, step: Step):
    """Findings, and the numbers, of two tiles of one block."""
    tile, roomy, order = 16 * way[1], way[2] == 0, 2 if way == SECOND[1] else 1
    shape = Shape(tile + 3, *((18, 30, 3, 9, 2) if roomy else (5, way[0] - 2, step.depth, 2, 5)), "")
    numbers = data(shape, step.activation, last="tanh")
    parameters = list(numbers.student.parameters())
    for parameter in parameters:
        parameter.requires_grad_(step.gradients)
    x = numbers.x.clone().requires_grad_(step.gradients)
    targets, settings = sk.Targets(values=numbers.y), {"weights": (1.0, 0.0)}
    if step.derivatives:
        hessian = numbers.hessian if order == 2 else None
        targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian, hessian=hessian)
        directions = {"directions": directions_of(step.kind, shape)}
        settings = {"cotangents": cotangents_of(step.kind, shape)} if step.side == "cotangents" else directions
    settings |= {"reduction": "none" if step.each else "mean", "order": order}
    side = computed_from("gradients" if step.side == "gradients" else "tangents")
    with side, on_ptx(findings="return", ptx=ptx, blocks=1, limit=ROOM if roomy else 300 << 10, tile=tile) as backend:
        loss = sk.sobolev_loss(numbers.student, x, targets, precision=precision, backend="cuda", **settings)
        if step.gradients:
            loss.backward()
    assert backend.layout["way"][: len(way)] == way
    grads = [leaf.grad for leaf in (x, *parameters)] if step.gradients else []
    return backend.kinds, [loss.detach(), *grads]


@pytest.mark.long
@pytest.mark.parametrize("of", [SHARED, OWN], ids=["shared rows", "own rows"])
def test_every_deleted_barrier_is_found(of):
    """Each barrier deleted in turn: found by one of the steps. The lanes of a warp that has its rows for itself hand
    nothing on but in registers, so that nothing tells the barriers of a warp there."""
    original = source(*of)
    found = lambda ptx: any(run(ptx, *of, step)[0] for step in STEPS)  # noqa: E731
    assert not found(original)
    broken = programs_without_barriers(original)
    known = {name: found(ptx) for name, ptx in broken if of is SHARED or "warp.sync" not in name}
    assert len(known) > (15 if of is SHARED else 5)
    assert [name for name, is_found in known.items() if not is_found] == []


BROKEN = {
    "rows of an operand swapped": ("uint32_t*>(rows(i, 0))", "uint32_t*>(rows(1 - i, 0))", None),
    "a row of weights too far": ("row_pairs(at + H * 4, b[1])", "row_pairs(at + 2 * H * 4, b[1])", None),
    "the tail of a tile not masked": ("return row_of(half) < step().N;", "return true;", "out of bounds"),
    "a column too many": ("column + i < step().D", "column + i <= step().D", "out of bounds"),
    "sums of biases not cleared": ("bias_sums(1)[i] = 0.0f;", "bias_sums(1);", "uninitialised"),
    "a slot too many": ("block < a.blocks; block += kWarps", "block <= a.blocks; block += kWarps", "out of bounds"),
    "q read before it is owed": ("if (owed) load_q", "load_q", "uninitialised"),
    "one place for all warps of a row": ("return own_at(warp());", "return own_at(group() * kParts);", "race"),
    "cotangents of other rows": ("cotangent_at(p, e / 2 % 2,", "cotangent_at(p, 0,", None),
    "slopes and curvatures in one place": ("l + which * hidden(), j", "l, j", None),
    "slopes of all layers in one place": ("l + which * hidden(), j", "1 + which * hidden(), j", None),
    "curvatures that are not over slopes": ("typename To::Real(second) / typename To::Real(of[0][i])", "second", None),
    "slopes that are not kept": ("if (keep) {", "if (false) {", "uninitialised"),
    "one place for all cotangents": ("kParts + p % own().batch))", "kParts))", "race"),
}  # fmt: skip


WITHOUT_ROOM = {
    "one place for all pieces": ("return of + f * (kRows", "return of + 0 * (kRows", None),
    "weights that come too early": ("__syncthreads();\n        bring<kBet", "bring<kBet", "race"),
    "pieces that come too early": ("__syncthreads();\n          // of outputs", "// of outputs", "race"),
}
OF_ORDER_2 = {
    "half of what seconds owe the firsts": ("2.0f * curved * a2", "curved * a2", None),
    "one place for both streams": ("store_in_slot(array + i * own().apart,", "store_in_slot(array,", None),
    "operands that are read are overwritten": ("meet();\n#pragma unroll\n    for (int j", "for (int j", "race"),
}  # fmt: skip
WAYS_BROKEN = [
    (way, *of)
    for way, broken in ((SHARED, BROKEN), (ROOMY, WITHOUT_ROOM), (SECOND, OF_ORDER_2))
    for of in broken.items()
]


@pytest.mark.parametrize(("way", "name", "change"), WAYS_BROKEN, ids=lambda of: of if isinstance(of, str) else "")
def test_broken_sources_are_found(way, name, change):
    right, wrong, kind = change
    original = source(*way)
    broken = source(*way, lambda text: text.replace(right, wrong))
    assert broken != original
    for step in STEPS[:1] if way is SECOND else (*STEPS[:2], *STEPS[-3:]):
        (kinds, got), (_, expected) = run(broken, *way, step), run(original, *way, step)
        if kind:
            found = any(kind in finding for finding in kinds)
        else:
            pairs = zip(got, expected, strict=True)
            found = any((a - b).abs().max() > 0.1 * b.abs().max() or torch.isnan(a).any() for a, b in pairs)
        if found:
            return
    raise AssertionError(f"{name}: not found")


def test_float32_stands_sums_that_are_cut():
    """Tensor cores do not round what they add to a sum, but cut it: with the last bit of every sum cut off, float32 as
    three products of TF32 is still within the rule."""
    way, shape = (32, 4, 4, 1), Shape(300, 8, 32, 3, 2, 3, "five tiles of 64 for one block")
    right = "mma_tf32(c, four, b[0], b[1]);"
    cut = f"{right} for (float& sum : c) sum = __uint_as_float(__float_as_uint(sum) & ~1u);"
    ptx = compile_file(KERNEL, options=options_of("ieee", way), change=lambda text: text.replace(right, cut))
    for outputs in (False, True):
        numbers, directions = data(shape, "tanh"), directions_of("sphere", shape)
        rounded, found = [
            compare(numbers, directions, precision="ieee", outputs=outputs, tile=16 * way[1], blocks=1, ptx=text).worst
            for text in (None, ptx)
        ]
        assert 2 * rounded < found < 0.6


@pytest.mark.parametrize("outputs", [False, True])
def test_halves_stand_what_is_coarse(outputs):
    """With the error of each row of COARSE put into every such number, up or down by its last bit, fp16, whose values
    are rounded less than those of bf16, is still within the rule."""
    numbers = {"tanh_approx(sum(c, j, i))": "tanh", "__expf(x.x)": "exp", "__fdividef(a.x, b.x)": "quotient"}
    erring = (
        "SK_INLINE float erring(float x, float by) { return __float_as_uint(x) & 1u ? x + by * x : x - by * x; }\n\n"
    )

    def change(text):
        for number, row in numbers.items():
            text = text.replace(number, f"erring({number}, {COARSE[row]}f)")
        return text.replace("struct Coarse {", f"{erring}struct Coarse {{")

    way = (32, 4, 4, 1)
    ptx = compile_file(KERNEL, options=options_of("fp16", way), change=change)
    for activation in ("tanh", "softplus", "silu", "mish"):
        given = data(SMALL, activation), directions_of("sphere", SMALL)
        on = {"precision": "fp16", "outputs": outputs, "tile": 16 * way[1], "way": way}
        exact, found = [compare(*given, ptx=text, **on).got for text in (None, ptx)]
        assert not all(torch.equal(found[name], exact[name]) for name in exact)

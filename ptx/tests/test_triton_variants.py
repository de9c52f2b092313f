"""What Triton makes of the arguments of the backend's kernels, without a GPU: which variants, and which integers.

A training loop compiles each kernel once: what changes from step to step is no part of what is compiled. The variants
are those of Triton's own JIT.
"""

import re

import pytest
import torch

import sobolev_kernels as sk
from ptx.compile import missing
from sobolev_kernels.testing.compare import computed_from, layer_by_layer
from sobolev_kernels.testing.problems import Shape, data

reason = missing("triton")
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.compile import variant  # noqa: E402
from ptx.triton_on_ptx import layerwise, one_launch, recorded  # noqa: E402
from sobolev_kernels.backends.triton import launches  # noqa: E402

SHAPE = Shape(64, 3, 18, 2, 2, 2, "a batch that 16 divides, of rows that it does not")
PATHS = ("on chip", "in cache", "layer by layer", "torch's multiply")
# What a loop does: batches of one size, a last one that is smaller, batches that are views, and of other strides.
JET = "a jet"
BATCHES = [slice(0, 32)] * 20 + [slice(32, 49), slice(32, 33), slice(1, 33), slice(2, 18), slice(0, 64, 2)]
PROJECTIONS = {
    "drawn": ("tangents", lambda batch: {"directions": sk.Directions.sphere(2)}),
    "by gradients": ("gradients", lambda batch: {"directions": sk.Directions.sphere(2)}),
    "cotangents": ("tangents", lambda batch: {"cotangents": sk.Cotangents.normal(2)}),
    "given": ("tangents", lambda batch: {"directions": sk.Directions.given(GIVEN[:, batch])}),
    "given cotangents": ("tangents", lambda batch: {"cotangents": sk.Cotangents.given(GIVEN[:1, batch, 1:])}),
    "one cotangent": ("tangents", lambda batch: {"cotangents": sk.Cotangents.given(ONE[:, batch])}),
    "order 2": ("tangents", lambda batch: {"directions": sk.Directions.sphere(2), "order": 2}),
    JET: ("tangents", None),
}
GIVEN = torch.randn(2, SHAPE.N, SHAPE.D)
ONE = torch.randn(1, SHAPE.N, SHAPE.O)  # a batch of it is contiguous
WEIGHTS = torch.rand(SHAPE.N)


def launched(batches, projection: str, **more) -> list:
    """The variant of each launch of steps on these batches of the same data."""
    numbers = data(SHAPE, "tanh")
    hessian = torch.zeros(SHAPE.N, SHAPE.O, SHAPE.D, SHAPE.D)
    side, settings = PROJECTIONS[projection]
    with recorded() as kept, computed_from(side):
        for batch in batches:
            if projection == JET:
                jet = sk.jet(numbers.student, numbers.x[batch], GIVEN[:, batch], backend="triton")
                sum(t.sum() for t in jet).backward()
                continue
            second = {"hessian": hessian[batch]} if projection == "order 2" else {}
            targets = sk.Targets(values=numbers.y[batch], jacobian=numbers.jacobian[batch], **second)
            options = settings(batch) | {"sample_weight": WEIGHTS[batch], "backend": "triton", **more}
            sk.sobolev_loss(numbers.student, numbers.x[batch], targets, **options)
    return [variant(*launch) for launch in kept]


def keys(*arguments) -> list[tuple[str, str]]:
    return [(v.kernel.fn.__name__, v.key) for v in launched(*arguments)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_loop_compiles_in_its_first_step_alone(path, projection, monkeypatch):
    if path == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    if path in PATHS[2:]:
        layer_by_layer(monkeypatch)
        monkeypatch.setattr(layerwise, "fuses", lambda problem: path == "layer by layer")
    first, every = keys(BATCHES[:1], projection), keys(BATCHES, projection)
    assert len(every) == len(BATCHES) * len(first)
    assert set(every) == set(first)
    if path in PATHS[:2] and projection not in ("order 2", JET):
        assert len(set(every)) == 3


def test_what_is_compiled_does_depend_on_the_problem():
    """Or the test above would count nothing."""
    kinds = [set(keys(BATCHES[:1], projection)) for projection in ("drawn", "given", "cotangents")]
    assert len({key for key in set.union(*kinds) if key[0] == "step_kernel"}) == 3


@pytest.mark.parametrize("projection", ["drawn", "by gradients", "cotangents"])
def test_inputs_and_outputs_that_are_padded_differently_compile(projection, monkeypatch):
    """In triton 3.6.0 a name has one type before a loop and in it."""
    monkeypatch.setitem(globals(), "SHAPE", Shape(64, 20, 20, 2, 1, 2, "16 outputs as they are padded, 32 inputs"))
    each = launched(BATCHES[:1], projection)
    assert len(each) == 3 and all(v.compiled(assembled=False).text for v in each)


MADE = re.compile(r"(%\w+)(?::\d+)? = (\S+) ([^:]*) : (.*)")


def widened_products(text: str) -> list[str]:
    """The lines of Triton's IR that make 64 bits of a product of two sizes, which 32 bits may be too few for."""
    made = {line[1]: line for line in MADE.finditer(text)}

    def has_product(name: str) -> bool:
        operation, operands = (made[name][2], re.findall(r"%\w+", made[name][3])) if name in made else ("", [])
        if operation == "arith.muli":
            return not any(made.get(o, ("",) * 3)[2] == "arith.constant" for o in operands)
        return operation in ("arith.addi", "tt.splat", "tt.broadcast", "tt.expand_dims") and any(
            map(has_product, operands)
        )

    return [line[0] for line in made.values() if line[2] == "arith.extsi" and has_product(line[3].split()[0])]


def narrow_products(text: str) -> list[str]:
    """The lines that multiply two sizes, or a size and a place, in 32 bits: also where nothing widens the product, as
    that of a loop's end."""
    products = re.findall(r"%\w+ = arith.muli (%\w+), (%\w+) : (?:tensor<[^>]*i32>|i32)", text)
    return [f"{a} * {b}" for a, b in products if not (a.startswith("%c") or b.startswith("%c"))]


@pytest.mark.parametrize("projection", ["drawn", "cotangents", "order 2", JET])
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_streams_of_more_than_2_31_numbers_have_their_places(projection, loss, monkeypatch):
    """Layer by layer a stack [S, N, n] is the longest array there is: what is multiplied has 64 bits before."""
    layer_by_layer(monkeypatch)
    monkeypatch.setattr(layerwise, "fuses", lambda problem: False)
    each = {v.key: v for v in launched(BATCHES[:1], projection, derivative_loss=loss)}
    assert len(each) > 3
    for v in each.values():
        text = v.compiled().source
        assert not widened_products(text) and not narrow_products(text), v.kernel.fn.__name__


def test_a_widened_product_is_seen():
    text = "%a = arith.muli %N, %n : i32\n%b = arith.addi %a, %i : i32\n%c = arith.extsi %b : i32 to i64\n"
    assert len(widened_products(text)) == 1
    assert not widened_products(text.replace("arith.muli %N, %n", "arith.addi %N, %n"))
    assert narrow_products(text) == ["%N * %n"]
    assert not narrow_products(text.replace("%n : i32", "%c9_i32 : i32") + "%d = arith.muli %c, %c : i64\n")


def test_what_lies_too_far_apart_for_32_bits_is_copied():
    far, near = (torch.empty(5, 3, device="meta").as_strided((5, 3), (1, stride)) for stride in (2**30, 2**30 - 1))
    assert one_launch.near(far).stride() == (3, 1) and one_launch.near(near) is near
    jacobian = torch.empty(5, 2, 3, device="meta").as_strided((5, 2, 3), (3, 2**31, 1))
    assert one_launch.near(jacobian, 2).is_contiguous() and one_launch.near(jacobian) is jacobian
    assert one_launch.near(None) is None

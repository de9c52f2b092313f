"""A training loop compiles each Triton kernel once: what changes from step to step is no part of what is compiled.

The variants are those of Triton's own JIT, asked without a GPU and without compiling.
"""

import pytest
import torch

import sobolev_kernels as sk
from ptx.compile import missing
from sobolev_kernels.testing.compare import computed_from
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
BATCHES = [slice(0, 32)] * 20 + [slice(32, 49), slice(32, 33), slice(1, 33), slice(2, 18), slice(0, 64, 2)]
PROJECTIONS = {
    "drawn": ("tangents", lambda batch: {"directions": sk.Directions.sphere(2)}),
    "by gradients": ("gradients", lambda batch: {"directions": sk.Directions.sphere(2)}),
    "cotangents": ("tangents", lambda batch: {"cotangents": sk.Cotangents.normal(2)}),
    "given": ("tangents", lambda batch: {"directions": sk.Directions.given(GIVEN[:, batch])}),
    "given cotangents": ("tangents", lambda batch: {"cotangents": sk.Cotangents.given(GIVEN[:1, batch, 1:])}),
    "one cotangent": ("tangents", lambda batch: {"cotangents": sk.Cotangents.given(ONE[:, batch])}),
    "order 2": ("tangents", lambda batch: {"directions": sk.Directions.sphere(2), "order": 2}),
}
GIVEN = torch.randn(2, SHAPE.N, SHAPE.D)
ONE = torch.randn(1, SHAPE.N, SHAPE.O)  # a batch of it is contiguous
WEIGHTS = torch.rand(SHAPE.N)


def variants(batches, projection: str) -> list[tuple[str, str]]:
    """Of each launch of steps on these batches of the same data."""
    numbers = data(SHAPE, "tanh")
    hessian = torch.zeros(SHAPE.N, SHAPE.O, SHAPE.D, SHAPE.D)
    side, settings = PROJECTIONS[projection]
    with recorded() as kept, computed_from(side):
        for batch in batches:
            second = {"hessian": hessian[batch]} if projection == "order 2" else {}
            targets = sk.Targets(values=numbers.y[batch], jacobian=numbers.jacobian[batch], **second)
            options = settings(batch) | {"sample_weight": WEIGHTS[batch], "backend": "triton"}
            sk.sobolev_loss(numbers.student, numbers.x[batch], targets, **options)
    return [(kernel.fn.__name__, variant(kernel, *launch).key) for kernel, *launch in kept]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_loop_compiles_in_its_first_step_alone(path, projection, monkeypatch):
    if path == "in cache":
        monkeypatch.setattr(launches, "ON_CHIP", ())
    if path in PATHS[2:]:
        monkeypatch.setattr(one_launch, "refusal", lambda problem: "forced")
        monkeypatch.setattr(layerwise, "FUSED_UP_TO", 256 if path == "layer by layer" else 0)
    first, every = variants(BATCHES[:1], projection), variants(BATCHES, projection)
    assert len(every) == len(BATCHES) * len(first)
    assert set(every) == set(first)
    if path in PATHS[:2] and projection != "order 2":
        assert len(set(every)) == 1


def test_what_is_compiled_does_depend_on_the_problem():
    """Or the test above would count nothing."""
    kinds = [set(variants(BATCHES[:1], projection)) for projection in ("drawn", "given", "cotangents")]
    assert len(set.union(*kinds)) == 3

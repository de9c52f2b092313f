"""`torch.compile(fullgraph=True)` of a step at batch sizes that change: few graphs for all sizes.

One graph for the first size (made twice where dynamo takes a student's floats for variables), one for all others, and
torch's own for the size 1.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import sobolev_kernels as sk
from python_tests.test_streams import NETWORKS, numbers
from sobolev_kernels.backends.exact import CONVOLUTIONS
from sobolev_kernels.testing.rule import ANOTHER_WAY

SIZES = 7, 5, 1, 9  # an odd last one, one of a sample
LARGE = "residual network", "encoder", "skips"  # whose second graph, of the size 1, takes as long as the first
SIDES = {
    "directions": {"directions": sk.Directions.sphere(2, seed=3)},
    "cotangents": {"cotangents": sk.Cotangents.sphere(2, seed=3)},
    "exact": {"derivatives": "exact"},
}
ROWS = [
    ("LeNet", "directions", 2, True, "aot_eager"), ("residual network", "cotangents", 2, True, "aot_eager"),
    ("residual MLP", "directions", 1, None, "aot_eager"), ("encoder", "directions", 1, True, "aot_eager"),
    ("encoder, norm last", "exact", 1, True, "eager"), ("Fourier features", "directions", 2, True, "inductor"),
    ("gated product", "cotangents", 2, None, "aot_eager"), ("skips", "exact", 2, True, "aot_eager"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: torch.compile wants the real allocator, and dynamo a fresh cache."""
    torch._dynamo.reset()


@pytest.mark.parametrize("name, side, O, dynamic, compiler", ROWS, ids=str)
def test_every_size_of_a_batch(name, side, O, dynamic, compiler):
    torch.manual_seed(1)
    student = NETWORKS[name](O).double()

    def step(x, y, backend=None):
        targets = sk.Targets(values=y, jacobian=x.detach()[:, None].expand(-1, O, -1))
        return sk.sobolev_loss(student, x, targets, backend=backend, **SIDES[side])

    counter, first = CompileCounterWithBackend(compiler), None
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    sizes = SIZES[:2] if compiler == "inductor" else [N for N in SIZES if N > 1 or name not in LARGE]
    for N in sizes:
        x, y, results = numbers(N, student.D), numbers(N, O, seed=2), []
        for call in (compiled, lambda x, y: step(x, y, "reference")):
            x = x.detach().requires_grad_()
            loss = call(x, y)
            results.append([loss, *torch.autograd.grad(loss, (x, *student.parameters()))])
        torch.testing.assert_close(*results, **ANOTHER_WAY)
        first = first or counter.frame_count
    one_each = CONVOLUTIONS and name in ("LeNet", "residual network", "skips")  # in an old PyTorch
    again = len(sizes) if one_each else 1 if dynamic else 2
    assert counter.frame_count - first <= again

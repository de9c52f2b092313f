"""A step by CUDA, captured and replayed: on the PTX machine, with a tape in the place of a graph."""

from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sobolev_kernels as sk
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels import directions, drawing
from sobolev_kernels.backends import cuda
from sobolev_kernels.math import directions as math_directions
from sobolev_kernels.testing.problems import SMALL, data, directions_of
from sobolev_kernels.testing.rule import assert_within_rule

reason = missing() or missing_tool("nvcc") or (None if cuda.core._C else cuda.MISSING)
if reason:
    pytest.skip(reason, allow_module_level=True)

from ptx.cuda_on_ptx import on_ptx  # noqa: E402

OURS = ("sobolev_kernels::mlp_sobolev", "sobolev_kernels::draw_directions")


class Tape(TorchDispatchMode):
    """Keeps what is computed, as a graph does: again at the same places, whatever is there now."""

    def __init__(self, backend):
        super().__init__()
        self.entries, self.execute = [], backend.execute
        backend.execute = self.launched

    def launched(self, *arguments):
        self.entries.append((self.execute, arguments, {}, None))
        self.execute(*arguments)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._schema.name not in OURS and "empty" not in function._schema.name:
            self.entries.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.entries:
            again = tree_leaves(function(*args, **kwargs))
            for to, tensor in zip(tree_leaves(result), again, strict=True):
                if isinstance(to, torch.Tensor) and to.data_ptr() != tensor.data_ptr():
                    to.copy_(tensor)


def captured(numbers, backend, projections, **settings):
    """A tape of a whole step with its backward, and the loss and gradients whose numbers it changes."""
    targets, parameters = sk.Targets(values=numbers.y, jacobian=numbers.jacobian), list(numbers.student.parameters())
    with Tape(backend) as tape:
        loss = sk.sobolev_loss(numbers.student, numbers.x, targets, directions=projections, backend="cuda", **settings)
        gradients = torch.autograd.grad(loss.sum(), parameters)
    return tape, [loss.detach(), *gradients]


def on_device(made):
    """A generator of a device, whose numbers only the device knows."""
    randint = torch.randint

    def draw(*args, device, **how):
        made.append(randint(*args, **how))
        return made[-1]

    return draw


WAYS = [("given", "mean"), ("seeded", "none"), ("drawn", "mean"), ("drawn", "none")]


@pytest.mark.parametrize(("kind", "reduction"), WAYS)
def test_a_captured_step(kind, reduction):
    """Replayed after inputs and weights have changed it gives what a step then gives; unseeded ones draw anew."""
    numbers = data(SMALL, "tanh")
    projections = sk.Directions.sphere(SMALL.P) if kind == "drawn" else directions_of(
        "given" if kind == "given" else "sphere", SMALL
    )  # fmt: skip
    with on_ptx() as backend:
        patches = (
            patch.object(directions, "is_capturing", lambda device: True),
            patch.object(torch, "randint", on_device(backend.seeds)),
            patch.object(math_directions, "in_memory_of_device", lambda seed: any(seed is s for s in backend.seeds)),
        )
        with patches[0], patches[1], patches[2]:
            tape, results = captured(numbers, backend, projections, reduction=reduction)
        with torch.no_grad():
            for tensor in (numbers.x, *numbers.student.parameters()):
                tensor.mul_(1.25)
        seen = []
        for _ in range(2):
            tape.replay()
            seen.append([tensor.clone() for tensor in results])
            very = projections
            if kind == "drawn":
                (seed,) = backend.seeds
                like = projections.drawing(SMALL.D, numbers.x)
                very = sk.Directions.given(drawing.drawn(like, seed.clone(), SMALL.N))
            else:
                assert backend.seeds == []
            _, expected = captured(numbers, backend, very, reduction=reduction)
            for i, (got, want) in enumerate(zip(seen[-1], expected, strict=True)):
                assert_within_rule(f"result {i}", got, want.double())
    same = all(map(torch.equal, *seen))
    assert same == (kind != "drawn")

"""Students that are no MLPs, whole steps from both sides: losses and all gradients beside central differences of the
forward in float64, which autograd differentiates."""

import gc
import weakref
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import sobolev_kernels as sk
from python_tests.students import Call
from python_tests.test_streams import NETWORKS as OTHERS
from python_tests.test_streams import D, N, numbers
from sobolev_kernels.testing.rule import BY_DIFFERENCES, IN_SINGLE


def layers(O):
    module = Call(
        lambda x, gru, last: last(gru(x[..., None])[0][:, -1]), nn.GRU(1, 4, batch_first=True), nn.Linear(4, O)
    )
    module.D = D
    return module


NETWORKS = OTHERS | {"GRU": layers}


def differences(module, x, v, step=1e-5):
    """Tangents along v [P, N, D] by a formula of fourth order, all in one forward."""
    shifts = torch.tensor([1, -1, 2, -2], dtype=x.dtype).view(-1, 1, 1, 1) * step
    a, b, c, d = module((x + shifts * v).flatten(0, 2)).unflatten(0, (4, len(v), -1))
    return (8 * (a - b) - (c - d)) / (12 * step)


@pytest.mark.parametrize("P, O", [(1, 1), (1, 10), (4, 1), (4, 10)])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_of_networks(name, P, O):
    torch.manual_seed(1)
    module = NETWORKS[name](O).double()
    x, v = numbers(N, module.D).requires_grad_(), numbers(P, N, module.D, seed=3)
    y, u = numbers(N, O, seed=5), numbers(P, N, O, seed=4)
    basis = torch.eye(module.D, dtype=x.dtype)[:, None].expand(-1, N, -1)
    tangents, columns = differences(module, x, torch.cat([v, basis])).split([P, module.D])
    ways = {
        "tangents": (tangents, {"directions": v}, {}, ("streams", "reference", None)),
        "vjps": (torch.einsum("pno,dno->pnd", u, columns), {"cotangents": u}, {}, (None,)),
        "jacobian": (columns.permute(1, 2, 0), {}, {"derivatives": "exact"}, (None, "reference")),
    }
    for what, (right, vectors, settings, backends) in ways.items():
        wanted = numbers(*right.shape, seed=6)
        expected = step(module, x, mse_loss(module(x), y) + mse_loss(right, wanted))
        for backend in backends:
            targets = sk.Targets(values=y, **{what: wanted}, **vectors)
            found = step(module, x, sk.sobolev_loss(module, x, targets, backend=backend, **settings))
            for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                error = (a - b).abs().max() / b.abs().max().clamp(min=1e-2)
                assert error <= BY_DIFFERENCES["a network"], f"{what}, {backend}, number {i}: {error:.2g}"


def step(module, x, loss):
    return loss.detach(), *torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)


CALLS = {
    "tangents": lambda module, x, v: sk.jvp(module, x, v),
    "gradients": lambda module, x, v: sk.vjp(module, x, sk.Cotangents.basis()),
    "the reference": lambda module, x, v: sk.jvp(module, x, v, backend="reference"),
    "second derivatives": lambda module, x, v: sk.laplacian(module, x),
    "a loss": lambda module, x, v: sk.sobolev_loss(module, x, sk.Targets(teacher=layers(2).double())),
}


@pytest.mark.parametrize("hooked", [False, True], ids=["alone", "amid hooks of saved tensors"])
@pytest.mark.parametrize("name", CALLS)
def test_no_first_look_keeps_a_graph(name, hooked):
    """Softmax saves its own result: kept by a hook as it is, its operation and all before it would stay for ever."""
    x, v = numbers(N, D), numbers(2, N, D)
    module = Call(lambda x, a, b: b((x * a(x)).softmax(1).tanh()), nn.Linear(D, D), nn.Linear(D, 2)).double()
    hooks = torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda saved: saved)
    with hooks if hooked else nullcontext():
        CALLS[name](module, x, v)
    parameters = [weakref.ref(p) for p in module.parameters()]
    del module
    gc.collect()
    assert [p() for p in parameters] == [None] * 4


def moved(saved):
    """The same numbers, which lie in another order, or with gaps."""
    saved = saved.detach()
    return saved.mT.contiguous().mT if saved.dim() > 1 else torch.stack([saved, saved], -1)[..., 0]


# of which PyTorch's own double backward refuses such tensors
REFUSED = {("LeNet", "cotangents")}


@pytest.mark.parametrize(
    "name, side", [case for case in product(NETWORKS, ("directions", "cotangents")) if case not in REFUSED]
)
def test_hooks_that_move_saved_tensors(name, side):
    """In float32, where the core reads them; a call like one before goes another way than the first."""
    torch.manual_seed(1)
    module = NETWORKS[name](2).float()
    x, y = numbers(N, module.D).float().requires_grad_(), numbers(N, 2, seed=5).float()
    given = {"directions": numbers(2, N, module.D, seed=3), "cotangents": numbers(2, N, 2, seed=4)}[side].float()
    targets = sk.Targets(values=y, jacobian=numbers(N, 2, module.D, seed=6).float(), **{side: given})
    expected = step(module, x, sk.sobolev_loss(module, x, targets, backend="reference"))
    for _ in range(3):
        with torch.autograd.graph.saved_tensors_hooks(moved, lambda saved: saved):
            loss = sk.sobolev_loss(module, x, targets)
        for a, b in zip(step(module, x, loss), expected, strict=True):
            assert (a - b).abs().max() <= IN_SINGLE * b.abs().max().clamp(min=1e-2)

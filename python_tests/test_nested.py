"""Gradients of given directions and cotangents, and fused calls within fused calls, against torch.func in float64."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vjp

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels import kept
from sobolev_kernels.backends import cpu
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D, O, P = 5, 3, 2, 2
CUT = [2, 0]


def network(outputs=O, inputs=D, widths=(8, 5), dtype=torch.float64):
    torch.manual_seed(0)
    layers = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.Tanh() if len(layers) % 4 else nn.Softplus()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs)).to(dtype)


NET, ENERGY = network(), network(1)
torch.manual_seed(1)
X, V, U = (torch.randn(shape, dtype=torch.float64) for shape in ((N, D), (P, N, D), (P, N, O)))
NO_GRADIENTS = pytest.raises(sk.NotProvided, match='double backward: .* pass backend="reference"')


def asking(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def first(f, x, v):
    return jvp(f, (x,), (v,))[1]


def second(f, x, v):
    return first(lambda x: first(f, x, v), x, v)


def embedded(v, wrt):
    """Directions of all columns from those of some."""
    return v if wrt is None else v @ torch.eye(D, dtype=v.dtype)[wrt]


# What is asked for, as the library has it and as torch.func has it: of a function f, x, vectors [P, N, n], and columns.
CALLS = {
    "jvp": (
        lambda m, x, v, **more: sk.jvp(m, x, v, **more),
        lambda f, x, v, wrt: (f(x), torch.stack([first(f, x, d) for d in embedded(v, wrt)])),
    ),
    "vjp": (
        lambda m, x, u, **more: sk.vjp(m, x, u, **more),
        lambda f, x, u, wrt: (f(x), torch.stack([vjp(f, x)[1](c)[0] for c in u])[..., wrt or slice(None)]),
    ),
    "jet": (
        lambda m, x, v, **more: sk.jet(m, x, v, **more),
        lambda f, x, v, wrt: (
            f(x),
            *(torch.stack([of(f, x, d) for d in embedded(v, wrt)]) for of in (first, second)),
        ),
    ),
    "laplacian": (
        lambda m, x, v, **more: sk.laplacian(m, x, v, **more),
        lambda f, x, v, wrt: (f(x), sum(second(f, x, d) for d in embedded(v, wrt))),
    ),
    "hvp": (
        lambda m, x, v, **more: sk.hvp(m, x, v, 2 * v + 1, **more),
        lambda f, x, v, wrt: (
            f(x),
            torch.stack([first(lambda x, d=d: first(f, x, d[0]), x, d[1]) for d in
                         zip(embedded(v, wrt), embedded(2 * v + 1, wrt), strict=True)]),
        ),
    ),
}  # fmt: skip


def of_all(results):
    """A number to which each result gives a cotangent that is not constant."""
    return sum((result + 0.5).pow(3).sum() for result in results)


def taken(function, tensors, parameters):
    """Gradients of it, and the gradients of their squares."""
    asked = [*tensors, *parameters]
    ones = torch.autograd.grad(of_all(function(*tensors)), asked, create_graph=True, materialize_grads=True)
    twos = torch.autograd.grad(sum(g.square().sum() for g in ones), asked, materialize_grads=True)
    return [*ones, *twos]


@pytest.mark.parametrize("wrt", [None, CUT], ids=["all columns", "wrt"])
@pytest.mark.parametrize("shared", [False, True], ids=["of each sample", "shared"])
@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_vectors_and_of_their_gradients(name, shared, wrt):
    ours, theirs = CALLS[name]
    given, kind = (U, sk.Cotangents) if name == "vjp" else (V[..., : 2 if wrt else D], sk.Directions)
    x, v = asking(X, given[:, 0] if shared else given)
    whole = lambda v: v[:, None].expand(-1, N, -1) if shared else v  # noqa: E731
    wrapped = kind.given if shared else lambda v: v
    if name == "hvp":
        wrapped = lambda v: v  # noqa: E731
        ours = lambda m, x, v, **more: sk.hvp(  # noqa: E731
            m, x, *(sk.Directions.given(w) if shared else w for w in (v, 2 * v + 1)), **more
        )
    expected = taken(lambda x, v: theirs(NET, x, whole(v), wrt), (x, v), NET.parameters())
    for turn in range(3):  # the third call is the short way's
        got = taken(lambda x, v: ours(NET, x, wrapped(v), wrt=wrt), (x, v), NET.parameters())
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            torch.testing.assert_close(g, e, **ANOTHER_WAY, msg=lambda m, i=i: f"turn {turn}, gradient {i}: {m}")


SIZES = {  # N, D, widths, O, P: whether weights lie in place, streams go in groups, gradients are gathered
    "one layer": (7, 4, (), 3, 2), "one sample": (1, 3, (6,), 1, 1), "no sample": (0, 3, (6,), 2, 2),
    "wider than deep": (9, 70, (33,), 1, 5), "tiles": (700, 5, (40, 24), 3, 3), "many": (40, 6, (16,), 11, 90),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["jvp", "vjp", "jet", "laplacian"])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_vectors_of_all_sizes(size, name, dtype):
    N, D, widths, O, P = SIZES[size]
    student = network(O, D, widths, dtype)
    n = O if name == "vjp" else D
    torch.manual_seed(2)
    x, v = (torch.randn(shape, dtype=dtype) for shape in ((N, D), (P, N, n)))
    if not widths and name in ("jet", "laplacian"):
        student = nn.Sequential(student, nn.Sigmoid())

    def gradient(backend, dtype):
        w = v.to(dtype).requires_grad_()
        results = CALLS[name][0](student.to(dtype), x.to(dtype), w, backend=backend)
        return torch.autograd.grad(of_all(results), w)[0]

    exact = gradient("reference", torch.float64)
    assert_within_rule("the vectors' gradient", gradient("cpu", dtype), exact, gradient("reference", dtype))

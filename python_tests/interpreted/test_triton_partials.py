"""Named derivatives by the Triton kernels, interpreted, beside nested autograd in float64."""

import copy
import traceback
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sobolev_kernels as sk
from sobolev_kernels.backends.triton import jet_source, jets
from sobolev_kernels.backends.triton.script import Script
from sobolev_kernels.math.activations import ACTIVATIONS, highest_order
from sobolev_kernels.math.table import Formula, choose
from sobolev_kernels.partials import along, evaluate
from sobolev_kernels.partials import launched as launched_streams
from sobolev_kernels.partials.along import evaluated
from sobolev_kernels.partials.layers import directions_of
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import forget
from sobolev_kernels.testing.named import PLANS, Named, agree

IDENTITY, TANH, GELU = (choose(ACTIVATIONS, "activation", name) for name in ("identity", "tanh", "gelu"))
ACTIVATED = [choose(ACTIVATIONS, "activation", name) for name in ACTIVATIONS if name != "identity"]
plain = jet_source.product
NAMES = ("u", "u_t, u_x", "u, u_xt, u_xx", "u_xxt, u_x", "u_ttxx, u_tttt")


@pytest.fixture(params=["one launch", "own", "torch's"])
def multiply(request, monkeypatch):
    forget()
    jets.kept_by.cache_clear()
    monkeypatch.setattr(jets, "is_fused", lambda asked: request.param != "torch's")
    monkeypatch.setattr(jets, "MOST_CHAINED", 10**6 * (request.param == "one launch"))
    yield request.param
    forget()
    jets.kept_by.cache_clear()


@pytest.mark.parametrize("plan", PLANS)
def test_each_plan(multiply, plan):
    i = [*PLANS].index(plan)
    first = choose(ACTIVATIONS, "activation", ("tanh", "sin", "softplus", "gelu", "silu")[i % 5])
    agree(Named(*PLANS[plan], (17, 9), (first, TANH, IDENTITY), 37), "triton")


@pytest.mark.parametrize("formula", [*ACTIVATED, Formula("softplus", (2.0, 1.5)), Formula("sin", (3.0,))], ids=str)
def test_each_activation_at_its_highest_order(formula):
    order = min(4, highest_order(formula)[0])
    agree(Named("x t -> u", NAMES[order], (5, 6), (formula, formula, IDENTITY), 19), "triton")


def test_a_wrong_coefficient_is_found(monkeypatch):
    """Each plan's terms without theirs."""
    monkeypatch.setattr(jet_source, "product", lambda term: plain((*term[:2], 1.0)))
    for kernels in (jet_source.forget, jets.kernels_of.cache_clear, forget):
        kernels()
    with pytest.raises(AssertionError, match=r"error .* to the float64 reference"):
        agree(Named(*PLANS["KdV"], (5, 6), (TANH, TANH, IDENTITY), 19), "triton")
    monkeypatch.undo()
    for kernels in (jet_source.forget, jets.kernels_of.cache_clear, forget):
        kernels()


SHAPES = {
    "one linear layer": ((), (IDENTITY,)),
    "one layer": ((), (TANH,)),
    "narrow": ((1, 1), (TANH, GELU, IDENTITY)),
    "two linear layers in a row, before and behind": ((5, 6, 4), (IDENTITY, TANH, IDENTITY, IDENTITY)),
    "an activation last": ((33,), (GELU, TANH)),
    "wide": ((70, 130), (TANH, TANH, IDENTITY)),
}
THREE = "u_xxt + v_x - 1/4*p, p_t, u_tt + 2*u_xx"


@pytest.mark.parametrize("hidden, activations", SHAPES.values(), ids=SHAPES)
def test_sizes(multiply, hidden, activations):
    for N, bias, names in ((1, True, THREE), (33, False, "v_tt, u_xx")):
        for per_sample in (False, True):
            agree(Named("x t -> u v p", names, hidden, activations, N, bias, per_sample), "triton")


V, W = (torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))


def loss_of(student, x, v, backend):
    jets = [torch.sin(torch.arange(42.0).reshape(3, 7, 2) * k).to(x.dtype) for k in (1, 2, 3)]
    targets = sk.Targets(values=torch.cos(x.detach()), jets=jets)
    return (sk.sobolev_loss(student, x, targets, directions=sk.Directions.given(v), order=3, backend=backend),)


CALLS = {
    "jet of order 3": lambda student, x, v, backend: sk.jet(student, x, v, order=3, backend=backend),
    "jet of order 4": lambda student, x, v, backend: sk.jet(student, x, v, order=4, backend=backend),
    "a loss of order 3": loss_of,
    "hvp": lambda student, x, v, backend: sk.hvp(student, x, v, W.to(x.dtype), backend=backend),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_else_takes_such_streams(call, monkeypatch):
    """Forced onto Triton, beside the reference in float64: values and gradients."""
    launched, plain, found = [], jets.results, []
    monkeypatch.setattr(jets, "results", lambda *given: launched.append(given) or plain(*given))
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference"), (torch.float32, "reference")):
        torch.manual_seed(0)
        student, x = sk.MLP(2, 2, width=9, depth=2).to(dtype), torch.rand(7, 2).to(dtype).requires_grad_()
        outputs = CALLS[call](student, x, V.to(dtype), backend)
        sum(output.sin().sum() for output in outputs).backward()
        found.append([*(output.detach() for output in outputs), x.grad, *(p.grad for p in student.parameters())])
    assert launched
    for i, (got, expected, baseline) in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"{call}, tensor {i}", got, expected, baseline)


def test_partials_takes_it_where_the_core_cannot_and_says_so(monkeypatch):
    """As on a GPU: forced, on its own, without a graph, differentiated twice, and without samples."""
    student, x = sk.MLP(2, 1, width=9), torch.rand(7, 2, requires_grad=True)
    names = ["u_t", "u_xx"]
    expected = sk.partials(copy.deepcopy(student).double(), x.double(), names, fields="x t -> u")
    launched, plain = [], jets.results
    monkeypatch.setattr(jets, "results", lambda *given: launched.append(given[-1]) or plain(*given))
    with monkeypatch.context() as patch:
        patch.setenv("SOBOLEV_BACKEND", "triton")
        got = sk.partials(student, x, names, fields="x t -> u")
        with torch.no_grad():
            again = sk.partials(student, x, names, fields="x t -> u")
        assert launched == [True, False]
        for name in names:
            assert_within_rule(name, got[name].detach(), expected[name].detach())
            assert torch.equal(got[name], again[name])
        assert sk.partials(student, x[:0], names, fields="x t -> u")["u_t"].shape == (0, 1)
        (slope,) = torch.autograd.grad(got["u_xx"].sum(), x, create_graph=True)
        (twice,) = torch.autograd.grad(slope.square().sum(), x)
        (slope,) = torch.autograd.grad(expected["u_xx"].sum(), x, create_graph=True)
        assert_within_rule("twice", twice, torch.autograd.grad(slope.square().sum(), x)[0].double())
        with pytest.raises(NotImplementedError, match="triton to support this problem, got a refusal: dtype float64"):
            sk.partials(student.double(), x.double(), names, fields="x t -> u")
        with monkeypatch.context() as few:
            few.setattr(launched_streams, "MOST", 3)
            with pytest.raises(NotImplementedError, match="got a refusal: 4 streams are more than 3"):
                sk.partials(sk.MLP(2, 1, width=9), x, ["u_t", "u_x", "u_xx"], fields="x t -> u")
        with pytest.raises(NotImplementedError, match=r"triton to support this problem, got a refusal: .*GRU"):
            sk.partials(torch.nn.GRU(2, 1), x, names, fields="x t -> u")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The core's kernels refuse tensors, as those of a GPU, and Triton's take them."""
    monkeypatch.setitem(along.KERNELS, "cpu", lambda student, x: "tensors are on a GPU")
    monkeypatch.setattr(evaluate, "found_again", lambda student, x, of: None)


class Fourier(torch.nn.Module):
    """No MLP."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.cat([x.sin(), x.cos()], 1))


def transformed():
    inputs = lambda x: torch.cat([x.sin(), x.cos()], 1)  # noqa: E731
    return sk.Transformed(sk.MLP(4, 2, width=5), inputs=inputs, outputs=lambda x, y: y * x[:, :1])


STUDENTS = {"no MLP": Fourier, "transformed": transformed, "an MLP": lambda: sk.MLP(2, 2, width=5)}
TAKEN = {
    "partials": lambda student, x: sk.partials(student, x, "u, v_t, u_xx, u_xxt", fields="x t -> u v").values(),
    "hessian": lambda student, x: sk.hessian(student, x),
    "divergence": lambda student, x: sk.divergence(student, x),
    "bilaplacian": lambda student, x: sk.bilaplacian(student, x),
    "residual_loss": lambda student, x: (sk.residual_loss(student, x, HEAT),),
}
X = torch.rand(7, 2, generator=torch.Generator().manual_seed(3))
HEAT = sk.Residual(lambda p: p.u_t - p.x * p.u_xx, "x t -> u v", name="heat")
HEAT_X = HEAT.diff("x")


@pytest.mark.parametrize("of", STUDENTS)
@pytest.mark.parametrize("call", TAKEN)
def test_any_student_where_the_core_takes_no_tensors(as_on_a_gpu, of, call, monkeypatch):
    torch.manual_seed(0)
    student, x = STUDENTS[of](), torch.rand(5, 2)
    launched, plain, found = [], Script.run, []
    monkeypatch.setattr(Script, "run", lambda *given: launched.append(given) or plain(*given))
    for one in (student, copy.deepcopy(student).double()):
        outputs = [*TAKEN[call](one, x.to(next(one.parameters()).dtype))]
        sum(output.sin().sum() for output in outputs).backward()
        gradients = [p.grad for p in one.parameters() if p.grad is not None]
        found.append([*(output.detach() for output in outputs), *gradients])
    assert bool(launched) is (of == "an MLP" or (of == "transformed" and call in ("partials", "residual_loss")))
    for i, (got, expected) in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"{call} of {of}, tensor {i}", got, expected)


class FromTheHost(TorchDispatchMode):
    """What a GPU would wait for: tensors of Python's numbers, and numbers of tensors."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.overloadpacket in (torch.ops.aten.lift_fresh, torch.ops.aten._local_scalar_dense):
            self.found.append([line.strip() for line in traceback.format_stack() if "sobolev_kernels/" in line][-3:])
        return function(*arguments, **keywords or {})


WEIGHED = {
    "weights": [2.0, 0.5],
    "scales": [1.0, 3.0],
    "sample_weight": torch.arange(7.0),
    "target": {"heat": X[:, :1]},
}
MORE = {
    "residual_loss, weighed": lambda student, x: (sk.residual_loss(student, x, [HEAT, HEAT_X], **WEIGHED),),
    "jet": lambda student, x: sk.jet(student, x, V.float(), order=3, backend="triton"),
    "hvp": lambda student, x: sk.hvp(student, x, V.float(), W.float(), backend="triton"),
}


@pytest.mark.parametrize("call", [*TAKEN, *MORE])
def test_a_second_call_takes_nothing_from_the_host(as_on_a_gpu, call):
    """So that a CUDA graph can hold it, and the host need not wait."""
    student, x = sk.MLP(2, 2, width=5), X.clone().requires_grad_()
    for mode in (nullcontext(), FromTheHost()):
        with mode:
            sum(output.sum() for output in (TAKEN | MORE)[call](student, x)).backward()
    assert not mode.found, mode.found


@pytest.mark.parametrize("multiply", ["own"], indirect=True)
def test_bits_are_those_of_any_call_before_and_tensors_lie_anywhere(multiply):
    results = []
    student, flat = sk.MLP(2, 2, width=19), torch.rand(2, 23)
    for x in (flat.T, flat.T, flat.T.contiguous()):
        student.zero_grad()
        got = evaluated_by_triton(student, x)
        got.square().sum().backward()
        results.append([got.detach(), *(p.grad.clone() for p in student.parameters())])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def evaluated_by_triton(student, x):
    streams = sk.Fields("x t -> u v").plan(["u_x", "u_xxx", "v_tt"])
    return evaluated(streams, recognise(student), x, directions_of(streams, x), "triton")

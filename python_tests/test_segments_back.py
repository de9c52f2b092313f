"""Chains of layers on the gradients' side, each one operation whose gradient is one, too.

The oracle knows nothing of them: a gradient is made of central differences of the module in float64, or of autograd
where nothing is put off.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from python_tests.students import Call, Counting, Straight
from python_tests.test_segments import CASES, MODULES, WEIGHTS, D, N, Skip, Swapped, net_of
from python_tests.test_streams import NETWORKS, differences, numbers
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams import fused, look, passes
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCES, CLOSE_IN_SINGLE

pytestmark = pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
f64 = torch.float64
STUDENTS = NETWORKS | {"skip": Skip}
LONG = 5  # calls, after which one like them goes the short way


@pytest.fixture(autouse=True)
def all_pay(monkeypatch):
    """Chains of so few numbers as here."""
    monkeypatch.setattr(fused, "PASSES", -1.0)
    monkeypatch.setattr(look, "FUNCTION", 0.0)


@pytest.fixture
def fusing(monkeypatch):
    """How many operations of chains there were."""
    made, run = [], passes.Passes.run
    monkeypatch.setattr(passes.Passes, "run", lambda self, what, *a, **k: made.append(what) or run(self, what, *a, **k))
    return made


def chains(student, x):
    """Those that are put off, by their layers."""
    (found,) = known_of(student, x).graphs.chains.values()
    return {layers: count for (layers, _), count in found.fused.items()}


def by_chains(function, x, u, **settings):
    """y and gradients by a call like others before."""
    for _ in range(LONG):
        sk.vjp(function, x, u, backend="reference", **settings)
    return sk.vjp(function, x, u, backend="reference", **settings)


def by_differences(function, x, u):
    rows = differences(function, x, torch.eye(x.shape[1], dtype=f64)[:, None].expand(-1, *x.shape))
    return function(x), torch.einsum("rno,dno->rnd", u, rows)


def by_autograd(function, x, u):
    x = x.view_as(x)
    y = function(x)
    return y, torch.stack([torch.autograd.grad(y, x, each, create_graph=True)[0] for each in u])


def with_gradients(way, function, x, u, inputs):
    x = x.detach().requires_grad_()
    y, g = way(function, x, u)
    cy, cg = numbers(*y.shape, seed=8), numbers(*g.shape, seed=9)
    loss = (cy * y.sin()).sum() + (cg * g.sin()).sum()
    return [y, g, *torch.autograd.grad(loss, [x, *inputs], materialize_grads=True)]


def assert_right(function, x, u, inputs, oracle=by_autograd, tolerance=None):
    results = [with_gradients(way, function, x, u, inputs) for way in (by_chains, oracle)]
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        if tolerance is None:
            torch.testing.assert_close(got, expected, **ANOTHER_WAY, msg=lambda m, i=i: f"number {i}: {m}")
        else:
            error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-2)
            assert error <= tolerance, f"number {i}: {error:.2g}"


@pytest.mark.parametrize("R, O", [(1, 1), (4, 10)])
@pytest.mark.parametrize("name", STUDENTS)
def test_networks(name, R, O, fusing):
    torch.manual_seed(1)
    student = STUDENTS[name](O).double().eval()
    x, u = numbers(N, student.D), numbers(R, N, O, seed=3)
    assert_right(student, x, u, list(student.parameters()), by_differences, BY_DIFFERENCES["a network"])
    if chains(student, x):
        assert {*fusing} == {*range(4)}


@pytest.mark.parametrize("name", ["gated product", "skip", "residual MLP"])
def test_losses(name, fusing):
    """Cotangents, the whole Jacobian by its rows, and directions that are projections of few gradients."""
    torch.manual_seed(1)
    student = STUDENTS[name](2).double()
    x, u, v = numbers(N, student.D), numbers(2, N, 2, seed=3), numbers(5, N, student.D, seed=4)
    J = numbers(N, 2, student.D, seed=5)
    losses = (
        lambda b: sk.sobolev_loss(student, x, sk.Targets(values=u[0], vjps=J.movedim(1, 0), cotangents=u), backend=b),
        lambda b: sk.sobolev_loss(student, x, sk.Targets(values=u[0], jacobian=J), derivatives="exact", backend=b),
        lambda b: sk.sobolev_loss(student, x, sk.Targets(u[0], tangents=u[:1].repeat(5, 1, 1), directions=v)),
    )
    for loss in losses:
        steps = [torch.autograd.grad(loss("reference"), list(student.parameters())) for _ in range(LONG + 1)]
        for got, expected in zip(steps[-1], steps[0], strict=True):
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)
    assert {*fusing} == {*range(4)}
    text = sk.explain(student, x, u, of="vjp")
    assert "segments    " in text and "fused by cpu" in text


@pytest.mark.parametrize("name", MODULES)
def test_every_activation(name):
    row, parameters = MODULES[name], {"leaky_relu": (0.3,), "elu": (0.7,), "softplus": (2.0, 3.0), "sin": (1.5,)}
    act = row.kind(*parameters.get(name, ()), **dict(row.arguments))
    student, x, _ = net_of(lambda x, a, b: b(act(a(x.exp()))).exp(), nn.Linear(D, 4), nn.Linear(4, 2))
    assert_right(student, x, numbers(2, N, 2, seed=3), list(student.parameters()))
    assert chains(student, x) == ({} if name == "identity" else {2: 1})


@pytest.mark.parametrize("name", CASES)
def test_within_a_forward(name):
    student, x, _ = net_of(CASES[name][0], nn.Linear(D, 4), nn.Linear(4, D))
    assert_right(student, x, numbers(2, *student(x).shape, seed=3), list(student.parameters()))


@pytest.mark.parametrize("name", WEIGHTS)
def test_dressed_layers(name):
    torch.manual_seed(0)
    a = WEIGHTS[name](nn.Linear(D, 4).double())
    student = Call(lambda x, a, b: b(F.gelu(a(x))) + x[:, :1], a, nn.Linear(4, 2).double())
    x, inputs = numbers(N, D), [p for p in student.parameters() if p.requires_grad]
    assert_right(student, x, numbers(2, N, 2, seed=3), inputs)


def test_weights_that_change_after_they_were_used():
    torch.manual_seed(0)
    student, x, u = Swapped("another tensor"), numbers(N, D), numbers(1, N, 2, seed=3)
    for _ in range(LONG + 1):
        y, g = sk.vjp(student, x, u, backend="reference")
        expected = student.second(F.gelu(F.linear(x, student.used.sign())))
        torch.testing.assert_close(y, expected, **ANOTHER_WAY)
    assert not chains(student, x) and g.isfinite().all()


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, 4, dtype=f64), nn.Linear(4, 2, dtype=f64)

    def forward(self, x):
        self.kept = self.a(x)
        return self.b(self.kept.tanh())


def forces(x, a, b):
    """A gradient within a forward."""
    energy = F.silu(a(x)).square().sum()
    return torch.autograd.grad(energy, x, create_graph=True)[0].sin() + b(F.silu(a(x)))


def backward_within(x, a, b):
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        torch.autograd.backward(b(F.silu(a(z))).sum(), inputs=[z])
    return b(F.silu(a(x)))


def in_no_grad(x, a, b):
    h = a(x)
    with torch.no_grad():
        scale = h.square().mean()
    return b(F.silu(h)) * scale


def injected(x, a, b):
    """A Function of what was put off."""
    return b(F.silu(Straight.apply(a(x)) + a(x)))


ODD = {
    "forces": forces,
    "a backward within": backward_within,
    "a part without gradients": in_no_grad,
    "a function of its own": injected,
    "vmap": lambda x, a, b: torch.func.vmap(lambda row: b(F.silu(a(row))))(x),
    "a gradient of torch.func": lambda x, a, b: torch.func.vmap(torch.func.grad(lambda r: F.silu(a(r)).sum()))(x) + x,
    "a hook of a tensor": lambda x, a, b: (lambda h: (h.register_hook(lambda g: 2 * g), b(h.tanh()))[1])(a(x)),
    "a weight of both": lambda x, a, b: F.linear(F.linear(x, a.weight).tanh(), a.weight.t()),
    "what it is": lambda x, a, b: b(F.silu(a(x))) * (1.0 if type(a(x)) is torch.Tensor else 2.0),
    "a number": lambda x, a, b: b(F.silu(a(x))) * (2.0 if a(x).sum().item() > 0 else 3.0),
    "a retained gradient": lambda x, a, b: (lambda h: (h.retain_grad(), b(h.tanh()))[1])(a(x)),
    "another grad mode": lambda x, a, b: b(F.silu(a(x))) + torch.no_grad()(lambda: a(x)[:, :1].cos())(),
    "out of a list": lambda x, a, b: torch.stack([a(x), a(x).tanh()]).sum(0) @ b.weight.T,
    "a keyword": lambda x, a, b: b(F.leaky_relu(input=F.linear(input=x, weight=a.weight, bias=a.bias))),
    "a negation": lambda x, a, b: b(F.silu(F.linear(torch.complex(x, x).conj().imag, a.weight, a.bias))),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_forwards(name):
    student, x, _ = net_of(ODD[name], nn.Linear(D, 4), nn.Linear(4, D))
    assert_right(student, x, numbers(2, *student(x.requires_grad_()).shape, seed=3), list(student.parameters()))


WRAPPED = {
    "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m).eval(),
    "functional_call": lambda m: Call(lambda x, m: torch.func.functional_call(m, dict(m.named_parameters()), (x,)), m),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped(name):
    torch.manual_seed(1)
    student = WRAPPED[name](NETWORKS["residual MLP"](2).double()).requires_grad_()
    assert_right(student, numbers(N, 6), numbers(2, N, 2, seed=3), list(student.parameters()))


class Counts(torch.overrides.TorchFunctionMode):
    layers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.layers += function is F.linear
        return function(*args, **kwargs or {})


def test_who_counts_functions_sees_all(fusing):
    student, x, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    u = numbers(1, N, 2, seed=3)
    by_chains(student, x, u)
    fusing.clear()
    with Counts() as counts:
        sk.vjp(student, x, u, backend="reference")
    assert counts.layers == 2 and not fusing


def test_what_is_kept_has_numbers():
    torch.manual_seed(0)
    student, x = Keeps(), numbers(N, D)
    by_chains(student, x, numbers(1, N, 2, seed=3))
    assert type(student.kept) is torch.Tensor and not chains(student, x)


def test_dropout_in_training():
    """The random numbers that come are those that would, also where nothing was seen before."""
    student, x, _ = net_of(lambda x, a, b: b(F.dropout(a(x).tanh(), 0.5)).tanh(), nn.Linear(D, 8), nn.Linear(8, 2))
    u, results = numbers(1, N, 2, seed=3), []
    for _ in range(LONG + 2):
        torch.manual_seed(5)
        results.append([*sk.vjp(student, x, u, backend="reference"), torch.rand(3)])
    for result in results:
        torch.testing.assert_close(result, results[0], **ANOTHER_WAY)
    assert chains(student, x) == {1: 2}


def test_derivatives_of_gradients():
    """As often as one likes; several cotangents at a time; twice through the same graph."""
    student, x, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    u, results = numbers(2, N, 2, seed=3), []
    for way in (by_chains, by_autograd):
        z = x.detach().requires_grad_()
        y, g = way(student, z, u)
        inputs = [z, *student.parameters()]
        first = torch.autograd.grad(y.sin().sum() + g.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), inputs, retain_graph=True)
        batch = numbers(3, *x.shape, seed=4)
        (several,) = torch.autograd.grad(g[0], z, batch, is_grads_batched=True, retain_graph=True)
        once = torch.autograd.grad(g.sin().sum(), inputs, retain_graph=True, materialize_grads=True)
        twice = torch.autograd.grad(g.sin().sum(), inputs, materialize_grads=True)
        torch.testing.assert_close(once, twice, rtol=0, atol=0)
        results.append([y, g, *first, *second, several, *once])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


def test_weights_that_were_written_to_are_seen():
    """Between a forward and its backward, as autograd says it of its own."""
    student, x, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    y, _ = by_chains(student, x, numbers(1, N, 2, seed=3))
    with torch.no_grad():
        student.parts[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_gradients():
    student, x, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    u = numbers(1, N, 2, seed=3)
    expected = [t.detach() for t in by_chains(student, x, u)]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = [sk.vjp(student, x, u) for _ in range(LONG + 1)][-1]
        assert not any(result.requires_grad for result in results)
        torch.testing.assert_close([*results], expected, **ANOTHER_WAY)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("samples", [1, 33, 200])
def test_many_samples(samples, threads, fusing):
    """In float32, also of more tiles than one, and of weights that are read where they lie; the same bits each time."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        student = Call(lambda x, a, b, c: c(F.silu(b(F.relu(a(x))))) + x, *map(nn.Linear, (D, 37, 64), (37, 64, D)))
        x, u = torch.randn(samples, D), torch.randn(2, samples, D)
        results = []
        for way in (by_chains, by_chains, by_autograd):
            z = x.clone().requires_grad_()
            y, g = way(student, z, u)
            results.append([y, g, *torch.autograd.grad(y.sin().mean() + g.sin().mean(), [z, *student.parameters()])])
        for got, again, expected in zip(*results, strict=True):
            assert torch.equal(got, again)
            torch.testing.assert_close(got, expected, **CLOSE_IN_SINGLE)
    finally:
        torch.set_num_threads(before)
    assert fusing and chains(student, x) == {3: 1}


def test_other_numbers_of_samples():
    """A look serves batches of about its size."""
    student, _, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    for samples in (8, 9, 15, 16, 5, 12):
        x, u = numbers(samples, D), numbers(1, samples, 2, seed=3)
        assert_right(student, x, u, list(student.parameters()))
    assert sorted(known_of(student, x).graphs.chains) == [3, 4, 5]


def test_where_it_does_not_pay(monkeypatch, fusing):
    monkeypatch.setattr(fused, "PASSES", 1e12)
    student, x, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    by_chains(student, x, numbers(1, N, 2, seed=3))
    assert not fusing and not chains(student, x)


def test_the_first_run_leaves_no_trace():
    """Buffers, and what modules keep, are as after the calls alone."""
    student, x, _ = net_of(lambda x, a, b: b(F.gelu(a(x))).sin(), nn.Linear(D, 4), nn.Linear(4, 2))
    student, u = Counting(student, torch.sin).double(), numbers(1, N, 2, seed=3)
    by_chains(student, x, u)
    assert chains(student, x) == {2: 1} and student.calls == LONG + 1

"""Chains of linear layers and activations within any forward, as one fused call each.

The oracle knows nothing of them: tangents are central differences of the module in float64, and autograd differentiates
these.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from python_tests.students import Call
from python_tests.test_streams import Blocks, Encoder, Gated, differences, numbers
from python_tests.test_streams_twice import second_differences
from sobolev_kernels import ops
from sobolev_kernels.backends.streams import propagated
from sobolev_kernels.math.activations import is_curved
from sobolev_kernels.math.table import choose
from sobolev_kernels.modules import MODULES
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams import look
from sobolev_kernels.streams.flowing import NotFollowed
from sobolev_kernels.streams.fused import segments_of
from sobolev_kernels.streams.segments import CHANGED
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCE, BY_DIFFERENCES, ROUNDED_WITHIN

# of those who go by the reference
pytestmark = pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
N, D = 3, 5
f64 = torch.float64


class Skip(nn.Module):
    """Down and up again; what is on the way down is used on the way up, too."""

    D = D

    def __init__(self, O):
        super().__init__()
        self.down, self.deep, self.up = nn.Linear(D, 8), nn.Linear(8, 4), nn.Linear(4, 8)
        self.last = nn.Linear(16, O)

    def forward(self, x):
        wide = torch.tanh(self.down(x))
        return self.last(torch.cat([self.up(F.silu(self.deep(wide))), wide], -1))


NETWORKS = {"residual MLP": Blocks, "encoder": Encoder, "gated product": Gated, "skip": Skip}
# chains of them by their linear layers, all of which are fused by the CPU backend
CHAINS = {"residual MLP": {2: 2}, "encoder": {2: 1}, "gated product": {1: 2}, "skip": {1: 1, 2: 1}}


def through(function, x, v, ends=(), order=1):
    """Value and derivatives, with the chains that were found."""
    segments = segments_of(ends)
    return *propagated(function, x, v, order=order, segments=segments), segments


def assert_right(function, x, v, inputs, ends=(), order=1):
    """Value, derivatives, and the gradients of a function of both, of inputs, directions and parameters."""
    oracles, results = [differences, second_differences][:order], []
    tolerance = BY_DIFFERENCES["a network" if order == 1 else "second derivatives"]
    for way in (
        lambda x, v: through(function, x, v, ends, order)[:2],
        lambda x, v: (function(x), torch.cat([oracle(function, x, v) for oracle in oracles])),
    ):
        x, v = x.detach().requires_grad_(), v.detach().requires_grad_()
        y, t = way(x, v)
        cy, ct = numbers(*y.shape, seed=8), numbers(*t.shape, seed=9)
        loss = (cy * y.sin()).sum() + (ct * t.sin()).sum()
        results.append([y, t, *torch.autograd.grad(loss, [x, v, *inputs], materialize_grads=True)])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert got.shape == expected.shape
        least = 1e-2 if order == 1 else results[1][0].abs().max()  # what cancels in a second difference
        error = (got - expected).abs().max() / expected.abs().max().clamp(min=least)
        assert error <= tolerance, f"number {i}: {error:.2g}"


def net_of(function, *modules, x=D, P=2):
    """A student of a function of x and of modules, inputs and directions."""
    torch.manual_seed(0)
    for module in modules:
        for p in module.parameters():
            p.data = torch.randn_like(p) / 2
    return Call(function, *modules).double(), numbers(N, x), numbers(P, N, x, seed=3)


def chains(segments):
    return {layers: count for (layers, _), count in segments.fused.items()}


@pytest.mark.parametrize("P, O", [(1, 1), (1, 10), (4, 1), (4, 10)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, P, O):
    torch.manual_seed(1)
    module = NETWORKS[name](O).double()
    x, v = numbers(N, module.D), numbers(P, N, module.D, seed=3)
    assert_right(module, x, v, list(module.parameters()))
    assert chains(through(module, x, v)[2]) == ({3: 1, 1: 1} if name == "skip" else CHAINS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_fused_op_is_called(name, monkeypatch):
    """Of a loss: the same numbers as by the reference, by so many steps of the CPU backend."""
    torch.manual_seed(1)
    module, steps = NETWORKS[name](10).double(), []
    x, v = numbers(N, module.D).requires_grad_(), numbers(4, N, module.D, seed=3)
    targets = sk.Targets(values=numbers(N, 10), directions=v, tangents=numbers(4, N, 10, seed=2))
    sk.explain(module, x.detach(), sk.Directions.given(v.detach()))
    compute = ops.compute
    monkeypatch.setattr(ops, "compute", lambda problem, operands: steps.append(problem) or compute(problem, operands))
    results = []
    for backend in (None, "reference", None):
        loss = sk.sobolev_loss(module, x, targets, backend=backend)
        results.append([loss, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for got, expected, again in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)
        assert torch.equal(got, again)
    count = sum(CHAINS[name].values())
    # each in two calls and their backwards
    assert {problem.backend for problem in steps} == {"cpu"} and len(steps) == 4 * count
    monkeypatch.setattr(ops, "compute", compute)
    text = sk.explain(module, x.detach(), sk.Directions.given(v))
    words = [f"{n} segment{'s' * (n > 1)} of {l} layer{'s' * (l > 1)}" for l, n in CHAINS[name].items()]
    assert f"segments    {', '.join(words)}, fused by cpu" in text


@pytest.mark.parametrize("P, O", [(1, 1), (3, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives(name, P, O):
    """Of chains whose inputs have second derivatives themselves, and of chains that begin at x; and what
    differentiates their gradients."""
    torch.manual_seed(1)
    module = NETWORKS[name](O).double()
    x, v = numbers(N, module.D), numbers(P, N, module.D, seed=3)
    assert_right(module, x, v, list(module.parameters()), order=2)
    assert chains(through(module, x, v, order=2)[2]) == ({3: 1, 1: 1} if name == "skip" else CHAINS[name])
    twice = []
    for segments in (segments_of(()), None):
        w = v.clone().requires_grad_()
        y, d = propagated(module, x, w, order=2, segments=segments)
        loss = (d.sin() * numbers(*d.shape, seed=9)).sum() + y.sum()
        (dw,) = torch.autograd.grad(loss, w, create_graph=True)
        twice.append(torch.autograd.grad(dw.sin().sum(), [w, *module.parameters()], materialize_grads=True))
    torch.testing.assert_close(*twice, **ANOTHER_WAY)


@pytest.mark.parametrize("match", ["jets", "a Laplacian"])
def test_second_derivatives_of_a_loss(match, monkeypatch):
    """The same numbers as by the reference; of a sum alone, which costs less by rules, nothing is fused."""
    torch.manual_seed(1)
    module, steps = Blocks(2).double(), []
    x, v = numbers(N, module.D), numbers(2, N, module.D, seed=3)
    along = {"tangents": numbers(2, N, 2, seed=2), "seconds": numbers(2, N, 2, seed=4), "directions": v}

    def loss(backend):
        if match == "a Laplacian":
            return sk.laplacian(module, x, backend=backend)[1].square().sum()
        return sk.sobolev_loss(module, x, sk.Targets(values=numbers(N, 2), **along), order=2, backend=backend)

    loss(None)  # which looks at the module
    compute = ops.compute
    monkeypatch.setattr(ops, "compute", lambda problem, operands: steps.append(problem) or compute(problem, operands))
    for got in (loss(None), loss(None)):
        expected = loss("reference")
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)
        inputs = [*module.parameters()]
        each = [torch.autograd.grad(result, inputs, materialize_grads=True) for result in (got, expected)]
        torch.testing.assert_close(*each, **ANOTHER_WAY)
    assert {problem.order for problem in steps} == ({1, 2} if match == "jets" else set())
    text = sk.explain(module, x, sk.Directions.given(v), order=2)
    assert "segments    2 segments of 2 layers, fused by cpu" in text


def test_an_end_is_learnt():
    """What something else asks for as well is computed once, from the second run on."""
    torch.manual_seed(1)
    module = Skip(3).double()
    x, v = numbers(N, D), numbers(1, N, D, seed=3)
    y, t, segments = through(module, x, v)
    assert chains(segments) == {3: 1, 1: 1} and segments.found() == (1,)
    assert_right(module, x, v, list(module.parameters()), ends=(1,))
    y2, t2, segments = through(module, x, v, (1,))
    assert chains(segments) == CHAINS["skip"] and segments.found() == (1,)
    sk.jvp(module, x, v, backend="streams")
    assert known_of(module, x).flows[1, None].ends == (1,)
    torch.testing.assert_close((y, t), (y2, t2), **ANOTHER_WAY)


@pytest.mark.parametrize("name", MODULES)
def test_every_activation(name):
    """Of modules, with parameters that are not the default ones."""
    row, parameters = MODULES[name], {"leaky_relu": (0.3,), "elu": (0.7,), "softplus": (2.0, 3.0), "sin": (1.5,)}
    act = row.kind(*parameters.get(name, ()), **dict(row.arguments))
    student, x, v = net_of(lambda x, a, b: b(act(a(x.exp()))).exp(), nn.Linear(D, 4), nn.Linear(4, 2))
    assert_right(student, x, v, list(student.parameters()))

    assert chains(through(student, x, v)[2]) == ({} if name == "identity" else {2: 1})
    curved = is_curved(choose(sk.ACTIVATIONS, "activation", name))
    if curved or name == "identity":
        assert_right(student, x, v, list(student.parameters()), order=2)
    assert chains(through(student, x, v, order=2)[2]) == ({2: 1} if curved else {})


def written(h, change):
    change(h)
    return h


def tokens(x):
    return x.unflatten(-1, (2, 3)).transpose(0, 1)


def after_it_was_used(x, a, b):
    h = a(x)
    k = torch.tanh(h)
    h.mul_(2.0)
    return b(k) + h[:, :1]


def many(x, a, b):
    """The same layer again and again."""
    for _ in range(3):
        x = torch.tanh(b(F.gelu(a(x)))) + 0.1 * x
    return x


# Functions of x and two linear layers D -> 4 -> D, in each of which there is something to trip over; how many chains
CASES = {
    "a value that is asked for later": (lambda x, a, b: (lambda h: b(torch.tanh(h)) + h.sum(-1, True))(a(x)), 0),
    "two chains from one value": (lambda x, a, b: (lambda h: b(h.tanh()) * b(h.sigmoid()))(a(x)), 2),
    "in place": (lambda x, a, b: b(written(a(x), torch.relu_)) * b(written(a(x), lambda h: h.tanh_())), 2),
    "in place by its module": (lambda x, a, b: b(nn.SiLU(inplace=True)(a(x))) + b(F.elu_(a(x), 0.5)).exp(), 2),
    "in place after it was used": (after_it_was_used, 0),
    "in place, not an activation": (lambda x, a, b: b(written(a(x), lambda h: h.add_(1.0)).tanh()), 0),
    "a view": (lambda x, a, b: b(torch.tanh(a(x)).view(len(x), 2, 2).flatten(1)).exp(), 1),
    "transposed": (lambda x, a, b: b(F.gelu(a(x.t().contiguous().t()))), 1),
    "expanded": (lambda x, a, b: b(F.gelu(a(x[:1].expand(len(x), -1)))) * x, 1),
    "one direction alone moves it": (lambda x, a, b: b(F.gelu(a(x * torch.tensor([1.0, 0, 0, 0, 0], dtype=f64)))), 1),
    "one sample": (lambda x, a, b: torch.stack([b(a(row).tanh()) for row in x]), 3),
    "an empty part": (lambda x, a, b: torch.cat([b(a(x[:0]).tanh()), b(a(x).tanh())]), 1),
    "four dims": (lambda x, a, b: b(F.silu(a(x[:, None, None].repeat(1, 2, 3, 1)))).mean((1, 2)), 1),
    "again and again": (many, 3),
    "the same layer twice in a chain": (lambda x, a, b: b(a(b(a(x).tanh()).tanh()).tanh()), 1),
    "no bias": (lambda x, a, b: F.linear(F.linear(x, a.weight).tanh(), b.weight, None), 1),
    "a transposed weight": (lambda x, a, b: F.linear(F.linear(x, b.weight.t()).tanh(), a.weight.t()), 1),
    "a weight with a graph": (lambda x, a, b: F.linear(F.linear(x, a.weight.sin(), a.bias.exp()).tanh(), b.weight), 1),
    "a weight that the inputs give": (lambda x, a, b: F.linear(a(x).tanh(), x.sum() * b.weight), None),
    "shapes that are asked for": (
        lambda x, a, b: b((lambda h: h.tanh() if h.shape[1] == 4 and len(h) else h)(a(x))),
        1,
    ),
    "two activations": (lambda x, a, b: b(a(x).tanh().sigmoid()), 1),
    "by hand": (lambda x, a, b: (x @ a.weight.T + a.bias).tanh() @ b.weight.t() + b.bias, 1),
    "by hand, the other way round": (lambda x, a, b: a.bias + torch.add(b.bias[:4], torch.mm(x, b.weight), alpha=1), 0),
    "two biases": (lambda x, a, b: b(F.gelu(F.linear(x, a.weight) + a.bias + a.bias)), 0),
    "a bias and a skip": (
        lambda x, a, b: (lambda h: F.linear(F.gelu(h + a.bias), b.weight) + h[:, :1])(x @ a.weight.T),
        0,
    ),
    "a sine": (lambda x, a, b: b(torch.sin(3 * a(x) * 2.0)) * b(sk.Sine(1.5)(a(x))), 2),
    "scaled": (lambda x, a, b: 0.5 * b(F.gelu(a(x))) + b(2 * a(x)) + b((2 * a(x)).tanh()) + b(0.0 * a(x)), 1),
    "scaled before its bias": (lambda x, a, b: b(F.gelu(2 * (x @ a.weight.T) + a.bias)), 0),
    "no activation": (lambda x, a, b: b(a(x)).square(), 0),
    "prelu, which no table has": (lambda x, a, b: b(F.prelu(a(x), a.bias)) + b(F.celu(a(x))), 0),
    "dropout in eval": (lambda x, a, b: b(F.dropout(a(x).tanh(), 0.5, training=False)), 1),
    "through the dtype it has": (lambda x, a, b: b(a(x).to(f64).tanh().double()), 0),
    "in another dtype": (lambda x, a, b: b(a(x).float().double().tanh()), 0),
    "checkpoint": (lambda x, a, b: checkpoint(lambda x: b(F.gelu(a(x))), x, use_reentrant=False) + x, 1),
}


@pytest.mark.filterwarnings("ignore:student. an operation two of whose arguments:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("name", CASES)
def test_within_a_forward(name):
    function, count = CASES[name]
    student, x, v = net_of(function, nn.Linear(D, 4), nn.Linear(4, D))
    x, v, z = x[:, :D], v[..., :D], None
    if count is not None:
        if "another dtype" not in name:  # differences see the rounding
            assert_right(student, x, v, list(student.parameters()))
        assert sum(through(student, x, v)[2].fused.values()) == count
    z, results = x.clone().requires_grad_(), []
    for backend in (None, "reference"):
        _, tangents = sk.jvp(student, z, v, backend=backend)
        results.append(
            [tangents, *torch.autograd.grad(tangents.sin().sum(), [z, *student.parameters()], materialize_grads=True)]
        )
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **BY_DIFFERENCE)


WEIGHTS = {
    "weight norm": lambda a: weight_norm(a),
    "spectral norm": lambda a: spectral_norm(a).eval(),
    "frozen": lambda a: a.requires_grad_(False),
    "frozen bias": lambda a: [a, a.bias.requires_grad_(False)][0],
    "a hook that changes it": lambda a: [a, a.register_forward_hook(lambda m, i, y: y * 2)][0],
    "a hook that writes to it": lambda a: [a, a.register_forward_hook(lambda m, i, y: [y.mul_(2), None][1])][0],
    "a hook that looks": lambda a: [a, a.register_forward_hook(lambda m, i, y: y.shape and None)][0],
    "a hook of its input": lambda a: [a, a.register_forward_pre_hook(lambda m, i: (i[0] + 1,))][0],
    "a transposed memory": lambda a: [a, setattr(a.weight, "data", a.weight.data.t().contiguous().t())][0],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_dressed_layers(name):
    torch.manual_seed(0)
    a = WEIGHTS[name](nn.Linear(D, 4).double())
    student = Call(lambda x, a, b: b(F.gelu(a(x))) + x[:, :1], a, nn.Linear(4, 2).double())
    x, v = numbers(N, D), numbers(2, N, D, seed=3)
    assert_right(student, x, v, [p for p in student.parameters() if p.requires_grad])
    assert chains(through(student, x, v)[2]) == ({} if "changes" in name or "writes" in name else {2: 1})


class Swapped(nn.Module):
    """Its weight holds other numbers after it is used; as that of a quantised one, or as running averages do."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls, self.second = how, 0, nn.Linear(4, 2, dtype=f64)
        self.weight = nn.Parameter(numbers(4, D, seed=7)) if how != "a buffer" else None
        self.register_buffer("average", numbers(4, D, seed=7))

    def forward(self, x):
        self.calls += 1
        weight = self.average if self.weight is None else self.weight
        self.used = weight.detach().clone()
        kept = weight.data
        if self.how == "another tensor":
            weight.data = kept.sign()
        h = F.gelu(F.linear(x, weight))
        if self.how == "another tensor":
            weight.data = kept
        elif self.how == "its numbers":
            weight.data.mul_(0.5)
        elif self.how == "a buffer" or self.calls > 3:
            with torch.no_grad():
                weight.mul_(0.5)
        return self.second(h)


@pytest.mark.parametrize("how", ["another tensor", "its numbers", "a buffer", "later"])
def test_weights_that_change_after_they_were_used(how):
    """They are noticed, and nothing of such a student is put off; one who begins with it is refused once."""
    torch.manual_seed(0)
    student, x, v = Swapped(how), numbers(N, D), numbers(2, N, D, seed=3)
    for call in range(6):
        if how == "later" and call == 3:
            with pytest.raises(sk.NotProvided, match="after it was used"):
                sk.jvp(student, x, v, backend="streams")
            continue
        y, tangents = sk.jvp(student, x, v, backend="streams")
        w = student.used.sign() if how == "another tensor" else student.used
        plain = lambda x, w=w: student.second(F.gelu(F.linear(x, w)))  # noqa: E731
        torch.testing.assert_close(y, plain(x), **ANOTHER_WAY)
        torch.testing.assert_close(tangents, differences(plain, x, v), **BY_DIFFERENCE)
    assert not known_of(student, x).flows[1, None].fused


def test_a_change_is_seen():
    w = nn.Parameter(numbers(4, D))

    def function(x):
        h = F.linear(x, w).tanh()
        with torch.no_grad():
            w.mul_(2)
        return F.linear(h, w[:, :4])

    with pytest.raises(NotFollowed, match=CHANGED):
        through(function, numbers(N, D), numbers(1, N, D))


def test_dropout_in_training():
    """It ends a chain; one mask for value and tangents."""
    student, x, v = net_of(lambda x, a, b: b(F.dropout(a(x).tanh(), 0.5)).tanh(), nn.Linear(D, 8), nn.Linear(8, 2))
    state = torch.get_rng_state()
    y, t, segments = through(student, x, v)
    assert chains(segments) == {1: 2}
    torch.set_rng_state(state)
    torch.testing.assert_close(y, student(x), **ANOTHER_WAY)

    def again(x):
        torch.set_rng_state(state)
        return student(x)

    torch.testing.assert_close(t, differences(again, x, v), **BY_DIFFERENCE)


def test_derivatives_of_gradients():
    """As often as one likes: an HVP of a loss of tangents, beside the reference; and several cotangents at a time."""
    torch.manual_seed(1)
    student = Gated(2).double()
    x, v, results = numbers(N, 3).requires_grad_(), numbers(2, N, 3, seed=1).requires_grad_(), []
    for backend in ("streams", "reference"):
        y, t = sk.jvp(student, x, v, backend=backend)
        inputs = [x, v, *student.parameters()]
        first = torch.autograd.grad(y.sin().sum() + t.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([*first, *second])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)
    y, _ = sk.jvp(student, x, v, backend="streams")
    cotangents = numbers(2, *y.shape, seed=2)
    (batched,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)
    for got, cotangent in zip(batched, cotangents, strict=True):
        torch.testing.assert_close(got, torch.autograd.grad(y, x, cotangent, retain_graph=True)[0], **ANOTHER_WAY)


def test_without_gradients():
    student, x, v = Gated(2).double(), numbers(N, 3), numbers(2, N, 3, seed=1)
    y, t = sk.jvp(student, x, v, backend="streams")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = sk.jvp(student, x, v, backend="streams")
        assert not any(result.requires_grad for result in results)
        torch.testing.assert_close(results, (y.detach(), t.detach()), **ANOTHER_WAY)
    student.requires_grad_(False)
    results = sk.jvp(student, x, v, backend="streams")
    assert not any(result.requires_grad for result in results)
    empty = sk.jvp(student, x[:0], v[:, :0])
    assert [tuple(e.shape) for e in empty] == [(0, 2), (2, 0, 2)]


def test_where_none_is_fused():
    """What is wider, what has no activation, and what no backend does."""
    wide, x, v = net_of(lambda x, a, b: b(F.gelu(a(x))), nn.Linear(D, 600), nn.Linear(600, 2))
    assert chains(through(wide, x, v)[2]) == {}
    assert_right(wide, x, v, list(wide.parameters()))
    student, x, v = net_of(lambda x, a, b: b(F.gelu(a(x))), nn.Linear(D, 8), nn.Linear(8, 2))
    many = torch.randn(200, D, dtype=f64)
    assert chains(through(student, many, many[None])[2]) == {}  # GELU of float64, lane by lane
    assert chains(through(student.float(), many.float(), many[None].float())[2]) == {2: 1}


def test_without_the_core(monkeypatch):
    from sobolev_kernels.backends import core

    monkeypatch.setattr(core, "MISSING", "the compiled core is missing")
    student, x, v = net_of(lambda x, a, b: b(F.gelu(a(x))), nn.Linear(D, 8), nn.Linear(8, 2))
    assert chains(through(student, x, v)[2]) == {}
    assert_right(student, x, v, list(student.parameters()))


def test_detach_is_seen():
    student, x, v = net_of(lambda x, a, b: b(a(x).tanh().detach()) + a(x).sum(), nn.Linear(D, 4), nn.Linear(4, 2))
    with pytest.raises(sk.NotProvided, match="detach"):
        sk.jvp(student, x, v, backend="streams")


def test_compiled():
    """A step that torch.compile traces whole goes the way of any function."""
    student, x, v = Gated(2), torch.randn(N, 3), torch.randn(2, N, 3)
    step = torch.compile(lambda x: sk.jvp(student, x, v), backend="eager", fullgraph=True)
    with torch.no_grad():  # with gradients no function can be, which the reference runs
        compiled = step(x)
    for got, expected in zip(compiled, sk.jvp(student, x, v, backend="streams"), strict=True):
        torch.testing.assert_close(got, expected, **ROUNDED_WITHIN)


@pytest.mark.parametrize("where", ["the layer", "the activation", "what asks"])
def test_amid_autocast(where):
    """In the precision of each operation, or not followed: as it is where nothing is put off."""
    student, x, v = net_of(lambda x, a, b: b(in_part(a, x, where)).float(), nn.Linear(D, 8), nn.Linear(8, 2))
    student, x, v, results = student.float(), x.float(), v.float(), []
    for segments in (segments_of(()), None):
        try:
            results.append(propagated(student, x, v, segments=segments))
        except NotFollowed as reason:
            results.append(str(reason))
    if isinstance(results[1], str):
        assert results[0] == results[1]
    else:
        torch.testing.assert_close(*results, **ROUNDED_WITHIN)


def in_part(a, x, where):
    cast = lambda part: torch.autocast("cpu", torch.bfloat16, enabled=where == part)  # noqa: E731
    with cast("the layer"):
        h = a(x)
    with cast("the activation"):
        h = F.gelu(h)
    with cast("what asks"):
        return (h + 1).float()


def test_sharded_students(monkeypatch):
    """Whose weights are freed after their layer's forward: nothing is put off."""
    monkeypatch.setattr(look, "is_sharded", lambda student: True)
    student, x, v = net_of(lambda x, a, b: b(F.gelu(a(x))), nn.Linear(D, 8), nn.Linear(8, 2))
    sk.jvp(student, x, v, backend="streams")
    assert known_of(student, x).flows[1, None].ends is None and not known_of(student, x).flows[1, None].fused

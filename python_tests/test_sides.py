"""The gradients' side of any student: what it knows of one call holds in the next, or is found out anew."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from python_tests.students import Call, Straight
from sobolev_kernels.backends.exact import standardised
from sobolev_kernels.backends.standard import Standardised
from sobolev_kernels.kept import KEPT
from sobolev_kernels.paths import known_of
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCE

N, D = 6, 4
f64 = torch.float64


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def net(O=1):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, O)).double()


@pytest.mark.parametrize("n", [1, 2])
def test_standardising_has_derivatives_of_all_orders(n):
    x, c = numbers(3, 2, 4).requires_grad_(), numbers(3, 2, 4, seed=1)
    dims, orders = tuple(range(-n, 0)), []
    for way in (lambda x: Standardised.apply(x, n, 1e-5), lambda x: standardised(x, dims, 1e-5)):
        g, results = way(x), []
        for _ in range(4):
            (g,) = torch.autograd.grad((g.sin() * c).sum(), x, create_graph=True)
            results.append(g)
        (last,) = torch.autograd.grad((results[1] * c).sum(), x)  # where the graph ends
        orders.append([*results, last])
    for got, expected in zip(*orders, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


class Switched(nn.Module):
    """A student whose forward goes another way when it is told to."""

    def __init__(self):
        super().__init__()
        self.net, self.way, self.flag, self.ran = net(), "plain", False, 0
        self.norm, self.batch = nn.LayerNorm(D).double(), nn.BatchNorm1d(D).double().eval()

    def forward(self, x):
        self.ran += 1
        return WAYS[self.way](self, x)


def attended(x):
    h = x[:, :, None]
    return F.scaled_dot_product_attention(h, h.sin(), h.cos())[..., 0] + x


WAYS = {
    "plain": lambda m, x: m.net(x),
    "another activation": lambda m, x: m.net(x).sin(),
    "layer norm": lambda m, x: m.net(m.norm(x) + x),
    "attention": lambda m, x: m.net(attended(x)),
    "checkpoint": lambda m, x: checkpoint(m.net, x, use_reentrant=False).sin(),
    "batch norm": lambda m, x: m.net(m.batch(x)),
    "dropout": lambda m, x: m.net(F.dropout(x, 0.5)) + x[:, :1] ** 3,
    "compiled": lambda m, x: torch.compile(m.net, backend="eager")(x),
    "frozen": lambda m, x: F.linear(torch.tanh(F.linear(x, m.net[0].weight.detach())), m.net[2].weight),
}


def step(student, x, targets, **settings):
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    loss = sk.sobolev_loss(student, x, targets, **settings)
    parameters = tuple(student.parameters())
    return loss, *torch.autograd.grad(loss, [x, *parameters], allow_unused=True), torch.get_rng_state()


def assert_alike(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **ANOTHER_WAY)


@pytest.mark.parametrize("kind", ["directions", "cotangents", "exact"])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
def test_another_way_after_some_calls(way, kind):
    """It is as if the calls before had never been, be the new way one that must be run in contexts, and back again."""
    x, y = numbers(N, D), numbers(N, 1, seed=1)
    targets = {
        "directions": sk.Targets(values=y, tangents=numbers(3, N, 1, seed=2), directions=numbers(3, N, D, seed=3)),
        "cotangents": sk.Targets(values=y, vjps=numbers(2, N, D, seed=2), cotangents=numbers(2, N, 1, seed=3)),
        "exact": sk.Targets(values=y, jacobian=numbers(N, 1, D, seed=2)),
    }[kind]
    settings = {"derivatives": "exact"} if kind == "exact" else {}
    student = Switched()
    for way_now in ("plain", "plain", "plain", way, way, way, "plain", way):
        student.way, fresh = way_now, Switched()
        fresh.way = way_now
        ran = student.ran
        assert_alike(step(student, x, targets, **settings), step(fresh, x, targets, backend="reference", **settings))
        assert student.ran - ran <= 2 or way_now != "plain"


MIXING = {
    "the batch's mean": lambda net, x: net(x - x.mean(0)) * x[:, :1],
    "another order": lambda net, x: net(x.roll(1, 0)) * x[:, :1],
    "a neighbour's value": lambda net, x: net(x) * x.roll(1, 0)[:, :1],
    "attention of samples": lambda net, x: net((x @ x.T).softmax(1) @ x) * x[:, :1],
    "a tenth of a millionth": lambda net, x: net(x + 1e-7 * x.flip(0)) * x[:, :1],
}


@pytest.mark.parametrize("O", [1, 2])
@pytest.mark.parametrize("name", MIXING)
def test_samples_that_are_mixed_after_some_calls(name, O):
    """Whether a sample's outputs are its own is asked of each kind of graph, not once of a function."""
    module, mixes, x, v = net(O), [False], numbers(N, D), numbers(3, N, D, seed=3)
    student = Call(lambda x, net: MIXING[name](net, x) if mixes[0] else net(x) * x[:, :1], module)
    targets = sk.Targets(values=numbers(N, O), tangents=numbers(3, N, O, seed=2), directions=v)
    for now in (False, False, False, True, True, False, True):
        mixes[0] = now
        tangents = torch.stack([torch.func.jvp(student, (x,), (d,))[1] for d in v])
        expected = F.mse_loss(student(x), targets.values) + F.mse_loss(tangents, targets.tangents)
        for backend in (None, "reference"):
            torch.testing.assert_close(sk.sobolev_loss(student, x, targets, backend=backend), expected, **ANOTHER_WAY)


ORDERS = torch.stack([torch.arange(N), torch.arange(N).roll(1)])
# Of no sample but its own where k = 0, by the same operations and of the same shapes as where k = 1.
PLACES = {
    "roll": lambda x, k: x.roll(k, 0),
    "roll along another dim": lambda x, k: x.roll(1, 1 - k),
    "slices": lambda x, k: torch.cat([x[k:], x[:k]]),
    "a slice": lambda x, k: torch.cat([x, x])[k : N + k],
    "flip": lambda x, k: x.flip(1 - k),
    "select": lambda x, k: torch.stack([x, x.roll(1, 0)])[k],
    "index": lambda x, k: x[ORDERS[k]],
    "index of a list": lambda x, k: x[[*ORDERS[k].tolist()]],
    "index_select": lambda x, k: x.index_select(0, ORDERS[k]),
    "softmax": lambda x, k: x.softmax(1 - k),
    "cumsum": lambda x, k: x.cumsum(1 - k),
    "rot90": lambda x, k: x.rot90(2 * k, (0, 1)),
    "as_strided": lambda x, k: torch.cat([x, x]).as_strided((N, D), (D, 1), k * D),
    "unbind": lambda x, k: torch.stack([x, x.flip(0)]).unbind(0)[k],
    "chunk": lambda x, k: torch.cat([x, x.flip(0)]).chunk(2)[k],
    "rows": lambda x, k: torch.stack([*x.unbind(0)[k:], *x.unbind(0)[:k]]),
    "gather": lambda x, k: x.gather(0, ORDERS[k][:, None].expand(N, D)),
    "index_add": lambda x, k: torch.zeros_like(x).index_add(0, ORDERS[k], x),
    "a number": lambda x, k: x + k * x.mean(0),
    "a strength": lambda x, k: x + torch.tensor(k, dtype=f64) * x.mean(0),
    "a matrix": lambda x, k: torch.eye(N, dtype=f64).roll(k, 0) @ x,
    "a condition": lambda x, k: torch.where(torch.arange(N)[:, None] < k, x.mean(0), x),
}


@pytest.mark.filterwarnings("ignore:student. as_strided in it has no rule")
@pytest.mark.parametrize("place", PLACES)
def test_samples_that_are_mixed_by_other_numbers(place):
    """The same operations on tensors of the same shapes, at a call that is not the 1st, 2nd, 4th, 8th."""
    module, of, x, v = net(1), [0], numbers(N, D), numbers(3, N, D, seed=3)
    student = Call(lambda x, net: net(PLACES[place](x, of[0])) * x[:, :1], module)
    for of[0] in (0, 0, 0, 0, 0, 1, 1, 0, 1):
        expected = torch.stack([torch.autograd.functional.jvp(student, x, d)[1] for d in v])
        torch.testing.assert_close(sk.jvp(student, x, v)[1], expected, **ANOTHER_WAY)


@pytest.mark.parametrize("backend", [None, "streams", "reference"])
def test_samples_that_are_centred(backend):
    """The gradient of their sum is exactly 0, though no path is cut."""
    student = lambda x: (x - x.mean(0)).sum(1, keepdim=True)  # noqa: E731
    x, v = numbers(8, D), numbers(3, 8, D, seed=3)
    for _ in range(2):
        tangents = sk.jvp(student, x, v, backend=backend)[1]
        torch.testing.assert_close(tangents, torch.stack([student(d) for d in v]), **ANOTHER_WAY)


def test_what_is_refused_is_refused_after_some_calls():
    x, targets = numbers(N, D), sk.Targets(values=numbers(N, 1), tangents=numbers(2, N, 1), directions=numbers(2, N, D))
    student = Switched()
    for _ in range(3):
        step(student, x, targets)
    student.batch.train()
    with pytest.raises(sk.NotProvided, match="BatchNorm1d 'batch' in train mode"):
        step(student, x, targets)
    student.batch.eval()
    WAYS["batch statistics"] = lambda m, x: m.net(F.batch_norm(x, None, None, training=True))
    try:
        student.way = "batch statistics"
        with pytest.raises(sk.NotProvided, match="batch_norm"):
            step(student, x, targets)
    finally:
        del WAYS["batch statistics"]
    with pytest.raises(ValueError, match="tangents"):
        student.way = "plain"
        step(student, x, sk.Targets(values=numbers(N, 1), tangents=numbers(2, N, 2), directions=numbers(2, N, D)))


def test_what_is_kept_holds_no_student():
    student, x = Call(lambda x, net: net(x) * x[:, :1], net()), numbers(N, D)
    targets = sk.Targets(values=numbers(N, 1), jacobian=numbers(N, 1, D))
    KEPT.clear()
    for _ in range(3):
        step(student, x, targets, directions=sk.Directions.sphere(2, seed=1))
    assert KEPT and known_of(student, x).graphs.needs is not None
    gone = weakref.ref(student)
    del student
    gc.collect()
    assert gone() is None


def test_values_alone_after_some_calls():
    """No derivative is asked for, though all is known of them; and results that are no loss."""
    student, x, v = Switched(), numbers(N, D), numbers(3, N, D, seed=3)
    targets = sk.Targets(values=numbers(N, 1), tangents=numbers(3, N, 1, seed=2), directions=v)
    of_values = sk.Targets(values=targets.values)
    for _ in range(3):
        assert_alike(step(student, x, targets), step(Switched(), x, targets, backend="reference"))
        for settings in ({"weights": (1.0, 0.0)}, {"weights": (1.0, 0.0), "reduction": "none"}):
            for chosen in (of_values, targets):
                loss = sk.sobolev_loss(student, x, chosen, **settings)
                each = (student(x) - targets.values).square().mean(-1)
                torch.testing.assert_close(loss, each if "reduction" in settings else each.mean(), **ANOTHER_WAY)
        each = sk.sobolev_loss(student, x, targets, reduction="none")
        torch.testing.assert_close(each.mean(), sk.sobolev_loss(student, x, targets), **ANOTHER_WAY)
        _, tangents = sk.jvp(student, x, v)
        torch.testing.assert_close(tangents[0], torch.func.jvp(student, (x,), (v[0],))[1], **ANOTHER_WAY)
        loss, value, derivative, _ = sk.sobolev_loss(student, x, targets, return_terms=True)
        torch.testing.assert_close(value + derivative, loss, **ANOTHER_WAY)


class Mixed(nn.Module):
    def __init__(self, O):
        super().__init__()
        self.net = net(O)

    def forward(self, x):
        return self.net((x - x.mean(0)) / x.std(0))


class Wavy(nn.Module):
    def __init__(self, O):
        super().__init__()
        self.net, self.norm = net(O), nn.LayerNorm(D).double()

    def forward(self, x):
        return self.net(self.norm(x.sin())) + x[:, :1] ** 2


@pytest.mark.parametrize("settings", [{}, {"wrt": [2, 0]}, {"reduction": "sum", "derivative_loss": "huber"}], ids=str)
@pytest.mark.parametrize("O", [1, 3, 10])
@pytest.mark.parametrize("kind", [Wavy, Mixed])
def test_exact(kind, O, settings):
    """The whole Jacobian, by rows or columns; of samples that see each other, the sum of what each is moved by."""
    student, x = kind(O), numbers(N, D)
    columns = settings.get("wrt", range(D))
    y, jacobian = numbers(N, O, seed=1), numbers(N, O, len(columns), seed=2)
    scale = torch.tensor([0.5, 2.0, 1.5, 3.0], dtype=f64)[: len(columns)]
    parameters = tuple(student.parameters())
    written = lambda x: torch.func.functional_call(student, dict(student.named_parameters()), (x,))  # noqa: E731
    got_columns = []
    for d in columns:
        along = torch.zeros_like(x)
        along[:, d] = 1
        got_columns.append(differences(written, x, along))
    rows = torch.stack(got_columns, 2) * scale
    rho = F.huber_loss if settings.get("derivative_loss") else F.mse_loss
    times = N if settings.get("reduction") == "sum" else 1
    expected = times * (F.mse_loss(written(x), y) + rho(rows, jacobian * scale))
    expected = [expected, *torch.autograd.grad(expected, parameters)]
    targets = sk.Targets(values=y, jacobian=jacobian)
    for _ in range(3):
        loss = sk.sobolev_loss(student, x, targets, derivatives="exact", input_scale=scale, **settings)
        for a, b in zip([loss, *torch.autograd.grad(loss, parameters)], expected, strict=True):
            torch.testing.assert_close(a, b, **BY_DIFFERENCE)


def differences(function, x, v, h=1e-3):
    """Central differences of eighth order, with a graph."""
    weights = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
    return sum(w * (function(x + k * h * v) - function(x - k * h * v)) for k, w in enumerate(weights, 1)) / h


def test_a_backward_that_is_its_own():
    """Of a custom autograd.Function nothing is known by its kind."""
    student, x = Call(lambda x, net: net(Straight.apply(x * 8) + x), net()), numbers(N, D)
    v = numbers(2, N, D, seed=1)
    with pytest.warns(sk.SobolevWarning):
        first = sk.jvp(student, x, v)[1]
    assert torch.equal(sk.jvp(student, x, v)[1], first)
    assert known_of(student, x).graphs.needs is None

"""Pairs through a student that is known again go a short way, and so do the fused calls within him: to the numbers of
the reference, whatever was changed since the call before."""

import random

import numpy
import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels import call, known_function
from sobolev_kernels.backends import core
from sobolev_kernels.held import Held
from sobolev_kernels.streams import again
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D, O, P = 6, 3, 4, 2
f64 = torch.float64
pytestmark = [
    pytest.mark.skipif(core.MISSING is not None, reason="the core is missing"),
    pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning"),
]


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


class Gates(nn.Module):
    """Two segments, and what is made of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b, self.c, self.last = nn.Linear(D, 8), nn.Linear(D, 8), nn.Linear(8, 8), nn.Linear(8, O)
        self.register_buffer("shift", torch.zeros(8))
        self.activation, self.swapped, self.drop, self.scale = torch.tanh, False, nn.Dropout(0.5).eval(), 1.0
        self.double()

    def forward(self, x):
        a, b = (self.b, self.a) if self.swapped else (self.a, self.b)
        product = self.activation(a(x)) * torch.sigmoid(b(x)) + self.shift
        return self.last(torch.nn.functional.softplus(self.c(self.drop(product)))) * self.scale


class Asked:
    def __init__(self):
        self.student, self.x = Gates(), numbers(N, D, seed=1)
        self.v, self.values, self.tangents = numbers(P, N, D, seed=2), numbers(N, O), numbers(P, N, O, seed=3)

    def results(self, backend):
        torch.manual_seed(9)
        targets = sk.Targets(values=self.values, tangents=self.tangents, directions=self.v)
        loss = sk.sobolev_loss(self.student, self.x, targets, backend=backend)
        asking = [t for t in (self.x, self.v, *self.student.parameters()) if t.requires_grad]
        return [loss, *torch.autograd.grad(loss.sin(), asking, allow_unused=True, materialize_grads=True)]


def misaligned(tensor):
    out = torch.frombuffer(bytearray(tensor.numel() * 8 + 4), dtype=f64, count=tensor.numel(), offset=4)
    return out.view(tensor.shape).copy_(tensor)


def doubled(module, args, output):
    return 2 * output


def tied(student):
    student.b.weight = student.a.weight


def put(where, **attributes):
    for name, value in attributes.items():
        setattr(where, name, value)


def as_batch(asked, N):
    asked.x, asked.v = asked.x[:N], asked.v[:, :N]
    asked.values, asked.tangents = asked.values[:N], asked.tangents[:, :N]


CHANGES = {
    "nothing": lambda a: None,
    "a weight in place": lambda a: a.student.c.weight.data.mul_(-2),
    "a weight's memory": lambda a: put(a.student.c.weight, data=a.student.c.weight.data + 1),
    "a weight's strides": lambda a: put(a.student.c.weight, data=a.student.c.weight.data.T.contiguous().T),
    "a weight at an odd address": lambda a: put(a.student.c.weight, data=misaligned(a.student.c.weight.data)),
    "another weight": lambda a: put(a.student.c, weight=nn.Parameter(numbers(8, 8, seed=7))),
    "a weight that is tied": lambda a: tied(a.student),
    "a wider layer": lambda a: put(a.student, c=nn.Linear(8, 9).double(), last=nn.Linear(9, O).double()),
    "no bias": lambda a: put(a.student.c, bias=None),
    "a frozen layer": lambda a: a.student.c.requires_grad_(False),
    "a frozen first layer": lambda a: a.student.a.requires_grad_(False),
    "another activation": lambda a: put(a.student, activation=torch.sigmoid),
    "an activation without a row": lambda a: put(a.student, activation=torch.atan),
    "another order of layers": lambda a: put(a.student, swapped=True),
    "a buffer": lambda a: a.student.shift.add_(1),
    "a number": lambda a: put(a.student, scale=3.0),
    "a hook": lambda a: a.student.c.register_forward_hook(doubled),
    "another forward": lambda a: put(a.student, forward=lambda x: 2 * Gates.forward(a.student, x)),
    "a smaller batch": lambda a: as_batch(a, 4),
    "one sample": lambda a: as_batch(a, 1),
    "inputs that ask for a gradient": lambda a: a.x.requires_grad_(),
    "directions that ask for a gradient": lambda a: a.v.requires_grad_(),
    "inputs with strides": lambda a: put(a, x=a.x.T.contiguous().T),
    "a third of a weight": lambda a: put(a.student.c, weight=nn.Parameter(numbers(8, 24, seed=7)[:, ::3])),
    "targets with strides": lambda a: put(a, tangents=a.tangents.transpose(1, 2).contiguous().transpose(1, 2)),
}


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken, and fused calls were known, forward and back."""
    seen = {"pairs": 0, "forward": 0, "back": 0}

    def counted(where, name, what):
        function = getattr(where, name)

        def counting(*arguments):
            found = function(*arguments)
            seen[what] += found is not None
            return found

        monkeypatch.setattr(where, name, counting)

    counted(known_function, "run_pairs", "pairs")
    counted(again, "apply", "forward")
    counted(again, "gradients_in", "back")
    return seen


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_between_two_calls(change, taken):
    asked = Asked()
    for _ in range(4):
        asked.results("streams")
    before = dict(taken)
    asked.results("streams")
    assert {what: n - before[what] for what, n in taken.items()} == {"pairs": 1, "forward": 3, "back": 3}
    CHANGES[change](asked)
    expected = asked.results("reference")
    for _ in range(4):
        torch.testing.assert_close(asked.results("streams"), expected, **ANOTHER_WAY)


def test_back_to_what_it_was(taken):
    """Students that come in turns, as the last batch of a data set does, are known each."""
    asked = Asked()
    for _ in range(4):
        for swapped in (False, True):
            asked.student.swapped = swapped
            got, expected = asked.results("streams"), asked.results("reference")
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)
    before = taken["back"]
    asked.results("streams")
    assert taken["back"] == before + 3


def test_dropout_draws_as_ever(taken):
    asked = Asked()
    asked.student.train()
    asked.student.drop.train()
    first = asked.results("streams")
    for _ in range(4):
        torch.testing.assert_close(asked.results("streams"), first, **ANOTHER_WAY)
    assert taken["pairs"]


def test_threads_and_no_gradients(taken):
    asked, threads = Asked(), torch.get_num_threads()
    expected = asked.results("reference")
    try:
        for number in (1, 2, 1, 2):
            torch.set_num_threads(number)
            torch.testing.assert_close(asked.results("streams"), expected, **ANOTHER_WAY)
    finally:
        torch.set_num_threads(threads)
    targets = sk.Targets(values=asked.values, tangents=asked.tangents, directions=asked.v)
    with torch.no_grad():
        loss = sk.sobolev_loss(asked.student, asked.x, targets, backend="streams")
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected[0], **ANOTHER_WAY)


def test_gradients_of_gradients(taken):
    """Of which a fused call knows no step."""
    asked = Asked()
    for _ in range(4):
        asked.results("streams")
    found = []
    for backend in ("streams", "reference"):
        targets = sk.Targets(values=asked.values, tangents=asked.tangents, directions=asked.v)
        loss = sk.sobolev_loss(asked.student, asked.x, targets, backend=backend)
        parameters = list(asked.student.parameters())
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
        found.append([loss, *first, *second])
    torch.testing.assert_close(*found, **ANOTHER_WAY)


class Turning(Gates):
    """Draws, and then does what has no rule, from some call on."""

    turned = False

    def forward(self, x):
        self.drawn = random.random(), numpy.random.normal(), torch.rand(()).item()
        x = torch.fft.rfft(x, n=2 * D - 1).real if self.turned else x
        return super().forward(x)


def test_a_student_through_whom_pairs_flow_no_more(taken):
    """What he drew in the run that ended is drawn again."""
    asked = Asked()
    asked.student = Turning()
    for _ in range(4):
        asked.results("streams")
    assert taken["pairs"]
    asked.student.turned = True
    random.seed(1), numpy.random.seed(1), numpy.random.normal()
    expected = random.getstate(), numpy.random.get_state()
    with pytest.raises(sk.NotProvided, match="rfft"):
        asked.results("streams")
    assert random.getstate() == expected[0]
    assert str(numpy.random.get_state()) == str(expected[1])


@pytest.mark.parametrize("seeded", [lambda: numpy.random.seed(3), lambda: numpy.random.normal(size=3), lambda: None])
def test_the_generator_of_numpy_is_put_back(seeded):
    seeded()
    for _ in range(2):
        state, held = numpy.random.get_state(), Held([], buffers=False)
        numpy.random.normal(size=700)
        held.restore()
        assert all(numpy.array_equal(a, b) for a, b in zip(state, numpy.random.get_state(), strict=True))


@pytest.mark.parametrize("seeded", [lambda: random.seed(3), lambda: random.gauss(0, 1), lambda: None])
def test_the_generator_of_python_is_put_back(seeded):
    seeded()
    for _ in range(2):
        state, held = random.getstate(), Held([], buffers=False)
        for _ in range(700):
            random.gauss(0, 1)
        held.restore()
        assert random.getstate() == state


def test_the_core_reads_what_modules_hold():
    """As Python does, also of one that is there twice; not of those that keep it elsewhere."""
    inner = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    student = nn.ModuleDict({"a": inner, "b": nn.Sequential(inner, nn.Tanh())})
    read = core._C.held([student])
    assert {id(module): (own, buffers) for module, own, buffers in read} == {
        id(module): (vars(module), module._buffers) for module in student.modules()
    }
    held = Held((), buffers=False, read=read)
    inner.counter, inner[0].running_mean, inner[0].momentum = 1, torch.ones(3), 0.5
    held.restore()
    assert not hasattr(inner, "counter") and inner[0].momentum == 0.1 and not inner[0].running_mean.any()
    assert core._C.held([torch.jit.script(nn.Linear(2, 2))]) is None


def test_it_is_a_call_like_one_before(monkeypatch):
    """The long way is not gone at all."""
    asked = Asked()
    for _ in range(2):
        asked.results("streams")
    monkeypatch.setattr(call, "prepared_again", None)
    asked.results("streams")


ASKED = {
    "jvp": lambda a, backend: sk.jvp(a.student, a.x, a.v, backend=backend),
    "jet": lambda a, backend: sk.jet(a.student, a.x, a.v, backend=backend),
    "laplacian": lambda a, backend: sk.laplacian(a.student, a.x, backend=backend),
    "a loss of the Jacobian": lambda a, backend: [
        sk.sobolev_loss(a.student, a.x, sk.Targets(values=a.values, jacobian=numbers(N, O, D)), backend=backend,
                        directions=sk.Directions.sphere(P, seed=3))
    ],
    "a sum of Huber's losses": lambda a, backend: [
        sk.sobolev_loss(a.student, a.x, sk.Targets(values=a.values, tangents=a.tangents, directions=a.v),
                        backend=backend, reduction="sum", derivative_loss=("huber", 0.3))
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_whatever_is_asked(name, taken):
    asked = Asked()
    expected = ASKED[name](asked, "reference")
    for _ in range(4):
        got = ASKED[name](asked, "streams")
        torch.testing.assert_close(list(got), list(expected), **ANOTHER_WAY)
        gradients = [
            torch.autograd.grad(results[-1].sin().sum(), asked.student.c.weight) for results in (got, expected)
        ]
        expected = ASKED[name](asked, "reference")
        torch.testing.assert_close(*gradients, **ANOTHER_WAY)
    assert taken["pairs"] == 3

"""Pairs that are recorded while a compiler traces the call: right whatever the student reads, and how often that
changes; recorded only where a record would be what he is."""

import random
from itertools import product

import numpy
import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels import recorded
from sobolev_kernels.testing.rule import ANOTHER_WAY

old = torch.__version__ < (2, 11)
pytestmark = pytest.mark.skipif(old, reason="dynamo before PyTorch 2.11 does not follow our calls (docs/limits.md)")
D, O = 3, 4
f64 = torch.float64


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: torch.compile wants the real allocator, and dynamo a fresh cache."""
    torch._dynamo.reset()


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(D, 5), nn.Linear(D, 5), nn.Linear(5, O)

    def forward(self, x):
        return self.last(self.gate(torch.tanh(self.a(x))) * self.b(x))

    def gate(self, h):
        return h


class Annealed(Gated):
    alpha = 0.5

    def gate(self, h):
        return h * self.alpha


class WithTensor(Gated):
    """It is no buffer: neither in the state, nor what a record could be told of."""

    def __init__(self):
        super().__init__()
        self.scale = numbers(5, seed=7)

    def gate(self, h):
        return h * self.scale


class WithBuffer(Gated):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", numbers(5, seed=7))

    def gate(self, h):
        return h * self.scale


class WithArray(Gated):
    def __init__(self):
        super().__init__()
        self.scale = numpy.linspace(1, 2, 5)

    def gate(self, h):
        return h * torch.from_numpy(self.scale)


class Tied(Gated):
    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight


class Normed(Gated):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.a)


class Images(nn.Module):
    """Whose directions are more samples to a compiler."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2).eval(), nn.Linear(2, O)

    def forward(self, x):
        h = self.first(x.view(-1, 1, 1, D))
        return self.last(nn.functional.silu(h + self.norm(torch.tanh(h))).mean((2, 3)))


def made(kind):
    torch.manual_seed(5)
    return kind().double()


TARGETS = {N: (numbers(N, O, seed=2), numbers(2, N, O, seed=3)) for N in (6, 7, 9)}


def inputs(N=6):
    return numbers(N, D, seed=1).requires_grad_()


def steps_of(student, order=1, fullgraph=True):
    """A step of x, compiled, and the same by PyTorch alone; dynamo does not follow torch.autograd.grad."""

    def loss_of(x, backend=None):
        (values, tangents), v = TARGETS[len(x)], torch.stack([x.detach().cos(), x.detach()])
        more = {"seconds": tangents.sin()} if order == 2 else {}
        targets = sk.Targets(values=values, tangents=tangents, directions=v, **more)
        return sk.sobolev_loss(student, x, targets, order=order, backend=backend)

    compiled = torch.compile(loss_of, fullgraph=fullgraph, backend="aot_eager")
    step = lambda x, *way: torch.autograd.grad(loss_of(x, *way), [x, *student.parameters()])  # noqa: E731
    return lambda x: torch.autograd.grad(compiled(x), [x, *student.parameters()]), lambda x: step(x, "reference")


def compare(steps, x):
    for got, expected in zip(*(step(x) for step in steps), strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


@pytest.mark.parametrize(("kind", "order"), [*product((WithBuffer, Images), (1, 2)), (Tied, 1), (Normed, 1)])
def test_recorded_and_right(kind, order):
    student = made(kind)
    assert recorded.FIRST in recorded.recordable(student, inputs().detach())
    steps, x = steps_of(student, order), inputs()
    for _ in range(2):  # with other numbers in what it is made of
        compare(steps, x)
        with torch.no_grad():
            for tensor in (*student.parameters(), *student.buffers()):
                tensor.mul_(1.5 if tensor.is_floating_point() else 1)


class WithNorm(Annealed):
    """Batch norm has a count of batches, which is a tensor of one whole number."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5).eval()

    def gate(self, h):
        return super().gate(self.norm(h))


def test_a_count_that_nobody_reads_is_no_hindrance(monkeypatch):
    student, x, orders, own = made(WithNorm), inputs(), [], recorded.propagated
    monkeypatch.setattr(recorded, "propagated", lambda *given, order: orders.append(order) or own(*given, order=order))
    steps = steps_of(student)
    for _ in range(2):
        compare(steps, x)
        student.norm.running_mean += 0.5
        student.norm.num_batches_tracked += 1
    assert orders and set(orders) == {1}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore:.*Graph break:UserWarning")
@pytest.mark.parametrize("read", [lambda s: float(s.norm.num_batches_tracked.item()), lambda s: s.told, lambda s: 3.0])
def test_a_number_that_is_set_within_the_call_is_no_constant(read):
    student, x = made(WithNorm), inputs().detach()
    (values, tangents), v = TARGETS[6], torch.stack([x.cos(), x])

    def loss_of():
        student.alpha = read(student)
        targets = sk.Targets(values=values, tangents=tangents, directions=v)
        return sk.sobolev_loss(student, x, targets)

    compiled = torch.compile(loss_of, backend="aot_eager")
    for number in (1, 2, 3):
        student.told = 0.5 * number + 1
        student.norm.num_batches_tracked.fill_(number)
        try:
            got = compiled()
        except (sk.NotProvided, torch._dynamo.exc.TorchDynamoException):
            continue  # refused where derivatives across a break are lost
        torch.testing.assert_close(got, loss_of(), **ANOTHER_WAY)


def test_what_changes_at_each_step_is_no_constant():
    student, x = made(Annealed), inputs()
    steps = steps_of(student)
    for alpha in (0.5, 0.75, 1.5, 2.0):
        student.alpha = alpha
        compare(steps, x)


class WithItem(WithBuffer):
    def gate(self, h):
        return h * self.scale[1].item()


@pytest.mark.parametrize("kind", [WithTensor, WithArray, WithItem])
def test_who_reads_more_than_his_own_is_not_recorded(kind):
    assert recorded.recordable(made(kind), inputs().detach()) == ""


def test_who_reads_more_later_is_looked_at_again():
    student, x, scale = made(Gated), inputs(), numbers(5, seed=9)
    steps = steps_of(student)
    compare(steps, x)
    student.gate = lambda h: h * scale
    compare(steps, x)
    scale.mul_(3.0)
    compare(steps, x)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_numbers_read_before_a_graph_break_are_no_constants():
    """Dynamo runs his forward, and follows the rest of the call alone: nothing that he reads is watched there."""
    student, x = made(Annealed), inputs()

    def gate(h):
        torch._dynamo.graph_break()
        return h * student.alpha

    student.gate = gate
    steps = steps_of(student, fullgraph=False)
    for alpha in (0.5, 0.75):
        student.alpha = alpha
        try:
            compare(steps, x)
        except (sk.NotProvided, torch._dynamo.exc.TorchDynamoException):
            assert torch.__version__ < (2, 13)  # whose torch.func loses derivatives across a break


def test_a_compiler_that_runs_what_it_is_handed_gets_no_record():
    """Each is served by what is compiled for one, who may have changed since."""
    one, other, x = made(Annealed), made(Annealed), inputs().detach()
    v = torch.stack([x.cos(), x])
    loss = lambda student: sum(t.sum() for t in sk.jvp(student, x, v))  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    compiled(one)
    one.alpha = 2.0
    torch.testing.assert_close(compiled(other), loss(other), **ANOTHER_WAY)


def test_weights_tied_and_untied():
    """Of the eager calls too, which know how many tensors there were."""
    student, x = made(Tied), inputs()
    steps = steps_of(student)
    compare(steps, x)
    student.b.weight = nn.Parameter(student.a.weight.detach() * 2)
    compare(steps, x)
    student.b.weight = student.a.weight
    compare(steps, x)


def test_a_tensor_that_is_no_buffer_may_be_another():
    student, x = made(WithTensor), inputs()
    steps = steps_of(student)
    compare(steps, x)
    student.scale = student.scale * 2
    compare(steps, x)


@pytest.mark.parametrize("draw", [
    lambda h: nn.functional.dropout(h, 0.5), lambda h: h * random.random(), lambda h: h + numpy.random.rand(),
    lambda h: h * torch.rand(5, dtype=f64),
])  # fmt: skip
def test_who_draws_is_not_recorded(draw):
    student = made(Gated)
    student.gate = draw
    assert recorded.recordable(student, inputs().detach()) == ""


def test_who_writes_is_not_recorded():
    student = made(WithBuffer)
    student.gate = lambda h: h * student.scale.add_(1.0)
    before = student.scale.clone()
    assert recorded.recordable(student, inputs().detach()) == ""
    assert torch.equal(student.scale, before)


def test_sizes_may_vary():
    student = made(Gated)
    steps = steps_of(student)
    for N in (6, 7, 9):
        compare(steps, inputs(N))


def test_another_student_of_the_same_class():
    """What dynamo has compiled for one serves the other, with the other's parameters."""
    one, other, x = made(Gated), Gated().double(), inputs().detach()
    v = torch.stack([x.cos(), x])
    targets = sk.Targets(values=TARGETS[6][0], tangents=TARGETS[6][1], directions=v)
    loss = lambda student: sk.sobolev_loss(student, x, targets)  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for student in (one, other, one):
        torch.testing.assert_close(compiled(student), loss(student), **ANOTHER_WAY)


def test_without_gradients():
    student, x = made(Gated), inputs().detach()
    v = torch.stack([x.cos(), x])
    with torch.no_grad():
        y, tangents = torch.compile(lambda x: sk.jvp(student, x, v), fullgraph=True, backend="aot_eager")(x)
        for got, expected in zip((y, tangents), sk.jvp(student, x, v), strict=True):
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)
    assert not tangents.requires_grad

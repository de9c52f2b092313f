"""A student is followed both ways: whatever is changed about him, and put back, counts at once, and afterwards he goes
as fast as he went before."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import sobolev_kernels as sk
from sobolev_kernels.paths import known_of
from sobolev_kernels.testing.rule import ANOTHER_WAY, CLOSE_IN_SINGLE

N, D, H, P = 6, 3, 5, 2
WARNED = pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning", "ignore:Full backward hook:UserWarning")
pytestmark = WARNED


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, V, JACOBIAN, VALUES = numbers(N, D), numbers(P, N, D, seed=1), numbers(N, 1, D, seed=2), numbers(N, 1, seed=3)


class Student(nn.Module):
    def __init__(self, bend):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, H), bend, nn.Linear(H, 1))
        self.detached, self.hidden = False, [1.0]

    def forward(self, x):
        h = self.net[1](self.net[0](x))
        return self.last(h.detach() if self.detached else h)

    def last(self, h):
        return self.net[2](h) if self.hidden == [1.0] else self.net[2](h * h)


STUDENTS = {
    "a chain": lambda: Student(nn.Tanh()).double(),
    "none": lambda: Student(nn.Sequential(nn.LayerNorm(H), nn.Tanh())).double(),
}


def step(student, **settings):
    """Loss and gradients."""
    dtype = student.net[2].weight.dtype
    targets = sk.Targets(values=VALUES.to(dtype), jacobian=JACOBIAN.to(dtype))
    loss = sk.sobolev_loss(student, X.to(dtype), targets, directions=sk.Directions.given(V.to(dtype)), **settings)
    asking = [p for p in student.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, asking, materialize_grads=True)]


def by_autograd(student):
    """The same by a double backward in float64, of the module as it is called."""
    dtype = student.net[2].weight.dtype
    x, asking = X.to(dtype).requires_grad_(), [p for p in student.parameters() if p.requires_grad]
    y = student(x)
    g = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    loss = (y - VALUES).square().mean() + ((g - JACOBIAN[:, 0]) * V).sum(2).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, asking, materialize_grads=True)]


def hook(register, function, part=1):
    """Registered on a part of the student, or on all of him."""

    def toggle(student):
        where = student if part is None else student.net[part]
        return getattr(where, register)(function).remove

    return toggle


def attribute(where, name, value):
    def toggle(student):
        of = where(student)
        before = vars(of).get(name)
        setattr(of, name, value)
        return (lambda: delattr(of, name)) if before is None else lambda: setattr(of, name, before)

    return toggle


def item(value):
    def toggle(student):
        student.hidden[0] = value
        return lambda: student.hidden.__setitem__(0, 1.0)

    return toggle


def swapped(make, part=1):
    def toggle(student):
        before, student.net[part] = student.net[part], make().double()
        return lambda: student.net.__setitem__(part, before)

    return toggle


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(student):
    parametrize.register_parametrization(student.net[0], "weight", Twice())
    return lambda: parametrize.remove_parametrizations(student.net[0], "weight", leave_parametrized=False)


def frozen(student):
    student.net[0].weight.requires_grad_(False)
    return lambda: student.net[0].weight.requires_grad_()


def replaced(student):
    before, student.net[0].weight = student.net[0].weight, nn.Parameter(numbers(H, D, seed=7))
    return lambda: setattr(student.net[0], "weight", before)


def in_single(student):
    student.float()
    return student.double


def evaluated(student):
    student.eval()
    return student.train


def squared(module, inputs, output):
    return output * output


def looks(module, *tensors):
    return None


net, whole = lambda s: s.net[1], lambda s: s
TOGGLES = {
    "a hook that looks": hook("register_forward_hook", looks),
    "a hook that changes": hook("register_forward_hook", squared),
    "a hook before that changes": hook("register_forward_pre_hook", lambda m, inputs: (inputs[0] * inputs[0],)),
    "a backward hook of a part": hook("register_full_backward_hook", looks),
    "a backward hook before that of a part": hook("register_full_backward_pre_hook", looks),
    "a backward hook": hook("register_full_backward_hook", looks, None),
    "a module": swapped(lambda: nn.GroupNorm(1, H)),
    "a module that is a chain's": swapped(nn.Sigmoid),
    "dropout of nothing": swapped(lambda: nn.Dropout(0.0)),
    "eval": evaluated,
    "a forward": attribute(net, "forward", lambda h: torch.tanh(h * h)),
    "a method": attribute(whole, "last", lambda h: (h * h).sum(1, keepdim=True)),
    "a weight": replaced,
    "a parametrization": parametrized,
    "what asks for a gradient": frozen,
    "what nobody sees": item(2.0),
}
CUT = {
    "by a flag": attribute(whole, "detached", True),
    "by a hook": hook("register_forward_hook", lambda module, inputs, output: output.detach()),
    "by a forward": attribute(net, "forward", lambda h: torch.tanh(h.detach())),
    "by a method": attribute(whole, "last", lambda h: h.detach().sum(1, keepdim=True)),
}


def assert_right(student, times=3):
    for _ in range(times):
        for got, right in zip(step(student), by_autograd(student), strict=True):
            torch.testing.assert_close(got, right, **ANOTHER_WAY)


def assert_fast(student, before):
    """What is taken is what was taken, and a call like the last one goes the short way."""
    assert known_of(student, X).is_chain == ("-> cpu" in before)
    assert sk.explain(student, X, sk.Directions.given(V)) == before


@pytest.mark.parametrize("name", TOGGLES)
@pytest.mark.parametrize("kind", STUDENTS)
def test_both_ways(kind, name, capsys):
    student = STUDENTS[kind]()
    assert_right(student)
    before = sk.explain(student, X, sk.Directions.given(V))
    assert ("-> cpu" in before) == (kind == "a chain")
    for _ in range(2):
        put_back = TOGGLES[name](student)
        assert_right(student)
        put_back()
        assert_right(student, 16 if name == "what nobody sees" else 3)
        assert_fast(student, before)


@pytest.mark.parametrize("kind", STUDENTS)
def test_another_dtype_and_back(kind):
    student = STUDENTS[kind]()
    for _ in range(2):
        assert_right(student)
        expected = by_autograd(student)
        put_back = in_single(student)
        for _ in range(3):
            for got, right in zip(step(student), expected, strict=True):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got, right.float(), **CLOSE_IN_SINGLE)
        put_back()
        for parameter, right in zip(student.parameters(), STUDENTS[kind]().parameters(), strict=True):
            parameter.data = right.data


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_path_that_is_cut_later(kind, name, capsys):
    """No silent zero after calls in which it was not; and right again when it is whole again."""
    student = STUDENTS[kind]()
    assert_right(student, times=4)
    before = sk.explain(student, X, sk.Directions.given(V))
    for _ in range(2):
        put_back = CUT[name](student)
        for _ in range(3):
            with pytest.raises(sk.NotProvided):
                step(student)
        put_back()
        assert_right(student)
        assert_fast(student, before)


def test_a_path_that_is_cut_by_what_nobody_sees():
    """By gradients, where the graph alone tells it, also within a graph that is another each time."""
    switch, calls = {"cut": False, "layers": 1}, []

    def forward(x):
        h = x.sin() * x
        for _ in range(switch["layers"]):
            h = torch.tanh(h)
        return (h.detach() if switch["cut"] else h).sum(1, keepdim=True)

    for layers in range(1, 30):
        switch.update(cut=False, layers=layers)
        for _ in range(2):
            calls.append(sk.vjp(forward, X, sk.Cotangents.basis())[1])
        leaf = X.clone().requires_grad_()
        torch.testing.assert_close(calls[-1][0], torch.autograd.grad(forward(leaf).sum(), leaf)[0], **ANOTHER_WAY)
        switch["cut"] = True
        with pytest.raises(sk.NotProvided):
            sk.vjp(forward, X, sk.Cotangents.basis())

"""Chains of layers that are known link by link: a student that does something else, after they were learnt.

The oracle is autograd, of the student as it is, where nothing is put off.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from python_tests.test_segments import D, N
from python_tests.test_segments_back import LONG, all_pay, by_autograd  # noqa: F401
from python_tests.test_streams import numbers
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams import by_heart
from sobolev_kernels.testing.rule import ANOTHER_WAY

pytestmark = pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
f64 = torch.float64
slopes = {"negative_slope": 0.3}


def usual(x, a, b, c):
    return usual_of(a(x), b, c)


def usual_of(h, b, c):
    return c(F.leaky_relu(b(torch.tanh(h)), **slopes))


def in_place(x, a, b, c):
    h = a(x)
    return usual_of(torch.atanh(h.tanh_()), b, c) + c(F.leaky_relu(b(torch.tanh_(a(x))), **slopes)) + h[:, :2]


def written_after(x, a, b, c):
    h = a(x)
    t = torch.tanh(h)
    h.add_(1.0)
    return c(F.leaky_relu(b(t), **slopes)) + h[:, :2]


def written_before(x, a, b, c):
    h = a(x)
    s = h.sum(1, keepdim=True)
    h.add_(1.0)
    return usual_of(h, b, c) + s


def twice(x, a, b, c):
    h = torch.tanh(a(x))
    return c(F.leaky_relu(b(h), **slopes)) * c(F.leaky_relu(b(h), **slopes)).sin() + h[:, :2]


def in_no_grad(x, a, b, c):
    h = a(x)
    with torch.no_grad():
        scale = torch.tanh(h).square().mean()
    return usual_of(h, b, c) * scale


WAYS = {
    "another activation": lambda x, a, b, c: c(F.leaky_relu(b(F.silu(a(x))), **slopes)),
    "another argument": lambda x, a, b, c: c(F.leaky_relu(b(torch.tanh(a(x))), negative_slope=0.4)),
    "the same by place": lambda x, a, b, c: c(F.leaky_relu(b(torch.tanh(a(x))), 0.3)),
    "another name": lambda x, a, b, c: c(F.leaky_relu(b(a(x).tanh()), **slopes)),
    "a default": lambda x, a, b, c: c(F.leaky_relu(b(torch.tanh(a(x))))),
    "layers in another order": lambda x, a, b, c: usual_of(b(x), a, c),
    "a layer twice": lambda x, a, b, c: usual_of(F.leaky_relu(b(torch.tanh(a(x))), **slopes), b, c),
    "fewer layers": lambda x, a, b, c: c(torch.tanh(a(x))),
    "another weight": lambda x, a, b, c: c(F.leaky_relu(F.linear(torch.tanh(a(x)), 2 * b.weight), **slopes)),
    "no bias": lambda x, a, b, c: c(F.leaky_relu(F.linear(torch.tanh(a(x)), b.weight), **slopes)),
    "by keyword": lambda x, a, b, c: usual_of(F.linear(input=x, weight=a.weight, bias=a.bias), b, c),
    "what it is": lambda x, a, b, c: (lambda h: usual_of(h, b, c) * (h.shape[0] + h.dim() + h.numel()))(a(x)),
    "a number": lambda x, a, b, c: (lambda h: usual_of(h, b, c) * float(h.detach().sum().sign()))(a(x)),
    "out of a list": lambda x, a, b, c: torch.stack([a(x), torch.tanh(a(x))]).sum(0)[:, :2],
    "a view": lambda x, a, b, c: (lambda h: usual_of(h.view(1, *h.shape)[0], b, c) + h[:, :2])(a(x)),
    "a sum of two parts": lambda x, a, b, c: (lambda h: usual_of(h + torch.tanh(h), b, c))(a(x)),
    "a gradient within": lambda x, a, b, c: torch.autograd.grad(usual(x, a, b, c).sum(), x, create_graph=True)[0],
    "in place": in_place,
    "written to after": written_after,
    "written to before": written_before,
    "all of it twice": twice,
    "in no_grad": in_no_grad,
}


class Switched(nn.Module):
    """Goes another way when it is told, which is not seen of a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.ways = nn.ModuleList(nn.Linear(D, D, dtype=f64) for _ in range(2)), [usual]
        self.layers.append(nn.Linear(D, 2, dtype=f64))

    @property
    def way(self):
        return self.ways[0]

    @way.setter
    def way(self, way):
        self.ways[0] = way

    def forward(self, x):
        return self.way(x, *self.layers)


@pytest.fixture
def known(monkeypatch):
    """How many chains were computed, and of how many links each."""
    counts, settled = [], by_heart.Begun.settled
    monkeypatch.setattr(by_heart.Begun, "settled", lambda self, n: counts.append(n) or settled(self, n))
    return counts


def learnt(x, u):
    student = Switched()
    taught(student, x, u)
    return student


def taught(student, x, u):
    for _ in range(LONG):
        ours(student, x.detach().requires_grad_(), u)


def results_of(way, student, x, u):
    x = x.detach().requires_grad_()
    y, g = way(student, x, u)
    return [y, g, *torch.autograd.grad(y.sin().sum() + g.sin().sum(), [x, *student.parameters()], allow_unused=True)]


def ours(student, x, u):
    return sk.vjp(student, x, u, backend="reference")


def assert_alike(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None) or not (other if one is None else one).any()
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, **ANOTHER_WAY)


def test_what_is_known_is_used(known):
    x, u = numbers(N, D), numbers(2, N, 2, seed=3)
    student = learnt(x, u)
    known.clear()
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    assert known == [5]


@pytest.mark.parametrize("name", WAYS)
def test_another_way(name):
    x = numbers(N, D)
    u = numbers(2, N, D if name == "a gradient within" else 2, seed=3)
    student = learnt(x, numbers(2, N, 2, seed=3))
    student.way = WAYS[name]
    for _ in range(2):
        assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    student.way = usual
    u = numbers(2, N, 2, seed=3)
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))


def test_other_modules(known):
    """Layers that are put in the place of others, and such as were exchanged."""
    x, u = numbers(N, D), numbers(2, N, 2, seed=3)
    student = learnt(x, u)
    student.layers[0] = nn.Linear(D, D, dtype=f64)
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    student.layers[0], student.layers[1] = student.layers[1], student.layers[0]
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    student.layers[0].weight.data = student.layers[0].weight.data.t()
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    assert known.count(5) >= 3


def test_what_is_changed_meanwhile_is_not_taken_for_what_was_used():
    """A bias that is written to between its use and the chain's numbers."""

    class Writes(Switched):
        def forward(self, x):
            h = self.layers[0](x)
            if self.way is not usual:
                with torch.no_grad():
                    self.layers[0].bias.mul_(2.0)
            return usual_of(h, *self.layers[1:])

    torch.manual_seed(0)
    x, u, student = numbers(N, D), numbers(2, N, 2, seed=3), Writes()
    taught(student, x, u)
    student.way = None
    y, _ = ours(student, x.requires_grad_(), u)
    h = F.linear(x, student.layers[0].weight, student.layers[0].bias.detach() / 2)
    torch.testing.assert_close(y, usual_of(h, *student.layers[1:]), **ANOTHER_WAY)
    assert not any(chains.fused for chains in known_of(student, x).graphs.chains.values())


def test_two_places_of_one_student(known):
    """Chains that are begun before others end, and one whose tensors are kept."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(D, D, dtype=f64) for _ in range(4))
            self.keeps, self.kept = False, None

        def forward(self, x):
            a, b, c, d = self.layers
            left, right = a(x), b(x.sin())
            left, right = left.tanh(), right.sigmoid()
            if self.keeps:
                self.kept = left
            return (c(left) * d(right))[:, :2]

    x, u, student = numbers(N, D), numbers(2, N, 2, seed=3), Two()
    taught(student, x, u)
    known.clear()
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    assert known == [3, 3]
    student.keeps = True
    assert_alike(results_of(ours, student, x, u), results_of(by_autograd, student, x, u))
    assert type(student.kept) is torch.Tensor

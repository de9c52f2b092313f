"""What is looked at before each call of what was compiled: all that may be another, and no name of this package."""

import pytest
import torch
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import sobolev_kernels as sk
from sobolev_kernels import sobolev_loss
from sobolev_kernels.testing.rule import ANOTHER_WAY
from sobolev_kernels.unwatched import has_its_name

f64 = torch.float64
MOST = 260  # of guards; there were 900, where names of ours were watched, and a step by hand has 60


@pytest.fixture(autouse=True)
def poison_outputs():
    """Not here: torch.compile wants the real allocator, and dynamo a fresh cache."""
    torch._dynamo.reset()


class Gated(nn.Module):
    scale = 0.5

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.a(x)) * self.b(x)) * self.scale


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


X, Y, V, D = numbers(6, 3), numbers(6, 4, seed=1), numbers(2, 6, 3, seed=2), numbers(2, 6, 4, seed=3)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Gated().double()


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_names_of_ours_are_not_looked_up(student):
    def loss(x):
        return sobolev_loss(student, x, sk.Targets(values=Y, tangents=D, directions=V))

    compiled(loss)(X)
    (entry,) = _debug_get_cache_entry_list(loss.__code__)
    watched = str(entry.guard_manager)
    assert watched.count("GuardManager: source=") < MOST
    for name in ("].loss_of", "].problem_of", "].Settings", "].derivatives_along"):
        assert name not in watched
    for name in ("os.environ", "_global_forward_hooks", "sobolev_loss", "scale"):
        assert name in watched


def test_what_may_be_another_is_looked_at(student):
    """One after the other; each time what was compiled before is of something that is no more."""
    loss_fn = sk.SobolevLoss()
    targets = [
        sk.Targets(values=Y, tangents=D, directions=V),
        sk.Targets(values=Y, tangents=D, directions=V[:1].expand_as(V)),
    ]

    def loss(x, kind):
        return loss_fn(student, x, targets[kind])

    fast = compiled(loss)

    def same(kind=0):
        torch.testing.assert_close(fast(X, kind), loss(X, kind), **ANOTHER_WAY)
        return float(loss(X, kind).detach())

    found = [same()]
    student.scale = 2.0
    found.append(same())
    loss_fn.settings = sk.SobolevLoss(weights=(1.0, 3.0)).settings
    found.append(same())
    with torch.no_grad():
        student.last.weight.mul_(2)
    found.append(same())
    found.append(same(kind=1))
    assert len(set(found)) == len(found)


def test_a_name_of_the_callers_may_be_bound_anew(student, monkeypatch):
    loss = lambda x: sobolev_loss(student, x, sk.Targets(values=Y, tangents=D, directions=V))  # noqa: E731
    fast = compiled(loss)
    before = fast(X)
    ours = sobolev_loss
    monkeypatch.setitem(globals(), "sobolev_loss", lambda *told: 2 * ours(*told))
    torch.testing.assert_close(fast(X), 2 * before)


def test_what_was_made_for_a_caller_has_no_name():
    assert has_its_name(sk.sobolev_loss) and has_its_name(sk.Targets) and has_its_name(sk.Targets.__init__)
    assert not has_its_name(sk.errors.in_words(lambda: 0)) and not has_its_name(sk.Targets(values=Y))

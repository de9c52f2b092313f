"""Full backward hooks of a student's modules see the gradients of the loss by the module's values, which are those of a
constant that is added there, and cost an MLP no other step; what they change is refused."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_full_backward_hook

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels.testing import assert_within_rule

N, D, H = 6, 3, 5
FIRES = "ignore:Full backward hook is firing:UserWarning"  # torch's, of a module whose inputs ask for no gradient
pytestmark = pytest.mark.filterwarnings(FIRES)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Plus(nn.Module):
    """A constant is added."""

    def __init__(self, *shape):
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))

    def forward(self, h):
        return h + self.constant


def layers(O, norm=False):
    torch.manual_seed(0)
    middle = [nn.LayerNorm(H)] if norm else []
    return [layer.double() for layer in (nn.Linear(D, H), nn.Tanh(), *middle, nn.Linear(H, O))]


def wrapper(O):
    return Call(lambda x, net: net(x), nn.Sequential(*layers(O)))


def flat():
    """Outputs of one dim, by a student that is hooked there."""
    return Call(lambda x, net: net(x).flatten(), nn.Sequential(*layers(1)))


def data(O, P=2):
    targets = sk.Targets(values=numbers(N, O, seed=1), jacobian=numbers(N, O, D, seed=2))
    return targets, sk.Directions.given(numbers(P, N, D, seed=3))


def loss_of(student, x, O, **settings):
    targets, along = data(O)
    settings = {"weights": (0.7, 1.9)} | ({} if "cotangents" in settings else {"directions": along}) | settings
    return sk.sobolev_loss(student, x, targets, **settings)


def watch(module, seen):
    module.register_full_backward_pre_hook(lambda _, dy: seen.append(("before", *dy)))
    module.register_full_backward_hook(lambda _, dx, dy: seen.append(("hook", *dx, *dy)))


SETTINGS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "huber": {"value_loss": "huber", "derivative_loss": "log_cosh"},
    "cotangents": {"cotangents": sk.Cotangents.given(numbers(2, N, 2, seed=4))},
    "exact": {"directions": None, "derivatives": "exact"},
    "values alone": {"weights": (1.0, 0.0)},
    "derivatives alone": {"weights": (0.0, 1.0)},
}


@pytest.mark.parametrize("asks", [False, True], ids=["x", "x with its gradient"])
@pytest.mark.parametrize("name", SETTINGS)
def test_hooks_of_a_whole_mlp(name, asks):
    """It is the fused step, in the long and the short way; two modules that are the whole are both hooked."""
    student, seen, O = wrapper(2), [], 2
    watch(student, seen)
    watch(student.parts[0], seen)
    x = numbers(N, D, seed=7).requires_grad_(asks)
    assert "-> cpu" in sk.explain(student, x)
    plus, before = Plus(N, O), Plus(N, D)
    oracle = nn.Sequential(before, wrapper(O), plus)
    loss = loss_of(oracle, x, O, backend="reference", **SETTINGS[name])
    expected = torch.autograd.grad(loss, [*oracle.parameters()], materialize_grads=True)
    for _ in range(4):
        seen.clear()
        student.zero_grad()
        loss_of(student, x, O, **SETTINGS[name]).backward()
        if asks:
            assert [who for who, *_ in seen] == ["before", "before", "hook", "hook"]
        else:  # torch calls it as soon as the gradient of the outputs is there
            assert [who for who, *_ in seen] == ["before", "hook"] * 2
        for who, *gradients in seen:
            assert_within_rule("outputs", gradients[-1], expected[-1])
            if who == "hook" and asks:
                assert_within_rule("inputs", gradients[0], expected[0])
            elif who == "hook":
                assert gradients[0] is None
        for parameter, gradient in zip(student.parameters(), expected[1:-1], strict=True):
            assert_within_rule("parameter", parameter.grad, gradient)


@pytest.mark.parametrize("order", [1, 3])
def test_outputs_that_no_step_gives(order):
    """Where a loss is made of fused derivatives: of order 3, or since given directions ask for a gradient."""
    O, x, seen, plus = 2, numbers(N, D, seed=7), [], Plus(N, 2)
    student = wrapper(O)
    watch(student, seen)
    v = numbers(2, N, D, seed=3).requires_grad_(order == 1)
    along = {"directions": sk.Directions.given(v), "order": order}
    targets = (
        data(O)[0] if order == 1 else sk.Targets(teacher=nn.Sequential(*layers(O)[:1], nn.Sigmoid(), layers(O)[2]))
    )
    loss = sk.sobolev_loss(nn.Sequential(wrapper(O), plus), x, targets, backend="reference", **along)
    expected = torch.autograd.grad(loss, plus.constant)[0]
    for _ in range(3):
        seen.clear()
        sk.sobolev_loss(student, x, targets, **along).backward()
        assert len(seen) == 2
        for _, *gradients in seen:
            assert_within_rule("outputs", gradients[-1], expected)


def test_outputs_of_one_dim():
    student, seen = flat(), []
    watch(student, seen)
    x = numbers(N, D, seed=7)
    assert "-> cpu" in sk.explain(student, x)
    plus = Plus(N)
    oracle = nn.Sequential(flat(), plus)
    expected = torch.autograd.grad(loss_of(oracle, x, 1, backend="reference"), plus.constant)[0]
    for _ in range(3):
        seen.clear()
        loss_of(student, x, 1).backward()
        assert len(seen) == 2
        for _, *gradients in seen:
            assert_within_rule("outputs", gradients[-1], expected)


@pytest.mark.parametrize("norm", [False, True], ids=["an MLP", "no MLP"])
@pytest.mark.parametrize("order", [1, 2])
def test_hooks_within(order, norm):
    """Those of all layers, where tangents are carried along."""
    O, hooked, seen = 4, layers(4, norm), {}
    student = nn.Sequential(*hooked)
    for place, layer in enumerate(hooked):
        watch(layer, seen.setdefault(place, []))
    x = numbers(N, D, seed=7)
    targets, along = data(O)
    if order == 2:
        targets = sk.Targets(targets.values, targets.jacobian, hessian=numbers(N, O, D, D, seed=8))
    settings = {"directions": along, "order": order}
    assert "-> streams" in sk.explain(student, x, along, order=order)
    constants = [Plus(N, H) for _ in hooked[:-1]] + [Plus(N, O)]
    oracle = nn.Sequential(*[part for pair in zip(layers(O, norm), constants, strict=True) for part in pair])
    loss = sk.sobolev_loss(oracle, x, targets, backend="reference", **settings)
    expected = torch.autograd.grad(loss, [plus.constant for plus in constants])
    for _ in range(3):
        for calls in seen.values():
            calls.clear()
        sk.sobolev_loss(student, x, targets, **settings).backward()
        for place, calls in seen.items():
            assert [who for who, *_ in calls] == ["before", "hook"]
            for _, *gradients in calls:
                assert_within_rule(f"layer {place}", gradients[-1], expected[place])
            if place:
                assert_within_rule("its inputs", calls[1][1], expected[place - 1])


def in_place(module, dx, dy):
    dy[0].mul_(2)


CHANGES = {
    "another gradient": lambda module, dx, dy: tuple(None if d is None else 2 * d for d in dx),
    "in place": in_place,
}


@pytest.mark.parametrize("whole", [True, False], ids=["of all", "of a layer"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_gradient_is_refused(name, whole):
    O, x = 4, numbers(N, D, seed=7).requires_grad_()
    student = nn.Sequential(*layers(O))
    (student if whole else student[1]).register_full_backward_hook(CHANGES[name])
    for _ in range(2):
        loss = loss_of(student, x, O)
        with pytest.raises(sk.NotProvided, match=r"a backward hook of (Sequential|Tanh) in it, changes a gradient"):
            loss.backward()


def test_a_hook_before_that_changes_is_refused():
    O, x = 4, numbers(N, D, seed=7)
    student = nn.Sequential(*layers(O))
    student.register_full_backward_pre_hook(lambda module, dy: (2 * dy[0],))
    with pytest.raises(sk.NotProvided, match="changes a gradient"):
        loss_of(student, x, O).backward()


def test_derivatives():
    """The gradient of values beside derivatives is their own; without a graph no hook is called."""
    O, seen, x = 2, [], numbers(N, D, seed=7)
    student, v, a = wrapper(O), numbers(2, N, D, seed=3), numbers(N, O, seed=9)
    watch(student, seen)
    for _ in range(3):
        seen.clear()
        y, tangents = sk.jvp(student, x, v)
        ((a * y).sum() + tangents.square().sum()).backward()
        for _, *gradients in seen:
            assert_within_rule("outputs", gradients[-1], a)
        assert len(seen) == 2
    with torch.no_grad():
        sk.jvp(student, x, v)
    assert len(seen) == 2


def test_what_has_no_gradient_of_values_goes_another_way():
    """A loss of each sample, and its terms: the hook is called all the same."""
    O, seen, x = 4, [], numbers(N, D, seed=7)
    student = wrapper(O)
    watch(student, seen)
    for settings in ({}, {"reduction": "none"}, {"return_terms": True}, {"head": "softmax"}, {}):
        expected = loss_of(wrapper(O), x, O, **settings)
        seen.clear()
        found = loss_of(student, x, O, **settings)
        if "return_terms" in settings:
            found, expected = found.loss, expected.loss
        assert_within_rule("loss", found, expected)
        found.sum().backward()
        assert seen


def test_hooks_come_and_go():
    """Whatever was known of a student without one, or with one."""
    O, seen, x = 4, [], numbers(N, D, seed=7)
    student, others = wrapper(O), []
    net = student.parts[0]

    def steps(times, fused):
        for _ in range(3):  # the first goes the long way
            seen.clear()
            student.zero_grad()
            loss_of(student, x, O).backward()
            assert len(seen) == times and ("-> cpu" in sk.explain(student, x)) == fused
            others.append([p.grad.clone() for p in student.parameters()])

    steps(0, True)
    for module, fused in ((student, True), (net[0], False), (student, True)):
        handle = module.register_full_backward_hook(lambda *gradients: seen.append(gradients))
        steps(1, fused)
        handle.remove()
        steps(0, True)
    with register_module_full_backward_hook(lambda *gradients: seen.append(gradients)):
        steps(1 + 1 + len(net), False)
    steps(0, True)
    for gradients in others[1:]:
        for got, right in zip(gradients, others[0], strict=True):
            assert_within_rule("parameter", got, right)


def test_a_training_calls_them():
    O, seen = 2, []
    student = nn.Sequential(*layers(O))
    watch(student, seen)
    targets = data(O)[0]
    sk.fit(student, numbers(N, D, seed=7), targets, epochs=3, batch_size=N, progress=False)
    assert len(seen) == 6


def test_a_graph_that_is_kept():
    O, seen, x = 2, [], numbers(N, D, seed=7)
    student = wrapper(O)
    watch(student, seen)
    loss = loss_of(student, x, O)
    gradients = [torch.autograd.grad(3 * loss, [*student.parameters()], retain_graph=True) for _ in range(2)]
    assert len(seen) == 4
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_a_hook_of_a_module_that_is_called_by_keyword_may_only_look():
    """PyTorch sees no inputs of it; a chain within it, and pairs."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, h):
            return self.net(h)

    class Whole(nn.Module):
        def __init__(self, bend):
            super().__init__()
            self.part, self.bend = Part(), bend

        def forward(self, x):
            return self.part(h=self.bend(x))

    x, targets = torch.randn(7, 3), sk.Targets(values=torch.randn(7, 2), jacobian=torch.randn(7, 2, 3))
    for bend in (lambda x: x, lambda x: torch.sin(x) * x):
        student = Whole(bend)
        student.part.register_full_backward_pre_hook(lambda module, gradients: (3 * gradients[0],))
        with pytest.raises(sk.NotProvided, match="changes a gradient"):
            sk.sobolev_loss(student, x, targets, directions=sk.Directions.sphere(1)).backward()

"""`SobolevLoss.at(step)`: one function for all evaluations of a step, another at the next; it costs a number more."""

import copy
import pickle

import numpy
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels import steps
from sobolev_kernels.kept import KEPT
from sobolev_kernels.testing.problems import random

N, D, O, P = 6, 3, 2, 2
X = random(N, D)
TARGETS = sk.Targets(values=random(N, O), jacobian=random(N, O, D))
TAUGHT = sk.Targets(teacher=lambda x: torch.stack((x.prod(1), x.sin().sum(1)), 1))
STUDENTS = {
    "MLP": lambda: sk.MLP(D, O, width=4),
    "streams": lambda: Call(lambda x, a: torch.tanh(a(x)) * x[:, :O], nn.Linear(D, O)),
    "reference": lambda: Call(lambda x, a: torch.fft.rfft(a(x)).abs(), nn.Linear(D, O)),
    "images": lambda: nn.Sequential(nn.Flatten(), nn.Linear(D, O), nn.Tanh()),
}
VARYING = {
    "by default": {},
    "sphere": {"directions": sk.Directions.sphere(P)},
    "seeded": {"directions": sk.Directions.normal(P, seed=3)},
    "at another place": {"directions": sk.Directions.normal(P, seed=3).at(9)},
    "cotangents": {"cotangents": sk.Cotangents.normal(P)},
    "order 2": {"directions": sk.Directions.rademacher(P), "order": 2},
    "head": {"directions": sk.Directions.sphere(P), "head": torch.sin},
    "columns": {"directions": sk.Directions.sphere(P, shared=True), "wrt": (2, 0)},
}  # fmt: skip
CERTAIN = {
    "exact": {"derivatives": "exact"},
    "basis": {"directions": sk.Directions.basis()},
    "given": {"directions": sk.Directions.given(random(P, D))},
}
quiet = pytest.mark.filterwarnings("ignore:student. .* the reference:sobolev_kernels.SobolevWarning")


def losses(loss_fn, student, targets, numbers, x=X):
    return [[loss_fn.at(step)(student, x, targets).item() for _ in range(2)] for step in numbers]


def of(name):
    """Targets that suit these settings."""
    if name == "order 2":
        return sk.Targets(values=TARGETS.values, jacobian=TARGETS.jacobian, hessian=random(N, O, D, D))
    return TAUGHT if name != "columns" else sk.Targets(values=TARGETS.values, jacobian=TARGETS.jacobian[:, :, :2])


@quiet
@pytest.mark.parametrize("student", ["MLP", "streams", "reference"])
@pytest.mark.parametrize("name", VARYING)
def test_one_function_a_step(name, student):
    loss_fn, s = sk.SobolevLoss(**VARYING[name]), STUDENTS[student]()
    found = losses(loss_fn, s, of(name), (0, 1, numpy.int64(7), 0))
    assert all(first == second for first, second in found) and found[3] == found[0]
    assert len({first for first, _ in found}) == 3
    assert losses(loss_fn.at(5), s, of(name), (1,)) == found[1:2]


@pytest.mark.parametrize("name", CERTAIN)
def test_what_does_not_vary_is_the_same_at_all_steps(name):
    loss_fn, s = sk.SobolevLoss(**CERTAIN[name]), STUDENTS["MLP"]()
    assert losses(loss_fn, s, TARGETS, (0, 3)) == [[loss_fn(s, X, TARGETS).item()] * 2] * 2
    assert loss_fn.steps.seed is None


@pytest.mark.parametrize("name", ["seeded", "at another place"])
def test_they_are_those_of_the_seed_at_this_place(name):
    settings, s = VARYING[name], STUDENTS["MLP"]()
    expected = sk.sobolev_loss(s, X, TARGETS, directions=settings["directions"].at(4))
    assert torch.equal(sk.SobolevLoss(**settings).at(4)(s, X, TARGETS), expected)


def test_gradients_are_those_of_the_same_directions():
    s, loss_fn = STUDENTS["MLP"](), sk.SobolevLoss(directions=sk.Directions.sphere(P, seed=1))
    for step in (0, 2):
        given = loss_fn.settings.directions.at(step).tensor(X)
        expected = sk.sobolev_loss(s, X, TARGETS, directions=sk.Directions.given(given))
        grads = [torch.autograd.grad(v, list(s.parameters())) for v in (loss_fn.at(step)(s, X, TARGETS), expected)]
        torch.testing.assert_close(*grads)


def test_the_seed_of_a_loss_is_drawn_once_by_torchs_generator():
    s = STUDENTS["MLP"]()

    def run():
        torch.manual_seed(3)
        loss_fn, other = (sk.SobolevLoss(directions=sk.Directions.sphere(P)) for _ in range(2))
        before = torch.get_rng_state()
        at = loss_fn.at(2)
        assert not torch.equal(torch.get_rng_state(), before)
        before = torch.get_rng_state()
        found = at(s, X, TARGETS).item(), loss_fn.at(3)(s, X, TARGETS).item()
        assert torch.equal(torch.get_rng_state(), before)
        return *found, other.at(2)(s, X, TARGETS).item()

    assert len({*run()}) == 3 and run() == run()


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_keep_their_seed(twin):
    loss_fn, s = sk.SobolevLoss(directions=sk.Directions.sphere(P)), STUDENTS["MLP"]()
    found = losses(loss_fn, s, TARGETS, (1, 2))
    assert losses(twin(loss_fn), s, TARGETS, (1, 2)) == found == losses(twin(loss_fn.at(0)), s, TARGETS, (1, 2))


@pytest.mark.parametrize("vectors", [sk.Directions.sphere(P), sk.Directions.sphere(P, seed=2)], ids=str)
def test_what_targets_ask_for_is_at_the_step_too(vectors):
    targets = sk.Targets(values=TARGETS.values, jacobian=TARGETS.jacobian, directions=vectors)
    loss_fn, s = sk.SobolevLoss(), STUDENTS["MLP"]()
    (first, again), (second, _) = losses(loss_fn, s, targets, (0, 1))
    assert first == again != second
    given = sk.Targets(values=TARGETS.values, tangents=random(P, N, O), directions=random(P, N, D))
    assert losses(loss_fn, s, given, (0, 1)) == [[loss_fn(s, X, given).item()] * 2] * 2
    with pytest.raises(ValueError, match="directions: expected either in targets or in the call"):
        sk.SobolevLoss(directions=sk.Directions.sphere(1)).at(0)(s, X, targets)


def test_a_sample_has_its_own_wherever_it_is():
    s, loss_fn = STUDENTS["MLP"](), sk.SobolevLoss(directions=sk.Directions.sphere(P), reduction="none")
    targets, order = TARGETS.replace(samples=torch.arange(N)), torch.tensor([3, 1])
    whole = loss_fn.at(4)(s, X, targets)
    torch.testing.assert_close(loss_fn.at(4)(s, X[order], targets[order]), whole[order])


def test_other_shapes_and_what_inputs_were_made_of():
    s, loss_fn, q = STUDENTS["images"](), sk.SobolevLoss(directions=sk.Directions.sphere(P)), random(N, D, 4)
    x, jacobian = X[:, None], TARGETS.jacobian[:, :, None]
    (first, again), (second, _) = losses(loss_fn, s, sk.Targets(TARGETS.values, jacobian), (0, 1), x)
    assert first == again != second
    targets = sk.Targets(values=TARGETS.values, jacobian=random(N, O, 4))
    along = lambda step: loss_fn.at(step)(s.double(), X.double(), targets, input_jacobian=q)  # noqa: E731
    with pytest.raises(ValueError, match=r"input_jacobian: expected torch\.float64"):
        along(0)
    s, x = s.float(), X
    along = lambda step: loss_fn.at(step)(s, x, targets, input_jacobian=q).item()  # noqa: E731
    assert along(0) == along(0) != along(1) == along(1)


def kept_now():
    return [{alike: [*map(id, found)] for alike, found in shelf.items()} for shelf in (KEPT, steps.STEPS)]


def test_buffers_and_what_is_kept_are_those_of_the_loss():
    """Also of the seed: steps 2 … n make nothing new."""
    loss_fn = sk.SobolevLoss(directions=sk.Directions.sphere(P), input_scale=torch.ones(D))
    assert loss_fn.at(3).loss_fn is loss_fn and not loss_fn.state_dict().keys() - {"input_scale"}
    loss_fn, s = sk.SobolevLoss(directions=sk.Directions.sphere(P)), STUDENTS["MLP"]()
    for step in range(3):
        loss_fn.at(step)(s, X, TARGETS).backward()
    known = kept_now()
    for step in range(3, 9):
        loss_fn.at(step)(s, X, TARGETS).backward()
    assert kept_now() == known


@pytest.mark.parametrize("step", [-1, 2**32, 1.0, True, None, torch.tensor(1)], ids=str)
def test_no_step(step):
    loss_fn, s = sk.SobolevLoss(directions=sk.Directions.sphere(P)), STUDENTS["MLP"]()
    with pytest.raises(ValueError, match=r"step: expected an integer in \[0, 2\^32\)"):
        loss_fn.at(step)
    if step is not None:
        with pytest.raises(ValueError, match=r"step: expected an integer in \[0, 2\^32\)"):
            loss_fn(s, X, TARGETS, step=step)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_descends_without_a_word(search):
    torch.manual_seed(0)
    s, loss_fn = STUDENTS["MLP"](), sk.SobolevLoss(directions=sk.Directions.sphere(P))
    exact = sk.SobolevLoss(derivatives="exact")
    optimizer, before = torch.optim.LBFGS(s.parameters(), line_search_fn=search, lr=0.1), exact(s, X, TARGETS).item()
    for step in range(3):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_fn.at(step)(s, X, TARGETS)
            loss.backward()
            return loss

        first = optimizer.step(closure)
        assert closure() < first
    assert exact(s, X, TARGETS) < before


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("student", ["MLP", "streams"])
def test_compiled_steps_are_no_other_graphs(student, inside):
    """A step that is a number, and then a variable: two graphs for all of them."""
    torch._dynamo.reset()
    s, loss_fn = STUDENTS[student](), sk.SobolevLoss(directions=sk.Directions.sphere(P))
    call = lambda x, step: loss_fn.at(step)(s, x, TARGETS)  # noqa: E731
    with pytest.raises(Exception, match=r"call loss_fn.at\(0\) once before"):
        torch.compile(call, fullgraph=True, backend="eager")(X, 0)
    loss_fn.at(0)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    if inside:
        compiled = torch.compile(call, fullgraph=True, backend=counter)
    else:
        called = torch.compile(lambda x, loss: loss(s, x, TARGETS), fullgraph=True, backend=counter)
        compiled = lambda x, step: called(x, loss_fn.at(step))  # noqa: E731
    for step in (0, 1, 2, 5, 2**31):
        torch.testing.assert_close(compiled(X, step), call(X, step))
    assert counter.frame_count <= 2

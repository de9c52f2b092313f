"""Gradient checkpoints within a student that pairs flow through: beside the same student without.

What is between is computed again in the backward, once, with the random numbers of the first time.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

import sobolev_kernels as sk
from python_tests.students import Call
from python_tests.test_streams import numbers
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D = 3, 6


def held(function, *arguments, **named):
    """The function without a checkpoint."""
    return function(*arguments, **{k: a for k, a in named.items() if k not in ("use_reentrant", "preserve_rng_state")})


def in_turn(functions, segments, x, **named):
    return functions(x)


def of_several(h, *, factors, shift):
    return {"first": h * factors[0] + shift, "second": h.sin()}


# Functions of x, a network D -> D, and of how they are called
CASES = {
    "by hooks": lambda x, net, call, _: call(net, x.sin(), use_reentrant=False),
    "reentrant": lambda x, net, call, _: call(net, x.sin(), use_reentrant=True) * 2,
    "within another": lambda x, net, call, _: call(
        lambda h: call(net, 2 * h, use_reentrant=False).sin(), x.sin(), use_reentrant=False
    ),
    "one after the other": lambda x, net, _, row: row(net, 3, x.sin(), use_reentrant=False),
    "the same, reentrant": lambda x, net, _, row: row(net, 2, net(x), use_reentrant=True),
    "amid a chain of layers": lambda x, net, call, _: net[0](
        call(lambda h: net(h).tanh(), net[0](x), use_reentrant=False)
    ),
    "in place": lambda x, net, call, _: call(lambda h: net(h).mul_(2).tanh_(), x.sin(), use_reentrant=False),
    "by names": lambda x, net, call, _: net(
        sum(call(of_several, x, factors=[x.cos()], shift=0.5, use_reentrant=False).values())
    ),
}  # fmt: skip


@pytest.mark.parametrize("early", [True, False], ids=["early stop", "to the end"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, early):
    torch.manual_seed(0)
    layers = nn.Linear(D, D), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(D), nn.Linear(D, D)
    net, runs = nn.Sequential(*layers).double(), []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    x, v, results, again = numbers(N, D), numbers(2, N, D, seed=1), [], []
    for call, row in ((checkpoint, checkpoint_sequential), (held, in_turn)):
        student = Call(lambda x, net, call=call, row=row: CASES[name](x, net, call, row)[:, :2], net)
        for derivatives in (sk.jvp, sk.jet):
            z = x.clone().requires_grad_()
            torch.manual_seed(3)
            with set_checkpoint_early_stop(early):
                found = derivatives(student, z, v, backend="streams")
                state, count = torch.get_rng_state(), len(runs)
                loss = sum((k * t).sin().sum() for k, t in enumerate(found, 1))
                gradients = torch.autograd.grad(loss, [z, *net.parameters()], create_graph=True, materialize_grads=True)
                again.append(len(runs) > count)
                further = torch.autograd.grad(sum(g.square().sum() for g in gradients), z)
            assert torch.equal(torch.get_rng_state(), state)
            results.append([*found, *gradients, *further])
    for pair in zip(results[:2], results[2:], strict=True):
        for got, expected in zip(*pair, strict=True):
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)
    # a row of layers runs them, and not their module
    assert again == [name not in ("one after the other", "the same, reentrant", "by names")] * 2 + [False] * 2


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_what_is_not_told_by_arguments_goes_by_the_reference():
    """A function that holds a pair would run on it again."""
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    student = Call(lambda x, net: checkpoint(lambda: net(x.sin()), use_reentrant=False), net)
    x, v = numbers(N, D).requires_grad_(), numbers(2, N, D, seed=1)
    with pytest.raises(sk.NotProvided, match="keeps what flows"):
        sk.jvp(student, x, v, backend="streams")
    plain = Call(lambda x, net: net(x.sin()), net)
    torch.testing.assert_close(sk.jvp(student, x, v), sk.jvp(plain, x, v))


def test_step_after_step():
    """As those that are known are run, and their ways back."""
    net = nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    x, v = numbers(N, D), numbers(2, N, D, seed=1)
    students = [
        Call(lambda x, net, call=call: call(net, x.sin(), use_reentrant=False), net) for call in (checkpoint, held)
    ]
    for _ in range(4):
        results = []
        for student in students:
            z = x.clone().requires_grad_()
            y, tangents = sk.jvp(student, z, v, backend="streams")
            results.append(torch.autograd.grad(y.sin().sum() + tangents.sum(), [z, net[0].weight]))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)


def test_nothing_is_left_of_it():
    module = torch.utils.checkpoint
    before = module._checkpoint_without_reentrant_generator, module.CheckpointFunction
    student = Call(lambda x, net: checkpoint(net, x.sin(), use_reentrant=True), nn.Linear(D, 2).double())
    sk.jvp(student, numbers(N, D), numbers(2, N, D, seed=1), backend="streams")
    assert before == (module._checkpoint_without_reentrant_generator, module.CheckpointFunction)


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("O", [1, 3])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_around_a_call(calls, O, asks):
    """It runs the call again, after others, and compares what is saved: also where the first is unlike those before."""
    student = nn.Sequential(nn.Linear(D, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, O)).double()
    x, targets = numbers(N, D), sk.Targets(values=numbers(N, O, seed=2), jacobian=numbers(N, O, D, seed=3))
    loss = lambda x: sk.sobolev_loss(student, x, targets, directions=sk.Directions.given(numbers(2, N, D)))  # noqa: E731
    for _ in range(calls):
        loss(x)
    expected = torch.autograd.grad(loss(x), [*student.parameters()], materialize_grads=True)
    for _ in range(3):
        around = checkpoint(loss, x.clone().requires_grad_(asks), use_reentrant=False)
        found = torch.autograd.grad(around, [*student.parameters()], materialize_grads=True)
        for got, right in zip(found, expected, strict=True):
            torch.testing.assert_close(got, right, **ANOTHER_WAY)

"""Values and tangents in lockstep: any number of samples, of which none is in a register of its own."""

import pytest
import torch

import sobolev_kernels as sk
from sobolev_kernels.backends import core, cpu
from sobolev_kernels.testing.compare import compare, forget
from sobolev_kernels.testing.problems import Shape, data, directions_of, random, threads

ISAS = [name for name, _ in core._C.instruction_sets()]
WIDTH, P = 35, 2


@pytest.fixture
def plans(monkeypatch):
    """All plans that were made, every one in lockstep that can be."""
    made = []

    def plan(*how):
        made.append(cpu._plan.__wrapped__(*how))
        return made[-1]

    monkeypatch.setattr(cpu, "LOCKSTEP", -10)
    plan.__wrapped__ = cpu._plan.__wrapped__
    monkeypatch.setattr(cpu, "_plan", plan)
    return lambda: [dict(plan.choices) for plan in made]


# Less than any register, one more than some, no more than some, several tiles of which the last is shorter
@pytest.mark.parametrize("N", [1, 3, 17, 32, 150])
@pytest.mark.parametrize("isa", ISAS)
def test_lockstep(isa, N, plans, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    monkeypatch.setattr(cpu, "GATHERED", (0, 1000)[N % 2])
    monkeypatch.setattr(cpu, "IN_PLACE", (0, 2))
    forget()
    shape = Shape(N, 19, WIDTH, 2, 3, P, "features of no whole block and no whole register")
    numbers, directions = data(shape), directions_of("given", shape)
    for loss in ("mse", "cosine"):
        compare(numbers, directions, derivative_loss=loss, value_loss=loss)
    monkeypatch.setattr(cpu, "IN_PLACE", (1000, 1000))
    compare(numbers, directions_of("sphere", shape), reduction="none", wrt=range(4))
    compare(numbers, directions_of("orthonormal", shape))
    compare(data(shape, "sin").to(torch.float64), directions)
    assert all(choices.get("lockstep") for choices in plans())


def test_bits_of_lockstep_are_those_of_any_call_before(plans):
    """What an earlier call has left, a NaN even, is in columns that there are not, and reaches no others."""
    shape = Shape(19, 5, 13, 2, 3, P, "gaps at the end of each row")
    student = data(shape, "sin").student

    x, y, v, tangents = (random(*size) for size in ((19, 5), (19, 3), (P, 19, 5), (P, 19, 3)))

    def results(x):
        x = x.detach().requires_grad_()
        targets = sk.Targets(values=y, tangents=tangents)
        loss = sk.sobolev_loss(student, x, targets, directions=sk.Directions.given(v))
        gradients = torch.autograd.grad(loss, (x, *student.parameters()))
        return [loss.detach(), sk.jvp(student, x, v)[1].detach(), *gradients]

    with threads(1):
        before = results(x)
        for left in (torch.nan, 1e30):
            results(torch.full_like(x, left))
            assert all(map(torch.equal, before, results(x)))
    assert all(choices.get("lockstep") for choices in plans())


@pytest.mark.skipif("avx512" not in core._C.instruction_sets(), reason="a processor without registers of 16")
def test_lockstep_where_gaps_would_cost():
    """The planner's own choice: 20 samples have gaps in registers of 16, 64 samples in none."""
    for samples, gaps in ((20, True), (64, False)):
        plan = dict(cpu._plan(256, 1, "tangents", samples, 1, "avx512").choices)
        assert plan.get("lockstep", False) == gaps
    assert "lockstep" not in dict(cpu._plan_of_streams(256, 1, 2, 20, 1, "avx512").choices)  # of order 2 it is not

"""The loops that people train in: GradScaler, autocast, gradients that are summed over several calls."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY, IN_HALF

N, D, O, P = 12, 3, 2, 2
f32, f64 = torch.float32, torch.float64
G = torch.Generator().manual_seed(5)
X, Y, J = (torch.randn(shape, generator=G, dtype=f64) for shape in ((N, D), (N, O), (N, O, D)))
STUDENTS = {
    "MLP": lambda: sk.MLP(D, O, width=8, depth=2),
    "streams": lambda: nn.Sequential(
        nn.Linear(D, 6), nn.LayerNorm(6), nn.Tanh(), Call(lambda x, a: x[:, :O] + a(x), nn.Linear(6, O))
    ),
    "reference": lambda: Call(lambda x, a, b: torch.cumprod(b(torch.tanh(a(x))), 1), nn.Linear(D, 5), nn.Linear(5, O)),
}  # fmt: skip
LOSSES = {
    "along directions": {"directions": sk.Directions.normal(P, seed=3)},
    "cotangents": {"cotangents": sk.Cotangents.normal(P, seed=3)},
    "exact": {"derivatives": "exact"},
    "terms": {"directions": sk.Directions.normal(P, seed=3), "return_terms": True},
    "of each sample": {"directions": sk.Directions.normal(P, seed=3), "reduction": "none"},
}
quiet = pytest.mark.filterwarnings("ignore:student. .* the reference:sobolev_kernels.SobolevWarning")
pytestmark = quiet


def made(name, dtype):
    torch.manual_seed(1)
    return STUDENTS[name]().to(dtype)


def loss_of(student, dtype, name, part=slice(None), **more):
    settings = {**LOSSES[name], **more}
    for along in ("directions", "cotangents"):
        if along in settings:
            settings[along] = settings[along].numbered_from(part.start or 0)
    x, y, j = (tensor[part].to(dtype) for tensor in (X, Y, J))
    loss = sk.sobolev_loss(student, x, sk.Targets(values=y, jacobian=j), **settings)
    if name == "terms":
        return loss.value + 2 * loss.derivative
    return loss.mean() if name == "of each sample" else loss


def gradients(student):
    return [parameter.grad for parameter in student.parameters()]


def by_the_reference(name, loss, dtype=f64, factor=1.0):
    student = made(name, dtype)
    return list(torch.autograd.grad(loss_of(student, dtype, loss, backend="reference") * factor, student.parameters()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", STUDENTS)
def test_unscaled_gradients_obey_the_rule(name, loss):
    """Of three steps, so that kept calls are among them; a loss divided by what is no power of two, as well."""
    exact, plain = (by_the_reference(name, loss, dtype, 1 / 3) for dtype in (f64, f32))
    student, scaler = made(name, f32), torch.amp.GradScaler("cpu", init_scale=2.0**13)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(student, f32, loss) / 3).backward()
        scaler.unscale_(optimizer)
        for i, rows in enumerate(zip(gradients(student), exact, plain, strict=True)):
            assert_within_rule(f"{name} {loss} {i}", *rows)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", ["along directions", "of each sample"])
@pytest.mark.parametrize("name", STUDENTS)
def test_in_autocast_too(name, loss, dtype):
    """As without a scaler; and in float16, where gradients are as small as its smallest numbers, with it alone."""
    student, scaler = made(name, f32), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    expected = by_the_reference(name, loss)
    with torch.autocast("cpu", dtype):
        value = loss_of(student, f32, loss)
    assert value.dtype is f32
    scaler.scale(1e-4 * value).backward()
    scaler.unscale_(optimizer)
    for gradient, exact in zip(gradients(student), expected, strict=True):
        assert gradient.dtype is f32
        assert (1e4 * gradient - exact).abs().max() <= IN_HALF * max(g.abs().max() for g in expected)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_step_that_overflows_is_left_out(name):
    student, scaler = made(name, f32), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer, before = torch.optim.SGD(student.parameters(), lr=0.1), [p.clone() for p in student.parameters()]
    scaler.scale(100 * loss_of(student, f32, "along directions")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**126


PARTS = [slice(0, 5), slice(5, 6), slice(6, 12)]  # uneven ones, one of a sample


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", STUDENTS)
def test_gradients_of_parts_are_summed(name, loss, set_to_none):
    """Each weighted by its share of the samples; in three rounds, of which each gradient is held by someone."""
    student, expected, held = made(name, f64), by_the_reference(name, loss), []
    for _ in range(3):
        student.zero_grad(set_to_none=set_to_none)
        for part in PARTS:
            (loss_of(student, f64, loss, part) * ((part.stop - part.start) / N)).backward()
        torch.testing.assert_close(gradients(student), expected, **ANOTHER_WAY)
        held.append(gradients(student))
    for gradient in held if set_to_none else held[-1:]:
        torch.testing.assert_close(gradient, expected, **ANOTHER_WAY)
    same = {id(g) for g in held[0]} == {id(g) for g in held[-1]}
    assert same is not set_to_none


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", STUDENTS)
def test_a_graph_that_is_retained(name, loss):
    """Its second backward gives the same, whatever the first one's gradients have become; so does one of a sum."""
    student, expected = made(name, f64), by_the_reference(name, loss)
    parameters = list(student.parameters())
    for _ in range(2):
        value = loss_of(student, f64, loss)
        first = torch.autograd.grad(value, parameters, retain_graph=True)
        torch.testing.assert_close(list(first), expected, **ANOTHER_WAY)
        for gradient in first:
            gradient.fill_(torch.nan)
        student.zero_grad()
        value.backward(retain_graph=True)
        value.backward()
        torch.testing.assert_close([g / 2 for g in gradients(student)], expected, **ANOTHER_WAY)
        whole = sum(loss_of(student, f64, loss, part) * (part.stop - part.start) / N for part in PARTS)
        torch.testing.assert_close(list(torch.autograd.grad(whole, parameters)), expected, **ANOTHER_WAY)


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_a_whole_loop_learns(autocast, scaled):
    """Clipped, accumulated, with a batch that is smaller than the others: within 5 percent of the float64 loop."""
    found = []
    for dtype in (f64, f32):
        student, ours = made("MLP", dtype), dtype is f32
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled and ours)
        for _ in range(30):
            optimizer.zero_grad()
            for part in PARTS:
                with torch.autocast("cpu", torch.bfloat16) if autocast and ours else nullcontext():
                    value = loss_of(student, dtype, "along directions", part, backend=None if ours else "reference")
                scaler.scale(value * ((part.stop - part.start) / N)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(student.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        found.append(loss_of(student, dtype, "exact").item())
    assert abs(found[1] / found[0] - 1) < IN_HALF

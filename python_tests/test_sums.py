"""Order 2 by the core's streams, along directions and summed over them: every way that a tile takes, against autograd
in float64."""

import pytest
import torch
from torch.func import hessian, vmap

import sobolev_kernels as sk
from sobolev_kernels.backends import core, cpu, jets
from sobolev_kernels.modules import IDENTITY
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import ramp
from sobolev_kernels.testing.problems import Shape, data, random, threads
from sobolev_kernels.testing.rule import ANOTHER_WAY

ISAS = [name for name, _ in core._C.instruction_sets()]
SHAPE = Shape(70, 11, 21, 2, 3, 5, "partial tile, panel and block of rows in every set")
# Of W columns and P directions
VECTORS = {
    "basis": lambda W: None,
    "given": lambda W: random(5, SHAPE.N, W),
    "shared": lambda W: random(5, W),
    "rademacher": lambda W: sk.Directions.rademacher(5, seed=3),
    "orthonormal": lambda W: sk.Directions.orthonormal(4, seed=3, unbiased=True),
}
# Directions side by side, samples of a tile, the width up to which weights are read where they lie
PLANS = {"all, in place": (64, 32, 1000), "two, packed": (2, 16, 0), "three, in place": (3, 64, 1000)}


def results(student, x, vectors, wrt, backend):
    """y, the sum, and the gradients of x, given vectors and parameters from cotangents of both."""
    x = x.detach().requires_grad_()
    tensors = [x, *student.parameters()]
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.to(x.dtype).requires_grad_()
        tensors.append(vectors)
    y, total = sk.laplacian(student, x, vectors, wrt=wrt, backend=backend)
    gradients = torch.autograd.grad((y * ramp(y)).sum() + (total * ramp(total)).sum(), tensors)
    return [y, total, *gradients]


@pytest.fixture
def planned(plan, monkeypatch):
    """That plan, on one of the instruction sets."""
    side_by_side, tile, in_place = PLANS[plan]
    monkeypatch.setenv("SOBOLEV_ISA", ISAS[list(PLANS).index(plan) % len(ISAS)])
    for name, value in {
        "SUMMED": side_by_side,
        "APART": side_by_side,
        "TILE": tile,
        "IN_PLACE": (in_place, 1000),
    }.items():
        monkeypatch.setattr(cpu, name, value)
    monkeypatch.setattr(cpu, "_plan_of_streams", cpu._plan_of_streams.__wrapped__)


@pytest.mark.parametrize("wrt", [None, [7, 2, 4, 0]], ids=["all", "some"])
@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_of_a_sum(planned, vectors, wrt):
    numbers, v = data(SHAPE), VECTORS[vectors](SHAPE.D if wrt is None else len(wrt))
    double = numbers.to(torch.float64)
    exact = results(double.student, double.x, v, wrt, "reference")
    for ours, theirs in zip(results(double.student, double.x, v, wrt, "cpu"), exact, strict=True):
        torch.testing.assert_close(ours, theirs, **ANOTHER_WAY)
    if isinstance(v, sk.Directions):  # float32 draws others
        return
    single = [results(numbers.student, numbers.x, v, wrt, backend) for backend in ("cpu", "reference")]
    for i, (theirs, ours, reference) in enumerate(zip(exact, *single, strict=True)):
        assert_within_rule(f"result {i}", ours, theirs, reference)


def losses(student, x, vectors, wrt, backend, loss, dense):
    """The loss of order 2 and its terms, weighted in every way, and all gradients."""
    x = x.detach().requires_grad_()
    tensors, W = [x, *student.parameters()], x.shape[1] if wrt is None else len(wrt)
    like = {"dtype": x.dtype}
    derivatives = {"jacobian": random(SHAPE.N, SHAPE.O, W).to(**like)} if dense else {}
    derivatives |= {"hessian": random(SHAPE.N, SHAPE.O, W, W).to(**like)} if dense else {}
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.to(**like)
        if not dense:
            vectors.requires_grad_()
            tensors.append(vectors)
        P, vectors = len(vectors), sk.Directions.given(vectors)
    else:
        P = 4 if vectors.distribution == "orthonormal" else 5
    if not dense:
        derivatives = {name: random(P, SHAPE.N, SHAPE.O).to(**like) for name in ("tangents", "seconds")}
        derivatives["directions"] = vectors
    targets = sk.Targets(values=random(SHAPE.N, SHAPE.O).to(**like), **derivatives)
    terms = sk.sobolev_loss(
        student, x, targets, order=2, wrt=wrt, derivative_loss=loss, weights=(1.0, 0.5, 0.25), backend=backend,
        directions=vectors if dense else None, sample_weight=random(SHAPE.N).abs().to(**like),
        output_weight=torch.linspace(0, 1, SHAPE.O, **like), return_terms=True,
    )  # fmt: skip
    return [*terms, *torch.autograd.grad(terms.loss, tensors)]


@pytest.mark.parametrize("activation", ["tanh", "identity"])
@pytest.mark.parametrize("loss", ["huber", "relative_mse", "cosine"])
@pytest.mark.parametrize("vectors", [name for name in VECTORS if name != "basis"])
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_of_order_2(planned, plan, vectors, loss, activation):
    wrt = None if activation == "tanh" else [7, 2, 4, 0]
    numbers, v = data(SHAPE, activation), VECTORS[vectors](SHAPE.D if wrt is None else len(wrt))
    double = numbers.to(torch.float64)
    for dense in (False, True):
        ours, theirs = (losses(double.student, double.x, v, wrt, b, loss, dense) for b in ("cpu", "reference"))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, **ANOTHER_WAY)


@pytest.mark.parametrize("activation", ["tanh", "softplus", "gelu"])
def test_sums_are_traces_of_hessians(activation):
    numbers = data(SHAPE, activation).to(torch.float64)
    x, student = numbers.x, numbers.student
    hessians = vmap(hessian(lambda row: student(row[None])[0]))(x)
    v = random(3, SHAPE.D).double()
    for vectors, exact in ((None, hessians.diagonal(dim1=2, dim2=3).sum(-1)),
                           (v, torch.einsum("nodc,pd,pc->no", hessians, v, v))):  # fmt: skip
        torch.testing.assert_close(sk.laplacian(student, x, vectors)[1], exact, **ANOTHER_WAY)


def test_threads_and_calls_give_the_same_bits():
    numbers = data(SHAPE)
    v = VECTORS["given"](SHAPE.D)
    with threads(2):
        first, again = (results(numbers.student, numbers.x, None, None, "cpu") for _ in range(2))
        along, too = (losses(numbers.student, numbers.x, v, None, "cpu", "cosine", True) for _ in range(2))
    assert all(map(torch.equal, [*first, *along], [*again, *too]))


def test_streams_of_another_student_are_refused():
    step = core._C.Step(0, 6, 3, 2, 3, 3, 2)
    step.layers([(3, 2, (0,), core.SOMEWHERE, None, None, None)])
    step.plan(0, 64, 1, False, False, False, 1)
    for widths in ((3, 4, 2), (3, 3)):
        step.streams(jets.jets_of_second(widths, (IDENTITY,) * len(widths[1:]), "float32", 3, True))
        with pytest.raises(ValueError, match="streams must be those of the step"):
            core._C.working_memory(step, "")

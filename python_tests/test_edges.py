"""Layouts, empty batches, halves, frozen parameters, weights of zero, no gradients: as any user expects of PyTorch."""

import math

import pytest
import torch
from small_case import (
    CURVED,
    EXACT,
    NUMBERS,
    RESULTS,
    STUDENT,
    D,
    J,
    N,
    O,
    P,
    V,
    X,
    Y,
    assert_refused,
    call,
    fresh,
    loss,
)  # fmt: skip
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import step
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, directions_of


def strided(tensor):
    """The same numbers, every second element of a tensor of NaN along every axis."""
    buffer = torch.full([2 * n for n in tensor.shape], torch.nan, dtype=tensor.dtype)
    view = buffer[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def offset(tensor):
    """The same numbers in the middle of a longer tensor of NaN, aligned to nothing."""
    buffer = torch.full((tensor.numel() + 7,), torch.nan, dtype=tensor.dtype)
    return buffer[3 : 3 + tensor.numel()].view(tensor.shape).copy_(tensor)


LAYOUTS = {
    "transposed": lambda t: t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1]),
    "strided": strided,
    "offset": offset,
    "expanded along the first axis": lambda t: t[:1].expand_as(t),
    "expanded along the last axis": lambda t: t[..., :1].expand_as(t),
}
OPERANDS = ["x", "values", "jacobian", "tangents", "directions", "shared directions", "weight", "bias"]
OPERANDS += ["vjps", "cotangents", "shared cotangents", "hessian", "seconds"]
OPERANDS += ["sample_weight", "output_weight", "derivative_weight", "input_scale"]
LARGE = Shape(37, 5, 9, 2, 3, 2, "more than a register, less than a panel in every size")


def step_with(operand, layout):
    """Everything of one fused step in which one operand has been laid out by `layout`."""
    numbers = data(LARGE, "silu")
    lay = lambda name, tensor: layout(tensor) if name == operand else tensor  # noqa: E731
    v, u = directions_of("given", LARGE).values, cotangents_of("given", LARGE).values
    v = lay("shared directions", v[:, 0]) if operand == "shared directions" else lay("directions", v)
    u = lay("shared cotangents", u[:, 0]) if operand == "shared cotangents" else lay("cotangents", u)
    numbers.x = lay("x", numbers.x)
    if operand in ("weight", "bias"):
        parameter = getattr(numbers.student[2], operand)
        setattr(numbers.student[2], operand, nn.Parameter(layout(parameter.detach())))
    fields, settings = {"values": lay("values", numbers.y)}, {}
    if operand == "tangents":
        fields["tangents"] = layout(torch.einsum("nod,pnd->pno", numbers.jacobian, v))
    elif operand == "vjps":
        fields["vjps"] = layout(torch.einsum("nod,rno->rnd", numbers.jacobian, u))
    else:
        fields["jacobian"] = lay("jacobian", numbers.jacobian)
    if operand in ("hessian", "seconds"):
        seconds = torch.einsum("node,pnd,pne->pno", numbers.hessian, v, v)
        fields[operand], settings["order"] = layout(numbers.hessian if operand == "hessian" else seconds), 2
    counts = {"sample_weight": (LARGE.N,), "output_weight": (LARGE.O,), "input_scale": (LARGE.D,)}
    counts["derivative_weight"] = LARGE.N, LARGE.O
    if operand in counts:
        settings[operand] = layout(torch.linspace(1, 2, math.prod(counts[operand])).reshape(counts[operand]))
    up = operand == "vjps" or "cotangents" in operand
    projections = sk.Cotangents.given(u) if up else sk.Directions.given(v)
    return step(numbers, projections, "cpu", targets=sk.Targets(**fields), **settings)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("operand", OPERANDS)
def test_any_layout_gives_the_numbers_of_the_contiguous_one(operand, layout):
    got = step_with(operand, layout)
    expected = step_with(operand, lambda tensor: layout(tensor).clone(memory_format=torch.contiguous_format))
    for name, tensor in got.items():
        assert_within_rule(name, tensor, expected[name])


BACKENDS = ["cpu", "reference"]
REDUCTIONS = ["mean", "sum", "none"]
EMPTY = Shape(0, D, 5, 1, O, P, "empty batch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "kind", ["jacobian", "tangents", "teacher", "vjps", "exact", "differential-ml", "hessian", "seconds", *sk.COUPLED]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_batch_has_loss_zero_and_gradients_zero(reduction, kind, backend):
    numbers = data(EMPTY)
    directions, cotangents = sk.Directions.sphere(P, seed=1), sk.Cotangents.sphere(P, seed=1)
    none, fields = torch.zeros(P, 0, O), {"values": numbers.y, "jacobian": numbers.jacobian}
    coupled = {"value_loss": kind, "derivative_loss": kind}
    fields, projections, settings = {
        "jacobian": (fields, directions, {}),
        "tangents": ({"values": numbers.y, "tangents": none}, directions, {}),
        "teacher": ({"teacher": lambda x: x[:, :2].sin()}, directions, {}),
        "vjps": ({"values": numbers.y, "vjps": torch.zeros(P, 0, D)}, cotangents, {}),
        "exact": (fields, None, {"derivatives": "exact"}),
        "differential-ml": (fields, cotangents, {"weights": "differential-ml"}),
        "hessian": (fields | {"hessian": numbers.hessian}, directions, {"order": 2}),
        "seconds": (fields | {"seconds": none}, directions, {"order": 2}),
    }.get(kind, (fields, directions, coupled))
    got = step(numbers, projections, backend, targets=sk.Targets(**fields), reduction=reduction, **settings)
    assert got["loss"].shape == ((0,) if reduction == "none" else ())
    assert got["dx"].shape == (0, D)
    for name, tensor in got.items():
        assert torch.equal(tensor, torch.zeros_like(tensor)), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_jvp_of_an_empty_batch(backend):
    x = torch.zeros(0, D, requires_grad=True)
    y, tangents = sk.jvp(STUDENT, x, torch.ones(P, 0, D), backend=backend)
    assert y.shape == (0, O) and tangents.shape == (P, 0, O)
    gradients = torch.autograd.grad(y.sum() + tangents.sum(), (x, *STUDENT.parameters()))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_computed_in_float32_and_answered_in_its_own(backend, dtype):
    half = NUMBERS.to(dtype)
    single = half.to(torch.float32)
    teachers = [sk.MLP(D, O, width=4).to(dtype) for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())
    teachers[1].float()
    results = []
    for numbers, teacher in zip((half, single), teachers, strict=True):
        x, v = numbers.x.clone().requires_grad_(), V.to(dtype).to(numbers.x.dtype)
        y, tangents = sk.jvp(numbers.student, x, v, backend=backend)
        distilled = loss(numbers.student, x, sk.Targets(teacher=teacher), directions=sk.Directions.given(v))
        results.append([y, tangents, distilled, *torch.autograd.grad(tangents.float().square().sum(), x)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert_within_rule("half", got, expected.double(), expected.to(dtype))


KINDS = {
    "directions": {"directions": sk.Directions.sphere(P, seed=1)},
    "cotangents": {"cotangents": sk.Cotangents.sphere(P, seed=1)},
    "exact": {"derivatives": "exact", "derivative_loss": "cosine"},
    "order 2": {"directions": sk.Directions.sphere(P, seed=1), "targets": CURVED, "order": 2},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@each_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_without_gradients_the_loss_is_the_same(mode, kind, reduction, backend):
    settings = {**KINDS[kind], "reduction": reduction, "backend": backend}
    with mode():
        got = loss(**settings)
    assert not got.requires_grad
    assert torch.equal(got, loss(**settings))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("result", ["jvp", "vjp", "jet", "laplacian", "hvp"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_without_gradients_derivatives_are_the_same(mode, result, backend):
    with mode():
        got = call(result, backend)
    assert not got.requires_grad
    assert torch.equal(got, call(result, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@each_kind
@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1, 2, 3)], ids=str)
def test_frozen_parameters_get_no_gradient_and_the_others_theirs(frozen, kind, reduction, backend):
    settings = {**KINDS[kind], "reduction": reduction}
    projections = settings.get("directions") or settings.pop("cotangents", None)
    settings.pop("directions", None)
    expected = step(NUMBERS, projections, backend, **settings)
    student = fresh()
    for i, parameter in enumerate(student.parameters()):
        parameter.requires_grad_(i not in frozen)
    got = loss(student, **KINDS[kind], reduction=reduction, backend=backend)
    assert got.requires_grad == (len(frozen) < 4)
    if got.requires_grad:
        got.backward(torch.linspace(1, 2, got.numel()).reshape(got.shape))
    for i, (name, parameter) in enumerate(student.named_parameters()):
        assert parameter.grad is None if i in frozen else torch.equal(parameter.grad, expected[f"d{name}"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [(2.0, 0.0), (0.0, 3.0), (0.0, 0.0)], ids=str)
def test_a_weight_of_zero_needs_no_target(weights, reduction, backend):
    """The loss is the other term alone, and the term that has no target is NaN."""
    directions = sk.Directions.sphere(P, seed=1)
    targets = sk.Targets(values=Y if weights[0] else None, jacobian=J if weights[1] else None)
    settings = {"reduction": reduction, "return_terms": True, "backend": backend, "directions": directions}
    both = loss(**settings)
    got = loss(targets=targets, weights=weights, **settings)
    expected = torch.zeros_like(both.loss)
    for weight, term, reference in zip(
        weights, (got.value, got.derivative), (both.value, both.derivative), strict=True
    ):
        if weight:  # values alone are not multiplied beside tangents, and so may be rounded otherwise
            assert_within_rule("term", term.detach(), reference.detach())
        else:
            assert term.isnan().all()
        expected = expected + weight * reference
    assert_within_rule("loss", got.loss.detach(), expected.detach())
    got.loss.sum().backward()
    assert weights != (0.0, 0.0) or all(not p.grad.any() for p in STUDENT.parameters() if p.grad is not None)
    STUDENT.zero_grad()


def test_weights_are_any_two_numbers():
    directions = sk.Directions.sphere(P, seed=1)
    expected = loss(weights=(1.0, 2.0), directions=directions)
    for weights in ([1, 2], torch.tensor([1.0, 2.0]), (torch.tensor(1), 2)):
        assert torch.equal(loss(weights=weights, directions=directions), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("result", RESULTS)
def test_repeated_calls_are_bitwise_equal(result, backend):
    """With the forward's and the backward's own computing, and two backwards of one forward."""
    first, *others = [call(result, backend, x=EXACT.x.clone().requires_grad_()) for _ in range(4)]
    gradients = [torch.autograd.grad(value, EXACT.student.parameters(), retain_graph=True, materialize_grads=True)
                 for value in (first, first, *others)]  # fmt: skip
    assert all(torch.equal(first, other) for other in others)
    for other in gradients[1:]:
        assert all(map(torch.equal, gradients[0], other))


def test_the_environment_forces_a_backend_and_the_argument_overrules_it(monkeypatch):
    student = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, O))
    monkeypatch.setenv("SOBOLEV_BACKEND", "cpu")
    with pytest.raises(NotImplementedError):
        loss(student)
    assert loss(student, backend="reference").isfinite()
    monkeypatch.setenv("SOBOLEV_BACKEND", "")
    assert loss(student).isfinite()


def test_targets_and_directions_that_ask_for_a_gradient_later():
    """They were constants when they were given; directions have a gradient."""
    targets, v = sk.Targets(values=Y.clone(), jacobian=J.clone()), torch.ones(1, N, D)
    given = sk.Directions.given(v)
    targets.jacobian.requires_grad_()
    assert_refused(lambda: loss(targets=targets), ValueError, "jacobian: expected a tensor without requires_grad")
    v.requires_grad_()
    assert torch.autograd.grad(loss(directions=given), v)[0].any()


@pytest.mark.parametrize(
    "made", [lambda y: y + 1j, lambda y: y > 0, lambda y: y.long()], ids=["complex", "bool", "int"]
)
def test_outputs_of_a_student_are_real_floating_numbers(made):
    message = f"student: expected to return real floating numbers [{N}, O], got a tensor"
    for function in (lambda f: loss(f), lambda f: sk.jvp(f, X, torch.ones(1, N, D))):
        assert_refused(lambda function=function: function(lambda x: made(x[:, :O])), ValueError, message)

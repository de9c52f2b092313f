"""`input_jacobian`: derivatives with respect to what the inputs were made of, beside autograd through all of it."""

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, D, K, P, DTYPE = 5, 6, 12, 3, torch.float64
torch.manual_seed(0)
STUDENTS = {
    "an MLP of one output": (sk.MLP(D, 1, width=8, activation="silu").to(DTYPE), 1),
    "another function": (nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 2)).to(DTYPE), 2),
}


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def descriptors(q: torch.Tensor) -> torch.Tensor:
    """1 / distance of four points' six pairs: [D] of positions [K]."""
    i, j = torch.triu_indices(4, 4, 1)
    points = q.view(4, 3)
    return 1 / (points[i] - points[j]).norm(dim=-1)


W = sk.Directions.normal(P, seed=5).tensor(torch.zeros(N, K, dtype=DTYPE))
MASK, SCALE, COUNT = numbers(N, K, seed=6) > -0.5, numbers(K, seed=7).exp(), numbers(N, 1, K, seed=8) > 0
ALONG = {
    "exact": ({"derivatives": "exact"}, lambda off: off.square()),
    "cotangents' basis": ({"cotangents": sk.Cotangents.basis()}, lambda off: off.square()),
    "unbiased": ({"directions": sk.Directions.basis(unbiased=True)}, lambda off: K * off.square()),
    "seeded": ({"directions": sk.Directions.normal(P, seed=5)}, lambda off: along(off, W).square()),
    "given": ({"directions": sk.Directions.given(W)}, lambda off: along(off, W).square()),
    "shared": ({"directions": sk.Directions.given(W[:, 0])}, lambda off: along(off, W[:, :1]).square()),
    "masked": ({"derivatives": "exact", "derivative_weight": MASK}, lambda off: MASK[:, None] * off.square()),
    "masked directions": (
        {"directions": sk.Directions.given(W), "derivative_weight": MASK}, lambda off: along(off, W * MASK).square()
    ),
    "scaled": ({"derivatives": "exact", "input_scale": SCALE}, lambda off: (SCALE * off).square()),
    "scaled directions": (
        {"directions": sk.Directions.given(W), "input_scale": SCALE}, lambda off: along(SCALE * off, W).square()
    ),
}  # fmt: skip


def along(off: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nok,pnk->pno", off, w.expand(-1, N, -1))


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("way", ALONG)
def test_forces_through_descriptors(name, way):
    student, O = STUDENTS[name]
    settings, squares = ALONG[way]
    q = numbers(N, K, seed=1).requires_grad_()
    values, jacobian = numbers(N, O, seed=2), numbers(N, O, K, seed=3)
    x = vmap(descriptors)(q)
    y = student(x)
    J = torch.stack([torch.autograd.grad(y[:, o].sum(), q, create_graph=True)[0] for o in range(O)], 1)
    expected = (y - values).square().mean() + squares(J - jacobian).mean()
    loss = sk.sobolev_loss(
        student, x, sk.Targets(values=values, jacobian=jacobian),
        input_jacobian=vmap(jacrev(descriptors))(q), **settings
    )  # fmt: skip
    wanted = [q, *student.parameters()]
    torch.testing.assert_close(loss, expected, **ANOTHER_WAY)
    both = (
        torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        for total in (loss, expected)
    )
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, **ANOTHER_WAY)


@pytest.mark.parametrize("name", STUDENTS)
def test_missing_labels_a_teacher_and_inputs_of_any_shape(name):
    student, O = STUDENTS[name]
    q, values, jacobian = numbers(N, K, seed=1), numbers(N, O, seed=2), numbers(N, O, K, seed=3)
    x, A = vmap(descriptors)(q), vmap(jacrev(descriptors))(q)
    y, J = student(x), vmap(jacrev(lambda q: student(descriptors(q))))(q)
    counted = COUNT.expand_as(J).to(DTYPE)
    missing = sk.Targets(values=values, jacobian=jacobian.where(counted > 0, torch.nan))
    loss_fn = sk.SobolevLoss(derivatives="exact")
    loss = loss_fn(student, x, missing, derivative_weight=counted, input_jacobian=A)
    expected = (y - values).square().mean() + (counted * (J - jacobian).square()).mean()
    torch.testing.assert_close(loss, expected, **ANOTHER_WAY)
    shaped = nn.Sequential(nn.Flatten(), student)
    again = loss_fn(shaped, x.view(N, 2, 3), missing, derivative_weight=counted, input_jacobian=A.unflatten(1, (2, 3)))
    torch.testing.assert_close(again, expected, **ANOTHER_WAY)
    teacher = lambda x: x.sin()[:, :O]  # noqa: E731
    taught = sk.sobolev_loss(student, x, sk.Targets(teacher=teacher), derivatives="exact", input_jacobian=A)
    of_teacher = A[:, :O] * x[:, :O, None].cos()
    expected = (y - teacher(x)).square().mean() + (J - of_teacher).square().mean()
    torch.testing.assert_close(taught, expected, **ANOTHER_WAY)


def test_all_derivatives_are_read_where_they_lie(monkeypatch):
    """The directions that the step is told are a view of the Jacobian."""
    from sobolev_kernels import terms

    student, O = STUDENTS["an MLP of one output"]
    A, told = numbers(N, D, K, seed=1), []
    evaluate = terms.call.evaluate
    monkeypatch.setattr(
        terms.call, "evaluate", lambda result, s, x, settings, given, *r, **n: told.append(given)
        or evaluate(result, s, x, settings, given, *r, **n)
    )  # fmt: skip
    targets = sk.Targets(values=numbers(N, O, seed=2), jacobian=numbers(N, O, K, seed=3))
    sk.sobolev_loss(student, numbers(N, D, seed=4), targets, derivatives="exact", input_jacobian=A)
    assert told[0].data_ptr() == A.data_ptr() and told[0].shape == (K, N, D)


JACOBIAN = {"jacobian": (N, 1, K)}


@pytest.mark.parametrize(
    "named, targets, kind, said",
    [
        ({"order": 2}, JACOBIAN, NotImplementedError, "order: expected 1 .*first derivatives alone"),
        ({"wrt": (0,)}, JACOBIAN, ValueError, "wrt: expected None, since input_jacobian"),
        ({"weights": "differential-ml"}, JACOBIAN, ValueError, "weights: expected numbers together with"),
        ({"cotangents": sk.Cotangents.sphere(1)}, JACOBIAN, NotImplementedError, "cotangents: expected directions"),
        ({"input_jacobian": (N, D - 1, K)}, JACOBIAN, ValueError, r"input_jacobian: expected \[5, 6, K\]"),
        ({"input_scale": (D,)}, JACOBIAN, ValueError, r"input_scale: expected torch.float64 \[12\]"),
        ({}, {"jacobian": (N, 1, D)}, ValueError, r"jacobian: expected \[5, 1, 12\]"),
        ({}, {"tangents": (1, N, 1)}, ValueError, "directions: expected those the target tangents belong to"),
        ({}, {"vjps": (1, N, K)}, NotImplementedError, "targets: expected a jacobian, tangents or teacher"),
        (
            {"directions": sk.Directions.sphere(1, seed=1), "input_scale": (K,)}, {"tangents": (1, N, 1)}, ValueError,
            "input_scale: expected a jacobian",
        ),
    ],
)  # fmt: skip
def test_what_is_not_provided_is_refused_in_words(named, targets, kind, said):
    named = {"input_jacobian": (N, D, K), **named}
    for name in ("input_jacobian", "input_scale"):
        if name in named:
            named[name] = torch.ones(named[name], dtype=DTYPE)
    targets = {name: torch.ones(shape, dtype=DTYPE) for name, shape in targets.items()}
    targets = sk.Targets(values=numbers(N, 1, seed=1), **targets)
    with pytest.raises(kind, match=said):
        sk.sobolev_loss(STUDENTS["an MLP of one output"][0], numbers(N, D, seed=2), targets, **named)

"""Losses and jets of orders 3 and 4, beside nested forward mode of torch.func in float64."""

from random import Random as random_of

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels import call
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY

F64 = torch.float64


def random(*shape):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


def by_func(function, x, v, order):
    """Values and derivatives [P, N, O] of each order along v [P, N, D]."""

    def along(function, d):
        return lambda x: torch.func.jvp(function, (x,), (d,))[1]

    found = [[] for _ in range(order)]
    for d in v:
        derived = function
        for of_order in found:
            derived = along(derived, d)
            of_order.append(derived(x))
    return [function(x), *map(torch.stack, found)]


class Product(nn.Module):
    """No MLP."""

    def __init__(self):
        super().__init__()
        self.net = sk.MLP(3, 2, width=7, depth=1).double()

    def forward(self, x):
        return self.net(x) * torch.sin(x.sum(1, keepdim=True))


def students():
    torch.manual_seed(0)
    return {
        "MLP": sk.MLP(3, 2, width=9, activation="gelu").double(),
        "wrapped": nn.Sequential(nn.Sequential(sk.MLP(3, 4, width=5), nn.SiLU()), nn.Linear(4, 2)).double(),
        "no MLP": Product(),
    }


def compare(evaluate, expected, asking):
    tensors = []
    for results in (evaluate, expected):
        found = results()
        gradients = torch.autograd.grad(sum(r.sin().sum() for r in found), asking, materialize_grads=True)
        tensors.append([*found, *gradients])
    for i, (got, wanted) in enumerate(zip(*tensors, strict=True)):
        torch.testing.assert_close(got, wanted, **ANOTHER_WAY, msg=lambda m, i=i: f"{i}: {m}")


@pytest.mark.parametrize("order, P", [(3, 1), (3, 7), (4, 2)])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", students())
def test_jets_and_their_gradients(name, backend, order, P):
    student, x, v = students()[name], random(5, 3).requires_grad_(), random(P, 5, 3).requires_grad_()
    asking = [x, v, *student.parameters()]
    compare(lambda: sk.jet(student, x, v, order=order, backend=backend), lambda: by_func(student, x, v, order), asking)


def test_jets_go_by_the_core_and_of_some_columns():
    student, x, v = students()["MLP"], random(6, 3), random(2, 6, 2)
    padded = torch.stack([v[..., 1], torch.zeros(2, 6, dtype=F64), v[..., 0]], -1)
    compare(
        lambda: sk.jet(student, x, v, order=3, wrt=(2, 0), backend="cpu"), lambda: by_func(student, x, padded, 3),
        list(student.parameters()),
    )  # fmt: skip
    rows = sk.jet(student, x, sk.Directions.given(torch.eye(3, dtype=F64)), order=4, backend="cpu")
    assert_within_rule("basis", rows[4], sk.jet(student, x, sk.Directions.basis(), order=4)[4].detach())


def mean_loss(jets, targets, weights):
    return sum(w * (jet - target).square().mean() for w, jet, target in zip(weights, jets, targets, strict=True))


WEIGHTS = (1.0, 0.5, 0.25, 2.0, 0.125)


@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize("taught", ["targets", "by an MLP", "by a function"])
def test_losses_and_their_gradients(taught, backend, order):
    student, x, v = students()["MLP"], random(5, 3).requires_grad_(), random(2, 5, 3)
    teacher = sk.MLP(3, 2, width=4).double() if taught == "by an MLP" else lambda x: (x**5).cumsum(1)[:, 1:]
    with torch.no_grad():
        values, *jets = by_func(teacher, x.detach(), v, order)
    targets = sk.Targets(values, jets=jets) if taught == "targets" else sk.Targets(teacher=teacher)
    weights = WEIGHTS[: 1 + order]
    asked = {"directions": sk.Directions.given(v), "order": order, "weights": weights, "backend": backend}
    asking = [x, *student.parameters()]
    for _ in range(2):  # the second goes by what is kept of the first
        compare(
            lambda: [sk.sobolev_loss(student, x, targets, **asked)],
            lambda: [mean_loss(by_func(student, x, v, order), [values, *jets], weights)], asking,
        )  # fmt: skip
    terms = sk.sobolev_loss(student, x, targets, **asked, return_terms=True)
    assert list(terms.log()) == ["loss", "value", "derivative", "second", "third", "fourth"][: 2 + order]
    each = [(a - b).square().mean() for a, b in zip(by_func(student, x, v, order), [values, *jets], strict=True)]
    for term, expected in zip(terms[1 : 2 + order], each, strict=True):
        torch.testing.assert_close(term, expected, **ANOTHER_WAY)


def test_a_student_that_is_no_mlp():
    student, x, v = students()["no MLP"], random(4, 3), random(2, 4, 3)
    values, *jets = (random(4, 2), random(2, 4, 2), random(2, 4, 2) / 2, random(2, 4, 2) / 3)
    targets = sk.Targets(values, jets=jets, directions=v)
    compare(
        lambda: [sk.sobolev_loss(student, x, targets, order=3)],
        lambda: [mean_loss(by_func(student, x, v, 3), [values, *jets], (1,) * 4)], list(student.parameters()),
    )  # fmt: skip


def test_weights_and_reductions():
    student, x, v = students()["MLP"], random(5, 3), random(2, 5, 3)
    values, jets = random(5, 2), [random(2, 5, 2) / k for k in (1, 2, 3)]
    jets[2][:, 4] = torch.nan  # which counts nothing
    sample, output = torch.tensor([1.0, 2, 0.5, 1, 0], dtype=F64), torch.tensor([1.0, 3.0], dtype=F64)
    targets = sk.Targets(values, jets=jets, directions=v)
    weighted = {"order": 3, "sample_weight": sample, "output_weight": output}
    each = sk.sobolev_loss(student, x, targets, **weighted, reduction="none")
    predictions = by_func(student, x, v, 3)
    expected = 0
    for got, target in zip(predictions, [values, *jets], strict=True):
        squares = torch.where(sample[:, None] == 0, 0.0, output * (got - target).square())
        expected = expected + sample * (squares.mean(-1) if squares.dim() == 2 else squares.mean((0, -1)))
    torch.testing.assert_close(each, expected, **ANOTHER_WAY)
    for reduction, factor in (("mean", 5), ("sum", 1)):
        loss = sk.sobolev_loss(student, x, targets, **weighted, reduction=reduction)
        torch.testing.assert_close(loss * factor, expected.sum(), **ANOTHER_WAY)


def test_drawn_directions_are_those_of_lower_orders_and_of_targets_of_a_teacher():
    student, teacher, x = students()["MLP"], sk.MLP(3, 2, width=4).double(), random(6, 3)
    directions = sk.Directions.sphere(3, seed=5)
    v = directions.tensor(x)
    asked = {"directions": directions, "order": 3}
    given = sk.sobolev_loss(student, x, sk.Targets(teacher=teacher), order=3, directions=sk.Directions.given(v))
    torch.testing.assert_close(sk.sobolev_loss(student, x, sk.Targets(teacher=teacher), **asked), given, **ANOTHER_WAY)
    taught = sk.Targets.from_teacher(teacher, x, **asked, batch_size=4)
    assert taught.jets.shape == (3, 3, 6, 2)
    torch.testing.assert_close(sk.sobolev_loss(student, x, taught, order=3), given, **ANOTHER_WAY)
    halves = [sk.sobolev_loss(student, x[i], taught[i], order=3) for i in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, given, **ANOTHER_WAY)
    joined = sk.Targets.cat([taught[:3], taught[3:]])
    torch.testing.assert_close(sk.sobolev_loss(student, x, joined, order=3), given, **ANOTHER_WAY)


def test_single_precision_and_half():
    student, x, v = students()["MLP"], random(17, 3), random(2, 17, 3)
    exact = by_func(student, x, v, 4)
    for dtype in (torch.float32, torch.bfloat16):
        student = student.to(dtype)
        rounded = [t.to(dtype) for t in (x, v)]
        exact = by_func(student.double(), *(t.double() for t in rounded), 4)
        for k, (got, wanted) in enumerate(zip(sk.jet(student.to(dtype), *rounded, order=4), exact, strict=True)):
            assert got.dtype is dtype
            assert_within_rule(f"order {k}", got.detach(), wanted.detach())


def test_explain_says_it():
    student, x = students()["MLP"], random(4, 3)
    text = str(sk.explain(student, x, order=3))
    assert "order 3" in text and "cpu" in text


@pytest.mark.parametrize("columns", [None, (2, 0), torch.tensor([True, True, False])])
@pytest.mark.parametrize("name", students())
def test_bilaplacian(name, columns):
    student, x = students()[name], random(3, 3).requires_grad_()
    wanted = range(3) if columns is None else columns if isinstance(columns, tuple) else (0, 1)
    names = [f"{o}_{a}{a}{b}{b}" for o in "uv" for a in "xyz" for b in "xyz"]
    fields = sk.Fields("x y z -> u v")

    def expected():
        fourth = sk.partials(lambda x: student(x) * 1, x, sorted(set(names)), fields=fields)
        pairs = [("xyz"[i] * 2, "xyz"[j] * 2) for i in wanted for j in wanted]
        return student(x), torch.cat([sum(fourth[f"{o}_{a}{b}"] for a, b in pairs) for o in "uv"], 1)

    compare(lambda: sk.bilaplacian(student, x, wrt=columns), expected, [x, *student.parameters()])


def test_bilaplacian_of_one_output_and_no_samples():
    _, total = sk.bilaplacian(lambda x: (x**4).sum(1), random(2, 3))
    torch.testing.assert_close(total, torch.full((2, 1), 72.0, dtype=F64), **ANOTHER_WAY)
    assert [r.shape for r in sk.bilaplacian(students()["MLP"], random(0, 3))] == [(0, 2)] * 2


MLP, X = sk.MLP(2, 1, width=3), torch.rand(4, 2)
V, Y, T = torch.rand(1, 4, 2), torch.rand(4, 1), torch.rand(1, 4, 1)


def loss(targets, student=MLP, order=3, **settings):
    return sk.sobolev_loss(student, X, targets, order=order, **settings)


RIGHT = sk.Targets(Y, jets=[T, T, T], directions=V)
REFUSED = [
    (lambda: sk.jet(MLP, X, V, order=5), ValueError, "order: expected a whole number from 1 to 4, got 5"),
    (lambda: loss(sk.Targets(Y, jacobian=T[0, :, None].expand(4, 1, 2))), ValueError, "targets: expected jets"),
    (lambda: loss(sk.Targets(Y, jets=[T, T], directions=V)), ValueError, "jets: expected [3, 1, 4, 1]"),
    (lambda: loss(sk.Targets(Y, jets=[T, T[:, :2]])), ValueError, "jets: expected tensors like the first"),
    (lambda: loss(sk.Targets(Y, jets=[T, T, T])), ValueError, "directions: expected those the target"),
    (lambda: loss(RIGHT, weights=(1, 1, 1)), ValueError, "weights: expected 4 numbers, one for each order"),
    (lambda: loss(RIGHT, head="sigmoid"), ValueError, "order: expected 1 or 2 behind a head"),
    (lambda: loss(RIGHT, derivatives="exact"), ValueError, "order: expected 1 with"),
    (lambda: loss(RIGHT, backend="streams"), NotImplementedError, "not of order 3"),
    (lambda: loss(RIGHT, backend="triton"), NotImplementedError, "backend: expected triton"),
    (lambda: loss(RIGHT, sk.MLP(2, 1, activation="relu")), NotImplementedError, "1 with relu"),
    (lambda: loss(RIGHT, sk.MLP(2, 1, activation="elu")), NotImplementedError, "at most 2 with elu in the student"),
    (lambda: loss(RIGHT, lambda x: nn.functional.elu(MLP(x)) * x[:, :1]), NotImplementedError, "order: expected deriv"),
    (
        lambda: loss(sk.Targets(teacher=sk.MLP(2, 1, activation="softsign"))), NotImplementedError,
        "at most 2 with softsign in the teacher",
    ),
    (lambda: sk.bilaplacian(MLP, X, wrt=[2]), ValueError, "wrt: expected columns of the inputs, whole"),
    (lambda: sk.bilaplacian(MLP, X.double()), ValueError, "student: expected all parameters torch.float64"),
    (lambda: sk.bilaplacian(sk.MLP(2, 1, activation="elu"), X), NotImplementedError, "student: expected"),
    (lambda: sk.bilaplacian(lambda x: x.relu(), X), NotImplementedError, "student: expected derivatives up to order 1"),
    (lambda: sk.Targets.from_teacher(MLP, X, order=3), ValueError, "directions: expected directions"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, message", REFUSED, ids=[row[2][:50] for row in REFUSED])
def test_refused_in_words(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


def test_mixed_derivatives_of_directions_of_any_size():
    """Polarization would lose all digits that v and w differ by."""
    torch.manual_seed(0)
    student, x = sk.MLP(3, 2, width=16, activation="silu").double(), random(9, 3).requires_grad_()
    v, w = (1e-4 * random(5, 9, 3)).requires_grad_(), (1e3 * random(5, 9, 3) + 1).requires_grad_()

    def expected():
        def along(function, d):
            return lambda x: torch.func.jvp(function, (x,), (d,))[1]

        return student(x), torch.stack([along(along(student, a), b)(x) for a, b in zip(v, w, strict=True)])

    exact = expected()[1].detach()
    compare(lambda: sk.hvp(student, x, v, w), expected, [x, v, w, *student.parameters()])
    single = sk.hvp(student.float(), *(t.detach().float() for t in (x, v, w)))[1]
    assert_within_rule("float32", single.detach(), exact)
    columns = sk.hvp(student.double(), x, v[..., :2], w[..., :2], wrt=(2, 0))[1]
    padded = [torch.stack([t[..., 1], 0 * t[..., 0], t[..., 0]], -1) for t in (v, w)]
    torch.testing.assert_close(columns, sk.hvp(student, x, *padded)[1], **ANOTHER_WAY)


@pytest.mark.parametrize("backend", ["streams", "reference"])
def test_mixed_derivatives_by_polarization(backend):
    """Vectors of any size, zero ones too, are brought to one size before they are added and subtracted."""
    torch.manual_seed(0)
    layers, x = sk.MLP(3, 2, width=16, activation="silu").double(), random(6, 3).requires_grad_()
    v, w = 1e-3 * random(4, 6, 3), 1e2 * random(4, 6, 3) + 1
    v[0, 0], w[1, 1] = 0, 0
    v, w = v.requires_grad_(), w.requires_grad_()

    def student(x):
        return layers(x).sin() * x[:, :1]

    def mixed(student, x, v, w):
        return sk.hvp(student, x, v, w, backend=backend)[1]

    def expected():
        along = lambda d: lambda function: lambda x: torch.func.jvp(function, (x,), (d,))[1]  # noqa: E731
        return torch.stack([along(a)(along(b)(student))(x) for a, b in zip(v, w, strict=True)])

    compare(lambda: (mixed(student, x, v, w),), lambda: (expected(),), [x, v, w, *layers.parameters()])
    exact = expected().detach()
    layers = layers.float()
    assert_within_rule("float32", mixed(student, *(t.detach().float() for t in (x, v, w))).detach(), exact)
    whole = sk.Directions.given(v[:, 0].detach().float()), sk.Directions.given(w[:, 0].detach().float())
    each = (t.values[:, None].expand(-1, 6, -1) for t in whole)
    together = mixed(student, x.detach().float(), *whole)
    torch.testing.assert_close(together, mixed(student, x.detach().float(), *each))


@pytest.mark.parametrize("seed", range(8))
def test_losses_in_one_pass_beside_two(seed, monkeypatch):
    """Losses, reductions, weights of terms, missing targets and further derivatives: what a call of the core makes, and
    what PyTorch makes of derivatives."""
    rng = random_of(seed)
    P, O, order = rng.choice([1, 2, 4]), rng.choice([1, 3]), rng.choice([3, 4])
    torch.manual_seed(seed)
    student = sk.MLP(3, O, width=rng.choice([4, 17]), depth=rng.choice([1, 3])).double()
    N, wrt = rng.choice([1, 7, 40]), rng.choice([None, (2, 0)])
    x, v = random(N, 3).requires_grad_(), random(P, N, 3 if wrt is None else 2)
    values = rng.choice([random(N, O), random(O, N).T])
    targets = sk.Targets(values, jets=[random(P, N, O) / k for k in range(1, 1 + order)], directions=v)
    asked = {
        "order": order, "value_loss": rng.choice(["mse", ("huber", 0.3)]), "reduction": rng.choice(["mean", "sum"]),
        "derivative_loss": rng.choice(["mse", "l1", "log_cosh"]), "weights": rng.choice([None, (1, 0, 0.5, 0, 2)]),
        "wrt": wrt,
    }  # fmt: skip
    asked["weights"] = (1,) * (1 + order) if asked["weights"] is None else asked["weights"][: 1 + order]
    asking, passes = [x, *student.parameters()], []
    own = call.fused_towers

    def everything():
        loss = sk.sobolev_loss(student, x, targets, **asked)
        with torch.no_grad():
            plain = sk.sobolev_loss(student, x, targets, **asked)
        terms = sk.sobolev_loss(student, x, targets, **asked, return_terms=True)
        slopes = torch.autograd.grad(-1.5 * loss, asking, create_graph=seed % 2 == 0)
        found = [loss, plain, *terms, *slopes, *torch.autograd.grad(terms.loss + terms.value, asking)]
        if seed % 2 == 0:
            found += torch.autograd.grad(sum(s.square().sum() for s in slopes), asking, materialize_grads=True)
        return [number for number in found if isinstance(number, torch.Tensor)]

    monkeypatch.setattr(call, "fused_towers", lambda *given: passes.append(own(*given)) or passes[-1])
    got = everything()
    assert len(passes) == 3 and passes[0] is not None
    monkeypatch.setattr(call, "fused_towers", lambda *_: None)
    for a, b in zip(got, everything(), strict=True):
        torch.testing.assert_close(a, b, **ANOTHER_WAY)

"""Second derivatives by rules: each rule and whole networks beside second differences of the forward.

The oracle knows no rule, as in test_streams.py; autograd differentiates its differences.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sobolev_kernels as sk
from python_tests.students import Call, Counting
from python_tests.test_streams import (
    CASES,
    INDEX,
    KERNEL,
    MASK,
    NETWORKS,
    POINTWISE,
    UNUSED,
    WEIGHT,
    B,
    Blocks,
    C,
    D,
    Gated,
    N,
    around,
    chosen,
    differences,
    f64,
    network,
    numbers,
    put,
)  # fmt: skip
from python_tests.test_streams_more import PROVED, RECURRENT, like, linalg, recurrent, special, square
from sobolev_kernels.backends.streams import propagated
from sobolev_kernels.paths import known_of
from sobolev_kernels.streams.flowing import NotFollowed, name_of
from sobolev_kernels.streams.pair import CONSTANT, LIKE
from sobolev_kernels.streams.rules import TWICE
from sobolev_kernels.streams.trusted import TRUSTED_TWICE
from sobolev_kernels.streams.twice import Pointwise, Product
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCES

X = numbers(N, D, seed=11)  # from which no step goes over a kink


def second_differences(function, x, v, step=1e-3):
    """D²f(x)[v, v] [P, ...] with a graph, by a formula of fourth order."""

    def along(d):
        a, b = (function(x + h * d) + function(x - h * d) for h in (step, 2 * step))
        return (16 * a - b - 30 * function(x)) / (12 * step * step)

    return torch.stack([along(d) for d in v])


def assert_right(function, x, v, inputs, collapsed=False, tolerance=BY_DIFFERENCES["second derivatives"]):
    """Value, tangents, second derivatives, and the gradients of a function of all."""
    x = x.clone().requires_grad_()
    seconds = second_differences(function, x, v)
    expected = torch.cat([differences(function, x, v), seconds.sum(0, keepdim=True) if collapsed else seconds])
    results = []
    for y, t in (propagated(function, x, v, order=2, collapsed=collapsed), (function(x), expected)):
        cy, ct = numbers(*y.shape, seed=8), numbers(*t.shape, seed=9)
        loss = (cy * y.sin()).sum() + (ct * t.sin()).sum()
        gradients = torch.autograd.grad(loss, [x, *inputs], materialize_grads=True)
        results.append([y, t[: len(v)], t[len(v) :], *gradients])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert got.shape == expected.shape
        # what cancels in a second difference is of the size of the value
        size = torch.maximum(expected.abs().max(), results[1][0].abs().max()).clamp(min=1e-2)
        error = (got - expected).abs().max() / size
        assert error <= tolerance, f"number {i}: {error:.2g}"


def bent(case):
    """With inputs that have second derivatives themselves, which a linear rule maps."""
    size = 0.3 if case == "tan" else 1.2
    return lambda x: around(case)(size * x.sin())


@pytest.mark.parametrize("case", CASES)
def test_every_rule(case):
    assert_right(bent(case), X, numbers(2, N, D, seed=6), [WEIGHT, B, KERNEL])
    if case not in POINTWISE:
        assert_right(bent(case), X, numbers(2, N, D, seed=6), [WEIGHT, B, KERNEL], collapsed=True)


# Of h [N, 2, 4]; what goes at order 1 by a jvp that was proved
MORE = {
    "angles": lambda h: (
        torch.atan2(h, C) + torch.arctan2(C, h * h + 1) + torch.atan2(h[:, :1], h.flip(-1) + 3 * h * h + 1)
    ),
    "hypot": lambda h: torch.hypot(h, C) + torch.hypot(h, h * h + 1),
    "logarithms": lambda h: (
        torch.xlogy(h, h * h + 1) + torch.logaddexp(h, C) + torch.logaddexp2(C, h) + special.xlog1py(h, h * h)
        + torch.logaddexp(h, h.flip(1)) + special.entr(h * h + 0.5)
    ),
    "lerp": lambda h: torch.lerp(h, C, 0.3) + torch.lerp(C, h, h.sin()) + h.lerp(h * h, h),
    "powers": lambda h: (
        (h * h + 1) ** (h / 3) + (h * h + 0.2) ** C.abs() + 2**h + (h * h + 1) ** h[:, :1] + (h * h + 1) ** -2
    ),
    "pieces": lambda h: torch.copysign(h, C) + torch.ldexp(h, torch.tensor(2)) + PROVED["rest"](h),
    "special": lambda h: PROVED["special"](h) + torch.addcdiv(C, h, h.exp(), value=0.5),
    "cumulated": lambda h: h.cummax(-1)[0] + h.cummin(-1).values,
    "sums": lambda h: h.nansum(-1) + h.nanmean(-1) + torch.trapezoid(h) + torch.trapz(h),
    "stacked": lambda h: (
        torch.vstack([h, h])[: len(h)] + torch.hstack([h, h])[:, :2] + torch.dstack([h, h])[..., :4]
        + torch.column_stack([h, h])[:, :2] + torch.block_diag(h[0], h[1])[:2, :4]
    ),
    "vectors": lambda h: (
        torch.inner(h[:, 0], B) + torch.addmv(C, B, h[0, 0]) + h[0, :, :2].trace() + torch.mv(B, h[0, 0])
        + h[:, 0].mv(h[1, 1])[:, None] + h[0, 0].dot(h[1, 1]) + h[0, 0].vdot(C)
    ),
    "outer": lambda h: (
        torch.outer(h[0, 0], C)[:2] + torch.addr(B, h[0, 0], C)[:2] + h[0, :, :2].kron(B[:2, :2])[:2]
        + torch.outer(C, h[0, 1])[:2] + torch.outer(h[0, 0], h[1, 1])[:2]
    ),
    "cross": lambda h: (
        torch.cross(h[..., :3], C[:3].expand_as(h[..., 1:]), -1) + linalg.cross(C[:3].expand_as(h[..., 1:]), h[..., 1:])
    ),
    "products": lambda h: (
        torch.tensordot(h, B, 1) + torch.einsum("...ij,jk", h, B)
        + F.bilinear(h, like(h), B.expand(2, 4, 4)).repeat(1, 1, 2)
        + torch.addbmm(B[:2], h, B.expand(len(h), 4, 4)) + linalg.multi_dot([h[0], B, B])
        + linalg.vecdot(h, B[0])[..., None]
    ),
    "three at once": lambda h: torch.einsum("nij,nij,njk->nik", h[..., :2], h[..., 1:3], h[..., 2:].sin()),
    "matrices": lambda h: (
        torch.det(square(h)) + linalg.slogdet(square(h))[1] + square(h).logdet() + linalg.det(square(h) @ square(h)) / 9
    )[:, None],
    "equations": lambda h: (
        linalg.solve(square(h), h.mT) + linalg.solve(B, h.mT) + linalg.solve(square(h), B[:, :2])
        + linalg.solve(square(h), h[:, 0])[..., None] + linalg.solve(square(h), h, left=False).mT
        + (torch.inverse(square(h)) + square(h).inverse() @ linalg.inv(square(h)))[..., :2]
    ),
    "similar": PROVED["similar"],
    "losses": lambda h: F.l1_loss(h, like(h)) * h + F.nll_loss(h[:, 0], torch.tensor([0, 1, 2])),
    "norms": lambda h: h.norm(p=1, dim=-1) + linalg.norm(h, dim=-1) + linalg.vector_norm(h, float("inf"), -1),
    "differences": lambda h: h.diff(dim=-1) + torch.cumulative_trapezoid(h) + torch.gradient(h, dim=2)[0][..., :3],
    **{name: PROVED[name] for name in ("sorted", "chosen", "extremes", "scattered", "taken", "broadcast")},
}  # fmt: skip


def more(case, table=MORE):
    def function(x):
        h = (1.2 * x.sin() @ WEIGHT).view(len(x), 2, 4)
        y = table[case](h)
        return y.reshape(N, -1) if y.dim() and y.shape[0] == N else h.flatten(1) * y.sum()

    return function


@pytest.mark.parametrize("case", MORE)
def test_what_has_no_rule_of_first_derivatives(case):
    for collapsed in (False, True):
        assert_right(more(case), X, numbers(2, N, D, seed=6), [WEIGHT, B], collapsed)


def test_every_row_has_a_case():
    used = {}
    for case in CASES:
        propagated(bent(case), X, numbers(1, N, D), used, order=2)
    for case in MORE:
        propagated(more(case), X, numbers(1, N, D), used, used, order=2)
    short = lambda name: name.removeprefix("special_").removeprefix("linalg_")  # noqa: E731
    seen = {*map(short, used), *UNUSED, *CONSTANT.split(), *LIKE.split()}
    names = {name_of(function) for function in (*TWICE, *TRUSTED_TWICE)}
    about = {name for name in names if isinstance(getattr(torch.Tensor, name, None), type(torch.Tensor.shape))}
    same = {name for name in names if name.endswith("_")}
    assert {short(name) for name in names - about - same} - seen == set()


@pytest.mark.parametrize("case", PROVED)
def test_a_function_is_right_or_refused(case):
    """Never the rule of first derivatives for second ones."""
    try:
        assert_right(more(case, PROVED), X, numbers(1, N, D, seed=6), [WEIGHT, B])
    except NotFollowed as error:
        assert "in it has no rule for second derivatives" in str(error)


def test_two_of_what_is_linear_in_each():
    for f in (
        lambda h: torch.tensordot(h, h, 2),
        lambda h: torch.cross(h[0, :, :3], h[1, :, 1:], -1),
        lambda h: torch.gradient(C, spacing=(h[1, 0].exp().cumsum(0),))[0],
    ):
        with pytest.raises(NotFollowed, match="second derivatives"):
            propagated(lambda x, f=f: f((x @ WEIGHT).view(len(x), 2, 4)), X, numbers(1, N, D), order=2)


@pytest.mark.parametrize("P, O, collapsed", [(1, 10, False), (4, 1, True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, P, O, collapsed):
    module, x, v = network(name, O)
    assert_right(module, x, v[:P], list(module.parameters()), collapsed)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name):
    student = recurrent(name)
    assert_right(student, numbers(N, 12), numbers(2, N, 12, seed=6), list(student.parameters()))


@pytest.mark.parametrize("name", ["residual MLP", "Fourier features", "gated product"])
def test_losses_and_derivatives_of_networks(name):
    """Of a free choice and forced, beside the reference: given and drawn directions, columns, units, weights."""
    module, x, v = network(name, 2)
    W = module.D
    values, jacobian, hessian = numbers(N, 2, seed=5), numbers(N, 2, W, seed=6), numbers(N, 2, W, W, seed=7)
    dense = sk.Targets(values=values, jacobian=jacobian, hessian=hessian)
    along = {"tangents": numbers(2, N, 2, seed=6), "seconds": numbers(2, N, 2, seed=7), "directions": v[:2]}
    narrow = sk.Targets(values=values, jacobian=jacobian[..., [2, 0]], hessian=hessian[:, :, [2, 0]][..., [2, 0]])
    unit, drawn = torch.tensor([2.0, 0.5], dtype=f64), sk.Directions.normal(3, seed=4)
    losses = [
        lambda f, x, **b: sk.sobolev_loss(f, x, sk.Targets(values=values, **along), order=2, **b),
        lambda f, x, **b: sk.sobolev_loss(
            f, x, narrow, order=2, directions=drawn, wrt=[2, 0], input_scale=unit, weights=(1, 0.5, 2),
            derivative_loss="huber", **b,
        ),
        lambda f, x, **b: sk.sobolev_loss(f, x, dense, order=2, directions=sk.Directions.basis(), **b),
        lambda f, x, **b: sum(t.sin().sum() for t in sk.jet(f, x, v[..., :2], wrt=[2, 0], **b)),
        lambda f, x, **b: sum(t.sin().sum() for t in sk.laplacian(f, x, **b)),
        lambda f, x, **b: sum(t.sin().sum() for t in sk.laplacian(f, x, sk.Directions.rademacher(3, seed=5), **b)),
        lambda f, x, **b: sum(t.sin().sum() for t in sk.hvp(f, x, v[:2], v[1:3], **b)),
    ]  # fmt: skip
    for loss in losses:
        results = []
        for backend in ("streams", None, "reference"):
            z = x.clone().requires_grad_()
            found = loss(module, z, backend=backend)
            results.append([found, *torch.autograd.grad(found, [z, *module.parameters()])])
        for got in results[:2]:
            for g, e in zip(got, results[2], strict=True):
                torch.testing.assert_close(g, e, **ANOTHER_WAY)
    assert chosen(module, x, order=2) == "streams" and known_of(module, x).flows[2, None].unfollowed is None


def test_kinks():
    """Beyond them second derivatives are those of the pieces, and 0 of what is made of straight ones; at them the same
    as the reference's."""
    torch.manual_seed(0)
    layers = nn.Linear(D, 8), nn.Linear(8, 2)
    net = Call(lambda x, a, b: b(F.relu(a(x))) * x.sin()[:, :2] + x.abs()[:, :2] + x.clamp(min=0)[:, :2], *layers)
    straight = Call(lambda x, a, b: b(F.relu(a(x))) + F.relu(x)[:, :2], *layers)
    x, v = numbers(N, D), numbers(2, N, D, seed=1)
    x[0] = 0
    for student in (net.double(), straight.double()):
        results = [sk.jet(student, x, v, backend=backend) for backend in ("streams", "reference")]
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)
    assert not results[0][2].any() and sk.laplacian(straight, x, backend="streams")[1].shape == (N, 2)


def test_the_given_vectors_and_further_derivatives():
    """Gradients through the directions, and gradients of gradients."""
    student, x, v = network("gated product", 2)
    results = []
    for backend in ("streams", "reference"):
        z, w = x.clone().requires_grad_(), v[:2].clone().requires_grad_()
        _, first, second = sk.jet(student, z, w, backend=backend)
        loss = (first.sin() * second).sum()
        gradients = torch.autograd.grad(loss, [z, w, student.scale], create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in gradients), [z, w, student.a.weight])
        results.append([*gradients, *again])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


@pytest.mark.parametrize("S", [4, 3])
@pytest.mark.parametrize("rows", [2, None])
def test_one_piece_is_differentiable_again(S, rows):
    P, z = 2, numbers(3, 2, seed=1).requires_grad_()
    d = numbers(rows or S, 3, 2, seed=2).requires_grad_()
    number = lambda d, z: Pointwise.apply(d, z, 2.0, P, S)  # noqa: E731
    assert torch.autograd.gradcheck(number, (d, z)) and torch.autograd.gradgradcheck(number, (d, z))
    both = lambda d, z: Pointwise.apply(d, z.sin(), z.cos(), P, S)  # noqa: E731
    assert torch.autograd.gradcheck(both, (d, z)) and torch.autograd.gradgradcheck(both, (d, z))
    product = lambda d, z: Product.apply(d, z, d.cos(), z.exp(), P, S)  # noqa: E731
    assert torch.autograd.gradcheck(product, (d, z)) and torch.autograd.gradgradcheck(product, (d, z))


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_what_has_none_goes_by_the_reference():
    """By name; and first derivatives of the same student by rules. Nothing of the looks is left."""

    student, x, v = Counting(Gated(2), lambda y: y.float_power(3)), numbers(N, 3), numbers(4, N, 3, seed=1)
    student = student.double()
    said = "float_power in it has no rule for second derivatives"
    text = sk.explain(student, x, order=2)
    assert "-> reference" in text and f"refused: {said}" in text and student.calls == 0
    for call in (lambda **b: sk.jet(student, x, v, **b), lambda **b: sk.laplacian(student, x, **b)):
        with pytest.raises(sk.NotProvided, match=said):
            call(backend="streams")
        for got, expected in zip(call(), call(backend="reference"), strict=True):
            assert torch.equal(got, expected)
    assert chosen(student, x, directions=sk.Directions.sphere(1)) == "streams"


@pytest.mark.filterwarnings("ignore::sobolev_kernels.SobolevWarning")
def test_what_changes_its_way():
    """A call that meets what has no rule, which the look did not; and another head."""
    student = Call(lambda x, net: net(x) if len(x) < 4 else net(x).float_power(3), Gated(2)).double()
    x, v = numbers(6, 3), numbers(2, 6, 3, seed=1)
    sk.jet(student, x[:3], v[:, :3], backend="streams")
    for got, expected in zip(sk.jet(student, x, v), sk.jet(student, x, v, backend="reference"), strict=True):
        assert torch.equal(got, expected)
    with pytest.raises(sk.NotProvided, match="float_power"):
        sk.jet(student, x, v, backend="streams")
    student = Gated(2).double()
    for O in (2, 3):
        student.last = nn.Linear(8, O).double()
        student.a = nn.Linear(3, 8).double()
        assert sk.jet(student, x, v, backend="streams" if O == 2 else None)[2].shape == (2, 6, O)


def test_a_student_that_is_flat_is_refused_by_streams_too():
    for backend in (None, "streams", "reference"):
        with pytest.raises(sk.NotProvided, match="order"):
            sk.jet(sk.MLP(3, 2, activation="relu"), torch.randn(N, 3), torch.randn(1, N, 3), backend=backend)


@pytest.mark.parametrize("wrap", ["checkpoint", "functional_call", "torch.compile", "MLP"])
def test_wrapped(wrap):
    net = Blocks(2).double()
    student = {
        "checkpoint": lambda: Call(lambda x, net: checkpoint(net, x, use_reentrant=False), net),
        "functional_call": lambda: lambda x: torch.func.functional_call(net, dict(net.named_parameters()), (x,)),
        "torch.compile": lambda: torch.compile(net, backend="eager"),
        "MLP": lambda: sk.MLP(6, 2, width=4).double(),
    }[wrap]()
    x, v = numbers(N, 6), numbers(2, N, 6, seed=1)
    results = []
    for backend in ("streams", "reference"):
        z = x.clone().requires_grad_()
        second = sk.jet(student, z, v, backend=backend)[2]
        results.append([second, *torch.autograd.grad(second.sin().sum(), [z])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **ANOTHER_WAY)


def test_float32():
    """No further off than the reference, by the one rule."""
    results = []
    for dtype, backend in ((torch.float32, "streams"), (f64, "reference"), (torch.float32, "reference")):
        net, z = network("residual MLP", 2)[0].to(dtype), numbers(N, 6).to(dtype).requires_grad_()
        found = sk.jet(net, z, numbers(2, N, 6, seed=1).to(dtype), backend=backend)
        loss = sum(t.sin().sum() for t in found)
        results.append([*found, *torch.autograd.grad(loss, [z, *net.parameters()])])
    for i, (got, exact, plain) in enumerate(zip(*results, strict=True)):
        assert_within_rule(f"number {i}", got, exact, plain)


# Of a [N, 2, 4], which is linear in the inputs and has no second derivatives, and b, which has some.
UNLIKE = {
    "sums": lambda a, b: (a + b) * (b - 2 * a) + torch.add(a, b, alpha=3) + (b + 1).sub_(a) + a.clone().add_(b),
    "products": lambda a, b: (
        a * b + b / (3 + a) + a / (3 + b) + torch.addcmul(a, a, b) + (a @ b.mT) @ b + (b @ a.mT) @ a
    ),
    "einsum": lambda a, b: torch.einsum("nij,nij->nij", a, b) + torch.einsum("nij,nij,nij->nij", b, a, a),
    "choices": lambda a, b: (
        torch.where(MASK, a, b) + torch.where(MASK, b, a) + torch.maximum(a, b + 1) + torch.fmin(b, a) + b.max(a)
    ),
    "joined": lambda a, b: (
        torch.cat([a, b, a], 2) * torch.stack([b, a, b], 2).flatten(2) + torch.cat([C.expand_as(a), a, b], 2)
    ),
    "written": lambda a, b: put(a, (..., INDEX), b[..., :3]) * put(b, (..., 0), a[..., 1]),
    "numbers": lambda a, b: torch.atan2(a, b * b + 1) + torch.lerp(a, b, a) + torch.hypot(b, a + 3) + (b * b + 1) ** a,
    "pieces": lambda a, b: torch.hstack([a, b]) + torch.fmod(b, a + 9).repeat(1, 2, 1),
    "cell": lambda a, b: torch.gru_cell(a[:, 0], b[:, 1], B.repeat(3, 1), B.repeat(3, 1) / 2),
    "attention": lambda a, b: F.scaled_dot_product_attention(a, b, a) + a.softmax(-1) + F.layer_norm(a, (4,)),
    "straight": lambda a, b: F.relu(a) + a.abs() + F.leaky_relu(a).cumsum(1) + 0 * b,
}


@pytest.mark.parametrize("case", UNLIKE)
def test_where_one_has_no_second_derivatives(case):
    """Of one direction, too, whose streams broadcast."""

    def function(x):
        a = (x @ WEIGHT).view(len(x), 2, 4)
        return UNLIKE[case](a, (x[:, :1, None] * a).sin()).reshape(len(x), -1)

    for P, collapsed in ((1, False), (3, False), (2, True)):
        assert_right(function, numbers(N, D, seed=16), numbers(P, N, D, seed=6), [WEIGHT, B], collapsed)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "softmax"])
def test_norms_of_a_value_in_half_precision(name):
    """As of first derivatives, they are computed in float32 and rounded once, last."""
    norm = lambda x: getattr(F, name)(x, 1 if name == "softmax" else (D,))  # noqa: E731
    x, v = numbers(N, D).bfloat16(), numbers(2, N, D, seed=1).bfloat16()
    got, exact = (propagated(norm, x.to(dtype), v.to(dtype), order=2)[1] for dtype in (torch.bfloat16, f64))
    assert (got - exact).abs().max() <= torch.finfo(torch.bfloat16).eps / 2 * exact.abs().max()

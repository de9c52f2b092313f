"""Gradients of given directions and cotangents, and fused calls within fused calls, against torch.func in float64."""

import pytest
import torch
from torch import nn
from torch.func import jvp, vjp

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels import kept
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY, BY_DIFFERENCE, IN_HALF

N, D, O, P = 5, 3, 2, 2
CUT = [2, 0]


def network(outputs=O, inputs=D, widths=(8, 5), dtype=torch.float64):
    torch.manual_seed(0)
    layers = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.Tanh() if len(layers) % 4 else nn.Softplus()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs)).to(dtype)


NET, ENERGY = network(), network(1)
torch.manual_seed(1)
X, V, U = (torch.randn(shape, dtype=torch.float64) for shape in ((N, D), (P, N, D), (P, N, O)))
NO_GRADIENTS = pytest.raises(sk.NotProvided, match=r'double backward: .* pass backend="reference"')


def asking(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def first(f, x, v):
    return jvp(f, (x,), (v,))[1]


def second(f, x, v):
    return first(lambda x: first(f, x, v), x, v)


def embedded(v, wrt):
    """Directions of all columns from those of some."""
    return v if wrt is None else v @ torch.eye(D, dtype=v.dtype)[wrt]


# What is asked for, as the library has it and as torch.func has it: of a function f, x, vectors [P, N, n], and columns.
CALLS = {
    "jvp": (
        lambda m, x, v, **more: sk.jvp(m, x, v, **more),
        lambda f, x, v, wrt: (f(x), torch.stack([first(f, x, d) for d in embedded(v, wrt)])),
    ),
    "vjp": (
        lambda m, x, u, **more: sk.vjp(m, x, u, **more),
        lambda f, x, u, wrt: (f(x), torch.stack([vjp(f, x)[1](c)[0] for c in u])[..., wrt or slice(None)]),
    ),
    "jet": (
        lambda m, x, v, **more: sk.jet(m, x, v, **more),
        lambda f, x, v, wrt: (
            f(x),
            *(torch.stack([of(f, x, d) for d in embedded(v, wrt)]) for of in (first, second)),
        ),
    ),
    "laplacian": (
        lambda m, x, v, **more: sk.laplacian(m, x, v, **more),
        lambda f, x, v, wrt: (f(x), sum(second(f, x, d) for d in embedded(v, wrt))),
    ),
    "hvp": (
        lambda m, x, v, **more: sk.hvp(m, x, v, 2 * v + 1, **more),
        lambda f, x, v, wrt: (
            f(x),
            torch.stack([first(lambda x, d=d: first(f, x, d[0]), x, d[1]) for d in
                         zip(embedded(v, wrt), embedded(2 * v + 1, wrt), strict=True)]),
        ),
    ),
}  # fmt: skip


def of_all(results):
    """A number to which each result gives a cotangent that is not constant."""
    return sum((result + 0.5).pow(3).sum() for result in results)


def taken(function, tensors, parameters):
    """Gradients of it, and the gradients of their squares."""
    asked = [*tensors, *parameters]
    ones = torch.autograd.grad(of_all(function(*tensors)), asked, create_graph=True, materialize_grads=True)
    twos = torch.autograd.grad(sum(g.square().sum() for g in ones), asked, materialize_grads=True)
    return [*ones, *twos]


@pytest.mark.parametrize("wrt", [None, CUT], ids=["all columns", "wrt"])
@pytest.mark.parametrize("shared", [False, True], ids=["of each sample", "shared"])
@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_vectors_and_of_their_gradients(name, shared, wrt):
    ours, theirs = CALLS[name]
    given, kind = (U, sk.Cotangents) if name == "vjp" else (V[..., : 2 if wrt else D], sk.Directions)
    x, v = asking(X, given[:, 0] if shared else given)
    whole = lambda v: v[:, None].expand(-1, N, -1) if shared else v  # noqa: E731
    wrapped = kind.given if shared else lambda v: v
    if name == "hvp":
        wrapped = lambda v: v  # noqa: E731
        ours = lambda m, x, v, **more: sk.hvp(  # noqa: E731
            m, x, *(sk.Directions.given(w) if shared else w for w in (v, 2 * v + 1)), **more
        )
    expected = taken(lambda x, v: theirs(NET, x, whole(v), wrt), (x, v), NET.parameters())
    for turn in range(3):  # the third call is the short way's
        got = taken(lambda x, v: ours(NET, x, wrapped(v), wrt=wrt), (x, v), NET.parameters())
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            torch.testing.assert_close(
                g, e, **ANOTHER_WAY, msg=lambda m, i=i, turn=turn: f"turn {turn}, gradient {i}: {m}"
            )


SIZES = {  # N, D, widths, O, P: whether weights lie in place, streams go in groups, gradients are gathered
    "one layer": (7, 4, (), 3, 2), "one sample": (1, 3, (6,), 1, 1), "no sample": (0, 3, (6,), 2, 2),
    "wider than deep": (9, 70, (33,), 1, 5), "tiles": (700, 5, (40, 24), 3, 3), "many": (40, 6, (16,), 11, 90),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["jvp", "vjp", "jet", "laplacian"])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_vectors_of_all_sizes(size, name, dtype):
    N, D, widths, O, P = SIZES[size]
    student = network(O, D, widths, dtype)
    n = O if name == "vjp" else D
    torch.manual_seed(2)
    x, v = (torch.randn(shape, dtype=dtype) for shape in ((N, D), (P, N, n)))
    if not widths and name in ("jet", "laplacian"):
        student = nn.Sequential(student, nn.Sigmoid())

    def gradient(backend, dtype):
        w = v.to(dtype).requires_grad_()
        results = CALLS[name][0](student.to(dtype), x.to(dtype), w, backend=backend)
        return torch.autograd.grad(of_all(results), w)[0]

    exact = gradient("reference", torch.float64)
    assert_within_rule("the vectors' gradient", gradient("cpu", dtype), exact, gradient("reference", dtype))


def test_vectors_alone_may_ask():
    """Not x, and no parameter; of one result only; and of none."""
    frozen = network().requires_grad_(False)
    for student in (frozen, Call(lambda x, m: m(x) + x[:, :2], frozen), Call(lambda x, m: m(x).erf(), frozen)):
        for backend in (None, "reference"):
            (v,) = asking(V)
            y, tangents, seconds = sk.jet(student, X, v, backend=backend)
            assert not y.requires_grad or torch.autograd.grad(y.sum(), v, retain_graph=True, materialize_grads=True)[
                0
            ].eq(0).all()  # fmt: skip
            for got, of in ((tangents, first), (seconds, second)):
                w = V.clone().requires_grad_()
                expected = torch.stack([of(student, X, d) for d in w])
                got, expected = (
                    torch.autograd.grad(t.pow(3).sum(), u, retain_graph=True)[0] for t, u in ((got, v), (expected, w))
                )
                torch.testing.assert_close(got, expected, **ANOTHER_WAY)
            (u,) = asking(U)
            got = torch.autograd.grad(sk.vjp(student, X, u, backend=backend)[1].pow(3).sum(), u)[0]
            w = U.clone().requires_grad_()
            expected = torch.stack([vjp(student, X)[1](c)[0] for c in w]).pow(3).sum()
            torch.testing.assert_close(got, torch.autograd.grad(expected, w)[0], **ANOTHER_WAY)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_vectors_of_half_precision(dtype):
    student, (v,) = network(dtype=dtype), asking(V.to(dtype))
    got = torch.autograd.grad(sk.jvp(student, X.to(dtype), v)[1].float().pow(3).sum(), v)[0]
    (w,) = asking(V.to(dtype).double())
    tangents = sk.jvp(student.double(), X.to(dtype).double(), w, backend="reference")[1]
    expected = torch.autograd.grad(tangents.pow(3).sum(), w)[0]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=IN_HALF, atol=IN_HALF * expected.abs().max())


def along(v, **targets):
    return sk.Targets(values=torch.zeros(N, O).to(X), directions=sk.Directions.given(v), **targets)


TANGENTS, SECONDS = torch.ones(P, N, O).to(X), torch.full((P, N, O), 0.5).to(X)
MASK = torch.tensor([[True, False, True]]).expand(N, D)
JACOBIAN, HESSIAN = torch.linspace(-1, 1, N * O * D).to(X).view(N, O, D), torch.ones(N, O, D, D).to(X)
LOSSES = {
    "tangents": (lambda v: along(v, tangents=TANGENTS), {}),
    "of each sample": (lambda v: along(v, tangents=TANGENTS), {"reduction": "none"}),
    "terms": (lambda v: along(v, tangents=TANGENTS), {"return_terms": True}),
    "coupled": (lambda v: along(v, tangents=TANGENTS), {"derivative_loss": "cosine"}),
    "weighted": (lambda v: along(v, tangents=TANGENTS), {"sample_weight": torch.linspace(0, 1, N).to(X)}),
    "order 2": (lambda v: along(v, tangents=TANGENTS, seconds=SECONDS), {"order": 2}),
    "columns": (lambda v: along(v[..., :2], tangents=TANGENTS), {"wrt": CUT}),
    "a Jacobian": (lambda v: along(v, jacobian=JACOBIAN), {}),
    "a masked Jacobian": (lambda v: along(v, jacobian=JACOBIAN), {"derivative_weight": MASK}),
    "a Hessian": (lambda v: along(v, jacobian=JACOBIAN, hessian=HESSIAN), {"order": 2}),
    "cotangents": (lambda u: sk.Targets(values=TANGENTS[0], vjps=V, cotangents=sk.Cotangents.given(u)), {}),
    "cotangents, a Jacobian": (
        lambda u: sk.Targets(values=TANGENTS[0], jacobian=JACOBIAN, cotangents=sk.Cotangents.given(u)),
        {},
    ),
}


@pytest.mark.parametrize("shared", [False, True], ids=["of each sample", "shared"])
@pytest.mark.parametrize("student", ["an MLP", "not an MLP"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_vectors_of_a_loss(name, student, shared):
    targets, settings = LOSSES[name]
    student = NET if student == "an MLP" else Call(lambda x, m: m(x) + x.sin()[:, :O], NET)

    def gradients(backend):
        x, v = asking(X, U if "cotangents" in name else V)
        result = sk.sobolev_loss(student, x, targets(v[:, 0] if shared else v), backend=backend, **settings)
        result = result if isinstance(result, torch.Tensor) else result.loss + 2 * result.derivative
        asked = [v, x, *NET.parameters()]
        return torch.autograd.grad((result * torch.arange(1, 1 + result.numel())).sum(), asked, materialize_grads=True)

    expected = gradients("reference")
    assert expected[0].any()
    for _ in range(3):
        for g, e in zip(gradients("cpu" if student is NET else None), expected, strict=True):
            torch.testing.assert_close(g, e, **ANOTHER_WAY)


def test_a_targets_projections_change_with_the_vectors():
    """The loss is a function of v through the target, too: central differences say so."""
    loss = lambda v: sk.sobolev_loss(NET, X, along(v, jacobian=JACOBIAN))  # noqa: E731
    (v,) = asking(V)
    got = torch.autograd.grad(loss(v), v)[0]
    along_it, h = torch.randn_like(V), 1e-5
    expected = (loss(V + h * along_it) - loss(V - h * along_it)).detach() / (2 * h)
    torch.testing.assert_close((got * along_it).sum(), expected, **BY_DIFFERENCE)


def test_what_is_not_provided_is_refused_in_words():
    (v,) = asking(V)
    with pytest.raises(NotImplementedError, match=r"backend: expected cpu to support .* directions that require grad"):
        sk.sobolev_loss(NET, X, along(v, jacobian=JACOBIAN), backend="cpu", head="softmax")
    teacher = lambda v: sk.Targets(teacher=NET, directions=sk.Directions.given(v))  # noqa: E731
    with pytest.raises(ValueError, match=r"directions: expected a tensor without requires_grad \(no gradient through"):
        sk.sobolev_loss(NET, X, teacher(v))
    with torch.no_grad():  # nothing is asked for
        assert sk.sobolev_loss(NET, X, teacher(v)) == sk.sobolev_loss(NET, X, teacher(V)) == 0
    loss = sk.sobolev_loss(NET, X, along(v, tangents=TANGENTS))
    gradient = torch.autograd.grad(loss, v, create_graph=True)[0]
    with NO_GRADIENTS:
        gradient.sum().backward()


def test_the_short_way_notices_a_vector_that_asks():
    kept.KEPT.clear()
    for _ in range(3):
        assert sk.jvp(NET, X, V)[1].requires_grad
    (v,) = asking(V)
    for backend in (None, None, None, "reference"):
        found = torch.autograd.grad(sk.jvp(NET, X, v, backend=backend)[1].pow(3).sum(), v)[0]
    w = V.clone()
    tangents = sk.jvp(NET, X, w)[1]
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(tangents.sum(), asking(w))
    torch.testing.assert_close(
        torch.autograd.grad(sk.jvp(NET, X, v)[1].pow(3).sum(), v)[0], found, **ANOTHER_WAY
    )  # fmt: skip


def test_memory_that_changed_meanwhile_is_refused():
    x, v = asking(X, V)
    w = v * 1
    tangents = sk.jvp(NET, x, w)[1]
    w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tangents.sum().backward()


def force(x):
    return -sk.vjp(ENERGY, x, torch.ones(1, len(x), 1).to(x))[1][0]


def energy(x):
    return ENERGY(x)


def force_alone(x):
    return -vjp(ENERGY, x)[1](torch.ones(len(x), 1).to(x))[0]


E1 = torch.eye(D).to(X)[:, None].expand(D, N, D)
NESTED = {  # a fused call of a function of fused calls, and the same by torch.func
    "Laplacian of a Laplacian": (
        lambda x: sk.laplacian(lambda x: sk.laplacian(ENERGY, x)[1], x),
        lambda x: (laplacian_alone(ENERGY, x), laplacian_alone(lambda x: laplacian_alone(ENERGY, x), x)),
    ),
    "tangents of forces": (
        lambda x: sk.jvp(force, x, V),
        lambda x: (force_alone(x), torch.stack([first(force_alone, x, v) for v in V])),
    ),
    "gradients of forces": (
        lambda x: sk.vjp(force, x, V),
        lambda x: (force_alone(x), torch.stack([vjp(force_alone, x)[1](v)[0] for v in V])),
    ),
    "Hessian-vector product": (
        lambda x: sk.vjp(lambda x: sk.jvp(ENERGY, x, V[:1])[1][0], x, sk.Cotangents.basis()),
        lambda x: (
            first(ENERGY, x, V[0]),
            vjp(lambda x: first(ENERGY, x, V[0]), x)[1](torch.ones(N, 1).to(x))[0][None],
        ),
    ),
    "tangents of tangents": (
        lambda x: sk.jvp(lambda x: sk.jvp(NET, x, V)[1][0], x, V),
        lambda x: (first(NET, x, V[0]), torch.stack([first(lambda x: first(NET, x, V[0]), x, v) for v in V])),
    ),
    "second derivatives of forces": (
        lambda x: sk.jet(force, x, V[:1]),
        lambda x: (force_alone(x), first(force_alone, x, V[0])[None], second(force_alone, x, V[0])[None]),
    ),
    "in the middle of a network": (
        lambda x: sk.jvp(lambda x: NET(torch.tanh(force(x.sin()))), x, V),
        lambda x: middle_alone(x),
    ),
}  # fmt: skip


def laplacian_alone(f, x):
    return sum(second(f, x, e) for e in E1)


def middle_alone(x):
    f = lambda x: NET(torch.tanh(force_alone(x.sin())))  # noqa: E731
    return f(x), torch.stack([first(f, x, v) for v in V])


@pytest.mark.parametrize("name", NESTED)
def test_fused_calls_of_fused_calls(name):
    ours, theirs = NESTED[name]
    parameters = [*ENERGY.parameters(), *NET.parameters()]
    for asks in (True, False):  # and where x is not asked about
        x, z = (X.clone().requires_grad_(asks) for _ in range(2))
        got, expected = ours(x), theirs(z)
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            torch.testing.assert_close(g, e, **ANOTHER_WAY, msg=lambda m, i=i: f"result {i}: {m}")
        of_ours, of_theirs = (
            torch.autograd.grad(of_all(results), [x] * asks + parameters, materialize_grads=True)
            for x, results in ((x, got), (z, expected))
        )
        for i, (g, e) in enumerate(zip(of_ours, of_theirs, strict=True)):
            torch.testing.assert_close(g, e, **ANOTHER_WAY, msg=lambda m, i=i: f"gradient {i}: {m}")


@pytest.mark.parametrize("directions", [sk.Directions.given(V), sk.Directions.sphere(2, seed=3), "exact"], ids=str)
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
def test_a_force_model_in_a_loss(role, directions):
    plain = network(D)
    student = plain if role == "teacher" else force
    alone = plain if role == "teacher" else force_alone
    teacher, taught = (plain, plain) if role == "student" else (lambda x: 2 * force(x), lambda x: 2 * force_alone(x))
    more = {"derivatives": "exact"} if directions == "exact" else {}
    of = {} if directions == "exact" else {"directions": directions}
    parameters = [*plain.parameters(), *ENERGY.parameters()]

    def gradients(student, teacher, **backend):
        loss = sk.sobolev_loss(student, X, sk.Targets(teacher=teacher, **of), **more, **backend)
        return [loss.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    vectors = E1 if directions == "exact" else directions.tensor(X)
    y, f = alone(X), taught(X).detach()
    values = (y - f).square().mean()
    tangents = torch.stack([first(alone, X, v) - first(taught, X, v).detach() for v in vectors]).square().mean()
    expected = [values + tangents, *torch.autograd.grad(values + tangents, parameters, materialize_grads=True)]
    for g, e in zip(gradients(student, teacher), expected, strict=True):
        torch.testing.assert_close(g, e.detach(), **ANOTHER_WAY)


def test_gradient_penalty_of_a_critic():
    """WGAN-GP, on points between two batches that ask for a gradient themselves."""
    (x,) = asking(X)
    penalty = (sk.vjp(ENERGY, x.sin(), sk.Cotangents.basis())[1].norm(dim=-1) - 1).square().mean()
    slopes = torch.autograd.grad(ENERGY(z := x.sin()).sum(), z, create_graph=True)[0]
    expected = (slopes.norm(dim=-1) - 1).square().mean()
    parameters = [x, *list(ENERGY.parameters())]
    for g, e in zip(
        *(torch.autograd.grad(p, parameters, materialize_grads=True) for p in (penalty, expected)), strict=True
    ):
        torch.testing.assert_close(g, e, **ANOTHER_WAY)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["jvp", "vjp", "laplacian", "loss"])
def test_compiled_in_one_graph(name):
    torch._dynamo.reset()

    def step(x, v):
        if name == "loss":
            return sk.sobolev_loss(NET, x, along(v.sin(), tangents=TANGENTS))
        return of_all(CALLS[name][0](NET, x, v.sin()))

    def gradients(step):
        x, v = asking(X, U if name == "vjp" else V)
        return torch.autograd.grad(step(x, v), [x, v, *NET.parameters()])

    compiled = gradients(torch.compile(step, fullgraph=True, backend="aot_eager"))
    for g, e in zip(compiled, gradients(step), strict=True):
        torch.testing.assert_close(g, e, **ANOTHER_WAY)

"""Heads: values and derivatives of what comes behind a student's outputs, beside compositions that torch.func
differentiates."""

import copy
import gc
import weakref
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev, vmap

import sobolev_kernels as sk
from sobolev_kernels.math import heads
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import compare, computed_from, forget, ramp
from sobolev_kernels.testing.problems import SHAPES, as_dtype, cotangents_of, data, directions_of, random, threads
from sobolev_kernels.testing.rule import ANOTHER_WAY

HEADS = {
    "log_softmax": lambda z, T: torch.log_softmax(z / T, -1),
    "softmax": lambda z, T: torch.softmax(z / T, -1),
    "sigmoid": lambda z, T: torch.sigmoid(z / T),
    "log_sigmoid": lambda z, T: F.logsigmoid(z / T),
}
T = 1.75
LOSSES = [
    (head, loss)
    for head in HEADS
    for loss in ("mse", "relative_mse", *(("kl", "cross_entropy") if "softmax" in head else ("bce",)))
]
D, O, P = 3, 4, 2
# What derivatives are projected on, and from which side.
SIDES = {
    "tangents": ("directions", lambda N: sk.Directions.given(random(P, N, D)), "tangents"),
    "gradients": ("directions", lambda N: sk.Directions.given(random(P, N, D)), "gradients"),
    "columns": ("directions", lambda N: sk.Directions.basis(), None),
    "cotangents": ("cotangents", lambda N: sk.Cotangents.given(random(P, N, O)), None),
    "rows": ("cotangents", lambda N: sk.Cotangents.basis(), None),
}
BACKENDS = ["cpu", "reference"]


def student(O=O, last="identity", seed=0, width=7):
    torch.manual_seed(seed)
    return sk.MLP(D, O, width=width, depth=2, activation="tanh", last_activation=last, dtype=torch.float64)


def probabilities(y, head):
    return torch.softmax(y / T, -1) if "softmax" in head else torch.sigmoid(y / T)


def value_terms(loss, head, y, of_teacher, labels=None):
    """[N], by PyTorch's own functions: of a teacher's outputs, or of labels."""
    h, t = HEADS[head](y, T), HEADS[head](of_teacher, T)
    p = probabilities(of_teacher, head) if labels is None else labels
    if loss == "mse":
        return (h - t).square().mean(-1)
    if loss == "relative_mse":
        return (h - t).square().sum(-1) / (t.square().sum(-1) + 1e-8)
    if loss == "kl":
        return F.kl_div(torch.log_softmax(y / T, -1), p, reduction="none").sum(-1)
    if loss == "cross_entropy":
        return F.cross_entropy(y / T, p, reduction="none")
    return F.binary_cross_entropy_with_logits(y / T, p, reduction="none").mean(-1)


REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "none": lambda terms: terms}


def jacobian(function, head, x):
    return vmap(jacrev(lambda x: HEADS[head](function(x), T)))(x)


def projected(jacobian, projections):
    """[P, N, n]"""
    if isinstance(projections, sk.Cotangents):
        rows = jacobian.permute(1, 0, 2)
        return rows if projections.values is None else torch.einsum("rno,nod->rnd", projections.values, jacobian)
    columns = jacobian.permute(2, 0, 1)
    return columns if projections.values is None else torch.einsum("pnd,nod->pno", projections.values, jacobian)


def expected(net, teacher, x, projections, head, loss):
    """The terms of each sample."""
    values = value_terms(loss, head, net(x), teacher(x).detach())
    target = projected(jacobian(teacher, head, x), projections).detach()
    difference = projected(jacobian(net, head, x), projections) - target
    return values + 0.5 * difference.square().mean((0, 2))


def differentiated(loss, net, x):
    """The loss and its gradients in x and all parameters."""
    return [loss.detach(), *torch.autograd.grad(loss, [x, *net.parameters()], ramp(loss), retain_graph=True)]


def same(got, right):
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, **ANOTHER_WAY)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("head, loss", LOSSES)
@threads(1)
def test_loss_and_all_gradients(head, loss, side):
    name, make, chosen = SIDES[side]
    # every other one with an activation behind the last layer, too
    last = ("identity", "sin")[(list(SIDES).index(side) + LOSSES.index((head, loss))) % 2]
    x, net, teacher = random(37, D).double().requires_grad_(), student(last=last), student(seed=1)

    def terms():
        return expected(net, teacher, x, as_dtype(make(37), torch.float64), head, loss)

    of_each = terms()
    right = {name: differentiated(reduce(of_each), net, x) for name, reduce in REDUCTIONS.items()}
    for dtype, backend, reduction in product((torch.float64, torch.float32), BACKENDS, REDUCTIONS):
        nets = [copy.deepcopy(one).to(dtype) for one in (net, teacher)]
        at, projections = x.detach().to(dtype).requires_grad_(), as_dtype(make(37), dtype)
        with computed_from(chosen):
            for call in range(1 + (backend == "cpu")):  # by the long way, and by the short one
                got = sk.sobolev_loss(
                    nets[0], at, sk.Targets(teacher=nets[1]), head=(head, T), value_loss=loss, weights=(1, 0.5),
                    reduction=reduction, backend=backend, **{name: projections},
                )  # fmt: skip
                for i, tensor in enumerate(differentiated(got, nets[0], at)):
                    again = lambda i=i, reduction=reduction: differentiated(REDUCTIONS[reduction](terms()), net, x)[i]  # noqa: E731
                    assert tensor.dtype == dtype
                    assert_within_rule(
                        f"{dtype} {backend} {reduction}, call {call}, tensor {i}", tensor, right[reduction][i],
                        again=again,
                    )  # fmt: skip


PAIRS = [("log_softmax", "kl"), ("softmax", "mse"), ("sigmoid", "bce"), ("log_sigmoid", "relative_mse")]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.N < 60 or shape.N > 100], ids=str)
def test_fused_shapes_and_settings(shape):
    """Weights, columns, and outputs that are more than a register; an empty batch."""
    N, O = shape.N, shape.O
    for number, (head, loss) in enumerate(PAIRS):
        wrt = [0] if number == 1 else None
        targets = lambda d, head=head, wrt=wrt: sk.Targets(  # noqa: E731
            values=HEADS[head](d.y, 1.0), jacobian=d.jacobian if wrt is None else d.jacobian[..., wrt]
        )
        numbers = data(shape, "silu", last="sin" if number % 2 else "identity")
        settings = {"head": (head, 0.5), "value_loss": loss, "wrt": wrt}
        settings["sample_weight"] = (torch.arange(N) % 3).float() if number == 2 else None
        compare(numbers, cotangents_of("sphere", shape), targets, "cpu", **settings)
        settings["output_weight"] = torch.linspace(0, 1, O)
        compare(numbers, directions_of("normal", shape), targets, "cpu", **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head, loss", [pair for pair in LOSSES if pair[1] not in ("mse", "relative_mse")])
def test_likelihoods_of_extreme_outputs_and_of_one_output(head, loss, backend):
    """Numbers where log of softmax, or of 1 - sigmoid, would be infinite; temperatures; O = 1; certain labels."""
    for outputs, temperature in ((1, 1.0), (6, 1.0), (6, 0.05), (6, 30.0)):
        net = nn.Sequential(nn.Linear(outputs, outputs, bias=False))
        net[0].weight.data = torch.eye(outputs)
        z = torch.tensor([[100.0, -100.0, 0.0, 99.0, -7.0, 30.0], [-100.0, 1, 2, 3, 4, -99.0]])[:, :outputs]
        labels = torch.tensor([[0.0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0.0]])[:, :outputs]
        if outputs == 1 and loss != "bce":
            labels = torch.ones(2, 1)
        targets = labels.log() if loss == "kl" and head == "log_softmax" else labels
        a, p = z.double().requires_grad_(), labels.double()
        if loss == "bce":
            right = F.binary_cross_entropy_with_logits(a / temperature, p)
        else:
            right = F.cross_entropy(a / temperature, p)
        x = z.clone().requires_grad_()
        got = sk.sobolev_loss(
            net, x, sk.Targets(values=targets), head=(head, temperature), value_loss=loss, weights=(1, 0),
            backend=backend,
        )  # fmt: skip
        assert_within_rule("loss", got, right)
        dx, = torch.autograd.grad(got, x)  # fmt: skip
        assert_within_rule("dx", dx, torch.autograd.grad(right, a)[0])
        targets = sk.Targets(values=targets, jacobian=torch.zeros(2, outputs, outputs))
        got = sk.sobolev_loss(net, x, targets, head=head, value_loss=loss, derivatives="exact", backend=backend)
        grads = torch.autograd.grad(got, [x, *net.parameters()])
        assert all(tensor.isfinite().all() for tensor in (got, *grads))


@pytest.mark.parametrize("head", HEADS)
def test_order_2(head):
    net, teacher, x, v = student(), student(seed=1), random(9, D).double().requires_grad_(), random(P, 9, D).double()

    def second(function):
        f = lambda x: HEADS[head](function(x), T)  # noqa: E731
        of = lambda x, v: torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (v,))[1], (x,), (v,))[1]  # noqa: E731
        return torch.stack([vmap(of)(x, direction) for direction in v])

    projections = sk.Directions.given(v)
    right = expected(net, teacher, x, projections, head, "mse").mean()
    right = right + 2 * (second(net) - second(teacher).detach()).square().mean()
    for function in (net, lambda x: net(x)):
        got = sk.sobolev_loss(
            function, x, sk.Targets(teacher=teacher), directions=projections, order=2, head=(head, T),
            weights=(1, 0.5, 2),
        )  # fmt: skip
        same(differentiated(got, net, x), differentiated(right, net, x))


@pytest.mark.parametrize("backend", [None, "streams", "reference"])
@pytest.mark.parametrize("head", HEADS)
def test_any_student_and_any_callable(head, backend):
    """A callable is composed with both; a name applied to a function that is no MLP gives the same."""
    side = "cotangents" if backend == "reference" else "tangents"
    name, make, _ = SIDES[side]
    x, projections = random(11, D).double().requires_grad_(), as_dtype(make(11), torch.float64)
    net, teacher = nn.Sequential(student(), nn.LayerNorm(O).double()), student(seed=1)
    right = differentiated(expected(net, teacher, x, projections, head, "mse").mean(), net, x)
    behind = lambda y: HEADS[head](y, T)  # noqa: E731
    settings = {name: projections, "weights": (1, 0.5), "backend": backend}
    loss_fn = sk.SobolevLoss(head=behind, **settings)
    for chosen in ((head, T), behind, lambda y: behind(y), loss_fn):
        for _ in range(2):
            targets = sk.Targets(teacher=lambda x: teacher(x))
            if chosen is loss_fn:
                got = loss_fn(net, x, targets)
            else:
                got = sk.sobolev_loss(net, x, targets, head=chosen, **settings)
            same(differentiated(got, net, x), right)


def test_a_callable_may_change_the_number_of_outputs_and_have_parameters():
    """Its own are trained as any others; a teacher of [N] is one of [N, 1]."""
    head, net, x = nn.Linear(1, 3).double(), student(1), random(6, D).double()
    loss_fn = sk.SobolevLoss(head=head, directions=sk.Directions.basis())
    assert set(loss_fn.state_dict()) == {"head.weight", "head.bias"}
    other = student(1, seed=1)
    loss = loss_fn(net, x, sk.Targets(teacher=lambda x: other(x)[:, 0]))
    f, t = nn.Sequential(net, head), nn.Sequential(other, head)
    right = F.mse_loss(f(x), t(x).detach()) + F.mse_loss(vmap(jacrev(f))(x), vmap(jacrev(t))(x).detach())
    same(*(torch.autograd.grad(one, [*f.parameters()]) for one in (loss, right)))


def test_a_callable_head_is_not_held():
    class Head:
        def __call__(self, y):
            return y.sigmoid()

    head, net, x = Head(), student(), random(6, D).double()
    gone, along = weakref.ref(head), sk.Directions.sphere(1, seed=1)  # fresh ones may be warned of
    for _ in range(3):
        sk.sobolev_loss(net, x, sk.Targets(teacher=student(seed=1)), directions=along, head=head).backward()
    del head
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("head", ["softmax", "log_softmax"])
def test_classes_and_missing_labels(head, function, backend):
    """Classes are probabilities of 1; what has weight 0 may be NaN, or no class; outputs weigh as in cross_entropy."""
    if function and backend == "cpu":
        return
    net, x = student(), random(21, D).double()
    classes, jacobians = torch.arange(21) % O, random(21, O, D).double()
    labels = F.one_hot(classes, O).double()
    sample, output = torch.ones(21).double(), torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    sample[[2, 20]] = 0
    missing, unknown = classes.clone(), labels.clone()
    missing[[2, 20]], unknown[[2, 20]] = -100, torch.nan
    right = F.cross_entropy(net(x) / T, classes, weight=output, reduction="none") * sample
    right.sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    for values in (classes, missing, unknown):
        if values is classes and function:
            continue
        net.zero_grad()
        got = sk.sobolev_loss(
            (lambda x: net(x)) if function else net, x, sk.Targets(values=values, jacobian=jacobians),
            head=(head, T), value_loss="cross_entropy", weights=(1, 0), sample_weight=sample, output_weight=output,
            derivatives="exact", reduction="none", backend=backend, check_finite=True,
        )  # fmt: skip
        torch.testing.assert_close(got, right, **ANOTHER_WAY)
        got.sum().backward()
        same([p.grad for p in net.parameters()], grads)
    for loss in ("kl", "mse"):
        unknown = HEADS[head](net(x).detach() * 0.5, 1.0)
        unknown[2], unknown[:, 1] = torch.nan, torch.nan
        value = sk.sobolev_loss(
            net, x, sk.Targets(values=unknown), head=head, value_loss=loss, weights=(1, 0), sample_weight=sample,
            output_weight=output, backend=backend,
        )  # fmt: skip
        assert value.isfinite()
        value.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head, loss", [("log_softmax", "kl"), ("softmax", "kl"), ("log_sigmoid", "bce")])
def test_targets_that_are_given_are_the_heads(head, loss, backend):
    """What a teacher says is what targets of his head's outputs say; of bce they are probabilities."""
    net, teacher, x = student(), student(seed=1), random(12, D).double()
    with torch.no_grad():
        y = teacher(x)
        values = probabilities(y, head) if loss == "bce" else HEADS[head](y, T)
    given = sk.Targets(values=values, jacobian=jacobian(teacher, head, x).detach())
    settings = {
        "head": (head, T),
        "value_loss": loss,
        "backend": backend,
        "cotangents": sk.Cotangents.normal(3, seed=5),
    }
    right = sk.sobolev_loss(net, x, sk.Targets(teacher=teacher), **settings)
    for _ in range(3):
        torch.testing.assert_close(sk.sobolev_loss(net, x, given, **settings), right, **ANOTHER_WAY)


def test_what_is_kept_knows_the_head():
    """Calls that differ in their head or its temperature alone, again and again."""
    net, teacher, x = student(), student(seed=1), random(12, D).double()
    asked = [None, *HEADS, ("softmax", 2), ("softmax", 2.0), ("log_softmax", 0.5), torch.tanh, torch.sigmoid]
    call = lambda head: sk.sobolev_loss(  # noqa: E731
        net, x, sk.Targets(teacher=teacher), head=head, directions=sk.Directions.sphere(2, seed=1)
    )
    right = []
    for head in asked:
        forget()
        right.append(call(head).detach())
    for _ in range(3):
        for head, value in zip(asked, right, strict=True):
            torch.testing.assert_close(call(head).detach(), value, rtol=0, atol=1e-15)
    torch.testing.assert_close(right[3], right[-1], **ANOTHER_WAY)


def test_a_kept_call_looks_at_its_labels():
    net, x = student(), random(12, D).double()
    call = lambda values: sk.sobolev_loss(  # noqa: E731
        net, x, sk.Targets(values=values), head="log_softmax", value_loss="cross_entropy", weights=(1, 0)
    )
    for good, bad in (
        (torch.full((12, O), 0.25).double(), torch.full((12, O), -0.25).double()),
        (torch.ones(12, dtype=torch.int64), torch.full((12,), O)),
    ):
        for _ in range(3):
            call(good)
        with pytest.raises(ValueError, match=r"values: expected (probabilities|classes)"):
            call(bad)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cotangents_that_depend_on_the_student(centred, backend):
    """Before a log-softmax a cotangent is v - softmax Σv: of centred ones v itself, so that logits will do."""
    net, teacher, x = student(), student(seed=1), random(12, D).double()
    cotangents = sk.Cotangents.sphere(2, seed=3, centred=centred)
    settings = {"cotangents": cotangents, "weights": (0, 1), "backend": backend}
    behind = sk.sobolev_loss(net, x, sk.Targets(teacher=teacher), head="log_softmax", **settings)
    before = sk.sobolev_loss(net, x, sk.Targets(teacher=teacher), **settings)
    assert torch.allclose(behind, before, **ANOTHER_WAY) == centred


def test_centred_cotangents():
    u = sk.Cotangents.sphere(3, centred=True, seed=1, unbiased=True).tensor(torch.zeros(20_000, 5, dtype=torch.float64))
    assert u.sum(-1).abs().max() < 16 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(u.norm(dim=-1), torch.full((3, 20_000), 2.0).double(), **ANOTHER_WAY)
    # E[u uᵀ] = I - 1/5, within five standard errors of 60,000 of a deviation below 1
    moment = torch.einsum("pna,pnb->ab", u, u) / 60_000
    assert (moment - torch.eye(5) + 0.2).abs().max() < 5 / 60_000**0.5
    shared = sk.Cotangents.sphere(2, centred=True, shared=True, seed=1).tensor(torch.zeros(4, 3))
    assert (shared == shared[:, :1]).all()
    pair = sk.Cotangents.sphere(1, centred=True).tensor(torch.zeros(100, 2))
    torch.testing.assert_close(pair.abs(), torch.full_like(pair, 0.5**0.5))


@pytest.mark.parametrize("head", HEADS)
def test_formulas(head):
    """What a head says of itself, beside autograd's view of PyTorch's own."""
    formula = heads.choose_head((head, T))
    z, t, u = (tensor.double() for tensor in (3 * random(5, O), random(5, O), random(5, O + 1)[:, 1:]))
    f = lambda z: HEADS[head](z, T)  # noqa: E731
    value, tangent = torch.func.jvp(f, (z,), (t,))
    pull = torch.func.vjp(f, z)[1]
    owed = torch.func.grad(lambda z: (u * torch.func.jvp(f, (z,), (t,))[1]).sum())(z)
    got = heads.applied(formula, z, t / T, u)
    same(got, (value, tangent, pull(u)[0] * T, owed * T))


REFUSED = [
    ({"head": "softmx"}, "head: unknown name 'softmx'; .*did you mean 'softmax'"),
    ({"head": ("softmax", 0)}, "head: expected a temperature from"),
    ({"head": ("log_sigmoid", -1.0)}, "head: expected a temperature from"),
    ({"head": ("log_softmax", float("inf"))}, "head: expected a temperature from"),
    ({"head": ("sigmoid", float("nan"))}, "head: expected a temperature from"),
    ({"head": ("sigmoid", 1, 2)}, "head: 'sigmoid' takes temperature"),
    ({"head": 3}, "head: expected None, one of sigmoid"),
    ({"head": nn.Softmax}, r"head: .*Softmax\(...\) may be one"),
    ({"value_loss": "kl"}, "value_loss: expected head='log_softmax' or 'softmax' with 'kl'.*got no head"),
    ({"value_loss": "cross_entropy", "head": "sigmoid"}, "value_loss: expected head='log_softmax'.*got head=sigmoid"),
    (
        {"value_loss": "bce", "head": "softmax"},
        "value_loss: expected head='sigmoid' or.*got head=softmax",
    ),
    ({"value_loss": "kl", "head": torch.softmax}, "value_loss: expected head=.*got head=a callable"),
    ({"value_loss": ("kl", 1.0), "head": "softmax"}, "value_loss: 'kl' takes no parameters"),
    ({"derivative_loss": "bce", "head": "sigmoid"}, "derivative_loss: expected a loss of residuals.*is a value_loss"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_refused(settings, message):
    call = lambda: sk.sobolev_loss(student(), random(5, D).double(), sk.Targets(teacher=student()), **settings)  # noqa: E731
    for make in (call, lambda: sk.SobolevLoss(**settings)):
        with pytest.raises((ValueError, TypeError), match=message):
            make()


WHOLE = torch.arange(5) % O
SOFT = torch.full((5, O), 0.25, dtype=torch.float64)
LABELS = [
    ("log_softmax", "cross_entropy", WHOLE + 1, "values: expected classes from 0 to 3, got numbers from 1 to 4"),
    ("log_softmax", "cross_entropy", WHOLE - 100, "values: .*a sample without a class has sample_weight 0"),
    ("softmax", "cross_entropy", WHOLE.int(), r"values: .*values.long\(\) are classes"),
    ("softmax", "cross_entropy", WHOLE[:, None], "values: expected classes"),
    ("softmax", "kl", WHOLE, 'values: .*classes are for value_loss="cross_entropy"'),
    ("log_softmax", "kl", SOFT, r"values: expected logarithms of probabilities.*values.log\(\) are some"),
    ("softmax", "kl", SOFT.log(), "values: expected probabilities"),
    ("log_softmax", "cross_entropy", SOFT.log(), "values: expected probabilities"),
    ("sigmoid", "bce", 2 * torch.ones_like(SOFT), "values: expected probabilities"),
    ("sigmoid", "bce", torch.nan * SOFT, "values: expected probabilities"),
]


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("head, loss, values, message", LABELS)
def test_labels_that_are_none(head, loss, values, message, function):
    net = student()
    targets = sk.Targets(values=values, jacobian=torch.zeros(5, O, D).double())
    with pytest.raises(ValueError, match=message):
        sk.sobolev_loss(
            (lambda x: net(x)) if function else net, random(5, D).double(), targets, head=head, value_loss=loss
        )


def test_a_head_that_gives_no_outputs():
    for head in (lambda y: None, lambda y: y.sum()):
        with pytest.raises((TypeError, ValueError), match="head: expected a function of outputs"):
            sk.sobolev_loss(student(), random(5, D).double(), sk.Targets(teacher=student()), head=head)


# dynamo itself, where a tensor goes on to what follows a break of its graph, as around any function
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("head, loss", [("log_softmax", "kl"), (("softmax", 2.0), "mse"), (torch.sigmoid, "mse")])
def test_compiled(head, loss):
    torch._dynamo.reset()
    net, teacher, x = student(), student(seed=1), random(12, D).double()
    call = lambda x: sk.sobolev_loss(  # noqa: E731
        net, x, sk.Targets(teacher=teacher), head=head, value_loss=loss, cotangents=sk.Cotangents.sphere(2, seed=1)
    )
    compiled = torch.compile(call, fullgraph=isinstance(head, (str, tuple)), backend="aot_eager")
    got, right = (torch.autograd.grad(f(x), [*net.parameters()]) for f in (compiled, call))
    same(got, right)
    if loss == "kl":  # under a compiler no number is looked at: what is no class makes NaN
        call = lambda x: sk.sobolev_loss(  # noqa: E731
            net, x, sk.Targets(values=torch.full((12,), -100)), head=head, value_loss="cross_entropy", weights=(1, 0)
        )
        assert torch.compile(call, fullgraph=True, backend="aot_eager")(x).isnan()


def test_explained(capsys):
    text = sk.explain(student(), random(12, D).double(), head=("log_softmax", 2.0), value_loss="kl")
    assert "head        log_softmax(2)" in text
    assert "head        a callable" in sk.explain(student(), random(12, D).double(), head=lambda y: y * y)


@pytest.mark.parametrize("kind, n", [(sk.Directions, D), (sk.Cotangents, O)])
def test_vectors_that_ask_for_their_gradient(kind, n):
    net, x, v = student(), random(11, D).double(), random(P, 11, n).double().requires_grad_()
    along = {"tangents": random(P, 11, O)} if kind is sk.Directions else {"vjps": random(P, 11, D)}
    targets = sk.Targets(values=random(11, O).double(), **{kind.NAME: kind.given(v)}, **as_doubles(along))
    for head in HEADS:
        both = (
            sk.sobolev_loss(net, x, targets, head=(head, T), backend=backend, reduction="none") for backend in BACKENDS
        )
        same(*(torch.autograd.grad(loss.sum(), [v, *net.parameters()]) for loss in both))


def as_doubles(named):
    return {name: tensor.double() for name, tensor in named.items()}

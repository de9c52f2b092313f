"""Residuals of named derivatives: what they read, their polynomials, and losses and gradients beside nested autograd in
float64."""

import copy
import math
import re

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY, ROUNDED_WITHIN

XT, UVP = "x t -> u", "x y -> u v p"


def burgers(p):
    return p.u_t + p.u * p.u_x - 0.1 * p.u_xx


def sine_gordon(p):
    return p.u_tt - p["u_xx"] + torch.sin(p.u) * (1 + p.x**2) + torch.exp(-p.t) / 3


def sivashinsky(p):
    return p.u_t + p.u * p.u_x + p.u_xx + p["u_xxxx"]


def plate(p):
    return p["u_xxxx + 2*u_xxyy + u_yyyy"] - torch.sin(math.pi * p.x) * torch.sin(math.pi * p.y)


def cavity(p):
    return {
        "x": p.u * p.u_x + p.v * p.u_y + p.p_x - 0.01 * p["u_xx + u_yy"],
        "y": p.u * p.v_x + p.v * p.v_y + p.p_y - 0.01 * p["v_xx + v_yy"],
        "mass": p.u_x + p.v_y,
    }


class Equation(nn.Module):
    """With a coefficient of its own, and a function of another."""

    def __init__(self):
        super().__init__()
        self.nu, self.rate = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, -0.2))

    def forward(self, p):
        return p.u_t - self.nu * p.u_xx, self.rate.exp() * p.u_x**2 + self.nu**2


def nested(student, x, fields):
    """A mapping of any derivative, by autograd of autograd, and of coordinates."""
    y, inputs = student(x), fields.inputs

    class Derivatives(dict):
        def __missing__(self, name):
            if name in inputs:
                return x[:, inputs.index(name), None]
            total = 0
            for o, p in fields.read(name).items():
                for e, c in p.items():
                    d = y[:, o, None]
                    for i, n in enumerate(e):
                        for _ in range(n):
                            d = torch.autograd.grad(d.sum(), x, create_graph=True)[0][:, i, None]
                    total = total + float(c) * d
            self[name] = total
            return total

        def __getattr__(self, name):
            return self[name]

    return Derivatives()


def by_hand(student, x, residual, function, diffs, weights):
    """The loss of a residual and of its derivatives, with none of the package but the names."""
    found = function(nested(student, x, residual.fields))
    found = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
    total = 0
    for value in found:
        total = total + value.square().mean()
        for by in diffs:
            slope = value
            for name in by:
                i = residual.fields.inputs.index(name)
                slope = torch.autograd.grad(slope.sum(), x, create_graph=True)[0][:, i, None]
            total = total + weights * slope.square().mean()
    return total


CASES = {
    "burgers": (burgers, XT, ["x", "t", "xt"]),
    "sine_gordon": (sine_gordon, XT, ["x", "xt"]),
    "sivashinsky": (sivashinsky, XT, []),
    "plate": (plate, "x y -> u", []),
    "cavity": (cavity, UVP, ["x", "y"]),
    "equation": (Equation(), XT, ["x", "xt"]),
}
STUDENTS = {
    "MLP": lambda D, O: sk.MLP(D, O, width=7, depth=2, activation="silu").double(),
    "no MLP": lambda D, O: Product(D, O).double(),
}


class Product(nn.Module):
    def __init__(self, D, O):
        super().__init__()
        self.net = sk.MLP(D, O, width=6, depth=1)

    def forward(self, x):
        return self.net(x) * torch.sin(x[:, :1])


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_beside_nested_autograd(case, kind):
    function, fields, diffs = CASES[case]
    torch.manual_seed(0)
    residual = sk.Residual(function, fields)
    student = STUDENTS[kind](len(residual.fields.inputs), len(residual.fields.outputs))
    x = torch.rand(5, len(residual.fields.inputs), dtype=torch.float64, requires_grad=True)
    several = [residual]
    for by in diffs:
        derived = residual
        for name in by:
            derived = derived.diff(name)
        several.append(derived)
    weights = {name: 0.25 for one in several[1:] for name in one.names}
    loss = sk.residual_loss(student, x, several, weights=weights)
    exact = by_hand(student, x, residual, function, diffs, 0.25)
    asking = [x, *student.parameters(), *residual.parameters()]
    got, expected = (torch.autograd.grad(one, asking, materialize_grads=True) for one in (loss, exact))
    assert_within_rule("loss", loss.detach(), exact.detach())
    for i, pair in enumerate(zip(got, expected, strict=True)):
        assert_within_rule(f"gradient {i}", *pair)


def test_it_reads_each_name_once_and_its_shape_is_the_functions():
    calls, student, x = [], sk.MLP(2, 1, width=4), torch.rand(6, 2)
    residual = sk.Residual(lambda p: calls.append(1) or (p.u_tx + p.u_xt, p.x * p["u_x"]), XT)
    assert residual.reads == ("u_xt", "u_x") and residual.coordinates == ("x",) and len(calls) == 1
    assert residual.names == ("residual_0", "residual_1")
    values = residual(student, x)
    assert isinstance(values, tuple) and [v.shape for v in values] == [(6, 1)] * 2 and len(calls) == 2
    assert list(sk.Residual(cavity, UVP)(sk.MLP(2, 3, width=4), x)) == ["x", "y", "mass"]
    assert sk.Residual(burgers, XT)(student, x[:0]).shape == (0, 1)
    with torch.no_grad():
        assert not sk.Residual(burgers, XT).diff("x")(student, x).requires_grad


POLYNOMIALS = {
    "u_t + u u_x - 0.1 u_xx": burgers,
    "u_t + u u_x + u_xx + u_xxxx": sivashinsky,
    "u_x^2 - 2 u u_x + u^2": lambda p: (p.u_x - p.u) ** 2,
    "(u_xx + u_tt) x + 3 - 0.5 u": lambda p: p["u_tt + u_xx"] * p.x + (6 - p.u) / 2,
    "0": lambda p: p.u - p["u"],
}


@pytest.mark.parametrize("words", POLYNOMIALS)
def test_polynomials_are_recognised(words, capsys):
    residual = sk.Residual(POLYNOMIALS[words], XT, name="it")
    text = residual.explain()
    assert text in capsys.readouterr().out and re.search(r"^it +(.*)$", text, re.MULTILINE)[1] == words


def evaluated(polynomial, p):
    total = 0
    for monomial, c in polynomial.items():
        total = total + c * math.prod([p[name] ** n for name, n in monomial], start=torch.ones(()).double())
    return total


@pytest.mark.parametrize("function", [burgers, *list(POLYNOMIALS.values())[2:], cavity, Equation()])
def test_polynomials_and_their_derivatives_have_the_values(function):
    """The symbolic chain rule beside that of autograd, which evaluates it."""
    fields = sk.Fields(UVP if function is cavity else XT)
    student, x = sk.MLP(2, len(fields.outputs), width=5).double(), torch.rand(4, 2, dtype=torch.float64)
    residual = sk.Residual(function, fields)
    for one in (residual, residual.diff(fields.inputs[1])):
        p = one.partials(student, x)
        values, polynomials = one.values(p), one.polynomials()
        for name, value in values.items():
            found = evaluated(polynomials[name], p) + torch.zeros_like(value)
            assert_within_rule(name, found.detach(), value.detach())


def test_what_is_no_polynomial_says_why(capsys):
    residual = sk.Residual(sine_gordon, XT)
    assert residual.polynomials() == {"sine_gordon": None} and residual.because()["sine_gordon"] == "sin"
    assert "no polynomial (sin)" in residual.explain() and "no polynomial (sin)" in residual.diff("x").explain()


def test_explain_says_what_sums_save(capsys):
    text = sk.Residual(plate, "x y -> u").explain()
    assert "streams     8 beside the value, 12 without the sums" in text and "order       4" in text
    assert "learnt      2 coefficients" in sk.Residual(Equation(), XT).explain()


def test_a_number_that_changes_is_read_anew():
    """A residual is no snapshot of its function."""
    state = {"nu": 1.0}
    residual = sk.Residual(lambda p: state["nu"] * p.u_x, XT, name="it")
    student, x = sk.MLP(2, 1, width=4), torch.rand(5, 2)
    first, slope = residual(student, x), residual.diff("x")(student, x)
    state["nu"] = 3.0
    torch.testing.assert_close(residual(student, x), 3 * first)
    torch.testing.assert_close(residual.diff("x")(student, x), 3 * slope)
    assert residual.polynomials() == {"it": {(("u_x", 1),): 3.0}}


def test_coefficients_in_a_closure_are_parameters():
    nu = nn.Parameter(torch.tensor(0.5))
    residual = sk.Residual(lambda p: p.u_t - nu.exp() * p.u_xx, XT)
    assert [p is nu for p in residual.parameters()] == [True] and next(iter(residual.diff("x").parameters())) is nu
    assert len(list(sk.Residual(burgers, XT).parameters())) == 0
    own = Equation()
    assert list(sk.Residual(own, XT).parameters()) == [own.nu, own.rate]
    twin = copy.deepcopy(sk.Residual(own, XT))
    sk.residual_loss(sk.MLP(2, 1, width=4).double(), torch.rand(3, 2).double(), twin).backward()
    assert all(p.grad is not None for p in twin.parameters()) and own.nu.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_in_the_equation_is_learnt(dtype):
    """An unknown term of u and u_x, and its derivative by x beside autograd through the student."""
    torch.manual_seed(0)
    closure, student = sk.MLP(2, 1, width=5).to(dtype), sk.MLP(2, 1, width=6).to(dtype)
    residual = sk.Residual(lambda p: p.u_t - closure(torch.cat([p.u, p.u_x], 1)), XT)
    assert len(list(residual.parameters())) == len(list(closure.parameters()))
    x = torch.rand(4, 2, dtype=dtype, requires_grad=True)
    got = residual.diff("x")(student, x)
    exact = torch.autograd.grad(residual(student, x).sum(), x)[0][:, :1]
    torch.testing.assert_close(got, exact, **ROUNDED_WITHIN)
    got.square().sum().backward()
    assert all(p.grad is not None for p in closure[0].parameters())


def test_weights_scales_masks_and_targets():
    student, x = sk.MLP(2, 3, width=5).double(), torch.rand(6, 2, dtype=torch.float64)
    residual, weight = sk.Residual(cavity, UVP, name="ns"), torch.tensor([1.0, 0, 2, 1, 0.5, 3]).double()
    values = dict(zip(residual.names, residual(student, x).values(), strict=True))
    target = torch.rand(6, 1, dtype=torch.float64)
    target[1] = math.nan  # which is masked
    scales = sk.residual_scales(student, x, residual)
    for name, value in values.items():
        assert scales[name] == pytest.approx(float(value.detach().square().mean().sqrt()))
    learnt = nn.Parameter(torch.tensor(2.0).double())
    terms = sk.residual_loss(
        student, x, residual, loss=("huber", 0.5), target={"ns_x": target}, weights={"ns_x": learnt, "ns_y": 0.5},
        scales=scales, sample_weight=weight, return_terms=True,
    )  # fmt: skip
    total = 0.0
    for name, w in (("ns_x", 2.0), ("ns_y", 0.5), ("ns_mass", 1.0)):
        off = values[name] - (torch.nan_to_num(target) if name == "ns_x" else 0)
        rho = torch.nn.functional.huber_loss(off / scales[name], torch.zeros_like(off), reduction="none", delta=0.5)
        mean = (weight * rho[:, 0]).mean()
        torch.testing.assert_close(terms.terms[name], mean)
        total = total + w * mean
    torch.testing.assert_close(terms.loss, total)
    terms.loss.backward()
    torch.testing.assert_close(learnt.grad, terms.terms["ns_x"].detach())
    assert all(bool(p.grad.isfinite().all()) for p in student.parameters())
    for reduction, of in (("sum", torch.sum), ("none", lambda each: each)):
        each = sum(value.square()[:, 0] for value in values.values())
        got = sk.residual_loss(student, x, residual, reduction=reduction)
        torch.testing.assert_close(got, of(each))


def test_students_of_units_have_derivatives_in_those_of_the_data():
    """A Scaled MLP takes the streams, and gives what nested autograd of it gives."""
    torch.manual_seed(0)
    x = torch.rand(16, 2, dtype=torch.float64) * torch.tensor([100.0, 0.1]).double() + 5
    scaler = sk.Scaler().fit(x, sk.Targets(values=3 + 7 * x.sum(1).sin()))
    student = sk.Scaled(sk.MLP(2, 1, width=7).double(), scaler)
    residual, leaf = sk.Residual(burgers, XT), x.clone().requires_grad_()
    loss, exact = sk.residual_loss(student, leaf, residual), by_hand(student, leaf, residual, burgers, [], 1)
    got, expected = (torch.autograd.grad(one, [leaf, *student.parameters()]) for one in (loss, exact))
    assert_within_rule("loss", loss.detach(), exact.detach())
    for i, pair in enumerate(zip(got, expected, strict=True)):
        assert_within_rule(f"gradient {i}", *pair)


HEAT, STUDENT, X = sk.Residual(lambda p: p.u_t - p.u_xx, XT, name="heat"), sk.MLP(2, 1, width=4), torch.rand(5, 2)


def changed(p):
    p.u.add_(p.u_x)
    return p.u


def added(p):
    a = p.u
    a += p.u_x
    return a


REFUSED = {
    "a function of p": lambda: sk.Residual(3, XT),
    "one that reads a derivative of p, as p.u_x, got none": lambda: sk.Residual(lambda p: p.x, XT),
    "a residual [3, 1], or a tuple or dict of such, got ()": lambda: sk.Residual(lambda p: p.u.mean(), XT),
    "a residual [3, 1], or a tuple or dict of such, got (3,)": lambda: sk.Residual(lambda p: p.u[:, 0], XT),
    "a residual [3, 1], or a tuple or dict of such, got 3": lambda: sk.Residual(lambda p: (p.u, 3), XT),
    "got u_y; did you mean": lambda: sk.Residual(lambda p: p.u_y, XT),
    "up to order 4": lambda: sk.Residual(lambda p: p.u_xxxxt, XT),
    "got 'u_xxxxt', of order 5": lambda: sk.Residual(lambda p: p.u_xxxx, XT).diff("t"),
    "that leave what it reads as it is, got add_": lambda: sk.Residual(changed, XT),
    "it is, got add_ in place": lambda: sk.Residual(added, XT),
    "by: expected one of x, t": lambda: HEAT.diff("y"),
    "by itself, got one that mixes samples": lambda: sk.Residual(lambda p: p.u - p.u.mean(), XT).diff("x")(STUDENT, X),
    "got one that mixes": lambda: sk.Residual(lambda p: p.u.cumsum(0), XT).diff("x").diff("t")(STUDENT, X),
    "PyTorch differentiates": lambda: sk.Residual(lambda p: p.u.detach(), XT).diff("x")(STUDENT, X),
    "with Relu, whose next one jumps": lambda: sk.Residual(lambda p: p.u.relu(), XT).diff("x").diff("x")(STUDENT, X),
    "with Abs, whose next one jumps": lambda: sk.Residual(lambda p: p.u.abs(), XT).diff("x").diff("t")(STUDENT, X),
    "a sobolev_kernels.Residual": lambda: sk.residual_loss(STUDENT, X, lambda p: p.u),
    "residuals of the same fields": lambda: sk.residual_loss(STUDENT, X, [HEAT, sk.Residual(burgers, "x t -> v u")]),
    "terms of different names, got 'heat' twice": lambda: sk.residual_loss(STUDENT, X, [HEAT, HEAT]),
    "weights: expected names of terms, heat": lambda: sk.residual_loss(STUDENT, X, HEAT, weights={"haet": 1}),
    "finite numbers > 0": lambda: sk.residual_loss(STUDENT, X, HEAT, scales=0.0),
    "finite numbers >= 0": lambda: sk.residual_loss(STUDENT, X, HEAT, weights=-1.0),
    "target: expected a tensor [5, 1]": lambda: sk.residual_loss(STUDENT, X, HEAT, target=torch.zeros(5)),
    "sample_weight: expected a tensor [5]": lambda: sk.residual_loss(STUDENT, X, HEAT, sample_weight=X),
    "sample_weight: expected finite numbers >= 0": lambda: sk.residual_loss(STUDENT, X, HEAT, sample_weight=-X[:, 0]),
    "loss: unknown name 'kl'": lambda: sk.residual_loss(STUDENT, X, HEAT, loss="kl"),
    "reduction: expected one of": lambda: sk.residual_loss(STUDENT, X, HEAT, reduction="men"),
    "inputs: expected [N, 2]": lambda: sk.residual_loss(STUDENT, torch.rand(5, 3), HEAT),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_words(words):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=re.escape(words)):
        REFUSED[words]()


def test_a_function_that_reads_something_else_is_refused():
    state = {"name": "u_x"}
    residual = sk.Residual(lambda p: p[state["name"]], XT)
    state["name"] = "u_t"
    with pytest.raises(ValueError, match="the names that it read at first, u_x, got u_t"):
        residual(STUDENT, X)


def test_terms_that_are_kept_are_nobody_elses():
    """The gradient of a learnt weight has memory of its own: neither what is added to it nor what becomes of a term
    reaches the other."""
    student, weight, kept = sk.MLP(2, 1, width=6), torch.nn.Parameter(torch.tensor(1.0)), []
    residual = sk.Residual(lambda p: p.u_t + p.u * p.u_x, XT)
    for _ in range(2):
        out = sk.residual_loss(student, torch.rand(9, 2), residual, weights=weight, return_terms=True)
        (term,) = out.terms.values()
        kept.append((term.detach(), float(term.detach())))
        out.loss.backward()
    assert [float(term) for term, _ in kept] == [was for _, was in kept]
    before = weight.grad.clone()
    kept[1][0].mul_(0)
    assert torch.equal(weight.grad, before) and float(before) > 0


def test_shapes_alone_and_weights_that_are_no_numbers():
    student, residual = sk.MLP(2, 1, width=6), sk.Residual(lambda p: p.u_t + p.u * p.u_x, XT)
    there = copy.deepcopy(student).to("meta")
    x = torch.rand(5, 2, device="meta")
    assert sk.partials(there, x, "u_xx", fields=XT)["u_xx"].shape == (5, 1)
    with pytest.raises(ValueError, match=r"sample_weight.*real numbers"):
        sk.residual_loss(student, torch.rand(5, 2), residual, sample_weight=torch.ones(5, dtype=torch.complex64))


@pytest.mark.parametrize("function", [burgers, lambda p: p.u_t - p.u.exp(), lambda p: p.u_t - p.u.erf()])
def test_in_inference_mode(function):
    """The first call as any later one, also of what must be differentiated by autograd to be looked at."""
    student, x, residual = sk.MLP(2, 1, width=5).double(), torch.rand(6, 2).double(), sk.Residual(function, XT)
    both = [residual, residual.diff("x")]
    with torch.inference_mode():
        found = [sk.residual_loss(student, x.clone(), both), *sk.residual_scales(student, x, both).values()]
    with torch.no_grad():
        again = [sk.residual_loss(student, x, both), *sk.residual_scales(student, x, both).values()]
    assert found == again


@pytest.mark.parametrize("function", [burgers, lambda p: p.u_t - p.u.exp()])
def test_compiled_without_a_break(function):
    torch.compiler.reset()
    student, x, residual = sk.MLP(2, 1, width=5).double(), torch.rand(6, 2).double(), sk.Residual(function, XT)
    compiled = torch.compile(lambda x: sk.residual_loss(student, x, residual), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), sk.residual_loss(student, x, residual), **ANOTHER_WAY)


def test_no_samples():
    """As of `sobolev_loss`: 0, and so are the gradients."""
    student, residual = sk.MLP(2, 1, width=5), sk.Residual(burgers, XT)
    for reduction in ("mean", "sum"):
        loss = sk.residual_loss(student, torch.rand(0, 2), residual, reduction=reduction)
        gradients = torch.autograd.grad(loss, list(student.parameters()), materialize_grads=True)
        assert loss == 0 and not any(map(torch.any, gradients))


def test_a_residual_that_is_no_number_where_it_is_tried():
    """It is differentiated like any other, with other numbers; one that is none at all is refused as that."""
    student = sk.MLP(2, 1, width=4).double()
    with torch.no_grad():
        student[-1].bias += 5
    x = X.double().requires_grad_()
    loss = sk.residual_loss(student, x, sk.Residual(lambda p: (p.u - 2).sqrt(), XT).diff("x"))
    slope = torch.autograd.grad((student(x) - 2).sqrt().sum(), x, create_graph=True)[0][:, 0]
    torch.testing.assert_close(loss, slope.square().mean(), **ANOTHER_WAY)
    with pytest.raises(sk.NotProvided, match="got NaN at all"):
        sk.residual_loss(student, x, sk.Residual(lambda p: (-p.u * p.u - 1).sqrt(), XT).diff("x"))
    with pytest.raises(sk.NotProvided, match="mixes samples"):
        sk.residual_loss(student, x, sk.Residual(lambda p: (p.u - 2).sqrt() - p.u.mean(0), XT).diff("x"))

"""Losses of residuals in one pass of the core, with all gradients, beside nested autograd in float64."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

import sobolev_kernels as sk
from python_tests.test_residual import UVP, XT, burgers, cavity, nested
from sobolev_kernels.backends import core
from sobolev_kernels.partials import one_pass, residual_loss, tape
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.problems import threads
from sobolev_kernels.testing.rule import ANOTHER_WAY

READ = {
    XT: ("u", "u_x", "u_t", "u_xx", "u_xt", "u_xxx", "u_xxtt", "u_xx + u_tt"),
    UVP: ("u", "v", "p", "u_x", "v_y", "p_x", "u_xx + u_yy", "v_xy"),
}
RHO = {
    "mse": mse_loss, "l1": l1_loss, ("huber", 0.5): lambda r, t, reduction: huber_loss(r, t, reduction, 0.5),
    "log_cosh": lambda r, t, reduction: torch.log(torch.cosh(r - t)),
}  # fmt: skip


@pytest.fixture
def passes(monkeypatch):
    """How often the core was asked for a loss, and for anything else."""
    counts = {"mlp_jets_loss": 0, "mlp_jets": 0}

    def counted(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    for name in counts:
        monkeypatch.setattr(core._C, name, counted(name, getattr(core._C, name)))
    return counts


class Random(nn.Module):
    """Sums, products and functions of some names, coordinates and coefficients, as one might write them."""

    def __init__(self, rng, fields, functions=()):
        super().__init__()
        self.kinds = "sum", "difference", "product", "power", "scaled", "over", "negative", *functions
        self.k = nn.ParameterList(torch.tensor(rng.uniform(-1, 1), dtype=torch.float64) for _ in range(2))
        inputs, self.first = fields.split("->")[0].split(), rng.choice(READ[fields])
        leaves = [*rng.sample(READ[fields], 2), rng.choice(inputs), 0, 1]
        self.trees = [self.tree(rng, leaves, 3) for _ in range(2)]

    def tree(self, rng, leaves, depth):
        if depth == 0:
            return rng.choice(leaves)
        kind = rng.choice(self.kinds)
        parts = 2 if kind in ("sum", "difference", "product", "quotient") else 1
        number = rng.choice([2, 3]) if kind == "power" else rng.choice([-0.3, 1.7])
        return kind, number, [self.tree(rng, leaves, depth - 1) for _ in range(parts)]

    def value(self, p, tree):
        if isinstance(tree, str):
            return p[tree]
        if isinstance(tree, int):
            return self.k[tree].exp() * p[self.first] if tree else p[self.first] / self.k[0] - self.k[1]
        kind, c, parts = tree
        a, *rest = [self.value(p, part) for part in parts]
        rules = {
            "sum": lambda: a + rest[0], "difference": lambda: a - rest[0], "product": lambda: a * rest[0],
            "power": lambda: a**c, "scaled": lambda: c * a, "over": lambda: a / c, "negative": lambda: 1 - a,
            "quotient": lambda: a / (1.5 + rest[0] ** 2), "inverse": lambda: c / (1 + a**2), "sine": lambda: a.sin(),
            "exponential": lambda: torch.exp(0.5 - a**2), "cosine": lambda: torch.cos(c * a), "tanh": lambda: a.tanh(),
            "logarithm": lambda: torch.log(1.5 + a * a), "root": lambda: (1.5 + a**2).sqrt(),
            "roots": lambda: (1 + a**2) ** -0.5 + torch.reciprocal(2 + a**2) - (1.5 + a**2) ** -2,
        }  # fmt: skip
        return rules[kind]()

    def forward(self, p):
        return {name: 0.1 * self.value(p, tree) + p[self.first] for name, tree in zip("ab", self.trees, strict=True)}


def by_hand(student, x, function, fields, diff, of):
    """The loss, with none of the package but the names."""
    total, inputs = 0, sk.Fields(fields).inputs
    for name, value in function(nested(student, x, sk.Fields(fields))).items():
        for by in dict.fromkeys(("", diff)):
            if by:
                slope = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)[0]
                value = slope[:, inputs.index(by), None]
            key = f"it_{name}" + f"_{by}" * bool(by)
            target = of["target"].get(key, torch.zeros_like(value))
            counts = (of["sample_weight"] != 0)[:, None]
            off, target = (torch.where(counts, t / of["scales"].get(key, 1.0), 0) for t in (value, target))
            rho = RHO[of["loss"]](off, target, reduction="none")[:, 0]
            term = (of["sample_weight"] * rho).sum() / (len(x) if of["reduction"] == "mean" else 1)
            total = total + of["weights"].get(key, 1.0) * term
    return total


FUNCTIONS = "quotient", "inverse", "sine", "exponential", "cosine", "tanh", "logarithm", "root", "roots"


def compare(seed, dtype=torch.float64, functions=()):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    fields = rng.choice([XT, UVP])
    function, known, N = Random(rng, fields, functions), sk.Fields(fields), rng.choice([1, 5, 17, 40])
    diff = rng.choice(known.inputs) if fields == UVP else ""
    student = sk.MLP(len(known.inputs), len(known.outputs), width=rng.choice([3, 9, 17]), depth=2, activation="tanh")
    x = torch.rand(N, 2, dtype=torch.float64) - 0.5
    weight = torch.rand(N, dtype=torch.float64) * (torch.rand(N) < 0.7)
    target = torch.where(weight[:, None] == 0, math.nan, torch.rand(N, 1, dtype=torch.float64))
    of = {
        "sample_weight": weight, "target": {"it_a": target}, "scales": {"it_b": 2.5}, "loss": rng.choice([*RHO]),
        "reduction": rng.choice(["mean", "sum"]), "weights": {"it_a": nn.Parameter(torch.tensor(0.7).double())},
    }  # fmt: skip

    def everything(dtype, by):
        own, equation, at = copy.deepcopy(student).to(dtype), copy.deepcopy(function).to(dtype), x.to(dtype)
        at, learnt = at.requires_grad_(), nn.Parameter(torch.tensor(0.7, dtype=dtype))
        given = of | {"target": {"it_a": target.to(dtype)}, "sample_weight": weight.to(dtype)}
        loss = by(own, at, equation, given | {"weights": {"it_a": learnt, "it_b": 0.3}})
        asking = [at, learnt, *own.parameters(), *equation.parameters()]
        return [loss.detach(), *torch.autograd.grad(-1.5 * loss, asking, materialize_grads=True)]

    def ours(student, x, equation, given):
        residual = sk.Residual(equation, fields, name="it")
        return sk.residual_loss(student, x, [residual, *([residual.diff(diff)] if diff else ())], **given)

    exact = lambda student, x, equation, given: by_hand(student, x, equation, fields, diff, given)  # noqa: E731
    got, expected = everything(dtype, ours), everything(torch.float64, exact)
    plain = expected if dtype is torch.float64 else everything(dtype, exact)
    again = lambda i: everything(torch.float64, exact)[i]  # noqa: E731
    for i, pair in enumerate(zip(got, expected, plain, strict=True)):
        assert_within_rule(f"seed {seed}, {i}", *pair, again=lambda i=i: again(i))


@pytest.mark.parametrize("seed", range(24))
def test_random_polynomials_beside_nested_autograd(seed, passes):
    compare(seed)
    assert passes == {"mlp_jets_loss": 1, "mlp_jets": 0}


@pytest.mark.parametrize("seed", range(100, 108))
def test_in_single(seed):
    compare(seed, torch.float32)


@pytest.mark.parametrize("seed", range(300, 316))
def test_functions_beside_nested_autograd(seed, passes):
    compare(seed, functions=FUNCTIONS)
    assert passes == {"mlp_jets_loss": 1, "mlp_jets": 0}
    if seed < 304:
        compare(seed, torch.float32, FUNCTIONS)


ELEMENTARY = {
    "exp": (-120.0, 95.0), "log": (-1.0, 1e30), "sin": (-2e4, 2e4), "cos": (-2e4, 2e4), "tanh": (-12.0, 12.0),
    "sqrt": (-1.0, 50.0), "reciprocal": (-3.0, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTARY)
def test_functions_where_they_end(name):
    """Far arguments, 0, infinity, NaN, of which a function is or is no number, as PyTorch's."""
    low, high = ELEMENTARY[name]
    few = [0.0, -0.0, 1e-30, 1e-41, 1e-300, -1e-300, math.inf, -math.inf, math.nan, 1.0, low, high]
    function = getattr(torch, name)
    for dtype in (torch.float32, torch.float64):
        x = torch.cat([torch.tensor(few), torch.linspace(low, high, 85)]).to(dtype)[:, None]
        student = nn.Linear(1, 1).to(dtype)
        nn.init.zeros_(student.weight), nn.init.zeros_(student.bias)
        residual = sk.Residual(lambda p: 0 * p.u + function(p.x), "x -> u")
        for one in torch.where(x.isfinite(), x, 1):
            got, exact = sk.residual_loss(student, one[None], residual, loss="l1"), function(one.double()).abs()[0]
            assert got.isfinite() == function(one).isfinite()
            if got.isfinite():
                assert_within_rule(f"{name} of {one}", got.detach(), exact, function(one).abs()[0])


def test_what_a_function_is_no_number_of_does_not_count_where_its_weight_is_0():
    torch.manual_seed(0)
    student, x = sk.MLP(2, 1, width=6).double(), torch.rand(30, 2).double()
    with torch.no_grad():
        student[-1].bias -= student(x).mean()
    for function in (lambda p: torch.log(p.u) * p.u_x, lambda p: p.u_t - p.u**0.5, lambda p: p.u_x / p.u.sqrt()):
        at, counts = x.clone().requires_grad_(), (student(x)[:, 0] > 0).double()
        assert 0 < counts.sum() < 30
        residual = sk.Residual(lambda p, f=function: f(p), XT)
        got = sk.residual_loss(student, at, residual, sample_weight=counts, reduction="sum")
        few = x[counts > 0].clone().requires_grad_()
        found = torch.autograd.grad(got, [*student.parameters(), at], materialize_grads=True)
        expected = sk.residual_loss(student, few, residual, reduction="sum")
        exact = torch.autograd.grad(expected, [*student.parameters(), few], materialize_grads=True)
        for pair in zip((got, *found[:-1], found[-1][counts > 0]), (expected, *exact), strict=True):
            torch.testing.assert_close(*pair, **ANOTHER_WAY)


@pytest.mark.parametrize("isa", [name for name, _ in core._C.instruction_sets()])
def test_instruction_sets_and_threads(isa, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    student, x, residual = sk.MLP(2, 3, width=9).double(), torch.rand(150, 2).double(), sk.Residual(cavity, UVP)
    with monkeypatch.context() as patched:
        patched.setattr(residual_loss, "fused_loss", lambda *_: None)
        expected = everything_of(student, x, residual)
    for count in (1, 3):
        with threads(count):
            for got, exact in zip(everything_of(student, x, residual), expected, strict=True):
                torch.testing.assert_close(got, exact, **ANOTHER_WAY)


def everything_of(student, x, residual, **keywords):
    loss = sk.residual_loss(student, x, residual, **keywords)
    return [loss.detach(), *torch.autograd.grad(loss, list(student.parameters()), materialize_grads=True)]


def test_terms_further_derivatives_and_several_backwards(passes, monkeypatch):
    nu, x = nn.Parameter(torch.tensor([[0.3]]).double()), torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    student, residual = sk.MLP(2, 1, width=5).double(), sk.Residual(lambda p: (p.x * p.u_xx + nu * p.u**3, p.u_t), XT)
    asking = [x, nu, *student.parameters()]

    def all_of_it():
        terms = sk.residual_loss(student, x, residual, return_terms=True, weights=[2.0, 0.5])
        twice = [torch.autograd.grad(terms.loss, asking, retain_graph=True) for _ in range(2)]
        assert all(map(torch.equal, *twice))
        of_term = torch.autograd.grad(terms.loss * 0.3 + terms.terms["residual_0"], asking, retain_graph=True)
        slopes = torch.autograd.grad(terms.loss, asking, create_graph=True)
        squares = sum(slope.square().sum() for slope in slopes)
        further = torch.autograd.grad(squares, asking, materialize_grads=True, retain_graph=True)
        each = torch.eye(2, dtype=torch.float64)
        batched = torch.autograd.grad(
            torch.stack([terms.loss, terms.loss**2]), asking, each, is_grads_batched=True, retain_graph=True
        )
        with torch.no_grad():
            plain = sk.residual_loss(student, x, residual, weights=[2.0, 0.5])
        assert not plain.requires_grad
        return [terms.loss, *terms.terms.values(), plain, *twice[0], *of_term, *slopes, *further, *batched]

    got = all_of_it()
    assert passes["mlp_jets_loss"] == 2
    monkeypatch.setattr(residual_loss, "fused_loss", lambda *_: None)
    for a, b in zip(got, all_of_it(), strict=True):
        torch.testing.assert_close(a, b, **ANOTHER_WAY)
    loss = sk.residual_loss(student, x, residual)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_given_away_once():
    loss = sk.residual_loss(sk.MLP(2, 1, width=3), torch.rand(4, 2), sk.Residual(burgers, XT))
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_students_that_change_are_looked_at_again(passes):
    """Whatever is another than at the call before, the loss is that of a residual evaluated by PyTorch."""
    torch.manual_seed(0)
    student, x, residual = sk.MLP(2, 1, width=6), torch.rand(20, 2), sk.Residual(burgers, XT)

    def right(student, x):
        got = sk.residual_loss(student, x, residual)
        values = residual(student, x).square().mean()
        torch.testing.assert_close(got, values)
        asking = [p for p in student.parameters() if p.requires_grad]
        found, expected = (torch.autograd.grad(one, asking, materialize_grads=True) for one in (got, values))
        for pair in zip(found, expected, strict=True):
            torch.testing.assert_close(*pair)

    for _ in range(2):
        right(student, x)
    student[0].weight = nn.Parameter(torch.rand(2, 6).T)  # another one, of other strides
    right(student, x)
    student[0].weight.requires_grad_(False)
    right(student, x)
    right(student, torch.rand(40, 4)[::2, ::2])
    student[1] = nn.SiLU()
    right(student, x)
    right(student.double(), x.double())
    student[2].bias = None
    right(student, x.double())
    assert passes["mlp_jets_loss"] == 8
    student.register_forward_hook(lambda *_: None)
    right(student, x.double())
    assert passes["mlp_jets_loss"] == 8


def test_numbers_and_coefficients_are_read_anew():
    state, x = {"nu": 0.5}, torch.rand(6, 2)
    student, residual = sk.MLP(2, 1, width=4), sk.Residual(lambda p: state["nu"] * p.u_x, XT)
    first = sk.residual_loss(student, x, residual)
    for factor in (2.0, 0.0, torch.tensor(3.0), torch.tensor([3.0])):
        state["nu"] = 0.5 * factor
        torch.testing.assert_close(sk.residual_loss(student, x, residual), first * torch.as_tensor(factor).sum() ** 2)


def stopped(p):
    with torch.no_grad():
        speed = p.u * 1.0
    return p.u_t + speed * p.u_x


NOT_POLYNOMIALS = {
    "an error function": lambda p: p.u_t + torch.erf(p.u),
    "a power": lambda p: p.u_t + (1 + p.u**2) ** 1.5,
    "an integer of it": lambda p: p.u_t + torch.exp(p.u).floor(),
    "a part without gradients": stopped,
    "a part that is detached": lambda p: p.u_t + p.u.detach() * p.u_x,
    "a branch": lambda p: p.u_t if (p.u > -100).all() else p.u,
    "a look at what kind it is": lambda p: p.u_t * p.u if isinstance(p.u, torch.Tensor) else p.u_t,
    "a number drawn": lambda p: p.u_t * (torch.rand(()).item() > -1) if type(p.u) is torch.Tensor else 2 * p.u_t,
}


@pytest.mark.parametrize("why", NOT_POLYNOMIALS)
def test_what_is_none_goes_the_other_way(why, passes):
    """Or what is none on a second look: a symbol is no tensor, and a function may do with it what it likes."""
    function = NOT_POLYNOMIALS[why]
    student, x, residual = sk.MLP(2, 1, width=4).double(), torch.rand(7, 2).double(), sk.Residual(function, XT)
    got, exact = sk.residual_loss(student, x, residual), residual(student, x).square().mean()
    pairs = [torch.autograd.grad(loss, list(student.parameters()), materialize_grads=True) for loss in (got, exact)]
    for pair in [(got, exact), *zip(*pairs, strict=True)]:
        torch.testing.assert_close(*pair)
    assert passes["mlp_jets_loss"] == 0


def test_sums_are_those_of_the_function_in_its_order():
    """(u + 1000) - 1000 loses digits, u - (1000 - 1000) none: what the function avoids is not brought back."""
    student, x = sk.MLP(2, 1, width=4), torch.rand(50, 2)
    for function in (
        lambda p: 0.5 * p.u + (1e5 * p.x - 1e5 * p.x),
        lambda p: p.u * (p.x + 1e5 - 1e5 - p.x) + 1e-3 * p.u,
        lambda p: (3e4 * (p.u + 1) - 3e4 * (p.u + 1)) / 3 + p.u,
    ):
        residual = sk.Residual(function, XT)
        got = sk.residual_loss(student, x, residual)
        exact = sk.residual_loss(copy.deepcopy(student).double(), x.double(), residual)
        assert_within_rule("loss", got, exact.detach(), residual(student, x).square().mean().detach())


def test_nothing_kept_is_held():
    assert one_pass.planned.cache_info().maxsize == tape.told.cache_info().maxsize == 256


def test_functions_of_named_derivatives_find_the_student_again(passes):
    """Named partials, and residuals that are no polynomials, of a student and inputs as before and of others."""
    student, x = sk.MLP(2, 1, width=5).double(), torch.rand(6, 2).double()
    residual = sk.Residual(lambda p: p.u_t + torch.erf(p.u_xx), XT)

    def right(x):
        found = sk.partials(student, x, ["u", "u_xx", "u_t"], fields=XT)
        by = nested(student, x.detach().requires_grad_(), sk.Fields(XT))
        for name, value in found.items():
            torch.testing.assert_close(value, by[name], **ANOTHER_WAY)
        loss, exact = sk.residual_loss(student, x, residual), (by["u_t"] + torch.erf(by["u_xx"])).square().mean()
        torch.testing.assert_close(loss, exact, **ANOTHER_WAY)
        pairs = [torch.autograd.grad(one, list(student.parameters()), materialize_grads=True) for one in (loss, exact)]
        for got, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(got, expected, **ANOTHER_WAY)

    for inputs in (x, x, x + 1, torch.rand(9, 2).double(), x.clone().requires_grad_()):
        right(inputs)
    assert passes == {"mlp_jets_loss": 0, "mlp_jets": 15}

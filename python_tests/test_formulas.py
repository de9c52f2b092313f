"""Every formula where it is delicate: at its joins and far out, against high precision, and differentiated again."""

import ast
import inspect
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from exact import exact
from torch.utils._python_dispatch import TorchDispatchMode

import sobolev_kernels as sk
from sobolev_kernels.math import pruned
from sobolev_kernels.math.activations import DERIVATIVES, ORDERS, activation_jet, highest_order, is_curved
from sobolev_kernels.math.losses import choose_loss, coupled, residual
from sobolev_kernels.modules import choose_activation, to_module

ACTIVATIONS = [
    *sk.ACTIVATIONS, ("leaky_relu", -0.3), ("elu", 0.6), ("elu", -1.5), ("softplus", 2.0, 5.0), ("softplus", 0.5, 1.0),
    ("softplus", -1.5, 3.0), ("sin", 30.0),
]  # fmt: skip
DTYPES = (torch.float32, torch.float64)
# where exp, sigmoid and erf end in float32 and in float64, and where powers of z do
FAR = (
    5.0, 9.0, 13.5, 20.0, 30.0, 40.0, 87.0, 88.0, 88.4, 89.0, 100.0, 104.0, 200.0, 700.0, 745.0, 799.0, 801.0,
    1e4, 1e7, 1e10, 1e13, 1e18, 3e19, 1e25, 3e38,
)  # fmt: skip
EPSILONS = 64  # of the rule


def joins(formula) -> list[float]:
    """Where a formula goes from one branch to the other."""
    if formula.name == "softplus":
        beta, threshold = formula.parameters
        return [threshold / beta]
    return [1.0, -1.0] if formula.name == "softsign" else []


def points(formula, dtype: torch.dtype) -> torch.Tensor:
    ends = torch.tensor([0.0, *joins(formula)], dtype=dtype)
    inf = torch.tensor(math.inf, dtype=dtype)
    beside = [torch.nextafter(ends, inf), torch.nextafter(ends, -inf)]
    some = torch.tensor([-0.0, 1e-30, 1e-8, 1e-4, 0.1, 0.5, 0.62, 0.63, 0.9, 1.0, 1.3, 2.0, 3.0, *FAR], dtype=dtype)
    subnormal = torch.tensor([2.0**-10, 1.0], dtype=dtype) * torch.finfo(dtype).smallest_normal
    between = torch.arange(0.17, 8.0, 0.59, dtype=dtype)
    return torch.cat([ends, *beside, *(s for part in (some, subnormal, between) for s in (part, -part))])


@cache
def expected(formula, dtype: torch.dtype) -> torch.Tensor:
    """[1 + ORDER, points] in float64."""
    z = points(formula, dtype)
    if formula.name == "sin":  # the phase is a number of the dtype, as in torch
        (omega,) = formula.parameters
        rows = [[d * omega**k for k, d in enumerate(exact("sin", (1.0,), u))] for u in (omega * z).tolist()]
    else:
        rows = [exact(formula.name, formula.parameters, number) for number in z.tolist()]
    return torch.tensor(rows, dtype=torch.float64).T


def assert_close(name: str, z: torch.Tensor, got, wanted: torch.Tensor, times: float = 1) -> None:
    """At each point by itself: within units of the number, or of the largest that the function has near 0."""
    got = torch.as_tensor(got, dtype=z.dtype).expand_as(z).detach().double()
    scale = wanted[z.abs() < 50].abs().max().clamp(min=1.0)
    allowed = times * EPSILONS * torch.finfo(z.dtype).eps * torch.maximum(wanted.abs(), scale)
    wrong = ~(((got - wanted).abs() <= allowed) | (got.isnan() & wanted.isnan()))
    rows = [f"z = {a:.9g}: {b:.9g}, expected {c:.9g}" for a, b, c in zip(z[wrong], got[wrong], wanted[wrong])]  # noqa: B905
    assert not rows, f"{name}\n" + "\n".join(rows)


def again(value, z: torch.Tensor) -> torch.Tensor:
    """The derivative by autograd, which can be differentiated again."""
    if not (isinstance(value, torch.Tensor) and value.requires_grad):
        return torch.zeros_like(z)
    (g,) = torch.autograd.grad(value.sum(), z, create_graph=True, allow_unused=True)
    return torch.zeros_like(z) if g is None else g


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_in_torch(activation, dtype):
    """The six outputs; of each the next by autograd; and all of them by autograd from the first."""
    formula = choose_activation("activation", activation)
    z, wanted = points(formula, dtype).requires_grad_(), expected(formula, dtype)
    outputs = activation_jet(formula, z, DERIVATIVES)
    for k, output in enumerate(outputs):
        assert_close(f"derivative {k}", z, output, wanted[k])
        assert_close(f"derivative {k + 1} from {k}", z, again(output, z), wanted[k + 1], times=4)
    value = outputs[0]
    for k in range(1, DERIVATIVES + 1):
        value = again(value, z)
        # 1 - s of a sigmoid near 1 is rounded, and multiplied by a power of z each time, of gelu_tanh by its square
        times = (12 if formula.name == "gelu_tanh" else 4) ** k
        assert_close(f"derivative {k} by autograd", z, value, wanted[k], times=times)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_at_their_joins_as_torch(activation):
    """torch's own derivatives of all orders, of which `exact.py` has only been told."""
    formula = choose_activation("activation", activation)
    z = torch.tensor([0.0, -0.0, *joins(formula)], dtype=torch.float64, requires_grad=True)
    theirs = to_module(formula)(z)
    for k, ours in enumerate(activation_jet(formula, z, DERIVATIVES)):
        assert_close(f"derivative {k}", z, ours, theirs.detach())
        theirs = again(theirs, z)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_at_infinity_as_torch(activation):
    """Wherever torch's own function has a number; its derivatives, where that has one too: 0 from the second on."""
    formula = choose_activation("activation", activation)
    z = torch.tensor([math.inf, -math.inf], dtype=torch.float64, requires_grad=True)
    theirs = to_module(formula)(z)
    known = theirs.isfinite()
    value, d1, *rest = (torch.as_tensor(d, dtype=z.dtype).expand_as(z) for d in activation_jet(formula, z, DERIVATIVES))
    assert torch.equal(value[known], theirs[known])
    (slope,) = torch.autograd.grad(theirs.sum(), z)
    known &= slope.isfinite()
    assert torch.equal(d1[known], slope[known])
    assert torch.equal(again(value, z)[known], slope[known])
    assert not torch.stack(rest)[:, known].any()


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_nan_in_is_nan_out_of_every_derivative(activation):
    """Of all that are not the same number everywhere."""
    outputs = activation_jet(choose_activation("activation", activation), torch.tensor(math.nan), DERIVATIVES)
    assert all(isinstance(output, float) or output.isnan() for output in outputs)


class Operations(TorchDispatchMode):
    """Counts what PyTorch does."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_of_a_formula_no_more_is_run_than_is_asked_for(activation):
    formula = choose_activation("activation", activation)
    z, function = torch.linspace(-3, 3, 13), sk.ACTIVATIONS[formula.name].function
    whole, before = function(z, *formula.parameters), 0
    for order in range(DERIVATIVES + 1):
        with Operations() as operations:
            outputs = activation_jet(formula, z, order)
        assert len(outputs) == order + 1
        for output, expected in zip(outputs, whole[: order + 1], strict=True):
            torch.testing.assert_close(output, expected, rtol=0, atol=0)
        assert before <= operations.count
        before = operations.count
    if formula.name == "tanh":
        counts = []
        for order in range(4):
            with Operations() as operations:
                activation_jet(formula, z, order)
            counts.append(operations.count)
        assert counts == [1, 3, 5, 9]


def test_a_formula_without_its_text_is_cut_after_it_was_run():
    made = eval("lambda z: (z, 2 * z, 3 * z)")
    assert pruned.first(made, 2)(5) == (5, 10)


def test_a_formula_whose_file_has_changed_is_cut_after_it_was_run(tmp_path):
    file, names = tmp_path / "formulas.py", {}
    file.write_text("def f(z):\n    a = 2 * z\n    return z, a, a * a\n")
    exec(compile(file.read_text(), str(file), "exec"), names)
    file.write_text("def f(z):\n    a = 3 * z\n    return z, a, a * a\n")
    assert pruned.first(names["f"], 2)(5) == (5, 10)


def first_jump(formula) -> int | None:
    """The lowest derivative that jumps at 0 or at a join, by more than float32 rounds off."""
    ends = torch.tensor([0.0, *joins(formula)], dtype=torch.float64)
    sides = [torch.nextafter(ends, torch.full_like(ends, end)) for end in (math.inf, -math.inf)]
    wide = torch.linspace(-3, 3, 101, dtype=torch.float64)
    for k in range(DERIVATIVES + 1):
        right, left, all_of_it = (
            torch.as_tensor(activation_jet(formula, z, k)[k], dtype=z.dtype).expand_as(z) for z in (*sides, wide)
        )
        if ((right - left).abs() > 2**-24 * all_of_it.abs().max()).any():
            return k
    return None


@pytest.mark.parametrize("activation", [*ACTIVATIONS, ("softplus", 3.0, 17.0), ("softplus", 1.0, 16.0)], ids=str)
def test_the_highest_sound_order_is_that_of_the_first_jump(activation):
    """Whose own derivative the formulas leave out; orders that are curved are provided to 2, as autograd has them."""
    formula = choose_activation("activation", activation)
    order, why = highest_order(formula)
    jump = first_jump(formula)
    assert order == (ORDERS if jump is None else max(jump, 1 + is_curved(formula)))
    assert (jump is None) == (why == "") and ("jumps" in why) == (order < ORDERS)


def test_the_table_in_the_docs_has_the_highest_orders():
    text = (Path(__file__).resolve().parents[1] / "docs" / "math.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d)[^|]*\|$", text, flags=re.MULTILINE))
    orders = {name: str(highest_order(choose_activation("activation", name))[0]) for name in sk.ACTIVATIONS}
    assert {name: rows.get(name) for name in orders} == orders


def mutants(function):
    """The function with one constant changed, that of each place in turn, but 0, where z is clamped and where softsign
    goes from one formula to the other."""
    tree = ast.parse(inspect.getsource(function))
    compared = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
    for node in ast.walk(ast.Module(tree.body[0].body, [])):
        if isinstance(node, ast.Constant) and node.value not in (0.0, 800.0) and id(node) not in compared:
            value, node.value = node.value, node.value * (1 + 2**-7)
            names = {}
            exec(compile(tree, "<mutant>", "exec"), function.__globals__, names)
            node.value = value
            yield f"line {node.lineno}, column {node.col_offset}: {value}", names[function.__name__]


@pytest.mark.parametrize("activation", sk.ACTIVATIONS)
def test_a_wrong_coefficient_is_seen(activation):
    """Or the numbers above would prove little."""
    formula = choose_activation("activation", activation)
    z, wanted = points(formula, torch.float32), expected(formula, torch.float32)
    for where, function in mutants(sk.ACTIVATIONS[activation].function):
        with pytest.raises(AssertionError):
            for k, output in enumerate(function(z, *formula.parameters)):
                assert_close(f"derivative {k}", z, output, wanted[k])
            print(f"not seen: {where}")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_in_a_backend(activation, dtype, backend):
    """σ, σ', σ'' and, as the gradient of σ'', σ''' of a student that is nothing but the activation."""
    formula = choose_activation("activation", activation)
    order = 2 if formula.name != "identity" and is_curved(formula) else 1
    student = sk.MLP(1, 1, depth=0, last_activation=formula, bias=False, dtype=dtype)
    torch.nn.init.ones_(student[0].weight)
    z, wanted = points(formula, dtype), expected(formula, dtype)
    x = z[:, None].requires_grad_()
    results = sk.jet(student, x, torch.ones(1, len(x), 1, dtype=dtype), order=order, backend=backend)
    for k, result in enumerate(results):
        assert_close(f"derivative {k}", z, result.reshape(-1), wanted[k])
    slope = again(results[-1], x) if backend == "reference" else torch.autograd.grad(results[-1].sum(), x)[0]
    assert_close(f"derivative {order + 1}", z, slope[:, 0], wanted[order + 1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_nan_stays_nan(activation, dtype, backend):
    student = sk.MLP(1, 1, depth=0, last_activation=activation, bias=False, dtype=dtype)
    nan = torch.full((3, 1), torch.nan, dtype=dtype)
    y, _ = sk.jvp(student, nan, torch.ones(1, len(nan), 1, dtype=dtype), backend=backend)
    assert y.isnan().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", ["sigmoid", "silu", "mish", "gelu_tanh"])
def test_sigmoid_reaches_zero(activation, backend):
    student = sk.MLP(1, 1, depth=0, last_activation=activation, bias=False)
    torch.nn.init.ones_(student[0].weight)
    x = torch.tensor([[-105.0], [-3e38]])
    assert not sk.jvp(student, x, torch.ones(1, 2, 1), backend=backend)[0].any()


def test_the_gradient_of_a_padding_row():
    """A softplus layer without bias at z = 0, where |z| has no slope of its own."""
    student = sk.MLP(1, 1, depth=1, width=3, activation="softplus", bias=False).double()
    x, v = torch.zeros(2, 1, dtype=torch.float64), torch.ones(1, 2, 1, dtype=torch.float64)
    got = [torch.autograd.grad(sk.jvp(student, x, v, backend=b)[0].sum(), student[2].weight) for b in BOTH]
    torch.testing.assert_close(*got)
    got = [torch.autograd.grad(sk.jet(student, x, v, backend=b)[2].sum(), [*student.parameters()]) for b in BOTH]
    torch.testing.assert_close(*got)


BOTH = ("cpu", "reference")
RESIDUALS = [0.0, -0.0, 1e-30, 1e-6, 0.1, 0.5, 0.99999994, 1.0, 1.0000001, 1.5, 3.0, 50.0, 1e5, 1e10, 1e18]
LOSSES = {
    "mse": (lambda r: r**2, lambda r: 2 * r),
    "l1": (torch.abs, torch.sign),
    "huber": (lambda r: F.huber_loss(r, torch.zeros_like(r), reduction="none"), lambda r: r.clamp(-1, 1)),
    "log_cosh": (lambda r: r.abs() + (-2 * r.abs()).exp().log1p() - math.log(2), torch.tanh),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", sk.LOSSES)
def test_losses_at_joins_and_far_out(loss, dtype):
    numbers = torch.tensor(RESIDUALS, dtype=dtype)
    r = torch.cat([numbers, -numbers]).requires_grad_()
    value, slope = residual(choose_loss("loss", loss), r)
    wanted = [function(r.detach().double()) for function in LOSSES[loss]]
    assert_close("value", r, value, wanted[0])
    assert_close("slope", r, slope, wanted[1])
    assert_close("slope by autograd", r, again(value, r), wanted[1])
    # at the join itself torch has the slope of either side
    bend = torch.where(r.abs() == 1, torch.nan, again(again(value, r), r)).nan_to_num()
    theirs = torch.where(r.abs() == 1, torch.nan, again(slope, r)).nan_to_num()
    assert_close("curvature", r, theirs, bend.detach().double())


@pytest.mark.parametrize("loss", ["l1", "huber", "log_cosh", ("huber", 0.3)], ids=str)
def test_slopes_at_infinity(loss):
    r = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64, requires_grad=True)
    value, slope = residual(choose_loss("loss", loss), r)
    end = loss[1] if isinstance(loss, tuple) else 1.0
    for got in (slope, again(value, r)):
        assert got[:2].tolist() == [end, -end]
    assert value[2].isnan() and slope[2].isnan()


# of a vector; squares of the first and the last are no numbers of float32
LENGTHS = [1e-36, 1e-25, 1e-18, 1e-10, 1e-6, 1e-3, 1.0, 1e4, 1e8, 4e9, 1e12, 1e15, 1e18, 1e20, 1e25, 1e31]


def coupled_rows(backend, a, t, loss, dtype):
    """The loss of each sample and its gradient by the prediction, [N] and [N, O]."""
    student = sk.MLP(a.shape[1], a.shape[1], depth=0, bias=False, dtype=dtype)
    torch.nn.init.eye_(student[0].weight)
    x = a.to(dtype).requires_grad_()
    options = {"value_loss": loss, "weights": (1, 0), "reduction": "none", "backend": backend}
    rows = sk.sobolev_loss(student, x, sk.Targets(values=t.to(dtype)), **options)
    return rows.detach().double(), torch.autograd.grad(rows.sum(), x)[0].double()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("angle", ["equal", "opposite", "other", "zero"])
def test_cosine_of_short_and_long_vectors(angle, dtype, backend):
    direction, other = torch.randn(2, 1, 4, dtype=torch.float64)
    direction, other = direction / direction.norm(), other / other.norm()
    long = torch.tensor(LENGTHS, dtype=torch.float64)
    scale, length = (m.reshape(-1, 1) for m in torch.meshgrid(long, long, indexing="ij"))
    a = scale * {"equal": direction, "opposite": -direction, "other": other, "zero": 0 * other}[angle]
    a, t = a.to(dtype).double(), (length * direction).to(dtype).double()
    values, slopes = coupled_rows(backend, a, t, "cosine", dtype)
    cosine, norm, bound = (a * t).sum(1), (a.norm(dim=1) * t.norm(dim=1)), EPSILONS * torch.finfo(dtype).eps
    root = (norm**2 + 1e-12).sqrt()
    assert ((values - (1 - cosine / root)).abs() <= bound).all()
    by_a = -t / root[:, None] + (cosine / root * t.norm(dim=1) ** 2 / root**2)[:, None] * a
    assert ((slopes - by_a).norm(dim=1) <= bound * t.norm(dim=1) / root).all()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relative_mse_of_short_and_long_vectors(dtype, backend):
    long = torch.tensor([0.0, *LENGTHS], dtype=torch.float64)
    direction = torch.randn(4, dtype=torch.float64)
    t = (long[:, None] * direction / direction.norm() / 2).to(dtype).double()
    for factor in (0.0, 1.0, 1.5):
        a = (factor * t).to(dtype).double()
        values, slopes = coupled_rows(backend, a, t, "relative_mse", dtype)
        wanted = (a - t).square().sum(1) / (t.square().sum(1) + 1e-8)
        by_a = 2 * (a - t) / (t.square().sum(1, keepdim=True) + 1e-8)
        bound = EPSILONS * torch.finfo(dtype).eps
        assert ((values - wanted).abs() <= bound * (1 + wanted)).all()
        assert ((slopes - by_a).abs() <= bound * by_a.abs().amax(1, keepdim=True) + 1e-30).all()


@pytest.mark.parametrize("loss", [("relative_mse", 1e-60), ("cosine", 1e-60)], ids=str)
@pytest.mark.parametrize("backend", BOTH)
def test_a_small_eps_does_not_divide_zero_by_zero(backend, loss):
    zero = torch.zeros(2, 3, dtype=torch.float64)
    values, slopes = coupled_rows(backend, zero, zero, loss, torch.float32)
    assert values.tolist() == [float(loss[0] == "cosine")] * 2 and not slopes.any()


@pytest.mark.parametrize("loss", sk.COUPLED)
def test_partial_derivatives_of_coupled_losses(loss):
    """Those that the kernels take, against autograd, over the whole range."""
    long = torch.tensor(LENGTHS, dtype=torch.float64) ** 2
    aa, tt = (m.reshape(-1) for m in torch.meshgrid(long, long, indexing="ij"))
    at, rr = 0.3 * aa.sqrt() * tt.sqrt(), aa + tt
    sums = [s.requires_grad_() for s in (rr, aa, at.detach(), tt)] + [torch.ones_like(tt)]
    formula = choose_loss("loss", loss)
    value, *partial = sk.COUPLED[loss].function(*sums, *formula.parameters)
    assert torch.equal(value, coupled(formula, *sums))
    for got, wanted in zip(partial, torch.autograd.grad(value.sum(), sums[:3], allow_unused=True), strict=True):
        wanted = torch.zeros_like(value) if wanted is None else wanted
        got = torch.as_tensor(got, dtype=value.dtype).expand_as(wanted)
        assert ((got - wanted).abs() <= 1e-12 * wanted.abs() + 1e-300).all()

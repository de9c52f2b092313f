"""Named derivatives by the core, beside PyTorch's operations on the same streams, and these beside nested autograd."""

import itertools
from collections import deque

import pytest
import torch
from test_partials import COUNTS, by_hand

import sobolev_kernels as sk
from sobolev_kernels.backends import core
from sobolev_kernels.math.activations import ACTIVATIONS, highest_order
from sobolev_kernels.math.table import Formula, choose
from sobolev_kernels.partials import fused
from sobolev_kernels.partials.layers import directions_of, results_of
from sobolev_kernels.student import Student
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.problems import threads

ISAS = [name for name, _ in core._C.instruction_sets()]
NAMES = {order: names for order, names in enumerate(("u", "u_t, u_x", "u, u_xt, u_xx", "u_xxt, u_x", "u_ttxx, u_tttt"))}
ACTIVATED = [choose(ACTIVATIONS, "activation", name) for name in ACTIVATIONS if name != "identity"]
PARAMETERS = [Formula("leaky_relu", (0.3,)), Formula("softplus", (2.0, 1.5)), Formula("sin", (3.0,))]


def student_of(widths, activations, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(widths))
    parameters = []
    for n_in, n_out in itertools.pairwise(widths):
        parameters.append((torch.rand(n_out, n_in, generator=generator, dtype=torch.float64) * 2 - 1) * n_in**-0.5)
        parameters += [torch.rand(n_out, generator=generator, dtype=torch.float64) - 0.5] * bias
    biases = (bias,) * len(activations)
    return Student(tuple(widths), biases, tuple(activations), tuple(p.to(dtype).requires_grad_() for p in parameters))


def everything(results, student, x, v):
    """The results and the gradients of x, v and parameters, along one cotangent of each."""
    got = results(student, x, v)
    generator = torch.Generator().manual_seed(1)
    along = torch.rand(got.shape, generator=generator, dtype=torch.float64).to(got.dtype) - 0.5
    asking = [tensor for tensor in (x, v, *student.parameters) if tensor.requires_grad]
    return [got.detach(), *torch.autograd.grad(got, asking, along, materialize_grads=True)]


def agree(fields, names, student, N, dtype=torch.float64, per_sample=False):
    fields, names = sk.Fields(fields), [name.strip() for name in names.split(",")]
    streams = fields.plan(names)
    generator = torch.Generator().manual_seed(N)
    x = torch.rand(N, len(fields.inputs), generator=generator, dtype=torch.float64) * 2 - 1
    v = directions_of(streams, x)
    if per_sample:
        v = torch.rand(len(v), *x.shape, generator=generator, dtype=torch.float64)

    def by(results, dtype):
        parameters = tuple(p.detach().to(dtype).requires_grad_() for p in student.parameters)
        of = Student(student.widths, student.biases, student.activations, parameters)
        return everything(results, of, x.to(dtype).requires_grad_(), v.to(dtype).requires_grad_(per_sample))

    core_call = lambda s: fused.Call(streams, s, results_of, keeping=True)  # noqa: E731
    core_results = lambda s, x, v: fused.Results.apply(core_call(s), x, v, *s.parameters)  # noqa: E731
    plain = lambda s, x, v: results_of(streams, s, x, v)  # noqa: E731
    assert fused.why_not(student, x) is None
    expected, got = by(plain, torch.float64), by(core_results, dtype)
    baseline = by(plain, dtype) if dtype != torch.float64 else [None] * len(expected)
    again = lambda i: lambda: by(plain, torch.float64)[i]  # noqa: E731
    for i, (number, number64, other) in enumerate(zip(got, expected, baseline, strict=True)):
        what = f"{fields.names}, {names}, {student.widths}, {student.activations[0].name}, N={N}: {i}"
        assert_within_rule(what, number, number64, other, again=again(i))


@pytest.mark.parametrize("formula", [*ACTIVATED, *PARAMETERS], ids=str)
def test_each_activation_at_each_order_that_is_sound(formula):
    for order in range(min(4, highest_order(formula)[0]) + 1):
        student = student_of((2, 5, 6, 1), [formula, formula, Formula("identity")])
        for dtype in (torch.float64, torch.float32):
            agree("x t -> u", NAMES[order], student, 19, dtype)


@pytest.mark.parametrize("fields, names", [row[1:3] for row in COUNTS], ids=[row[0] for row in COUNTS])
@pytest.mark.parametrize("isa", ISAS)
def test_each_plan_on_each_instruction_set(isa, fields, names, monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    f = sk.Fields(fields)
    D, O = len(f.inputs), len(f.outputs)
    for N, dtype in ((7, torch.float64), (70, torch.float32)):
        student = student_of((D, 17, 9, O), [Formula("tanh"), Formula("silu"), Formula("identity")])
        agree(fields, names, student, N, dtype)


IDENTITY, TANH, GELU = Formula("identity"), Formula("tanh"), Formula("gelu")
SHAPES = {
    "one linear layer": ((2, 3), [IDENTITY]),
    "one layer": ((2, 3), [TANH]),
    "narrow": ((2, 1, 1, 3), [TANH, GELU, IDENTITY]),
    "two linear layers in a row, before and behind": ((2, 5, 6, 4, 3), [IDENTITY, TANH, IDENTITY, IDENTITY]),
    "an activation last": ((2, 33, 3), [GELU, TANH]),
    "five layers": ((2, 8, 13, 8, 20, 3), [TANH] * 4 + [IDENTITY]),
    "wide": ((2, 70, 130, 3), [TANH, TANH, IDENTITY]),
}
THREE = "u_xxt + v_x - 1/4*p, p_t, u_tt + 2*u_xx"


@pytest.mark.parametrize("widths, activations", SHAPES.values(), ids=SHAPES)
def test_sizes(widths, activations):
    for N, bias, dtype in ((1, True, torch.float64), (7, False, torch.float64), (33, True, torch.float32)):
        agree("x t -> u v p", THREE, student_of(widths, activations, bias), N, dtype)
        agree("x t -> u v p", "v_tt, u_xx", student_of(widths, activations, bias), N, dtype, per_sample=True)


def test_one_input_and_many_samples():
    student = student_of((1, 6, 1), [TANH, IDENTITY])
    for count in (1, 3):
        with threads(count):
            agree("x -> u", "u_xxxx, u_x", student, 1003)


@pytest.mark.parametrize("names", ["u, u_x, u_xx", "u_xxxx + 2*u_xxtt + u_tttt"])
def test_beside_nested_autograd_and_differentiated_twice(names):
    """`partials` goes by the core, and its backward's own derivative by PyTorch."""
    names = names.split(",")
    student = sk.MLP(2, 1, width=11, depth=3).double()
    x = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for evaluate in (lambda: list(sk.partials(student, x, names, fields="x t -> u").values()),
                     lambda: by_hand(student, x, names, "x t -> u")):  # fmt: skip
        results = evaluate()
        loss = sum((r.exp() * results[0]).sum() for r in results)
        gradients = torch.autograd.grad(loss, [x, *student.parameters()], create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(
            sum(g.square().sum() for g in gradients), [x, *student.parameters()], materialize_grads=True
        )
        found.append([*results, *gradients, *second])
    assert "Unbind" in type(sk.partials(student, x, names, fields="x t -> u")[names[0]].grad_fn).__name__
    for i, (got, expected) in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"tensor {i}", got.detach(), expected.detach())


def test_a_weight_that_depends_on_the_inputs_is_no_part_of_their_gradient_twice():
    """Of a second derivative each tensor is one of its own, though one was made of the other."""
    torch.manual_seed(0)
    x = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    layer = torch.nn.Linear(2, 1).double()
    weight = layer.weight.detach() * x.sum()
    del layer.weight
    layer.weight = weight
    fused_u = sk.partials(torch.nn.Sequential(layer, torch.nn.Tanh()), x, "u_x", fields="x t -> u")["u_x"]
    results = []
    for u in (fused_u, (1 - torch.tanh(layer(x)) ** 2) * weight[:, :1]):
        (g,) = torch.autograd.grad(u.square().sum(), x, create_graph=True)
        results.append([u.detach(), g.detach(), *torch.autograd.grad(g.sin().sum(), x, retain_graph=True)])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert_within_rule(f"tensor {i}", got, expected)


def test_bits_are_those_of_any_call_before_and_tensors_lie_anywhere():
    student, names = sk.MLP(2, 2, width=19), "u_x, u_xxx, v_tt"
    x = torch.rand(2, 23).T
    results = []
    for left in (0.0, float("nan"), 1e30):
        sk.partials(student, torch.full_like(x, left), names, fields="x t -> u v")["u_x"].sum().backward()
        student.zero_grad()
        got = sk.partials(student, x, names, fields="x t -> u v")
        sum(r.square().sum() for r in got.values()).backward()
        results.append([r.detach() for r in got.values()] + [p.grad.clone() for p in student.parameters()])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    contiguous = sk.partials(student, x.contiguous(), names, fields="x t -> u v")
    assert all(torch.equal(contiguous[name], r) for name, r in zip(contiguous, results[0], strict=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ISAS)
def test_what_results_leave_for_their_cotangents_is_what_would_be_computed_again(isa, dtype, monkeypatch):
    """To the bit where tiles are the same; in memory that is lent to one graph, and to the next when that is done."""
    monkeypatch.setenv("SOBOLEV_ISA", isa)
    monkeypatch.setattr(fused, "SPARE", deque(maxlen=4))
    torch.manual_seed(0)
    student = sk.MLP(2, 2, width=19, depth=3).to(dtype)
    bits = []
    for most in (0, 1 << 30):
        monkeypatch.setattr(fused, "MOST_LEFT", most)
        for N, count in ((1, 1), (64, 1), (960, 3)):
            torch.manual_seed(N)
            x, names = torch.rand(N, 2, dtype=dtype, requires_grad=True), "u, u_xxt + v_x, v_tt"
            with threads(count):
                first, second = (sk.partials(student, x * k, names, fields="x t -> u v") for k in (1, 2))
                assert len(fused.SPARE) == 0
                for _ in range(2):
                    for found, last in ((second, False), (first, False), (second, True), (first, True)):
                        loss = sum(r.square().sum() for r in found.values())
                        bits += torch.autograd.grad(loss, [x, *student.parameters()], retain_graph=not last)
                    assert len(fused.SPARE) == 2 * (most > 0)
                    first, second = (sk.partials(student, x * k, names, fields="x t -> u v") for k in (1, 2))
                with torch.no_grad():
                    sk.partials(student, x, names, fields="x t -> u v")
                assert len(fused.SPARE) == 0
                del first, second, found, loss
            fused.SPARE.clear()
    half = len(bits) // 2
    assert all(map(torch.equal, bits[:half], bits[half:]))


def test_what_no_parameter_asks_and_frozen_ones():
    student, x = sk.MLP(2, 1, width=5), torch.rand(6, 2, requires_grad=True)
    student[0].weight.requires_grad_(False)
    sk.partials(student, x, "u_xx", fields="x t -> u")["u_xx"].sum().backward()
    assert student[0].weight.grad is None and x.grad is not None and student[2].weight.grad is not None
    assert not sk.partials(student.requires_grad_(False), x.detach(), "u_x", fields="x t -> u")["u_x"].requires_grad

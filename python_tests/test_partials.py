"""Named partial derivatives: how many streams they take, and their numbers and gradients beside nested autograd."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

import sobolev_kernels as sk
from sobolev_kernels.partials import constants
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.rule import ANOTHER_WAY

COUNTS = [
    ("Burgers", "x t -> u", "u, u_t, u_x, u_xx", 3),
    ("KdV", "x t -> u", "u, u_t, u_x, u_xxx", 4),
    ("Kuramoto–Sivashinsky", "x t -> u", "u, u_t, u_x, u_xx, u_xxxx", 5),
    ("biharmonic, closure", "x y -> u", "u_xxxx, u_xxyy, u_yyyy", 12),
    ("biharmonic, collapsed", "x y -> u", "u_xxxx + 2*u_xxyy + u_yyyy", 8),
    ("Navier–Stokes", "x y t -> u v p", "u, v, u_t, v_t, u_x, v_x, p_x, u_y, v_y, p_y, u_xx, u_yy, v_xx, v_yy", 5),
    ("Navier–Stokes, collapsed", "x y t -> u v p", "u, u_t, v_t, u_x, u_y, p_x, u_xx + u_yy, v_xx + v_yy", 4),
    ("stream function", "x y t -> s p", "s_x, s_y, s_xt, s_yt, s_xx, s_xy, s_yy, s_xxx, s_xxy, s_xyy, s_yyy", 12),
    (
        "stream function, collapsed", "x y t -> s p",
        "s_x, s_y, s_xt, s_yt, s_xx, s_xy, s_yy, s_xxx + s_xyy, s_xxy + s_yyy, p_x", 10,
    ),
    ("gradient-enhanced Burgers", "x t -> u", "u, u_t, u_x, u_xx, u_xt, u_tt, u_xxx, u_xxt", 7),
    ("one direction of two inputs", "x y -> u", "u_xxx + 3*u_xxy + 3*u_xyy + u_yyy", 3),
]  # fmt: skip


def test_a_backend_that_is_asked_for(capsys):
    """Each makes the same numbers, or says why it does not."""
    torch.manual_seed(0)
    student, field = sk.MLP(2, 1, width=5).double(), sk.MLP(2, 2, width=4).double()
    x, equation = torch.rand(7, 2).double().requires_grad_(), sk.Residual(lambda p: p.u_t + p.u * p.u_x, "x t -> u")
    calls = {
        "partials": lambda m, **by: list(sk.partials(m, x, "u, u_xxt", fields="x t -> u", **by).values()),
        "residual_loss": lambda m, **by: [sk.residual_loss(m, x, equation, **by)],
        "hessian": lambda m, **by: sk.hessian(m, x, **by), "bilaplacian": lambda m, **by: sk.bilaplacian(m, x, **by),
        "divergence": lambda m, **by: sk.divergence(field if m is student else m, x, **by),
    }  # fmt: skip
    other = lambda x: torch.stack([x.sin().sum(1), x.cos().prod(1)], 1)  # noqa: E731
    for name, call in calls.items():
        one = other if name == "divergence" else lambda x: other(x)[:, 0]
        for backend in ("cpu", "streams", "reference"):
            for pair in zip(call(student, backend=backend), call(student), strict=True):
                torch.testing.assert_close(*pair, **ANOTHER_WAY)
        for backend in ("cpu", "cuda", "triton", "streams"):
            with pytest.raises(NotImplementedError, match=f"backend: expected {backend} to support this problem"):
                call(one, backend=backend)
        call(one, backend="reference")
        with pytest.raises(NotImplementedError, match="got a refusal: it has no kernel of named derivatives"):
            call(student, backend="cuda")
        with pytest.raises(ValueError, match="backend: expected one of"):
            call(student, backend="gpu")
    for backend in ("cpu", "streams", "reference"):
        assert f"-> {backend}" in sk.explain(student, x, of="partials", names="u", fields="x t -> u", backend=backend)
        assert f"-> {backend}" in sk.explain(student, x, of="residual_loss", residual=equation, backend=backend)
    with pytest.raises(NotImplementedError, match="backend: expected triton"):
        sk.explain(student, x, of="partials", names="u", fields="x t -> u", backend="triton")


@pytest.mark.parametrize("fields, names, count", [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS])
def test_the_streams_are_the_fewest(fields, names, count):
    assert sk.Fields(fields).plan(names.split(",")).count - 1 == count


def by_hand(student, x, names, fields):
    """Each derivative by autograd of autograd, one input after the other."""
    fields, y = sk.Fields(fields), student(x)

    def term(o, e, c):
        d = y[:, o : o + 1]
        for i, times in enumerate(e):
            for _ in range(times):
                grad = torch.autograd.grad
                grads = grad(d.sum(), x, create_graph=True, allow_unused=True)[0] if d.requires_grad else None
                d = torch.zeros_like(d) if grads is None else grads[:, i : i + 1]
        return float(c) * d

    return [sum(term(o, e, c) for o, p in fields.read(n).items() for e, c in p.items()) for n in names]


def agree(student, fields, names, N=5, dtype=torch.float64, again=False):
    """Values, and gradients of a loss in which all of them meet, and once more `again`."""
    torch.manual_seed(0)
    names = [name.strip() for name in names.split(",")]
    x = torch.rand(N, len(sk.Fields(fields).inputs), dtype=dtype, requires_grad=True)
    asking = [x, *student.parameters()]
    tensors = []
    for evaluate in (lambda: list(sk.partials(student, x, names, fields=fields).values()),
                     lambda: by_hand(student, x, names, fields)):  # fmt: skip
        outputs = evaluate()
        assert all(output.shape == (N, 1) for output in outputs)
        loss = sum((output.sin() * outputs[0].cos() + output.square()).sum() for output in outputs)
        gradients = torch.autograd.grad(loss, asking, create_graph=again, materialize_grads=True)
        tensors.append([*outputs, *gradients])
        if again:
            second = sum(g.square().sum() for g in gradients)
            tensors[-1] += torch.autograd.grad(second, asking, materialize_grads=True)
    for i, (got, expected) in enumerate(zip(*tensors, strict=True)):
        assert_within_rule(f"tensor {i}", got.detach(), expected.detach())


@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "gelu", "softplus"])
@pytest.mark.parametrize("fields, names", [row[1:3] for row in COUNTS], ids=[row[0] for row in COUNTS])
def test_every_plan(fields, names, activation):
    f = sk.Fields(fields)
    agree(sk.MLP(len(f.inputs), len(f.outputs), width=7, depth=2, activation=activation).double(), fields, names)


def layers(*modules):
    return nn.Sequential(*modules).double()


STUDENTS = {
    "no bias, and an activation at the end": lambda: sk.MLP(2, 3, width=5, bias=False, last_activation="silu"),
    "one linear layer": lambda: sk.MLP(2, 3, depth=0),
    "two linear layers in a row": lambda: layers(nn.Linear(2, 5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
    "linear layers behind": lambda: layers(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3)),
    "widths 1 and 13": lambda: layers(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 13), nn.SiLU(), nn.Linear(13, 3)),
    "no MLP": lambda: Functional(lambda z: z * torch.sin(z), 3),
    "no MLP, and linear": lambda: Functional(lambda z: 2 * z, 3),
}


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
def test_students_and_three_outputs_in_one_sum(student):
    names = "v, u_x + v_t - 1/4*p_xx, p_xt, .5 * u + 2e-1*u_t"
    agree(student().double(), "x t -> u v p", names, again=True)


@pytest.mark.parametrize("names", ["u_xx", "u_x", "u"])
def test_one_name_alone_and_what_it_does_not_depend_on(names):
    """The last bias has no part in a derivative: its gradient is 0, not None."""
    for student in (sk.MLP(1, 1, width=3).double(), sk.MLP(1, 1, depth=0).double()):
        x = torch.rand(4, 1, dtype=torch.float64, requires_grad=True)
        sk.partials(student, x, names, fields="x -> u")[names].sum().backward()
        assert all(tensor.grad is not None for tensor in (x, *student.parameters()))
    agree(sk.MLP(1, 1, width=3).double(), "x -> u", names, again=True)


def test_orders_3_and_4_beside_a_function_of_the_same_layers():
    """What is no MLP goes by autograd, and gives the same numbers."""
    student, x = sk.MLP(2, 1, width=9, activation="gelu").double(), torch.rand(6, 2, dtype=torch.float64)
    names = ["u", "u_xxt", "u_xxxx + u_ttxx"]
    plain = sk.partials(lambda x: student(x)[:, 0], x, names, fields="x t -> u")
    for name, got in sk.partials(student, x, names, fields="x t -> u").items():
        assert_within_rule(name, plain[name].detach(), got.detach())


@pytest.mark.parametrize("N", [0, 1])
def test_few_samples_and_no_gradients(N):
    student, x = sk.MLP(2, 1, width=4), torch.rand(N, 2)
    for function in (student, lambda x: student(x)):
        with torch.no_grad():
            got = sk.partials(function, x, "u, u_xxt", fields="x t -> u")
        assert [tuple(d.shape) for d in got.values()] == [(N, 1)] * 2
        assert not any(d.requires_grad for d in got.values())


def test_half_precision_is_computed_in_float32():
    student, x = sk.MLP(2, 1, width=16), torch.rand(9, 2)
    student, x = student.bfloat16(), x.bfloat16()
    got = sk.partials(student, x, "u_xxx", fields="x t -> u")["u_xxx"]
    exact = sk.partials(student.double(), x.double(), "u_xxx", fields="x t -> u")["u_xxx"]
    assert got.dtype is torch.bfloat16
    assert_within_rule("u_xxx", got.detach(), exact.detach())


def test_compiled_and_under_transforms():
    student, x = sk.MLP(2, 1, width=8).double(), torch.rand(5, 2, dtype=torch.float64)
    loss = lambda x: sk.partials(student, x, "u, u_t, u_xxx", fields="x t -> u")["u_xxx"].square().sum()  # noqa: E731
    plain = loss(x)
    plain.backward()
    expected = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    compiled.backward()
    torch.testing.assert_close(compiled, plain, **ANOTHER_WAY)
    for p, gradient in zip(student.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, **ANOTHER_WAY)
    leaf = x.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), of_x, **ANOTHER_WAY)


class Functional(nn.Module):
    def __init__(self, function, O=1):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(2, 6), nn.Linear(6, O), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


KINKED = [
    (sk.MLP(2, 1, activation="relu"), "u_xx", "up to order 1 with relu"),
    (sk.MLP(2, 1, activation="elu"), "u_xxt", "up to order 2 with elu"),
    (sk.MLP(2, 1, activation="softsign"), "u_xxt", "up to order 2 with softsign"),
    (Functional(functional.relu), "u_xt", "up to order 1 with Relu"),
    (Functional(lambda z: z.clamp(min=0)), "u_xx", "up to order 1 with Clamp"),
    (Functional(functional.elu), "u_xxx", "up to order 2 with Elu"),
    (nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), "u_xx", "of order 1 with ReLU"),
    (Functional(lambda z: z.detach()), "u_x", "silent zero"),
    (Functional(lambda z: z - z.mean(0)), "u_x", "mixes samples"),
]  # fmt: skip


@pytest.mark.parametrize("student, names, message", KINKED, ids=[row[2] for row in KINKED])
def test_what_is_not_sound_is_refused(student, names, message):
    with pytest.raises(sk.NotProvided, match=message):
        sk.partials(student, torch.rand(40, 2), names, fields="x t -> u")


def test_kinks_below_their_order():
    for activation, names in (("relu", "u, u_t"), ("elu", "u_xx"), ("softsign", "u_xx, u")):
        agree(sk.MLP(2, 1, width=5, activation=activation).double(), "x t -> u", names)
    agree(Functional(functional.relu).double(), "x t -> u", "u, u_t")


STUDENT, X = sk.MLP(2, 1, width=3), torch.rand(4, 2)
BAD = [
    ({"names": ["u_y"]}, ValueError, "names: expected inputs x, t after the underscore, got u_y; did you mean 'u"),
    ({"names": ["w_x"]}, ValueError, "names: expected one of u before the underscore"),
    ({"names": ["u_"]}, ValueError, "names: expected inputs x, t after the underscore, got u_"),
    ({"names": ["u_x u_t"]}, ValueError, "names: expected a derivative as 'u', 'u_xt'"),
    ({"names": ["u_x +"]}, ValueError, "(at '+')"),
    ({"names": [""]}, ValueError, "(at 'nothing')"),
    ({"names": ["u*u_x"]}, ValueError, "names: expected a derivative"),
    ({"names": ["u_x - u_x"]}, ValueError, "names: expected a sum that is not 0, got u_x - u_x"),
    ({"names": ["1/0*u"]}, ValueError, "names: expected no division by 0"),
    ({"names": ["1e400*u"]}, ValueError, "names: expected coefficients of 1e-30 to 1e+30"),
    ({"names": ["u_x + 1e-31*u"]}, ValueError, "names: expected coefficients of 1e-30 to 1e+30"),
    ({"names": ["u_xxxxx"]}, NotImplementedError, "names: expected derivatives up to order 4, got 'u_xxxxx', of"),
    ({"names": [3]}, TypeError, "names: expected texts, as 'u_xx', got 3"),
    ({"names": []}, ValueError, "names: expected a list of derivatives"),
    ({"names": None}, TypeError, "names: expected a list of derivatives"),
    ({"names": ["u", "u"]}, ValueError, "names: expected each derivative once"),
    ({"fields": 3}, TypeError, "fields: expected a sobolev_kernels.Fields"),
    ({"fields": "x t"}, ValueError, "names: expected inputs and outputs, as"),
    ({"fields": "x x -> u"}, ValueError, "names: expected each name once, got 'x' twice"),
    ({"fields": "x_1 t -> u"}, ValueError, "names: expected letters and digits, a letter first, got x_1"),
    ({"fields": "x xt -> u"}, ValueError, "names: expected inputs of which none begins with another"),
    ({"fields": "x y t -> u"}, ValueError, "fields: expected 2 inputs, as x has columns, got 3"),
    ({"fields": "x t -> u v"}, ValueError, "fields: expected 1 outputs, as the student has, got 2"),
    ({"fields": "x t -> u v", "student": lambda x: STUDENT(x)}, ValueError, "student: expected outputs [4, 2]"),
    ({"x": X[0]}, ValueError, "inputs: expected a tensor [N, D]"),
    ({"x": X.double()}, ValueError, "student: expected all parameters torch.float64"),
    ({"x": [1.0]}, TypeError, "inputs: expected a tensor [N, D]"),
    ({"student": "u"}, TypeError, "student: expected a torch.nn.Module, got u"),
    ({"nmaes": 1}, TypeError, "did you mean 'names'"),
]  # fmt: skip


@pytest.mark.parametrize("change, kind, message", BAD, ids=[row[2][:60] for row in BAD])
def test_refused_in_words(change, kind, message):
    arguments = {"student": STUDENT, "x": X, "names": ["u"], "fields": "x t -> u"} | change
    with pytest.raises(kind) as caught:
        sk.partials(arguments.pop("student"), arguments.pop("x"), **arguments)
    assert message in str(caught.value)


def test_constants_of_a_first_call_serve_all_others(monkeypatch):
    """One without gradients, or by one who follows each operation, leaves nothing that a backward could not read."""
    student, x = sk.MLP(2, 1, width=5), torch.rand(6, 2)
    call = lambda: sk.hessian(student, x)[2].sum()  # noqa: E731
    expected = call()
    for first in (torch.inference_mode, lambda: FakeTensorMode(allow_non_fake_inputs=True)):
        monkeypatch.setattr(constants, "KEPT", {})
        with first() as mode:
            constants.kept((1, 2), torch.int64, x.device)
            if mode is None:
                call()
        (found := call()).backward()
        torch.testing.assert_close(found, expected)
        assert all(type(tensor) is torch.Tensor and not tensor.is_inference() for tensor in constants.KEPT.values())
        assert constants.KEPT


@pytest.mark.parametrize("where", ["a sample", "a weight"])
def test_what_is_no_number_is_given_as_none(where):
    """As by PyTorch, and it does not pass for samples that see each other; which is refused beside it, too."""
    torch.manual_seed(0)
    student, x = (
        nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double(),
        torch.rand(5, 2, dtype=torch.float64),
    )
    right = sk.partials(student, x, "u_x, u_xx", fields="x t -> u")
    with torch.no_grad():
        (x if where == "a sample" else student[0].weight)[0, 0] = torch.nan
    for name, got in sk.partials(student, x, "u_x, u_xx", fields="x t -> u").items():
        expected = right[name].clone()
        expected[: 1 if where == "a sample" else None] = torch.nan
        torch.testing.assert_close(got, expected, equal_nan=True, **ANOTHER_WAY)
    if where == "a sample":
        with pytest.raises(sk.NotProvided, match="mixes samples"):
            sk.partials(lambda x: student(x + x.roll(1, 0)), x, "u_x", fields="x t -> u")

"""Which modules are recognised as an MLP and why others are not; and that those others are computed all the same."""

import pytest
import torch
from test_reference import written_out
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.math.table import Formula
from sobolev_kernels.modules import IDENTITY, MODULES, to_module
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import step
from sobolev_kernels.testing.problems import Shape, data

SHAPE = Shape(6, 3, 5, 1, 2, 3, "small and odd")
torch.manual_seed(0)  # for the students that are made while this file is read


def mlp(*between):
    return nn.Sequential(nn.Linear(3, 5), *between, nn.Linear(5, 2))


def with_parameters(name):
    """Formulas of a row: with the parameters it has by default, and with others."""
    defaults = [value for _, value in sk.ACTIVATIONS[name].defaults]
    return [Formula(name, tuple(parameters)) for parameters in {tuple(defaults), tuple(0.6 * v for v in defaults)}]


FORMULAS = [formula for name in sk.ACTIVATIONS for formula in with_parameters(name)] + [Formula("sin", (30.0,))]
AS_MODULES = [(to_module(formula), formula) for formula in FORMULAS]
AS_MODULES += [
    (nn.ReLU(inplace=True), Formula("relu")),
    (nn.Softplus(beta=2, threshold=7), Formula("softplus", (2.0, 7.0))),
]


@pytest.mark.parametrize("module, formula", AS_MODULES, ids=repr)
def test_an_activation_is_recognised_with_its_parameters(module, formula):
    student = recognise(mlp(module))
    assert student.activations == (formula, IDENTITY)
    assert recognise(nn.Sequential(nn.Linear(3, 2), module)).activations == (formula,)


@pytest.mark.parametrize("module, formula", AS_MODULES, ids=repr)
def test_the_table_computes_what_the_module_does(module, formula):
    """On both sides of a threshold and of 0, which test inputs of unit size would not reach."""
    torch.manual_seed(0)
    student = mlp(module).double()
    with torch.no_grad():
        student[0].weight.mul_(8)
    x = torch.randn(40, 3, dtype=torch.float64)
    y, _ = sk.jvp(student, x, torch.ones(1, len(x), 3, dtype=torch.float64))
    assert_within_rule("y", y, student(x), again=lambda: student(x))


@pytest.mark.parametrize("name", sk.ACTIVATIONS)
def test_a_name_becomes_its_module_and_is_recognised_again(name):
    defaults = tuple(value for _, value in sk.ACTIVATIONS[name].defaults)
    student = sk.MLP(3, 2, width=5, depth=2, activation=name, last_activation=name)
    assert recognise(student).activations == (Formula(name, defaults),) * 3


def nested():
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        nn.Sequential(sk.MLP(4, 6, width=5, depth=1), nn.ReLU()),
        nn.Linear(6, 2),
    )


LAYERS = [
    ("one linear layer", nn.Linear(3, 2), (3, 2), "identity"),
    ("linear layers only", mlp(), (3, 5, 2), "identity identity"),
    ("nested Sequentials", nested(), (3, 4, 5, 6, 2), "tanh tanh relu identity"),
    (
        "Identity anywhere",
        nn.Sequential(nn.Identity(), mlp(nn.Identity(), nn.Tanh(), nn.Identity())),
        (3, 5, 2),
        "tanh identity",
    ),
    ("an empty Sequential", nn.Sequential(nn.Sequential(), mlp(nn.ELU())), (3, 5, 2), "elu(1) identity"),
    ("an activation at the end", nn.Sequential(mlp(nn.Tanh()), nn.Sigmoid()), (3, 5, 2), "tanh sigmoid"),
    ("a materialised LazyLinear", nn.Sequential(nn.LazyLinear(2)), (3, 2), "identity"),
]


@pytest.mark.parametrize("module, widths, activations", [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_the_layers_of_a_student(module, widths, activations):
    module(torch.zeros(1, 3))
    student = recognise(module)
    assert student.widths == widths
    assert " ".join(map(str, student.activations)) == activations
    assert all(a is b for a, b in zip(student.parameters, module.parameters(), strict=True))


def test_layers_without_bias_have_fewer_parameters():
    student = recognise(nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)))
    assert student.biases == (False, True)
    assert [tuple(p.shape) for p in student.parameters] == [(5, 3), (2, 5), (2,)]


def hooked(register):
    student = mlp(nn.Tanh())
    getattr(student[0], register)(lambda *_: None)
    return student


def replaced_forward():
    student = mlp(nn.Tanh())
    student[0].forward = lambda x: 2 * nn.functional.linear(x, student[0].weight)
    return student


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnMLP(sk.MLP):
    def forward(self, x):
        return 2 * super().forward(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = mlp(nn.SiLU()), nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x) + self.last(x)


def parametrized():
    student = mlp(nn.Tanh())
    nn.utils.parametrizations.weight_norm(student[0])
    return student


def scaled():
    scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    return lambda x: (scale * x).sin()[:, :2]


UNRECOGNISED = [
    ("forward hook", hooked("register_forward_hook"), "Linear has hooks"),
    ("forward pre-hook", hooked("register_forward_pre_hook"), "Linear has hooks"),
    ("backward hook", hooked("register_full_backward_hook"), "Linear has hooks"),
    ("forward replaced", replaced_forward(), "Linear has its forward replaced"),
    ("weight_norm", parametrized(), "ParametrizedLinear is not one of Linear and "),
    ("subclass of Linear", mlp(OwnLinear(5, 5)), "OwnLinear is not one of Linear and "),
    ("subclass of MLP", OwnMLP(3, 2, width=5), "OwnMLP is not one of Linear and "),
    ("two activations", mlp(nn.Tanh(), nn.Sigmoid()), "Sigmoid does not follow a linear layer"),
    ("activation first", nn.Sequential(nn.Tanh(), mlp()), "Tanh does not follow a linear layer"),
    ("no linear layer", nn.Sequential(nn.Identity()), "the student has no linear layer"),
    ("Dropout", mlp(nn.Tanh(), nn.Dropout()).eval(), "Dropout is not one of Linear and "),
    ("LayerNorm", mlp(nn.LayerNorm(5), nn.Tanh()), "LayerNorm is not one of Linear and "),
    ("other activation", mlp(nn.Hardswish()), "Hardswish is not one of Linear and "),
    ("residual", Residual(), "Residual is not one of Linear and "),
    ("function", scaled(), "the student is a function, not a torch.nn.Sequential"),
]
BY_NAME = {name: student for name, student, _ in UNRECOGNISED}


@pytest.mark.parametrize("student, reason", [row[1:] for row in UNRECOGNISED], ids=[row[0] for row in UNRECOGNISED])
def test_the_reason_of_an_unrecognised_student(student, reason):
    assert recognise(student).reason.startswith(reason)


def test_a_reason_lists_the_known_modules():
    assert all(row.kind.__name__ in recognise(mlp(nn.Hardtanh())).reason for row in MODULES.values())


def test_layers_that_do_not_fit_are_a_reason():
    reason = recognise(nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 2))).reason
    assert reason == "a linear layer takes 4 features after one that gives 5"


def assert_same_gradients(got, expected, inputs):
    """None, that is no dependence, counts as a number of its own."""
    gradients = [torch.autograd.grad(f, inputs, allow_unused=True) for f in (got, expected)]
    for i, (g, e) in enumerate(zip(*gradients, strict=True)):
        assert (g is None) == (e is None), f"gradient {i}"
        if g is not None:
            assert_within_rule(f"gradient {i}", g, e)


@pytest.mark.filterwarnings("ignore:.*so the reference takes its derivatives:sobolev_kernels.SobolevWarning")
@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - {"no linear layer"}))
def test_an_unrecognised_student_is_computed_by_the_reference(name):
    student = BY_NAME[name]
    module = isinstance(student, nn.Module)
    parameters = list(student.double().parameters()) if module else [student.__closure__[0].cell_contents]
    numbers = data(SHAPE).to(torch.float64)
    directions = sk.Directions.sphere(3, seed=1)
    x = numbers.x.requires_grad_()
    targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
    loss = sk.sobolev_loss(student, x, targets, directions=directions, weights=(0.7, 1.9))
    expected = written_out(student, x, numbers.y, numbers.jacobian, directions.tensor(x), (0.7, 1.9))
    assert_within_rule("loss", loss, expected)
    assert_same_gradients(loss, expected, (x, *parameters))


def test_jvp_of_an_unrecognised_student():
    student = BY_NAME["residual"].double()
    x, v = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 6, 3, dtype=torch.float64)
    y, tangents = sk.jvp(student, x, v)
    assert_within_rule("y", y, student(x))
    rows = [torch.autograd.grad(student(x)[:, o].sum(), x, create_graph=True)[0] for o in range(2)]
    expected = torch.einsum("nod,pnd->pno", torch.stack(rows, 1), v)
    assert_within_rule("tangents", tangents, expected)
    # a last bias within a fused segment gets zeros, as that of a fused student does
    how = {"allow_unused": True, "materialize_grads": True}
    got, wanted = (
        torch.autograd.grad(t.square().sum(), (x, *student.parameters()), **how) for t in (tangents, expected)
    )
    for i, (g, e) in enumerate(zip(got, wanted, strict=True)):
        assert_within_rule(f"gradient {i}", g, e)


@pytest.mark.parametrize(
    "call",
    [
        lambda student, x: sk.vjp(student, x, sk.Cotangents.basis())[1].sum(),
        lambda student, x: sk.sobolev_loss(
            student,
            x,
            sk.Targets(values=x[:, :2].detach(), jacobian=torch.ones(6, 2, 3)),
            cotangents=sk.Cotangents.sphere(2),
        ),
    ],
)
@pytest.mark.parametrize("wanted", [False, True])
def test_an_unrecognised_student_is_run_once(call, wanted):
    """Its outputs are counted and its gradients taken in the same run; that matters for dropout and statistics."""
    runs, student = [], mlp(nn.LayerNorm(5), nn.Tanh())
    student.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    with torch.set_grad_enabled(wanted):
        result = call(student, torch.randn(6, 3))
    assert runs == [True] and result.requires_grad == wanted


@pytest.mark.parametrize("norm", [nn.LayerNorm(5, elementwise_affine=False), nn.RMSNorm(5), nn.BatchNorm1d(5).eval()])
def test_norms_depend_on_their_input(norm):
    """torch's jvp of layer_norm, differentiated, takes mean and deviation for constants (pytorch#196700)."""
    student = mlp(norm, nn.Tanh()).double()
    x, v = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.randn(1, 6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sk.jvp(student, x, v), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_unrecognised_student_keeps_its_half_precision(dtype):
    """It is the user's own module, and only it knows what to compute in."""
    base = data(SHAPE).to(dtype)
    base.student = mlp(nn.LayerNorm(5), nn.Tanh()).to(dtype)
    exact = base.to(torch.float64)
    got = step(base, sk.Directions.basis(), "reference", weights=(1.0, 0.0))
    expected = step(exact, sk.Directions.basis(), "reference", weights=(1.0, 0.0))
    base.student.zero_grad()
    plain = (base.student(base.x) - base.y).square().mean()
    plain.backward()
    assert_within_rule("value", got["value"], expected["value"], plain)
    for name, parameter in base.student.named_parameters():
        assert got[f"d{name}"].dtype == dtype
        assert_within_rule(name, got[f"d{name}"], expected[f"d{name}"], parameter.grad)


def test_a_module_used_twice_gets_the_sum_of_both_gradients():
    shared = nn.Linear(3, 3).double()
    student = nn.Sequential(shared, nn.Tanh(), shared)
    x, y, jacobian = (torch.randn(shape, dtype=torch.float64) for shape in ((6, 3), (6, 3), (6, 3, 3)))
    results = []
    for backend in ("cpu", "reference"):
        targets = sk.Targets(values=y, jacobian=jacobian)
        loss = sk.sobolev_loss(student, x, targets, directions=sk.Directions.basis(), backend=backend)
        results.append([loss, *torch.autograd.grad(loss, shared.parameters())])
    for got, expected in zip(*results, strict=True):
        assert_within_rule("shared layer", got, expected)


@pytest.mark.parametrize(
    "options, widths",
    [
        ({}, (3, 256, 256, 2)),
        ({"width": 7}, (3, 7, 7, 2)),
        ({"width": 7, "depth": 0}, (3, 2)),
        ({"width": 1, "depth": 4}, (3, 1, 1, 1, 1, 2)),
    ],
    ids=str,
)
def test_sizes_of_mlp(options, widths):
    student = sk.MLP(3, 2, **options)
    layers = recognise(student)
    assert layers.widths == widths
    assert [f.name for f in layers.activations] == ["tanh"] * (len(widths) - 2) + ["identity"]
    assert student(torch.zeros(4, 3)).shape == (4, 2)


def test_options_of_mlp():
    student = sk.MLP(
        3, 2, width=4, activation=("sin", 30.0), last_activation="softplus", bias=False, dtype=torch.float64
    )
    layers = recognise(student)
    assert list(map(str, layers.activations)) == ["sin(30)", "sin(30)", "softplus(1, 20)"]
    assert layers.biases == (False, False, False)
    assert {p.dtype for p in layers.parameters} == {torch.float64}
    assert sk.MLP(3, 2, device="meta")[0].weight.device.type == "meta"


def test_slices_of_mlp_are_sequentials_of_its_own_modules():
    student = sk.MLP(3, 2, width=5, depth=2)
    x, cut = torch.rand(4, 3), student[:-1]
    assert type(cut) is nn.Sequential and cut[0] is student[0] and student[-1].out_features == 2
    assert torch.equal(student[-1](cut(x)), student(x)) and recognise(student[:3]).widths == (3, 5, 5)
    assert student[2:].state_dict().keys() == nn.Sequential(*student)[2:].state_dict().keys()


def test_sine_is_the_sine():
    z = torch.linspace(-2, 2, 9)
    assert torch.equal(sk.Sine(3)(z), torch.sin(3 * z))
    assert str(sk.Sine(3)) == "Sine(omega=3)"

"""Bad input is refused in words: the argument, what was expected, what came. What is not provided is never zero."""

import copy
import re

import pytest
import torch
from problems import Shape, data, directions_of
from test_reference import written_out
from torch import nn
from torch.autograd import forward_ad

import sobolev_kernels as sk
from sobolev_kernels.testing import assert_within_rule

N, D, O, P = 6, 3, 2, 2
SHAPE = Shape(N, D, 5, 1, O, P, "small, and all sizes differ where a mistake could hide")
NUMBERS = data(SHAPE)
STUDENT, X, Y, J = NUMBERS.student, NUMBERS.x, NUMBERS.y, NUMBERS.jacobian
V = directions_of("given", SHAPE).values  # [P, N, D]
T = torch.einsum("nod,pnd->pno", J, V)  # [P, N, O]
TARGETS = sk.Targets(values=Y, jacobian=J)
SPHERE = sk.Directions.sphere(P)
ACTIVATION_NAMES = ", ".join(sk.ACTIVATIONS)
NEEDS_TARGET = "targets: expected a derivative target, since its weight is not zero"


def loss(student=STUDENT, x=X, targets=TARGETS, **settings):
    return sk.sobolev_loss(student, x, targets, **{"directions": None, **settings})


def with_targets(directions=SPHERE, **targets):
    return loss(targets=sk.Targets(**targets), directions=directions)


ENTRIES = {
    "sobolev_loss": lambda student, x, directions: loss(student, x, directions=directions),
    "SobolevLoss": lambda student, x, directions: sk.SobolevLoss(directions=directions)(student, x, TARGETS),
    "jvp": lambda student, x, directions: sk.jvp(student, x, directions),
    "explain": lambda student, x, directions: sk.explain(student, x, directions),
}


def assert_refused(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert message in str(caught.value)


def ids(rows):
    return [row[0] for row in rows]


def fresh(change=lambda student: None):
    student = copy.deepcopy(STUDENT)
    change(student)
    return student


def not_a_number(tensor, value=torch.nan):
    tensor = tensor.detach().clone()
    tensor.view(-1)[1] = value
    return tensor


def needs_grad(tensor):
    return tensor.detach().clone().requires_grad_()


def second_layer_on_meta(student):
    student[2].to("meta")


ON_META = "student: expected all parameters torch.float32 on cpu, as the inputs are, got parameter"
BAD_INPUTS = [
    ("not a tensor", STUDENT, [1.0], TypeError, "inputs: expected a tensor [N, D], got [1.0]"),
    ("rank 1", STUDENT, X[0], ValueError, "inputs: expected a tensor [N, D], got a tensor float32 [3] on cpu"),
    ("rank 3", STUDENT, X[None], ValueError, "inputs: expected a tensor [N, D], got a tensor float32 [1, 6, 3] on cpu"),
    (
        "wrong D", STUDENT, X[:, :2], ValueError,
        "inputs: expected [N, 3], since the student takes 3 features, got a tensor float32 [6, 2] on cpu",
    ),
    ("integers", STUDENT, X.long(), ValueError, "inputs: expected a floating dtype (torch.float32, torch.float64, "),
    ("complex", STUDENT, X.cfloat(), ValueError, "got a tensor complex64 [6, 3] on cpu"),
    (
        "another dtype than the student's", STUDENT, X.double(), ValueError,
        "student: expected all parameters torch.float64 on cpu, as the inputs are, got parameter 0, a tensor float32",
    ),
    ("on another device", STUDENT, X.to("meta"), ValueError, "torch.float32 on meta, as the inputs are, got parameter 0"),
    ("student on another device", fresh().to("meta"), X, ValueError, ON_META + " 0, a tensor float32 [5, 3] on meta"),
    (
        "student on two devices", fresh(second_layer_on_meta), X, ValueError,
        ON_META + " 2, a tensor float32 [2, 5] on meta",
    ),
    ("student of two dtypes", fresh(lambda s: s[2].double()), X, ValueError, ON_META + " 2, a tensor float64 [2, 5] on cpu"),
    (
        "unrecognised student of another dtype", nn.Sequential(nn.LayerNorm(3, dtype=torch.float64)), X, ValueError,
        ON_META + " 0, a tensor float64 [3] on cpu",
    ),
    ("student is a name", "student", X, TypeError, "student: expected a torch.nn.Module, got student"),
    ("no student", None, X, TypeError, "student: expected a torch.nn.Module, got None"),
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("student, x, kind, message", [row[1:] for row in BAD_INPUTS], ids=ids(BAD_INPUTS))
def test_student_and_inputs(student, x, kind, message, entry):
    assert_refused(lambda: entry(student, x, SPHERE), kind, message)


BAD_DIRECTIONS = [
    ("wrong D", V[..., :2], "directions: expected torch.float32 [P, 6, 3] on cpu, as the inputs are, got a tensor float32 [2, 6, 2]"),
    ("wrong N", V[:, :4], "directions: expected torch.float32 [P, 6, 3] on cpu, as the inputs are, got a tensor float32 [2, 4, 3]"),
    ("wrong D, shared", V[:, 0, :2], "directions: expected torch.float32 [P, 3] on cpu, as the inputs are, got a tensor float32 [2, 2]"),
    ("another dtype", V.double(), "directions: expected torch.float32 [P, 6, 3] on cpu, as the inputs are, got a tensor float64"),
    ("integers", V.long(), "directions: expected torch.float32 [P, 6, 3] on cpu, as the inputs are, got a tensor int64"),
    ("another device", V.to("meta"), "got a tensor float32 [2, 6, 3] on meta"),
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("v, message", [row[1:] for row in BAD_DIRECTIONS], ids=ids(BAD_DIRECTIONS))
def test_given_directions_that_do_not_fit(v, message, entry):
    directions = sk.Directions.given(v)
    assert_refused(lambda: entry(STUDENT, X, directions), ValueError, message)
    assert_refused(lambda: directions.tensor(X), ValueError, message)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_more_orthonormal_directions_than_dimensions(entry):
    message = "directions: expected at most D = 3 orthonormal directions, got P = 4"
    assert_refused(lambda: entry(STUDENT, X, sk.Directions.orthonormal(4)), ValueError, message)
    assert_refused(lambda: sk.Directions.orthonormal(4).tensor(X), ValueError, message)


@pytest.mark.parametrize("entry", [sk.sobolev_loss, sk.SobolevLoss, sk.explain], ids=lambda f: f.__name__)
def test_a_tensor_instead_of_directions(entry):
    call = {
        sk.sobolev_loss: lambda: loss(directions=V),
        sk.SobolevLoss: lambda: sk.SobolevLoss(directions=V),
        sk.explain: lambda: sk.explain(STUDENT, X, V),
    }[entry]
    message = "directions: expected a sobolev_kernels.Directions (given(tensor) makes one of a tensor), got a tensor"
    assert_refused(call, TypeError, message)


@pytest.mark.parametrize("distribution", ["sphere", "normal", "rademacher", "coordinate", "orthonormal"])
@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None], ids=repr)
def test_number_of_directions(distribution, count):
    message = f"P: expected a whole number of directions, at least 1, got {count}"
    assert_refused(lambda: getattr(sk.Directions, distribution)(count), ValueError, message)


SEED = "seed: expected None or an integer in [0, 2^63), got "
OFFSET = "offset: expected an integer in [0, 2^32), got "
GIVEN = "directions: expected a tensor [P, N, D] or [P, D], got "
DIRECTIONS = [
    *((f"seed {s!r}", lambda s=s: sk.Directions.sphere(seed=s), ValueError, f"{SEED}{s}") for s in (-1, 2**63, 1.5, True)),
    *((f"offset {i!r}", lambda i=i: sk.Directions.sphere(seed=1).at(i), ValueError, f"{OFFSET}{i}") for i in (-1, 2**32, 1.5, True)),
    ("offset without a seed", lambda: SPHERE.at(1), ValueError, "offset: expected directions with a seed, got Directions("),
    ("given a list", lambda: sk.Directions.given([1.0]), TypeError, GIVEN + "[1.0]"),
    ("given rank 1", lambda: sk.Directions.given(V[0, 0]), ValueError, GIVEN + "a tensor float32 [3] on cpu"),
    ("given rank 4", lambda: sk.Directions.given(V[None]), ValueError, GIVEN + "a tensor float32 [1, 2, 6, 3] on cpu"),
    ("given P = 0", lambda: sk.Directions.given(V[:0]), ValueError, "directions: expected at least one direction (P >= 1), got"),
    (
        "given with requires_grad", lambda: sk.Directions.given(needs_grad(V)), ValueError,
        "directions: expected a tensor without requires_grad (no gradient is provided), got a tensor float32 [2, 6, 3] "
        "on cpu, requires_grad",
    ),
    ("tensor of a list", lambda: SPHERE.tensor([1.0]), TypeError, "inputs: expected a tensor [N, D], got [1.0]"),
    ("tensor of rank 1", lambda: SPHERE.tensor(X[0]), ValueError, "inputs: expected a floating tensor [N, D], got a tensor"),
    ("tensor of integers", lambda: SPHERE.tensor(X.long()), ValueError, "got a tensor int64 [6, 3] on cpu"),
    ("jvp along a list", lambda: sk.jvp(STUDENT, X, [1.0]), TypeError, GIVEN + "[1.0]"),
    ("jvp along requires_grad", lambda: sk.jvp(STUDENT, X, needs_grad(V)), ValueError, "(no gradient is provided)"),
    (
        "both in targets and in the call", lambda: with_targets(SPHERE, values=Y, tangents=T, directions=V), ValueError,
        "directions: expected either in targets or in the call, got both",
    ),
    (
        "tangents along unfixed directions", lambda: with_targets(values=Y, tangents=T), ValueError,
        "directions: expected those the target tangents belong to: given(tensor), a seed, or basis(), got Directions(",
    ),
    ("tangents along nothing", lambda: with_targets(None, values=Y, tangents=T), ValueError, "or basis(), got None"),
    (
        "targets with the name of a distribution", lambda: sk.Targets(tangents=T, directions="sphere"), TypeError,
        "directions: expected a sobolev_kernels.Directions or a tensor, got sphere",
    ),
]  # fmt: skip


def test_given_directions_are_not_printed_number_by_number():
    assert "tensor(" not in repr(sk.Directions.given(V))


GRAD = "expected a tensor without requires_grad (no gradient to targets is provided), got a tensor"
AS_INPUTS = "expected torch.float32 on cpu, as the inputs are, got a tensor"
BAD_TARGETS = [
    ("a tensor", lambda: loss(targets=Y), TypeError, "targets: expected a sobolev_kernels.Targets, got a tensor float32"),
    ("a tuple", lambda: loss(targets=(Y, J)), TypeError, "got a tuple of a tensor float32 [6, 2] on cpu, a tensor float32"),
    ("values a list", lambda: sk.Targets(values=[1]), TypeError, "values: expected a tensor, got [1]"),
    ("jacobian an array", lambda: sk.Targets(jacobian=J.numpy()), TypeError, "jacobian: expected a tensor, got array("),
    ("values with requires_grad", lambda: sk.Targets(values=needs_grad(Y)), ValueError, "values: " + GRAD),
    ("jacobian with requires_grad", lambda: sk.Targets(jacobian=needs_grad(J)), ValueError, "jacobian: " + GRAD),
    ("tangents with requires_grad", lambda: sk.Targets(tangents=needs_grad(T)), ValueError, "tangents: " + GRAD),
    ("teacher a number", lambda: sk.Targets(teacher=3), TypeError, "teacher: expected a callable, got 3"),
    (
        "two derivatives", lambda: sk.Targets(values=Y, jacobian=J, tangents=T), ValueError,
        "targets: expected one of jacobian, tangents and teacher, got jacobian and tangents",
    ),
    ("three", lambda: sk.Targets(jacobian=J, tangents=T, teacher=STUDENT), ValueError, "got jacobian and tangents and teacher"),
    ("no derivative", lambda: with_targets(values=Y), ValueError, NEEDS_TARGET + ", got values only; give jacobian, "),
    ("no derivative, in the module", lambda: sk.SobolevLoss()(STUDENT, X, sk.Targets(values=Y)), ValueError, NEEDS_TARGET),
    (
        "no values", lambda: with_targets(jacobian=J), ValueError,
        "targets: expected values, since the value term's weight is not zero, got none",
    ),
    ("nothing at all", lambda: with_targets(), ValueError, NEEDS_TARGET),
    ("values of wrong O", lambda: with_targets(values=Y[:, :1], jacobian=J), ValueError, "values: expected [6, 2], got a tensor float32 [6, 1]"),
    ("values of wrong N", lambda: with_targets(values=Y[:4], jacobian=J), ValueError, "values: expected [6, 2], got a tensor float32 [4, 2]"),
    ("values of rank 1", lambda: with_targets(values=Y[:, 0], jacobian=J), ValueError, "values: expected [6, 2], got a tensor float32 [6]"),
    ("values of rank 3", lambda: with_targets(values=Y[None], jacobian=J), ValueError, "values: expected [6, 2], got a tensor float32 [1, 6, 2]"),
    ("jacobian of wrong O", lambda: with_targets(values=Y, jacobian=J[:, :1]), ValueError, "jacobian: expected [6, 2, 3], got a tensor float32 [6, 1, 3]"),
    ("jacobian of wrong D", lambda: with_targets(values=Y, jacobian=J[..., :2]), ValueError, "jacobian: expected [6, 2, 3], got a tensor float32 [6, 2, 2]"),
    ("jacobian transposed", lambda: with_targets(values=Y, jacobian=J.mT), ValueError, "jacobian: expected [6, 2, 3], got a tensor float32 [6, 3, 2]"),
    ("jacobian of one output", lambda: with_targets(values=Y, jacobian=J[:, 0]), ValueError, "jacobian: expected [6, 2, 3], got a tensor float32 [6, 3]"),
    ("tangents of wrong P", lambda: with_targets(None, values=Y, tangents=T[:1], directions=V), ValueError, "tangents: expected [2, 6, 2], got a tensor float32 [1, 6, 2]"),
    ("tangents of wrong O", lambda: with_targets(None, values=Y, tangents=T[..., :1], directions=V), ValueError, "tangents: expected [2, 6, 2], got a tensor float32 [2, 6, 1]"),
    ("values of another dtype", lambda: with_targets(values=Y.double(), jacobian=J), ValueError, f"values: {AS_INPUTS} float64"),
    ("integer values", lambda: with_targets(values=Y.long(), jacobian=J), ValueError, f"values: {AS_INPUTS} int64"),
    ("jacobian of another dtype", lambda: with_targets(values=Y, jacobian=J.double()), ValueError, f"jacobian: {AS_INPUTS} float64"),
    ("tangents of another dtype", lambda: with_targets(None, values=Y, tangents=T.half(), directions=V), ValueError, f"tangents: {AS_INPUTS} float16"),
    ("values on another device", lambda: with_targets(values=Y.to("meta"), jacobian=J), ValueError, f"values: {AS_INPUTS} float32 [6, 2] on meta"),
    ("jacobian on another device", lambda: with_targets(values=Y, jacobian=J.to("meta")), ValueError, f"jacobian: {AS_INPUTS} float32 [6, 2, 3] on meta"),
]  # fmt: skip


def teach(teacher, backend=None):
    return loss(targets=sk.Targets(teacher=teacher), backend=backend)


TEACHERS = [
    ("D", sk.MLP(4, O, width=5), ValueError, "inputs: expected [N, 4], since the teacher takes 4 features, got a tensor"),
    ("O", sk.MLP(D, 1, width=5), ValueError, "teacher's values: expected [6, 2], got a tensor float32 [6, 1]"),
    ("O of a function", lambda x: x, ValueError, "teacher's values: expected [6, 2], got a tensor float32 [6, 3]"),
    ("dtype", sk.MLP(D, O, width=5).double(), ValueError, "teacher: expected all parameters torch.float32 on cpu, as the"),
    ("dtype of a function", lambda x: x.double()[:, :2], ValueError, f"teacher's values: {AS_INPUTS} float64 [6, 2]"),
    ("device", sk.MLP(D, O, width=5, device="meta"), ValueError, "got parameter 0, a tensor float32 [5, 3] on meta"),
    ("N of a function", lambda x: x[:4, :2], ValueError, "teacher: expected to return a tensor [6, O], got a tensor float32"),
    ("a tuple", lambda x: (x, x), ValueError, "teacher: expected to return a tensor [6, O], got a tuple of a tensor"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("teacher, kind, message", [row[1:] for row in TEACHERS], ids=ids(TEACHERS))
def test_teachers_that_do_not_fit(teacher, kind, message, backend):
    """A wrong size or dtype would be read beyond its end by a kernel."""
    assert_refused(lambda: teach(teacher, backend), kind, message)


OUTPUTS = [
    ("rank 1", lambda x: x[:, 0], "student: expected to return a tensor [6, O], got a tensor float32 [6] on cpu"),
    ("a scalar", lambda x: x.sum(), "student: expected to return a tensor [6, O], got a tensor float32 [] on cpu"),
    ("a tuple", lambda x: (x, x), "student: expected to return a tensor [6, O], got a tuple of a tensor float32"),
]


@pytest.mark.parametrize("student, message", [row[1:] for row in OUTPUTS], ids=ids(OUTPUTS))
def test_functions_whose_output_does_not_fit(student, message):
    assert_refused(lambda: loss(student), ValueError, message)
    assert_refused(lambda: sk.jvp(student, X, V), ValueError, message)


def test_a_function_of_another_number_of_outputs_is_not_broadcast():
    assert_refused(lambda: loss(lambda x: x[:, :1]), ValueError, "target: expected shape (6, 1), got (6, 2)")


WEIGHTS = [
    ((torch.nan, 1), "weights: expected finite numbers >= 0, got (nan, 1)"),
    ((1, torch.inf), "weights: expected finite numbers >= 0, got (1, inf)"),
    ((-1, 1), "weights: expected finite numbers >= 0, got (-1, 1)"),
    ((1, -0.5), "weights: expected finite numbers >= 0, got (1, -0.5)"),
    ((1,), "weights: expected two numbers (value, derivative), got (1,)"),
    ((1, 2, 3), "weights: expected two numbers (value, derivative), got (1, 2, 3)"),
    (1.0, "weights: expected two numbers (value, derivative), got 1.0"),
    ("12", "weights: expected two numbers (value, derivative), got 12"),
    (("a", "b"), "weights: expected two numbers (value, derivative), got ('a', 'b')"),
    ((1, None), "weights: expected two numbers (value, derivative), got (1, None)"),
    (None, "weights: expected two numbers (value, derivative), got None"),
    ((needs_grad(torch.ones(())), 1), "weights: expected plain numbers (no gradient to weights is provided), got a tensor"),
    (needs_grad(torch.ones(2)), "weights: expected plain numbers (no gradient to weights is provided), got a tensor"),
]  # fmt: skip


@pytest.mark.parametrize("weights, message", WEIGHTS, ids=[str(w) for w, _ in WEIGHTS])
def test_weights(weights, message):
    assert_refused(lambda: loss(weights=weights), ValueError, message)
    assert_refused(lambda: sk.SobolevLoss(weights=weights), ValueError, message)


LOSSES = [
    ("mae", ValueError, "unknown name 'mae'; known: mse, l1, huber, log_cosh"),
    (("nope", 1), ValueError, "unknown name 'nope'; known: mse, l1, huber, log_cosh"),
    (("mse", 1), ValueError, "'mse' takes no parameters, got (1,)"),
    (("huber", 1, 2), ValueError, "'huber' takes delta, got (1, 2)"),
    (("huber", "a"), ValueError, "the parameters of 'huber' must be numbers, got ('a',)"),
    (("huber", -1), ValueError, "delta of 'huber' must be a finite number > 0, got -1.0"),
    (("huber", 0), ValueError, "delta of 'huber' must be a finite number > 0, got 0.0"),
    (("huber", torch.nan), ValueError, "delta of 'huber' must be a finite number > 0, got nan"),
    (None, TypeError, "expected a name or a tuple (name, parameter, ...), got None"),
    ((), TypeError, "expected a name or a tuple (name, parameter, ...), got ()"),
    (["mse"], TypeError, "expected a name or a tuple (name, parameter, ...), got ['mse']"),
]


@pytest.mark.parametrize("argument", ["value_loss", "derivative_loss"])
@pytest.mark.parametrize("choice, kind, message", LOSSES, ids=[str(c) for c, *_ in LOSSES])
def test_losses(choice, kind, message, argument):
    assert_refused(lambda: loss(**{argument: choice}), kind, f"{argument}: {message}")
    assert_refused(lambda: sk.SobolevLoss(**{argument: choice}), kind, f"{argument}: {message}")


ACTIVATIONS = [
    ("swish", ValueError, f"unknown name 'swish'; known: {ACTIVATION_NAMES}"),
    (("relu", 0.1), ValueError, "'relu' takes no parameters, got (0.1,)"),
    (("softplus", 1, 2, 3), ValueError, "'softplus' takes beta, threshold, got (1, 2, 3)"),
    (("softplus", 0), ValueError, "beta of 'softplus' must be a finite number > 0, got 0.0"),
    (("sin", torch.nan), ValueError, "omega of 'sin' must be a finite number, got nan"),
    (nn.Tanh(), TypeError, "expected a name or a tuple (name, parameter, ...), got Tanh()"),
]


@pytest.mark.parametrize("argument", ["activation", "last_activation"])
@pytest.mark.parametrize("choice, kind, message", ACTIVATIONS, ids=[str(c) for c, *_ in ACTIVATIONS])
def test_activations(choice, kind, message, argument):
    assert_refused(lambda: sk.MLP(2, 1, **{argument: choice}), kind, f"{argument}: {message}")


SIZES = [(name, size) for name in ("D", "O", "width", "depth") for size in (0, -1, 2.0, True, "2")]


@pytest.mark.parametrize("name, size", [(name, size) for name, size in SIZES if (name, size) != ("depth", 0)])
def test_sizes(name, size):
    least = 0 if name == "depth" else 1
    message = f"{name}: expected a whole number, at least {least}, got {size}"
    assert_refused(lambda: sk.MLP(**{"D": 2, "O": 1, name: size}), ValueError, message)


@pytest.mark.parametrize("reduction", ["avg", None, ["mean"]], ids=str)
def test_reductions(reduction):
    message = f"reduction: expected one of mean, sum, none, got {reduction}"
    assert_refused(lambda: loss(reduction=reduction), ValueError, message)
    assert_refused(lambda: sk.SobolevLoss(reduction=reduction), ValueError, message)


@pytest.mark.parametrize("backend", ["gpu", 3], ids=str)
def test_backends(backend, monkeypatch):
    message = f"expected one of cpu, reference, got {backend}"
    calls = {
        "sobolev_loss": lambda backend: loss(backend=backend),
        "jvp": lambda backend: sk.jvp(STUDENT, X, V, backend=backend),
        "explain": lambda backend: sk.explain(STUDENT, X, backend=backend),
    }
    assert_refused(lambda: sk.SobolevLoss(backend=backend), ValueError, f"backend: {message}")
    for call in calls.values():
        assert_refused(lambda call=call: call(backend), ValueError, f"backend: {message}")
    monkeypatch.setenv("SOBOLEV_BACKEND", str(backend))
    for call in calls.values():
        assert_refused(lambda call=call: call(None), ValueError, f"SOBOLEV_BACKEND: {message}")


def test_a_forced_backend_does_not_fall_back(monkeypatch):
    student = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, O))
    message = (
        "backend: expected cpu to support this problem, got a refusal: LayerNorm is not one of Linear and Identity"
    )
    calls = [
        lambda backend: loss(student, backend=backend),
        lambda backend: sk.SobolevLoss(backend=backend)(student, X, TARGETS),
        lambda backend: sk.jvp(student, X, V, backend=backend),
        lambda backend: sk.explain(student, X, backend=backend),
    ]
    for call in calls:
        assert_refused(lambda call=call: call("cpu"), NotImplementedError, message)
    monkeypatch.setenv("SOBOLEV_BACKEND", "cpu")
    for call in calls:
        assert_refused(lambda call=call: call(None), NotImplementedError, message)
        call("reference")


NOT_FINITE = "expected finite numbers, got 1 that are not, in a tensor float32"
FINITE = [
    ("inputs", "inputs", lambda: {"x": not_a_number(X)}),
    ("infinite inputs", "inputs", lambda: {"x": not_a_number(X, torch.inf)}),
    ("values", "values", lambda: {"targets": sk.Targets(values=not_a_number(Y), jacobian=J)}),
    ("jacobian", "jacobian", lambda: {"targets": sk.Targets(values=Y, jacobian=not_a_number(J, -torch.inf))}),
    ("tangents", "tangents", lambda: {"targets": sk.Targets(values=Y, tangents=not_a_number(T), directions=V)}),
    ("directions", "directions", lambda: {"directions": sk.Directions.given(not_a_number(V))}),
    ("parameter", "student.2.weight", lambda: {"student": fresh(lambda s: s[2].weight.data.copy_(not_a_number(s[2].weight)))}),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name, arguments", [row[1:] for row in FINITE], ids=ids(FINITE))
def test_check_finite_names_the_tensor(name, arguments, backend):
    call = lambda: loss(**arguments(), check_finite=True, backend=backend)  # noqa: E731
    assert_refused(call, ValueError, f"{name}: {NOT_FINITE}")


def test_check_finite_changes_nothing_else():
    directions = sk.Directions.sphere(P, seed=1)
    assert torch.equal(loss(directions=directions, check_finite=True), loss(directions=directions))


REFUSALS = DIRECTIONS + BAD_TARGETS


@pytest.mark.parametrize("call, kind, message", [row[1:] for row in REFUSALS], ids=ids(REFUSALS))
def test_directions_and_targets(call, kind, message):
    assert_refused(call, kind, message)


EXACT = NUMBERS.to(torch.float64)
TENSORS = {"x": EXACT.x, "weight": EXACT.student[0].weight.detach(), "values": EXACT.y, "jacobian": EXACT.jacobian}
TENSORS["directions"] = V.double()
RESULTS = ["loss", "per sample", "jvp"]


class Calling(nn.Module):
    """Lets `functional_call` replace the parameters of a student that is handed on to a function."""

    def __init__(self, function):
        super().__init__()
        self.function, self.student = function, EXACT.student

    def forward(self):
        return self.function(self.student)


def call(result, backend, **replaced):
    """A scalar in float64; `replaced` tensors take the places of those in TENSORS, on whatever level they live."""
    tensors = {**TENSORS, **replaced}

    def function(student):
        if result == "jvp":
            return sk.jvp(student, tensors["x"], tensors["directions"], backend=backend)[1].square().sum()
        reduction = "none" if result == "per sample" else "mean"
        targets = sk.Targets(values=tensors["values"], jacobian=tensors["jacobian"])
        directions = sk.Directions.given(tensors["directions"])
        return sk.sobolev_loss(
            student, tensors["x"], targets, directions=directions, reduction=reduction, backend=backend
        ).sum()

    if "weight" not in replaced:
        return function(EXACT.student)
    return torch.func.functional_call(Calling(function), {"student.0.weight": replaced["weight"]}, ())


def make_dual(f, tensor):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(tensor, torch.ones_like(tensor)))).tangent


FORWARD = {
    "make_dual": make_dual,
    "torch.func.jvp": lambda f, t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1],
    "jacfwd": lambda f, t: torch.func.jacfwd(f)(t),
    "jacfwd of vmap": lambda f, t: torch.func.jacfwd(lambda t: torch.func.vmap(f)(t[None]))(t),
}
REVERSE = {
    "grad": lambda f, t: torch.func.grad(f)(t),
    "vjp": lambda f, t: torch.func.vjp(f, t)[1](torch.ones_like(f(t))),
    "jacrev": lambda f, t: torch.func.jacrev(f)(t),
    "vmap": lambda f, t: torch.func.vmap(f)(torch.stack((t, t))),
    "grad of grad": lambda f, t: torch.func.grad(lambda t: torch.func.grad(f)(t).sum())(t),
}
NO_FORWARD = re.compile(r'forward-mode AD: no tangent is provided .* silent zero\); pass backend="reference"')
NO_TRANSFORM = re.compile(r'torch\.func: grad, vjp, vmap .* do not go through the fused step; .* backend="reference"')
PLACES = [(r, name) for r in RESULTS for name in TENSORS if r != "jvp" or name in ("x", "weight", "directions")]


@pytest.mark.parametrize("way", FORWARD)
@pytest.mark.parametrize("result, name", PLACES)
def test_forward_mode_is_refused_and_never_zero(result, name, way):
    with pytest.raises(sk.NotProvided, match=NO_FORWARD):
        FORWARD[way](lambda tensor: call(result, "cpu", **{name: tensor}), TENSORS[name])


def test_forward_mode_through_the_values_of_a_teacher_is_refused():
    for way in ("make_dual", "torch.func.jvp"):
        with pytest.raises(sk.NotProvided, match=NO_FORWARD):
            FORWARD[way](lambda scale: teach(lambda x: scale * x[:, :2].sin(), "cpu"), torch.ones(()))


@pytest.mark.parametrize("result", RESULTS)
def test_forward_mode_in_compiled_code_is_refused(result):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: FORWARD["torch.func.jvp"](lambda x: call(result, "cpu", x=x), x), backend="eager"
    )
    with pytest.raises(sk.NotProvided, match=NO_FORWARD):
        compiled(EXACT.x)


@pytest.mark.parametrize("way", REVERSE)
@pytest.mark.parametrize("name", ["x", "weight"])
@pytest.mark.parametrize("result", RESULTS)
def test_transforms_of_torch_func_are_refused(result, name, way):
    with pytest.raises(sk.NotProvided, match=NO_TRANSFORM):
        REVERSE[way](lambda tensor: call(result, "cpu", **{name: tensor}), TENSORS[name])


@pytest.mark.parametrize("name", ["x", "weight"])
@pytest.mark.parametrize("result", RESULTS)
def test_the_reference_goes_through_every_transform(result, name):
    """Its gradients and directional derivatives are those of the fused step's own backward."""
    tensor = TENSORS[name].clone().requires_grad_()
    gradient = torch.autograd.grad(call(result, "cpu", **{name: tensor}), tensor)[0]
    f = lambda tensor: call(result, "reference", **{name: tensor})  # noqa: E731
    for way in ("grad", "jacrev"):
        assert_within_rule(way, REVERSE[way](f, TENSORS[name]), gradient)
    assert_within_rule("jacfwd", FORWARD["jacfwd"](f, TENSORS[name]), gradient)
    for way in ("make_dual", "torch.func.jvp"):
        assert_within_rule(way, FORWARD[way](f, TENSORS[name]), gradient.sum())


def penalty(f, x, parameters, beside):
    """Gradients of a gradient penalty; `beside` adds a term of its own, which autograd would do alone without a word."""
    x = x.clone().requires_grad_()
    value = f(x) + x.pow(3).sum() if beside else f(x)
    slope = torch.autograd.grad(value, x, create_graph=True)[0]
    return torch.autograd.grad(slope.square().sum(), (x, *parameters), allow_unused=True)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another term"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("result", RESULTS)
def test_double_backward_is_refused_and_never_zero(result, compiled, beside):
    torch._dynamo.reset()
    function = lambda x: call(result, "cpu", x=x)  # noqa: E731
    f = torch.compile(function, backend="eager") if compiled else function
    with pytest.raises(sk.NotProvided, match=r'double backward: .* pass backend="reference"'):
        penalty(f, EXACT.x, EXACT.student.parameters(), beside)


def test_double_backward_to_the_cotangent_is_refused():
    x, cotangent = EXACT.x.clone().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
    for result in RESULTS:
        gradient = torch.autograd.grad(call(result, "cpu", x=x), x, cotangent, create_graph=True)[0]
        with pytest.raises(sk.NotProvided, match="double backward"):
            gradient.sum().backward()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another term"])
@pytest.mark.parametrize("result", ["loss", "jvp"])
def test_the_reference_computes_double_backward(result, beside):
    parameters = list(EXACT.student.parameters())

    def written(x):
        if result == "loss":
            return written_out(EXACT.student, x, EXACT.y, EXACT.jacobian, V.double(), (1.0, 1.0))
        zero = torch.zeros_like(EXACT.jacobian)
        return P * N * O * written_out(EXACT.student, x, EXACT.y, zero, V.double(), (0.0, 1.0))

    got = penalty(lambda x: call(result, "reference", x=x), EXACT.x, parameters, beside)
    for i, (g, e) in enumerate(zip(got, penalty(written, EXACT.x, parameters, beside), strict=True)):
        assert (g is None) == (e is None)
        if g is not None:
            assert_within_rule(f"second derivative {i}", g, e)

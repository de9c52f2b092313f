"""What a refusal says: short, in our words, whatever came, and with the call that would do."""

import subprocess
import sys
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
from small_case import NUMBERS, STUDENT, TARGETS, H, J, V, X, Y, ids, loss
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.backends import core, cuda
from sobolev_kernels.directions import NAMES
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.errors import LONGEST, closest, describe
from sobolev_kernels.settings import REDUCTIONS
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.problems import random

TENSORS = {"values": Y, "jacobian": J, "tangents": J, "vjps": J, "hessian": H, "seconds": J}


def message_of(call, kind=(ValueError, TypeError, NotImplementedError)):
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert len(text) <= LONGEST and "\n" not in text
    return text


class Unprintable:
    def __repr__(self):
        raise RuntimeError("this cannot be printed")


class Wordy:
    def __repr__(self):
        return "words\n" * 10_000


# Of every kind that Python has, long ones, and some that cannot be compared, hashed or printed.
THINGS = {
    "list": [1.5] * 10_000, "short list": ["cpu"], "nested": [[[0.5] * 7] * 300] * 2, "tuple": ("mse",) * 10_000,
    "deep": [[[[[[[[[[[[1]]]]]]]]]]]], "dict": {i: "v" * 100 for i in range(1000)}, "set": set(range(10_000)),
    "frozenset": frozenset(range(1000)), "deque": deque(range(10_000)), "ordered": OrderedDict(a=[1] * 10_000),
    "array": np.ones((300, 7)), "flags": np.ones(3, bool), "objects": np.array([{}, {}]), "number": np.float64(0.5),
    "tensor": torch.ones(3), "parameter": nn.Parameter(torch.ones(2, 2)), "complex tensor": torch.ones(2).cfloat(),
    "tensors": [torch.ones(2)] * 1000, "arrays": (np.ones(5),) * 1000, "dict of tensors": {"a": torch.ones(1000)},
    "text": "m" * 10_000, "empty text": "", "bytes": b"cpu" * 10_000, "complex": 1j, "half": 0.5, "nan": float("nan"),
    "huge": 10**5000, "object": object(), "class": nn.Linear, "function": lambda: 1, "module": sk.MLP(2, 1, depth=99),
    "unprintable": Unprintable(), "wordy": Wordy(), "range": range(10),
    "ellipsis": ..., "type": int,
}  # fmt: skip
SETTINGS = [
    "reduction", "precision", "backend", "derivatives", "order", "wrt", "value_loss", "derivative_loss", "weights",
    "directions", "cotangents", "return_terms", "check_finite",
]  # fmt: skip


@pytest.mark.parametrize("thing", THINGS)
def test_anything_is_described_in_a_line(thing):
    text = describe(THINGS[thing])
    assert 0 < len(text) <= 300 and "\n" not in text


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_any_type_are_refused_in_words(name, thing):
    calls = [lambda: loss(**{name: THINGS[thing]})]
    if name != "wrt":  # what is no column of the inputs they tell
        calls.append(lambda: sk.SobolevLoss(**{name: THINGS[thing]}))
    for call in calls:
        assert message_of(call).startswith(f"{name}: ")


@pytest.mark.parametrize("thing", [thing for thing in THINGS if thing not in ("tensor", "parameter", "complex tensor")])
def test_tensors_of_any_type_are_refused_in_words(thing):
    value = THINGS[thing]
    calls = {name: lambda name=name: sk.Targets(**{name: value}) for name in TENSORS}
    calls |= {name: lambda name=name: loss(**{name: value}) for name in ("sample_weight", "output_weight")}
    calls |= {"input_scale": lambda: loss(input_scale=value), "inputs": lambda: loss(x=value)}
    calls |= {"v": lambda: sk.jvp(STUDENT, X, value), "u": lambda: sk.vjp(STUDENT, X, value)}
    calls |= {"w": lambda: sk.hvp(STUDENT, X, V, value), "directions": lambda: sk.Directions.given(value)}
    for name, call in calls.items():
        assert message_of(call).startswith(f"{name}: ")


def test_students_of_any_type():
    for thing in ("list", "array", "tensor", "text", "class", "unprintable", "huge"):
        assert message_of(lambda thing=thing: loss(THINGS[thing])).startswith(
            "student: expected a torch.nn.Module, got"
        )


@pytest.mark.parametrize("M", [1, 7, 500])
@pytest.mark.parametrize("name", ["values", "jacobian", "sample_weight"])
def test_another_number_of_samples(name, M):
    """Said as such where it is that, and not where another size is wrong too, or of what has no row for each."""
    N, wide = len(X), {"values": (3,), "jacobian": (3, 2), "sample_weight": ()}[name]
    targets = sk.Targets(values=torch.zeros(N, 3), jacobian=torch.zeros(N, 3, 2))
    given = torch.ones(M, *wide)
    how = {"sample_weight": given} if name == "sample_weight" else {}
    targets = targets if how else targets.replace(**{name: given})
    student = sk.MLP(2, 3, width=4)
    text = message_of(lambda: sk.sobolev_loss(student, X[:, :2], targets, **how))
    first = f"; {name}[:{N}] are the first {N} of {M}" if M > N else ""
    assert text.endswith(f"; the inputs are {N} samples, and these {M}{first}"), text
    text = message_of(lambda: sk.sobolev_loss(student, X[:, :2], targets, output_weight=torch.ones(N)))
    assert "samples, and these" not in text or not text.startswith("output_weight")
    tangents = sk.Targets(tangents=torch.zeros(M, N, 3), directions=torch.zeros(2, N, 2))
    assert "samples, and these" not in message_of(lambda: sk.sobolev_loss(student, X[:, :2], tangents))


def test_arrays_and_lists_are_named_by_shape_and_with_what_converts_them():
    text = message_of(lambda: sk.Targets(values=np.random.rand(300, 7)))
    assert "a NumPy array float64 [300, 7]; torch.from_numpy(" in text and "Targets.from_numpy(...)" in text
    text = message_of(lambda: sk.Targets(jacobian=[[[0.5] * 7] * 300] * 2))
    assert "a list [2, 300, 7]; torch.tensor(" in text
    text = message_of(lambda: sk.sobolev_loss(STUDENT, X.tolist(), TARGETS))
    assert text.startswith("inputs: expected a tensor [N, D], got a list [6, 3]; torch.tensor(")


KEYWORDS = ("jvp", "vjp", "jet", "laplacian", "hvp", "explain")
# A misspelt name, where it is chosen, and what was meant.
MISSPELT = [
    ("activation", lambda: sk.MLP(2, 1, activation="tahn"), "tanh"),
    ("last_activation", lambda: sk.MLP(2, 1, last_activation=("leakyrelu", 0.1)), "leaky_relu"),
    ("value_loss", lambda: loss(value_loss="hubber"), "huber"),
    ("derivative_loss", lambda: sk.SobolevLoss(derivative_loss="cosin"), "cosine"),
    ("capitals", lambda: sk.SobolevLoss(value_loss="MSE"), "mse"),
    ("reduction", lambda: loss(reduction="mena"), "mean"),
    ("precision", lambda: loss(precision="b16"), "bf16"),
    ("backend", lambda: loss(backend="referense"), "reference"),
    ("derivatives", lambda: loss(derivatives="exakt"), "exact"),
    ("weights", lambda: loss(weights="differential_ml"), "differential-ml"),
    ("precision of other libraries", lambda: loss(precision="fp32"), "ieee"),
    ("loss of other libraries", lambda: loss(value_loss="mae"), "l1"),
    ("loss of PyTorch", lambda: loss(value_loss="mse_loss"), "mse"),
    ("distribution of other libraries", lambda: sk.Directions("gauss", 3), "normal"),
    ("distribution", lambda: sk.Directions("speher", 3), "sphere"),
    ("distribution of cotangents", lambda: sk.Cotangents("radamacher", 3), "rademacher"),
    ("keyword", lambda: sk.SobolevLoss(reducton="sum"), "reduction"),
    ("keyword of the module's own", lambda: sk.SobolevLoss(input_scales=None), "input_scale"),
    ("keyword of explain", lambda: sk.explain(STUDENT, X, derivativs="exact"), "derivatives"),
    ("derivative_target", lambda: sk.explain(STUDENT, X, derivative_target="densed"), "dense"),
    ("keyword of Targets", lambda: sk.Targets(value=Y), "values"),
    ("keyword of the loss", lambda: loss(direction=sk.Directions.sphere(2)), "directions"),
    ("keyword of a loss's call", lambda: sk.SobolevLoss()(STUDENT, X, TARGETS, sample_weights=None), "sample_weight"),
    ("keyword of sphere", lambda: sk.Directions.sphere(3, share=True), "shared"),
    ("keyword of cotangents", lambda: sk.Cotangents.basis(unbias=True), "unbiased"),
    ("keyword of an MLP", lambda: sk.MLP(2, 1, widht=8), "width"),
    *[(f"keyword of {name}", lambda name=name: getattr(sk, name)(STUDENT, X, V, wtr=[0]), "wrt") for name in KEYWORDS],
]


@pytest.mark.parametrize("call, meant", [row[1:] for row in MISSPELT], ids=ids(MISSPELT))
def test_did_you_mean(call, meant):
    assert f"did you mean {meant!r}?" in message_of(call)


def test_an_unknown_keyword_names_the_function_and_no_other_error_does():
    assert message_of(lambda: sk.Targets(value=Y)).startswith("Targets: takes no argument 'value'")
    text = message_of(lambda: sk.Cotangents.sphere(2, sed=1))
    assert text.startswith("Cotangents.sphere: takes no argument 'sed'")
    assert "missing 1 required positional argument: 'v'" in message_of(lambda: sk.jvp(STUDENT, X))


@pytest.mark.parametrize("names", [sk.ACTIVATIONS, sk.LOSSES | sk.COUPLED, REDUCTIONS, PRECISIONS, NAMES], ids=len)
def test_every_name_is_found_again_without_a_letter(names):
    for name in names:
        assert len(name) < 4 or closest(name[:2] + name[3:], names) == name
        assert closest("?" * 10_000, names) == closest("qqqq", names) == ""


def test_distributions_by_name():
    with_name = "did you mean Directions.sphere(...)?"
    for call in (
        lambda: loss(directions="sphere"), lambda: sk.SobolevLoss(directions="Sphere"),
        lambda: sk.jvp(STUDENT, X, "spher"), lambda: sk.Targets(tangents=J, directions="sphere"),
    ):  # fmt: skip
        assert with_name in message_of(call, TypeError)
    assert "did you mean Cotangents.normal(...)?" in message_of(lambda: sk.vjp(STUDENT, X, "normal"))
    assert message_of(lambda: sk.Directions("gauss", 3)).startswith("distribution: expected one of sphere, normal, rad")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sphere", 0), ("sphere", None), ("sphere", 2, "yes"), ("sphere", 2, False, -1), ("sphere", 2, False, 1, -1),
        ("sphere", 2, False, None, 0, 1), (3, 3), (["sphere"], 3), ("sphere", 2, False, None, 0, False, V),
        ("given", 3, False, None, 0, False, V), ("given", 2, True, None, 0, False, V),
    ],
    ids=str,
)  # fmt: skip
def test_directions_made_without_their_class_methods_are_checked_too(arguments):
    message_of(lambda: sk.Directions(*arguments))


def test_given_ones_without_a_tensor():
    for call in (lambda d: loss(directions=d), lambda d: sk.jvp(STUDENT, X, d), lambda d: d.tensor(X)):
        assert "expected Directions.given(tensor)" in message_of(lambda call=call: call(sk.Directions("given", 3)))


def test_values_and_derivatives_instead_of_targets():
    expected = "targets: expected a sobolev_kernels.Targets, got a tensor float32 [6, 2] on cpu; Targets(values=y, jac"
    assert message_of(lambda: sk.SobolevLoss()(STUDENT, X, Y, J)).startswith(expected)


DTYPES = [
    ("data of NumPy", lambda: loss(x=X.double()), "inputs.float() converts it (and so the targets), or student."),
    ("student in double", lambda: loss(NUMBERS.to(torch.float64).student), "inputs.double() converts it (and so"),
    ("student in half", lambda: loss(sk.MLP(3, 2).half()), "inputs.half() converts it (and so"),
    ("labels", lambda: loss(targets=sk.Targets(values=Y > 0, jacobian=J)), "values.float() converts it"),
    ("jacobian", lambda: loss(targets=sk.Targets(values=Y, jacobian=J.long())), "jacobian.float() converts it"),
    ("sample_weight", lambda: loss(sample_weight=torch.ones(6).double()), "sample_weight.float() converts it"),
    ("mask", lambda: loss(sample_weight=torch.ones(6).bool()), "sample_weight.float() converts it"),
    ("input_scale", lambda: loss(input_scale=torch.ones(3).double()), "input_scale.float() converts it"),
    ("directions", lambda: sk.jvp(STUDENT, X, V.double()), "directions.float() converts it"),
    ("device", lambda: loss(targets=sk.Targets(values=Y.to("meta"), jacobian=J)), "values.to('cpu') converts it"),
    ("integers", lambda: loss(x=X.long()), "inputs.float() is of one"),
    ("teacher", lambda: loss(targets=sk.Targets(teacher=sk.MLP(3, 2).double())), "or teacher.float() converts it"),
]  # fmt: skip


@pytest.mark.parametrize("call, hint", [row[1:] for row in DTYPES], ids=ids(DTYPES))
def test_what_to_convert(call, hint):
    assert hint in message_of(call)


NUMBERS_WANTED = [
    ("weights as text", lambda: loss(weights=("1", "2")), "weights: expected two numbers (value, deriv"),
    ("one as text", lambda: sk.SobolevLoss(weights=(1.0, "2")), "weights: expected two numbers"),
    ("complex", lambda: loss(weights=(1j, 1)), "weights: expected two numbers"),
    ("complex tensor", lambda: loss(weights=torch.ones(2).cfloat()), "weights: expected two numbers"),
    ("a row each", lambda: loss(weights=torch.ones(2, 2)), "weights: expected two numbers"),
    ("delta as text", lambda: loss(value_loss=("huber", "0.5")), "the parameters of 'huber' must be numbers"),
    ("learned delta", lambda: loss(value_loss=("huber", nn.Parameter(torch.ones(())))), "'huber' must be numbers"),
    ("omega as text", lambda: sk.MLP(2, 1, activation=("sin", "30")), "the parameters of 'sin' must be numbers"),
    ("Sine of text", lambda: sk.Sine("30"), "omega: expected a plain number, got 30"),
    ("shared", lambda: sk.Directions.sphere(2, shared="no"), "shared and unbiased: expected True or False"),
    ("negative outputs", lambda: loss(output_weight=torch.tensor([1.0, -1])), "output_weight: expected finite num"),
    ("NaN outputs", lambda: loss(output_weight=torch.tensor([1, torch.nan])), "output_weight: expected finite numbers"),
    ("negative samples", lambda: loss(sample_weight=-torch.ones(6)), "sample_weight: expected finite numbers >= 0"),
    ("NaN samples", lambda: loss(sample_weight=torch.ones(6) * torch.nan), "sample_weight: expected finite numbers"),
    ("module", lambda: sk.SobolevLoss(output_weight=[1.0, 2.0]), "output_weight: expected a tensor, got"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", [row[1:] for row in NUMBERS_WANTED], ids=ids(NUMBERS_WANTED))
def test_what_is_no_number_or_no_weight(call, message):
    assert message in message_of(call)


# torch, of layers that have none
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_features_and_no_outputs_are_refused(backend):
    none = sk.Targets(values=Y[:, :0], jacobian=J[:, :0])
    for student in (nn.Sequential(nn.Linear(3, 0)), lambda x: x[:, :0]):
        forced = backend if isinstance(student, nn.Module) else "reference"
        assert message_of(lambda: loss(student, targets=none, backend=forced)).startswith("student: expected")  # noqa: B023
        assert message_of(lambda: sk.jvp(student, X, V, backend=forced)).startswith("student: expected")  # noqa: B023
    empty = sk.Targets(values=Y, jacobian=J[..., :0])
    text = message_of(lambda: loss(nn.Sequential(nn.Linear(0, 2)), X[:, :0], empty, backend=backend))
    assert text.startswith("inputs: expected a tensor [N, D] of at least one feature")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [1.0, 1e19, 1e25, 1e37, 1e-15, 1e-18])
def test_differential_ml_of_large_and_small_jacobians(size, backend):
    """Their squares are out of float32's range, the balanced loss is not."""
    exact = NUMBERS.to(torch.float64)
    settings = {"derivatives": "exact", "weights": "differential-ml", "backend": backend, "derivative_loss": "l1"}
    large = J * torch.tensor([1.0, 3.0, 0.0]) * size
    got = loss(targets=sk.Targets(values=Y, jacobian=large), **settings)
    expected = loss(exact.student, exact.x, sk.Targets(values=Y.double(), jacobian=large.double()), **settings)
    assert_within_rule("loss", got, expected, got.double().float())


@pytest.mark.parametrize("size", [1e-25, 1e-30, 1e-39, 1e-44])
def test_differential_ml_of_jacobians_without_a_reciprocal(size):
    targets = sk.Targets(values=Y, jacobian=J * size)
    text = message_of(lambda: loss(targets=targets, derivatives="exact", weights="differential-ml"))
    assert text.startswith("jacobian: expected columns of zeros, or large enough")


@pytest.mark.parametrize("student", [STUDENT, lambda x: STUDENT(x)], ids=["MLP", "function"])
def test_differential_ml_of_a_column_too_few(student):
    text = message_of(
        lambda: loss(student, targets=sk.Targets(values=Y, jacobian=J[..., :2]), weights="differential-ml")
    )
    assert text.startswith("jacobian: expected [6, 2, 3], got a tensor float32 [6, 2, 2]")


SQUARE = torch.eye(3)
RAW = [
    ("jvp", "v", "Directions", lambda v: sk.jvp(STUDENT, X[: len(v)], v)),
    ("jet", "v", "Directions", lambda v: sk.jet(STUDENT, X[: len(v)], v)),
    ("hvp", "v", "Directions", lambda v: sk.hvp(STUDENT, X[: len(v)], v, v)),
    ("second of hvp", "w", "Directions", lambda v: sk.hvp(STUDENT, X[: len(v)], v[None], v)),
    ("vjp", "u", "Cotangents", lambda v: sk.vjp(STUDENT, X[: len(v)], v[:, :2])),
    ("targets", "v", "Directions", lambda v: sk.Targets(tangents=J, directions=v)),
    ("vjps", "u", "Cotangents", lambda v: sk.Targets(vjps=J, cotangents=v)),
]


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("name, kind, call", [row[1:] for row in RAW], ids=ids(RAW))
def test_directions_without_samples_could_mean_two_things(name, kind, call, rows):
    text = message_of(lambda: call(SQUARE[:rows]))
    assert f"{name}[None]" in text and f"{kind}.given({name})" in text


@pytest.mark.parametrize("v", [V[0, 0], V[0, 0, 0], V[None]], ids=["one", "none", "four"])
def test_directions_of_other_dimensions(v):
    for call in (lambda: sk.jvp(STUDENT, X, v), lambda: sk.jet(STUDENT, X, v), lambda: sk.laplacian(STUDENT, X, v)):
        text = message_of(call)
        assert text.startswith("v: expected a tensor [P, N, D]")
        assert ("Directions.given(v[None])" in text) == (v.dim() == 1)
    assert message_of(lambda: sk.vjp(STUDENT, X, v)).startswith("u: expected a tensor [R, N, O]")


def test_directions_drawn_within_vmap():
    one = lambda x: loss(x=x, directions=sk.Directions.sphere(2), backend="reference")  # noqa: E731
    text = message_of(lambda: torch.func.vmap(one)(torch.stack([X, X])), NotImplementedError)
    assert "within torch.func.vmap" in text and "give a seed" in text


def test_what_the_message_advises():
    v, u = random(6, 3), random(6, 2)
    assert torch.equal(sk.jvp(STUDENT, X, v[None])[1], sk.jvp(STUDENT, X, sk.Directions.given(v[None]))[1])
    each = sk.jvp(STUDENT, X, v[:, None].expand(-1, 6, -1))[1]
    assert_within_rule("shared", sk.jvp(STUDENT, X, sk.Directions.given(v))[1], each.double(), each)
    assert sk.vjp(STUDENT, X, u[None])[1].shape == (1, 6, 3)
    shared, w = sk.Directions.given(v), v.flip(0)
    mixed = sk.hvp(STUDENT, X, v[:, None].expand(-1, 6, -1), w[:, None].expand(-1, 6, -1))[1]
    assert_within_rule("hvp", sk.hvp(STUDENT, X, shared, sk.Directions.given(w))[1], mixed.double(), mixed)
    targets = sk.Targets(values=Y, tangents=torch.einsum("nod,pd->pno", J, v), directions=shared)
    assert loss(targets=targets).isfinite()


NO_CORE = """
import sys
sys.modules["sobolev_kernels._C"] = None
import torch, sobolev_kernels as sk
text = sk.explain(sk.MLP(2, 1, width=4), torch.zeros(3, 2))
assert "the compiled core is missing, as in an install with SOBOLEV_PURE" in text, text
assert "circular" not in text and "partially" not in text, text
assert "-> reference" in text
"""
BROKEN = """
import importlib, sys
class Broken:
    def find_spec(self, name, *_):
        if name == "sobolev_kernels._C":
            raise ImportError("libgomp.so.1: cannot open shared object file")
sys.meta_path.insert(0, Broken())
from sobolev_kernels.backends import core
assert "cannot be loaded (libgomp.so.1: cannot open shared object file)" in core.MISSING, core.MISSING
"""


@pytest.mark.parametrize("script", [NO_CORE, BROKEN], ids=["pure", "broken"])
def test_why_the_core_is_missing(script):
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_cuda_asked_for_in_a_build_without_it(monkeypatch):
    monkeypatch.setattr(cuda, "MISSING", "the compiled core was built without CUDA (SOBOLEV_CUDA=on, and nvcc)")
    text = message_of(lambda: loss(backend="cuda"))
    assert "the compiled core was built without CUDA (SOBOLEV_CUDA=on, and nvcc); and tensors are on cpu" in text
    monkeypatch.setattr(core, "MISSING", "the compiled core is missing")
    assert "got a refusal: the compiled core is missing" in message_of(lambda: loss(backend="cpu"))

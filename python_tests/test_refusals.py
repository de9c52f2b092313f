"""Bad input is refused in words: the argument, what was expected, what came. What is not provided is never zero."""

import numpy as np
import pytest
import torch
from small_case import (
    CURVED,
    ONES,
    SCALE,
    SPHERE,
    STUDENT,
    TANGENTS,
    TARGETS,
    TWO,
    UNFIXED,
    UP,
    D,
    G,
    H,
    J,
    N,
    O,
    P,
    S,
    T,
    U,
    V,
    X,
    Y,
    assert_refused,
    fresh,
    ids,
    loss,
)  # fmt: skip
from torch import nn

import sobolev_kernels as sk

ACTIVATION_NAMES = ", ".join(sk.ACTIVATIONS)
NEEDS_TARGET = "targets: expected a derivative target, since its weight is not zero"


def with_targets(**targets):
    return loss(targets=sk.Targets(**targets))


ENTRIES = {
    "sobolev_loss": lambda student, x, directions: loss(student, x, directions=directions),
    "SobolevLoss": lambda student, x, directions: sk.SobolevLoss(directions=directions)(student, x, TARGETS),
    "jvp": lambda student, x, directions: sk.jvp(student, x, directions),
    "explain": lambda student, x, directions: sk.explain(student, x, directions),
}


def not_a_number(tensor, value=torch.nan):
    tensor = tensor.clone()
    tensor[(0,) * tensor.dim()] = value
    return tensor


def needs_grad(tensor):
    return tensor.detach().clone().requires_grad_()


def second_layer_on_meta(student):
    student[2].to("meta")


def second_layer_in_float64(student):
    student[2].double()


def bad_second_weight(student):
    student[2].weight.data[1, 1] = torch.nan


AS_X = "student: expected all parameters torch.float32 on cpu, as the inputs are, got parameter"
BAD_INPUTS = [
    ("not a tensor", STUDENT, [1.0], TypeError, "inputs: expected a tensor [N, D], got [1.0]"),
    ("rank 1", STUDENT, X[0], ValueError, "inputs: expected a tensor [N, D], got a tensor float32 [3] on cpu"),
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
    ("on another device", STUDENT, X.to("meta"), ValueError, "float32 on meta, as the inputs are, got parameter 0"),
    ("student on another device", fresh().to("meta"), X, ValueError, AS_X + " 0, a tensor float32 [5, 3] on meta"),
    (
        "student on two devices", fresh(second_layer_on_meta), X, ValueError,
        AS_X + " 2, a tensor float32 [2, 5] on meta",
    ),
    ("student of two dtypes", fresh(second_layer_in_float64), X, ValueError, AS_X + " 2, a tensor float64 [2, 5]"),
    (
        "unrecognised student of another dtype", nn.Sequential(nn.LayerNorm(3, dtype=torch.float64)), X, ValueError,
        AS_X + " 0, a tensor float64 [3] on cpu",
    ),
    ("student is a name", "student", X, TypeError, "student: expected a torch.nn.Module, got student"),
    ("no student", None, X, TypeError, "student: expected a torch.nn.Module, got None"),
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("student, x, kind, message", [row[1:] for row in BAD_INPUTS], ids=ids(BAD_INPUTS))
def test_student_and_inputs(student, x, kind, message, entry):
    assert_refused(lambda: entry(student, x, SPHERE), kind, message)


V_AS_X = "directions: expected torch.float32 [P, 6, 3] on cpu, as the inputs are, got a tensor"
SHARED_AS_X = V_AS_X.replace("6, 3", "3")
BAD_DIRECTIONS = [
    ("wrong D", V[..., :2], V_AS_X + " float32 [2, 6, 2] on cpu"),
    ("wrong N", V[:, :4], V_AS_X + " float32 [2, 4, 3] on cpu"),
    ("wrong D, shared", V[:, 0, :2], SHARED_AS_X + " float32 [2, 2] on cpu"),
    ("another dtype", V.double(), V_AS_X + " float64 [2, 6, 3] on cpu"),
    ("integers", V.long(), V_AS_X + " int64 [2, 6, 3] on cpu"),
    ("another device", V.to("meta"), V_AS_X + " float32 [2, 6, 3] on meta"),
]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("v, message", [row[1:] for row in BAD_DIRECTIONS], ids=ids(BAD_DIRECTIONS))
def test_given_directions_that_do_not_fit(v, message, entry):
    directions = sk.Directions.given(v)
    assert_refused(lambda: entry(STUDENT, X, directions), ValueError, message)
    assert_refused(lambda: directions.tensor(X), ValueError, message)


UP_ENTRIES = {
    "sobolev_loss": lambda cotangents: loss(cotangents=cotangents),
    "SobolevLoss": lambda cotangents: sk.SobolevLoss(cotangents=cotangents)(STUDENT, X, TARGETS),
    "vjp": lambda cotangents: sk.vjp(STUDENT, X, cotangents),
    "explain": lambda cotangents: sk.explain(STUDENT, X, cotangents=cotangents),
    "tensor": lambda cotangents: cotangents.tensor(Y),
}
U_AS_X = "cotangents: expected torch.float32 [P, 6, 2] on cpu, as the inputs are, got a tensor"
BAD_COTANGENTS = [
    ("wrong O", U[..., :1], U_AS_X + " float32 [2, 6, 1] on cpu"),
    ("wrong N", U[:, :4], U_AS_X + " float32 [2, 4, 2] on cpu"),
    ("wrong O, shared", U[:, 0, :1], U_AS_X.replace("6, 2", "2") + " float32 [2, 1] on cpu"),
    ("another dtype", U.double(), U_AS_X + " float64 [2, 6, 2] on cpu"),
    ("another device", U.to("meta"), U_AS_X + " float32 [2, 6, 2] on meta"),
]


@pytest.mark.parametrize("entry", UP_ENTRIES.values(), ids=UP_ENTRIES)
@pytest.mark.parametrize("u, message", [row[1:] for row in BAD_COTANGENTS], ids=ids(BAD_COTANGENTS))
def test_given_cotangents_that_do_not_fit(u, message, entry):
    assert_refused(lambda: entry(sk.Cotangents.given(u)), ValueError, message)


@pytest.mark.parametrize("entry", UP_ENTRIES.values(), ids=UP_ENTRIES)
def test_more_orthonormal_cotangents_than_outputs(entry):
    message = "cotangents: expected at most O = 2 orthonormal cotangents, got P = 3"
    assert_refused(lambda: entry(sk.Cotangents.orthonormal(3)), ValueError, message)


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
    assert_refused(call, TypeError, "directions: expected a sobolev_kernels.Directions")
    assert_refused(call, TypeError, "got a tensor float32 [2, 6, 3] on cpu")


@pytest.mark.parametrize("distribution", ["sphere", "normal", "rademacher", "coordinate", "orthonormal"])
@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None], ids=repr)
def test_number_of_directions(distribution, count):
    message = f"P: expected a whole number of directions, at least 1, got {count}"
    assert_refused(lambda: getattr(sk.Directions, distribution)(count), ValueError, message)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True])
def test_seeds(seed):
    message = f"seed: expected None or an integer in [0, 2^63), got {seed}"
    assert_refused(lambda: sk.Directions.sphere(seed=seed), ValueError, message)


@pytest.mark.parametrize("offset", [-1, 2**32, 1.5, True])
def test_offsets(offset):
    message = f"offset: expected an integer in [0, 2^32), got {offset}"
    assert_refused(lambda: sk.Directions.sphere(seed=1).at(offset), ValueError, message)


GIVEN = "directions: expected a tensor [P, N, D] or [P, D], got "
RAW = "v: expected a tensor [P, N, D] or a sobolev_kernels.Directions, got "
RAW_UP = "u: expected a tensor [R, N, O] or a sobolev_kernels.Cotangents, got "
DIRECTIONS = [
    ("offset without a seed", lambda: SPHERE.at(1), ValueError, "offset: expected directions with a seed, got Dir"),
    ("given a list", lambda: sk.Directions.given([1.0]), TypeError, GIVEN + "[1.0]"),
    ("given rank 1", lambda: sk.Directions.given(V[0, 0]), ValueError, GIVEN + "a tensor float32 [3] on cpu"),
    ("given P = 0", lambda: sk.Directions.given(V[:0]), ValueError, "expected at least one direction (P >= 1), got a "),
    ("tensor of a list", lambda: SPHERE.tensor([1.0]), TypeError, "inputs: expected a tensor [N, D], got [1.0]"),
    ("tensor of rank 1", lambda: SPHERE.tensor(X[0]), ValueError, "inputs: expected a floating tensor [N, D], got a t"),
    ("tensor of integers", lambda: SPHERE.tensor(X.long()), ValueError, "got a tensor int64 [6, 3] on cpu"),
    ("jvp along a list", lambda: sk.jvp(STUDENT, X, [1.0]), TypeError, RAW + "[1.0]"),
    (
        "both in targets and in the call", lambda: loss(targets=TANGENTS, directions=SPHERE), ValueError,
        "directions: expected either in targets or in the call, got both",
    ),
    (
        "tangents along unfixed directions", lambda: loss(targets=UNFIXED, directions=SPHERE), ValueError,
        "directions: expected those the target tangents belong to: given(tensor), a seed, or basis(), got Directions(",
    ),
    ("tangents along nothing", lambda: loss(targets=UNFIXED), ValueError, "a seed, or basis(), got None"),
    (
        "targets with the name of a distribution", lambda: sk.Targets(tangents=T, directions="sphere"), TypeError,
        "directions: expected a tensor [P, N, D] or a sobolev_kernels.Directions, got sphere",
    ),
]  # fmt: skip


def test_given_directions_are_not_printed_number_by_number():
    assert "tensor(" not in repr(sk.Directions.given(V))


GIVEN_UP = "cotangents: expected a tensor [P, N, O] or [P, O], got "
ONE_OF_THREE = "directions: expected one of directions, cotangents and derivatives, got "
COTANGENTS = [
    ("offset without a seed", lambda: UP.at(1), ValueError, "offset: expected cotangents with a seed, got Cot"),
    ("no cotangents", lambda: sk.Cotangents.sphere(0), ValueError, "P: expected a whole number of cotangents, at l"),
    ("given a list", lambda: sk.Cotangents.given([1.0]), TypeError, GIVEN_UP + "[1.0]"),
    ("given rank 1", lambda: sk.Cotangents.given(U[0, 0]), ValueError, GIVEN_UP + "a tensor float32 [2] on cpu"),
    ("given none", lambda: sk.Cotangents.given(U[:0]), ValueError, "cotangents: expected at least one cotangent (P >="),
    ("tensor of a list", lambda: UP.tensor([1.0]), TypeError, "outputs: expected a tensor [N, O], got [1.0]"),
    ("tensor of rank 1", lambda: UP.tensor(Y[0]), ValueError, "outputs: expected a floating tensor [N, O], got a t"),
    ("vjp along a list", lambda: sk.vjp(STUDENT, X, [1.0]), TypeError, RAW_UP + "[1.0]"),
    ("vjp along directions", lambda: sk.vjp(STUDENT, X, SPHERE), TypeError, RAW_UP + "Directions("),
    ("jvp along cotangents", lambda: sk.jvp(STUDENT, X, UP), TypeError, RAW + "Cotangents("),
    ("laplacian along cotangents", lambda: sk.laplacian(STUDENT, X, UP), TypeError, RAW + "Cotangents("),
    (
        "a tensor", lambda: loss(cotangents=U), TypeError,
        "cotangents: expected a sobolev_kernels.Cotangents (given(tensor) makes one of a tensor), got a tensor float32",
    ),
    ("a tensor, in the module", lambda: sk.SobolevLoss(cotangents=U), TypeError, "expected a sobolev_kernels.Cotang"),
    ("directions", lambda: loss(cotangents=SPHERE), TypeError, "cotangents: expected a sobolev_kernels.Cotangents ("),
    ("as directions", lambda: loss(directions=UP), TypeError, "directions: expected a sobolev_kernels.Directions ("),
    ("in explain", lambda: sk.explain(STUDENT, X, cotangents=SPHERE), TypeError, "cotangents: expected a sobolev_kern"),
    ("both", lambda: loss(directions=SPHERE, cotangents=UP), ValueError, ONE_OF_THREE + "directions and cotangents"),
    (
        "both, in the module", lambda: sk.SobolevLoss(directions=SPHERE, cotangents=UP), ValueError,
        ONE_OF_THREE + "directions and cotangents",
    ),
    (
        "cotangents and exact", lambda: loss(cotangents=UP, derivatives="exact"), ValueError,
        ONE_OF_THREE + "cotangents and derivatives",
    ),
    (
        "directions and exact", lambda: loss(directions=SPHERE, derivatives="exact"), ValueError,
        ONE_OF_THREE + "directions and derivatives",
    ),
    (
        "cotangents in targets, directions in the call",
        lambda: loss(targets=sk.Targets(values=Y, jacobian=J, cotangents=U), directions=SPHERE), ValueError,
        ONE_OF_THREE + "directions and cotangents in targets",
    ),
    (
        "cotangents in both", lambda: loss(targets=sk.Targets(values=Y, vjps=G, cotangents=U), cotangents=UP),
        ValueError, ONE_OF_THREE + "cotangents and cotangents in targets",
    ),
    (
        "vjps along unfixed cotangents", lambda: loss(targets=sk.Targets(values=Y, vjps=G), cotangents=UP), ValueError,
        "cotangents: expected those the target vjps belong to: given(tensor), a seed, or basis(), got Cotangents(",
    ),
    ("vjps along nothing", lambda: with_targets(values=Y, vjps=G), ValueError, "a seed, or basis(), got None"),
    (
        "vjps along directions", lambda: loss(targets=sk.Targets(values=Y, vjps=G, directions=V)), ValueError,
        "cotangents: expected those the target vjps belong to: given(tensor), a seed, or basis(), got Directions(",
    ),
    (
        "tangents along cotangents", lambda: loss(targets=sk.Targets(values=Y, tangents=T, cotangents=U)), ValueError,
        "directions: expected those the target tangents belong to: given(tensor), a seed, or basis(), got Cotangents(",
    ),
    (
        "targets with the name of a distribution", lambda: sk.Targets(vjps=G, cotangents="sphere"), TypeError,
        "cotangents: expected a tensor [R, N, O] or a sobolev_kernels.Cotangents, got sphere",
    ),
]  # fmt: skip


GRAD = "expected a tensor without requires_grad (no gradient to targets is provided), got a tensor"
AS_INPUTS = "expected torch.float32 on cpu, as the inputs are, got a tensor"
WRONG_Y = "values: expected [6, 2], got a tensor"
WRONG_J = "jacobian: expected [6, 2, 3], got a tensor"
WRONG_T = "tangents: expected [2, 6, 2], got a tensor"
WRONG_G = "vjps: expected [2, 6, 3], got a tensor"
WRONG_H = "hessian: expected [6, 2, 3, 3], got a tensor"
WRONG_S = "seconds: expected [2, 6, 2], got a tensor"
BAD_TARGETS = [
    ("a tensor", lambda: loss(targets=Y), TypeError, "targets: expected a sobolev_kernels.Targets, got a tensor float"),
    ("a tuple", lambda: loss(targets=(Y, J)), TypeError, "targets: expected a sobolev_kernels.Targets, got "),
    ("values a list", lambda: sk.Targets(values=[1]), TypeError, "values: expected a tensor, got [1]"),
    ("jacobian an array", lambda: sk.Targets(jacobian=J.numpy()), TypeError, "got a NumPy array float32 [6, 2, 3]; t"),
    ("values with requires_grad", lambda: sk.Targets(values=needs_grad(Y)), ValueError, "values: " + GRAD),
    ("jacobian with requires_grad", lambda: sk.Targets(jacobian=needs_grad(J)), ValueError, "jacobian: " + GRAD),
    ("tangents with requires_grad", lambda: sk.Targets(tangents=needs_grad(T)), ValueError, "tangents: " + GRAD),
    ("teacher a number", lambda: sk.Targets(teacher=3), TypeError, "teacher: expected a callable, got 3"),
    (
        "two derivatives", lambda: sk.Targets(values=Y, jacobian=J, tangents=T), ValueError,
        "targets: expected one of jacobian, tangents, vjps, jets and teacher, got jacobian and tangents",
    ),
    ("three", lambda: sk.Targets(jacobian=J, tangents=T, teacher=STUDENT), ValueError, "and tangents and teacher"),
    ("no derivative", lambda: with_targets(values=Y), ValueError, NEEDS_TARGET + ", got values only; give jacobian, "),
    (
        "no derivative, in the module", lambda: sk.SobolevLoss()(STUDENT, X, sk.Targets(values=Y)), ValueError,
        NEEDS_TARGET,
    ),
    (
        "no values", lambda: with_targets(jacobian=J), ValueError,
        "targets: expected values, since the value term's weight is not zero, got none",
    ),
    ("nothing at all", lambda: with_targets(), ValueError, NEEDS_TARGET),
    ("vjps a list", lambda: sk.Targets(vjps=[1]), TypeError, "vjps: expected a tensor, got [1]"),
    ("hessian a list", lambda: sk.Targets(hessian=[1]), TypeError, "hessian: expected a tensor, got [1]"),
    ("seconds a list", lambda: sk.Targets(seconds=[1]), TypeError, "seconds: expected a tensor, got [1]"),
    ("vjps with requires_grad", lambda: sk.Targets(vjps=needs_grad(G)), ValueError, "vjps: " + GRAD),
    ("hessian with requires_grad", lambda: sk.Targets(hessian=needs_grad(H)), ValueError, "hessian: " + GRAD),
    ("seconds with requires_grad", lambda: sk.Targets(seconds=needs_grad(S)), ValueError, "seconds: " + GRAD),
    ("jacobian and vjps", lambda: sk.Targets(jacobian=J, vjps=G), ValueError, "and teacher, got jacobian and vjps"),
    (
        "hessian and seconds", lambda: sk.Targets(hessian=H, seconds=S), ValueError,
        "targets: expected one of hessian, seconds, jets and teacher, got hessian and seconds",
    ),
    ("hessian and teacher", lambda: sk.Targets(hessian=H, teacher=STUDENT), ValueError, "got hessian and teacher"),
    (
        "no second derivative", lambda: loss(order=2), ValueError,
        NEEDS_TARGET + ", got none; give hessian, seconds or teacher, or a derivative weight of 0",
    ),
    (
        "only a second derivative", lambda: loss(targets=sk.Targets(values=Y, hessian=H), order=2), ValueError,
        NEEDS_TARGET + ", got values only; give jacobian, tangents, vjps or teacher, or a derivative weight of 0",
    ),
    (
        "seconds along unfixed directions",
        lambda: loss(targets=sk.Targets(values=Y, jacobian=J, seconds=S), directions=SPHERE, order=2), ValueError,
        "directions: expected those the target tangents belong to: given(tensor), a seed, or basis(), got Directions(",
    ),
] + [
    (name, lambda fields=fields: with_targets(**{"values": Y, **fields}), ValueError, message)
    for name, fields, message in (
        ("values of wrong O", {"values": Y[:, :1], "jacobian": J}, f"{WRONG_Y} float32 [6, 1]"),
        ("values of wrong N", {"values": Y[:4], "jacobian": J}, f"{WRONG_Y} float32 [4, 2]"),
        ("values of rank 1", {"values": Y[:, 0], "jacobian": J}, f"{WRONG_Y} float32 [6]"),
        ("values of rank 3", {"values": Y[None], "jacobian": J}, f"{WRONG_Y} float32 [1, 6, 2]"),
        ("values of another dtype", {"values": Y.cfloat(), "jacobian": J}, f"values: {AS_INPUTS} complex64"),
        ("integer values", {"values": Y.long(), "jacobian": J}, f"values: {AS_INPUTS} int64"),
        ("values on a device", {"values": Y.to("meta"), "jacobian": J}, f"values: {AS_INPUTS} float32 [6, 2] on meta"),
        ("jacobian of wrong O", {"jacobian": J[:, :1]}, f"{WRONG_J} float32 [6, 1, 3]"),
        ("jacobian of wrong D", {"jacobian": J[..., :2]}, f"{WRONG_J} float32 [6, 2, 2]"),
        ("jacobian transposed", {"jacobian": J.mT}, f"{WRONG_J} float32 [6, 3, 2]"),
        ("jacobian of one output", {"jacobian": J[:, 0]}, f"{WRONG_J} float32 [6, 3]"),
        ("jacobian of another dtype", {"jacobian": J.long()}, f"jacobian: {AS_INPUTS} int64"),
        ("jacobian on a device", {"jacobian": J.to("meta")}, f"jacobian: {AS_INPUTS} float32 [6, 2, 3] on meta"),
        ("tangents of wrong P", {"tangents": T[:1], "directions": V}, f"{WRONG_T} float32 [1, 6, 2]"),
        ("tangents of wrong O", {"tangents": T[..., :1], "directions": V}, f"{WRONG_T} float32 [2, 6, 1]"),
        ("tangents of another dtype", {"tangents": T.long(), "directions": V}, f"tangents: {AS_INPUTS} int64"),
        ("vjps of wrong R", {"vjps": G[:1], "cotangents": U}, f"{WRONG_G} float32 [1, 6, 3]"),
        ("vjps of wrong N", {"vjps": G[:, :4], "cotangents": U}, f"{WRONG_G} float32 [2, 4, 3]"),
        ("vjps of wrong D", {"vjps": G[..., :2], "cotangents": U}, f"{WRONG_G} float32 [2, 6, 2]"),
        ("vjps of another dtype", {"vjps": G.long(), "cotangents": U}, f"vjps: {AS_INPUTS} int64"),
        ("vjps on a device", {"vjps": G.to("meta"), "cotangents": U}, f"vjps: {AS_INPUTS} float32 [2, 6, 3] on meta"),
    )
] + [
    (name, lambda fields=fields: loss(targets=sk.Targets(values=Y, jacobian=J, **fields), order=2), ValueError, message)
    for name, fields, message in (
        ("hessian of wrong O", {"hessian": H[:, :1]}, f"{WRONG_H} float32 [6, 1, 3, 3]"),
        ("hessian of one output", {"hessian": H[:, 0]}, f"{WRONG_H} float32 [6, 3, 3]"),
        ("hessian of wrong D", {"hessian": H[..., :2]}, f"{WRONG_H} float32 [6, 2, 3, 2]"),
        ("hessian of another dtype", {"hessian": H.long()}, f"hessian: {AS_INPUTS} int64"),
        ("seconds of wrong P", {"seconds": S[:1], "directions": V}, f"{WRONG_S} float32 [1, 6, 2]"),
        ("seconds of wrong N", {"seconds": S[:, :4], "directions": V}, f"{WRONG_S} float32 [2, 4, 2]"),
        ("seconds of wrong O", {"seconds": S[..., :1], "directions": V}, f"{WRONG_S} float32 [2, 6, 1]"),
        ("seconds of another dtype", {"seconds": S.long(), "directions": V}, f"seconds: {AS_INPUTS} int64"),
    )
]  # fmt: skip


def teach(teacher, backend=None):
    return loss(targets=sk.Targets(teacher=teacher), backend=backend)


VALUES = "teacher: expected values [6, 2], one row for each input, got a tensor float32"
TEACHERS = [
    ("D", sk.MLP(4, O, width=5), ValueError, "inputs: expected [N, 4], since the teacher takes 4 features, got a "),
    ("O", sk.MLP(D, 1, width=5), ValueError, "teacher: expected 2 outputs, as the student has, got 1"),
    ("O of a function", lambda x: x, ValueError, f"{VALUES} [6, 3] on cpu"),
    ("N of a function", lambda x: x[:4, :2], ValueError, f"{VALUES} [4, 2] on cpu"),
    ("dtype", sk.MLP(D, O, width=5).double(), ValueError, "teacher: expected all parameters torch.float32 on cpu, as "),
    ("dtype of a function", lambda x: x.double()[:, :2], ValueError, "teacher: expected values of torch.float32, as "),
    ("device", sk.MLP(D, O, width=5, device="meta"), ValueError, "got parameter 0, a tensor float32 [5, 3] on meta"),
    ("a tuple", lambda x: (x, x), TypeError, "teacher: expected a function that returns a tensor [N, O], got "),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("teacher, kind, message", [row[1:] for row in TEACHERS], ids=ids(TEACHERS))
def test_teachers_that_do_not_fit(teacher, kind, message, backend):
    """A wrong size or dtype would be read beyond its end by a kernel."""
    assert_refused(lambda: teach(teacher, backend), kind, message)


OUTPUTS = [
    ("a scalar", lambda x: x.sum(), "student: expected to return a tensor [6, O], got a tensor float32 [] on cpu"),
    ("a tuple", lambda x: (x, x), "student: expected to return a tensor [6, O], got "),
]


@pytest.mark.parametrize("student, message", [row[1:] for row in OUTPUTS], ids=ids(OUTPUTS))
def test_functions_whose_output_does_not_fit(student, message):
    kind = TypeError if isinstance(student(X), tuple) else ValueError
    assert_refused(lambda: loss(student), kind, message)
    assert_refused(lambda: sk.jvp(student, X, V), kind, message)


def test_a_function_of_another_number_of_outputs_is_not_broadcast():
    assert_refused(lambda: loss(lambda x: x[:, :1]), ValueError, "jacobian: expected 1 outputs, as the student has")


NOT_BROADCAST = [
    (
        "jacobian, cotangents", lambda f: loss(f, targets=sk.Targets(values=Y, jacobian=J[:, :1]), cotangents=UP),
        "jacobian: expected [6, 2, 3], got a tensor float32 [6, 1, 3]",
    ),
    (
        "jacobian, directions", lambda f: loss(f, targets=sk.Targets(values=Y, jacobian=J[:, :1]), directions=SPHERE),
        "jacobian: expected [6, 2, 3], got a tensor float32 [6, 1, 3]",
    ),
    (
        "hessian", lambda f: loss(f, targets=sk.Targets(values=Y, jacobian=J, hessian=H[:, :1]), order=2),
        "hessian: expected [6, 2, 3, 3], got a tensor float32 [6, 1, 3, 3]",
    ),
    (
        "vjps", lambda f: loss(f, targets=sk.Targets(values=Y, vjps=G[:1], cotangents=U)),
        "vjps: expected [2, 6, 3], got a tensor float32 [1, 6, 3]",
    ),
    ("output_weight", lambda f: loss(f, output_weight=TWO[:1]), "output_weight: expected"),
]  # fmt: skip


@pytest.mark.parametrize("name, call, message", NOT_BROADCAST, ids=ids(NOT_BROADCAST))
def test_tensors_of_another_number_of_outputs_are_not_broadcast(name, call, message):
    """A function's number of outputs is known only when it has run, that of the targets before."""
    assert_refused(lambda: call(lambda x: STUDENT(x)), ValueError, message)


WEIGHTS = [
    ((torch.nan, 1), "weights: expected finite numbers >= 0, got (nan, 1)"),
    ((1, torch.inf), "weights: expected finite numbers >= 0, got (1, inf)"),
    ((-1, 1), "weights: expected finite numbers >= 0, got (-1, 1)"),
    ((1, -0.5), "weights: expected finite numbers >= 0, got (1, -0.5)"),
    ((1,), "weights: expected two numbers (value, derivative), got (1,)"),
    ((1, 2, 3), "weights: expected two numbers (value, derivative), got (1, 2, 3)"),
    (1.0, "weights: expected two numbers (value, derivative), got 1.0"),
    (("a", "b"), "weights: expected two numbers (value, derivative), got ('a', 'b')"),
    ((1, None), "weights: expected two numbers (value, derivative), got (1, None)"),
    ((needs_grad(torch.ones(())), 1), "weights: expected plain numbers (no gradient to weights is provided), got a "),
    (needs_grad(torch.ones(2)), "weights: expected plain numbers (no gradient to weights is provided), got a tensor"),
]  # fmt: skip


@pytest.mark.parametrize("weights, message", WEIGHTS, ids=[str(w) for w, _ in WEIGHTS])
def test_weights(weights, message):
    assert_refused(lambda: loss(weights=weights), ValueError, message)
    assert_refused(lambda: sk.SobolevLoss(weights=weights), ValueError, message)


LOSSES = [
    ("mae", ValueError, "unknown name 'mae'; known: mse, l1, huber, log_cosh, relative_mse, cosine"),
    (("nope", 1), ValueError, "unknown name 'nope'; known: mse, l1, huber, log_cosh, relative_mse, cosine"),
    (("mse", 1), ValueError, "'mse' takes no parameters, got (1,)"),
    (("huber", 1, 2), ValueError, "'huber' takes delta, got (1, 2)"),
    (("huber", "a"), ValueError, "the parameters of 'huber' must be numbers, got ('a',)"),
    (("huber", -1), ValueError, "expected finite parameters > 0, got ('huber', -1)"),
    (("huber", 0), ValueError, "expected finite parameters > 0, got ('huber', 0)"),
    (("huber", torch.nan), ValueError, "expected finite parameters > 0, got ('huber', nan)"),
    (("relative_mse", 1, 2), ValueError, "'relative_mse' takes eps, got (1, 2)"),
    (("cosine", 0), ValueError, "expected finite parameters > 0, got ('cosine', 0)"),
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
    (("sin", torch.nan), ValueError, "expected finite parameters, got ('sin', nan)"),
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
    message = f"expected one of cpu, cuda, triton, streams, reference, got {backend}"
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
    message = "backend: expected cpu to support this problem, got a refusal: LayerNorm is not one of Linear and "
    calls = [
        lambda backend: loss(student, derivatives="exact", backend=backend),
        lambda backend: sk.SobolevLoss(derivatives="exact", backend=backend)(student, X, TARGETS),
        lambda backend: sk.jvp(student, X, V, backend=backend),
        lambda backend: sk.explain(student, X, backend=backend),
    ]
    for call in calls:
        assert_refused(lambda call=call: call("cpu"), NotImplementedError, message)
    monkeypatch.setenv("SOBOLEV_BACKEND", "cpu")
    for call in calls:
        assert_refused(lambda call=call: call(None), NotImplementedError, message)
        call("reference")


ORDERS = "order: expected a whole number from 1 to 4, got "
ALONG = "order: expected 1 with cotangents or exact derivatives (order 2 is along directions), got 2"
THREE = "weights: expected three numbers (value, derivative, second derivative), got "
COLUMNS = "wrt: expected columns of the inputs, whole numbers from 0 to 2, got "
SCALES = "input_scale: expected torch.float32 [3] on cpu without requires_grad, got "
UNSCALED = "input_scale: expected a jacobian, hessian, vjps or teacher to scale alike, got projected tangents"
WEIGHT_GRAD = "expected a tensor without requires_grad (no gradient to weights is provided), got a tensor"
TEACHER = sk.Targets(teacher=STUDENT)
ARGUMENTS = [
    ("derivatives", lambda: loss(derivatives="all"), "derivatives: expected None or 'exact', got all"),
    ("derivatives, module", lambda: sk.SobolevLoss(derivatives="all"), "derivatives: expected None or 'exact', got"),
    ("derivatives, explain", lambda: sk.explain(STUDENT, X, derivatives="all"), "derivatives: expected None or"),
    ("order 0", lambda: loss(order=0), ORDERS + "0"),
    ("order 5", lambda: loss(targets=CURVED, order=5), ORDERS + "5"),
    ("order of a jet", lambda: sk.jet(STUDENT, X, V, order=5), ORDERS + "5"),
    ("order of a module", lambda: sk.SobolevLoss(order=5), ORDERS + "5"),
    ("order 2 with cotangents", lambda: loss(targets=CURVED, cotangents=UP, order=2), ALONG),
    ("order 2 exact", lambda: loss(targets=CURVED, derivatives="exact", order=2), ALONG),
    ("two weights", lambda: loss(targets=CURVED, order=2, weights=(1, 2)), THREE + "(1, 2)"),
    ("two weights, module", lambda: sk.SobolevLoss(order=2, weights=(1, 2)), THREE + "(1, 2)"),
    ("no columns", lambda: loss(wrt=[]), COLUMNS + "()"),
    ("a column too many", lambda: loss(wrt=[0, 3]), COLUMNS + "(0, 3)"),
    ("a negative column", lambda: loss(wrt=(-1,)), COLUMNS + "(-1,)"),
    ("half a column", lambda: loss(wrt=(0.5,)), COLUMNS + "(0.5,)"),
    ("a column by name", lambda: loss(wrt="x"), "wrt: expected columns of the inputs, a sequence of"),
    ("a mask", lambda: loss(wrt=[True, False, True]), COLUMNS + "(True, False, True)"),
    ("a tensor of columns", lambda: loss(wrt=torch.tensor([0, 1])), "numbers, got a tensor int64 [2] on cpu"),
    ("a column twice", lambda: loss(wrt=[1, 1]), "wrt: expected each column once, got (1, 1)"),
    ("columns of a jvp", lambda: sk.jvp(STUDENT, X, V, wrt=[3]), COLUMNS + "(3,)"),
    ("columns of a laplacian", lambda: sk.laplacian(STUDENT, X, wrt="x"), "wrt: expected columns of the inputs, a seq"),
    (
        "directions of all columns", lambda: sk.jvp(STUDENT, X, V, wrt=[0, 2]),
        "directions: expected torch.float32 [P, 6, 2] on cpu",
    ),
    ("columns of explain", lambda: sk.explain(STUDENT, X, wrt=[3]), COLUMNS + "(3,)"),
    (
        "columns of the jacobian", lambda: loss(wrt=[0, 2]),
        "jacobian: expected [6, 2, 2], got a tensor float32 [6, 2, 3] on cpu",
    ),
    (
        "columns of the directions", lambda: loss(targets=sk.Targets(values=Y, jacobian=J[..., :2], directions=V),
        wrt=[0, 2]), "directions: expected torch.float32 [P, 6, 2] on cpu",
    ),
    ("scale of a column", lambda: loss(input_scale=SCALE[:2]), SCALES + "a tensor float32 [2] on cpu"),
    ("scale of rank 2", lambda: loss(input_scale=SCALE[None]), SCALES + "a tensor float32 [1, 3] on cpu"),
    ("scale of another dtype", lambda: loss(input_scale=SCALE.double()), SCALES + "a tensor float64 [3] on cpu"),
    ("scale a number", lambda: loss(input_scale=2.0), SCALES + "2.0"),
    ("scale with requires_grad", lambda: loss(input_scale=needs_grad(SCALE)), SCALES + "a tensor float32 [3] on cp"),
    ("scale zero", lambda: loss(input_scale=0 * SCALE), "input_scale: expected finite numbers > 0, got [0.0, 0.0, "),
    ("scale negative", lambda: loss(input_scale=-SCALE), "finite numbers > 0, got [-0.5, -0.5, -0.5]"),
    ("scale not finite", lambda: loss(input_scale=not_a_number(SCALE, torch.inf)), "finite numbers > 0, got [inf, 0.5"),
    ("scale of tangents", lambda: loss(targets=TANGENTS, input_scale=SCALE), UNSCALED),
    (
        "scale of seconds",
        lambda: loss(targets=sk.Targets(values=Y, jacobian=J, seconds=S, directions=V), order=2, input_scale=SCALE),
        UNSCALED,
    ),
    (
        "differential-ml without a jacobian", lambda: loss(targets=TEACHER, weights="differential-ml"),
        "targets: expected a jacobian, whose columns 'differential-ml' weighs, got projected",
    ),
    (
        "differential-ml of values", lambda: loss(targets=sk.Targets(values=Y), weights="differential-ml"),
        "targets: expected a jacobian, whose columns 'differential-ml' weighs, got none",
    ),
    (
        "differential-ml of order 2", lambda: loss(targets=CURVED, order=2, weights="differential-ml"),
        "weights: expected numbers, since 'differential-ml' is of order 1, got order = 2",
    ),
    (
        "differential-ml in a unit", lambda: loss(weights="differential-ml", input_scale=SCALE),
        "weights: expected numbers together with an input_scale, got differential-ml",
    ),
    ("weights by another name", lambda: loss(weights="12"), "weights: expected numbers or 'differential-ml', got 12"),
    ("the same of a module", lambda: sk.SobolevLoss(weights="12"), "numbers or 'differential-ml', got 12"),
    ("order 2 with cotangents, module", lambda: sk.SobolevLoss(cotangents=UP, order=2), ALONG),
    ("order 2 exact, module", lambda: sk.SobolevLoss(derivatives="exact", order=2), ALONG),
    (
        "differential-ml of order 2, module", lambda: sk.SobolevLoss(weights="differential-ml", order=2),
        "weights: expected numbers, since 'differential-ml' is of order 1, got order = 2",
    ),
    (
        "differential-ml in a unit, module", lambda: sk.SobolevLoss(weights="differential-ml", input_scale=SCALE),
        "weights: expected numbers together with an input_scale, got differential-ml",
    ),
    ("a table of weights, module", lambda: sk.SobolevLoss(weights=np.ones((2, 2))), "weights: expected two numbers"),
    ("precision, module", lambda: sk.SobolevLoss(precision="fp8"), "precision: expected None or one of ieee, tf32, bf"),
    (
        "weights of mixed outputs", lambda: loss(cotangents=UP, output_weight=TWO),
        "output_weight: expected directions, Cotangents.basis() or derivatives=\"exact\", got mixed outputs",
    ),
    ("weight of outputs", lambda: loss(output_weight=ONES), "output_weight: expected [2], got a tensor float32 [6]"),
    ("weight of samples", lambda: loss(sample_weight=ONES[:4]), "sample_weight: expected [6], got a tensor float32 [4"),
    ("weights of rank 2", lambda: loss(sample_weight=ONES[:, None]), "sample_weight: expected [6], got a tensor float"),
    ("weights of another dtype", lambda: loss(sample_weight=ONES.double()), f"sample_weight: {AS_INPUTS} float64 [6]"),
    ("weights on a device", lambda: loss(output_weight=TWO.to("meta")), f"output_weight: {AS_INPUTS} float32 [2] on m"),
    ("samples with requires_grad", lambda: loss(sample_weight=needs_grad(ONES)), f"sample_weight: {WEIGHT_GRAD}"),
    ("outputs with requires_grad", lambda: loss(output_weight=needs_grad(TWO)), f"output_weight: {WEIGHT_GRAD}"),
    (
        "hvp along two shapes", lambda: sk.hvp(STUDENT, X, V, V[:1]),
        "w: expected the shape of v, [2, 6, 3], got a tensor float32 [1, 6, 3] on cpu",
    ),
    ("hvp along too many columns", lambda: sk.hvp(STUDENT, X, U, U), V_AS_X + " float32 [4, 6, 2] on cpu"),
    ("jet along too few", lambda: sk.jet(STUDENT, X, V[..., :2]), V_AS_X + " float32 [2, 6, 2] on cpu"),
    ("laplacian along too few", lambda: sk.laplacian(STUDENT, X, V[:, :4]), V_AS_X + " float32 [2, 4, 3] on cpu"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", [row[1:] for row in ARGUMENTS], ids=ids(ARGUMENTS))
def test_arguments_of_the_modes(call, message):
    assert_refused(call, ValueError, message)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: loss(wrt=1), "wrt: expected"),
        (lambda: sk.SobolevLoss(wrt=1), "wrt: expected"),
        (lambda: sk.explain(STUDENT, X, wrt=1), "wrt: expected"),
        (lambda: loss(targets=CURVED, order=2.0), "order: expected a whole number"),
        (lambda: sk.explain(STUDENT, X, order=5), "order: expected a whole number"),
        (lambda: sk.explain(STUDENT, X, SPHERE, cotangents=UP), "directions: expected one of"),
        (lambda: sk.explain(STUDENT, X, cotangents=UP, order=2), "order: expected 1"),
    ],
)
def test_arguments_that_are_not_refused_in_words(call, message):
    assert_refused(call, ValueError, message)


@pytest.mark.parametrize("name", ["sample_weight", "output_weight"])
def test_weights_are_tensors(name):
    count = {"sample_weight": N, "output_weight": O}[name]
    assert_refused(lambda: loss(**{name: [1.0]}), TypeError, f"{name}: expected a tensor [{count}], got [1.0]")


@pytest.mark.parametrize("name", ["v", "w"])
def test_hvp_along_what_is_no_tensor(name):
    vectors = {"v": V, "w": V, name: SPHERE}
    message = f"{name}: expected a tensor [P, N, D] or Directions.given(tensor), got Directions("
    assert_refused(lambda: sk.hvp(STUDENT, X, **vectors), TypeError, message)


FLAT = [
    sk.MLP(D, O, width=5, activation="relu"),
    sk.MLP(D, O, width=5, activation=("leaky_relu", 0.2)),
    sk.MLP(D, O, width=5, activation="tanh", last_activation="relu"),
]
OF_ORDER_2 = {
    "loss": lambda student, backend: loss(student, targets=CURVED, order=2, backend=backend),
    "explain": lambda student, backend: sk.explain(student, X, order=2, backend=backend),
    "jet": lambda student, backend: sk.jet(student, X, V, backend=backend),
    "laplacian": lambda student, backend: sk.laplacian(student, X, backend=backend),
    "hvp": lambda student, backend: sk.hvp(student, X, V, V, backend=backend),
}


@pytest.mark.parametrize("backend", [None, "cpu", "triton", "reference"])
@pytest.mark.parametrize("name", OF_ORDER_2)
@pytest.mark.parametrize("student", FLAT, ids=["relu", "leaky_relu", "relu after tanh"])
def test_order_2_of_flat_activations(student, name, backend):
    flat = "leaky_relu" if any(isinstance(module, nn.LeakyReLU) for module in student) else "relu"
    message = f"order: expected 1 with {flat}, whose second derivative is 0 almost everywhere"
    assert_refused(lambda: OF_ORDER_2[name](student, backend), sk.NotProvided, message)
    assert_refused(lambda: OF_ORDER_2[name](student, backend), sk.NotProvided, "would be silently 0), got 2")


def forward_on(student, act):
    """The same numbers from a module that is not recognised."""
    wrapped = nn.Sequential(student, act)
    wrapped.register_forward_hook(lambda *_: None)
    return wrapped


FLAT_MODULES = [
    nn.ReLU(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.Threshold(0.1, 0), nn.ReLU6(), nn.Hardtanh(),
    nn.Hardsigmoid(), nn.Hardshrink(), nn.Softshrink(),
]  # fmt: skip


@pytest.mark.parametrize("name", OF_ORDER_2)
@pytest.mark.parametrize("act", FLAT_MODULES, ids=lambda act: type(act).__name__)
def test_order_2_of_an_unrecognised_student_with_a_flat_activation(act, name):
    kind = type(act).__name__
    message = f"order: expected 1 with {kind}, whose second derivative is 0 almost everywhere (the second derivative of"
    assert_refused(lambda: OF_ORDER_2[name](forward_on(STUDENT, act), None), sk.NotProvided, message)
    assert_refused(lambda: OF_ORDER_2[name](forward_on(STUDENT, act), None), sk.NotProvided, "the student would be")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "teacher, flat",
    [*zip(FLAT, ("relu", "leaky_relu", "relu"), strict=True)] + [(forward_on(STUDENT, act), type(act).__name__)
     for act in FLAT_MODULES],
    ids=str,
)  # fmt: skip
def test_order_2_of_a_teacher_with_a_flat_activation(teacher, flat, backend):
    second = lambda: loss(targets=sk.Targets(teacher=teacher), order=2, backend=backend)  # noqa: E731
    message = f"order: expected 1 with {flat}, whose second derivative is 0 almost everywhere (the second derivative of"
    assert_refused(second, sk.NotProvided, message)
    assert_refused(second, sk.NotProvided, "the teacher would be silently 0), got 2")


def test_order_2_of_a_curved_module_that_is_not_recognised():
    student = forward_on(STUDENT, nn.Hardswish())
    assert sk.jet(student, X, V)[2].abs().max() > 0
    same = loss(student, targets=sk.Targets(teacher=student), order=2)  # he by streams, the teacher by the reference
    assert same < torch.finfo(torch.float32).eps


NOT_FINITE = "expected finite numbers, got 1 that are not, in a tensor float32"
FINITE = [
    ("inputs", "inputs", lambda: {"x": not_a_number(X)}),
    ("infinite inputs", "inputs", lambda: {"x": not_a_number(X, torch.inf)}),
    ("values", "values", lambda: {"targets": sk.Targets(values=not_a_number(Y), jacobian=J)}),
    ("jacobian", "jacobian", lambda: {"targets": sk.Targets(values=Y, jacobian=not_a_number(J, -torch.inf))}),
    ("tangents", "tangents", lambda: {"targets": sk.Targets(values=Y, tangents=not_a_number(T), directions=V)}),
    ("directions", "directions", lambda: {"directions": sk.Directions.given(not_a_number(V))}),
    ("vjps", "vjps", lambda: {"targets": sk.Targets(values=Y, vjps=not_a_number(G), cotangents=U)}),
    ("hessian", "hessian", lambda: {"targets": sk.Targets(values=Y, jacobian=J, hessian=not_a_number(H)), "order": 2}),
    (
        "seconds", "seconds",
        lambda: {"targets": sk.Targets(values=Y, jacobian=J, seconds=not_a_number(S), directions=V), "order": 2},
    ),
    ("parameter", "student.2.weight", lambda: {"student": fresh(bad_second_weight)}),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name, arguments", [row[1:] for row in FINITE], ids=ids(FINITE))
def test_check_finite_names_the_tensor(name, arguments, backend):
    call = lambda: loss(**arguments(), check_finite=True, backend=backend)  # noqa: E731
    assert_refused(call, ValueError, f"{name}: {NOT_FINITE}")


@pytest.mark.parametrize(
    "name, arguments",
    [("cotangents", {"cotangents": sk.Cotangents.given(not_a_number(U))})],
    ids=["cotangents"],
)
def test_check_finite_names_what_is_new(name, arguments):
    assert_refused(lambda: loss(**arguments, check_finite=True), ValueError, f"{name}: {NOT_FINITE}")


def test_check_finite_changes_nothing_else():
    directions = sk.Directions.sphere(P, seed=1)
    assert torch.equal(loss(directions=directions, check_finite=True), loss(directions=directions))


REFUSALS = DIRECTIONS + COTANGENTS + BAD_TARGETS


@pytest.mark.parametrize("call, kind, message", [row[1:] for row in REFUSALS], ids=ids(REFUSALS))
def test_projections_and_targets(call, kind, message):
    assert_refused(call, kind, message)

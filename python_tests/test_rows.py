"""Inputs of any shape, students of one output that return [N], and masks of inputs, beside autograd."""

import math

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import sobolev_kernels as sk
from python_tests.students import Call
from sobolev_kernels.errors import SobolevWarning
from sobolev_kernels.paths import known_of
from sobolev_kernels.rows import Rows
from sobolev_kernels.testing.rule import ANOTHER_WAY

N, P, DTYPE = 4, 2, torch.float64


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def students() -> dict[str, tuple[nn.Module, tuple[int, ...], int]]:
    """Each with the shape of an input and its outputs."""
    torch.manual_seed(0)
    conv = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    made = {
        "images": (nn.Sequential(*conv, nn.Linear(12, 3)), (2, 4, 4), 3),
        "images to [N]": (nn.Sequential(*conv, nn.Linear(12, 1), nn.Flatten(0)), (2, 4, 4), 1),
        "an MLP of images": (nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.SiLU(), nn.Linear(5, 2)), (2, 2, 2), 2),
        "sequences": (Call(lambda x, a, b: b(a(x).mean(1)), layer, nn.Linear(4, 2)), (3, 4), 2),
        "rows to [N]": (Call(lambda x, a: a(x).squeeze(-1), sk.MLP(3, 1, width=4)), (3,), 1),
    }
    return {name: (student.to(DTYPE), *rest) for name, (student, *rest) in made.items()}


STUDENTS = students()


def values_and_jacobian(student: nn.Module, x: torch.Tensor, O: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, O] and [N, O, …] by autograd, with a graph."""
    x = x if x.requires_grad else x.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        y = student(x).view(len(x), O)
    return y, torch.stack([torch.autograd.grad(y[:, o].sum(), x, create_graph=True)[0] for o in range(O)], 1)


def gradients(loss: torch.Tensor, student: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, [x, *student.parameters()], allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("along", ["exact", "directions", "given", "cotangents", "mask", "teacher"])
def test_of_a_loss_and_its_gradients(name, along):
    student, shape, O = STUDENTS[name]
    x, values, jacobian = numbers(N, *shape).requires_grad_(), numbers(N, O, seed=1), numbers(N, O, *shape, seed=2)
    y, J = values_and_jacobian(student, x, O)
    off, targets, settings = J - jacobian, {"values": values, "jacobian": jacobian}, {}
    if O == 1:
        targets = {"values": values[:, 0], "jacobian": jacobian[:, 0]}
    if along == "exact":
        settings = {"derivatives": "exact"}
    elif along == "directions":
        settings = {"directions": sk.Directions.sphere(P, seed=3)}
        v = settings["directions"].tensor(x)
        assert v.shape == (P, *x.shape)
        off = torch.einsum("nod,pnd->pno", off.flatten(2), v.flatten(2))
    elif along == "given":
        v = numbers(P, N, *shape, seed=4)
        off = torch.einsum("nod,pnd->pno", off.flatten(2), v.flatten(2))
        targets = {"values": values, "tangents": torch.einsum("nod,pnd->pno", jacobian.flatten(2), v.flatten(2))}
        targets["directions"] = v
    elif along == "cotangents":
        u = numbers(P, N, O, seed=5)
        settings = {"cotangents": sk.Cotangents.given(u)}
        off = torch.einsum("no...,pno->pn...", off, u)
        targets = {"values": values, "vjps": torch.einsum("no...,pno->pn...", jacobian, u)}
    elif along == "mask":
        mask = numbers(*shape, seed=6) > 0
        settings, off = {"derivatives": "exact", "wrt": mask}, off[:, :, mask]
        targets = {"values": values, "jacobian": jacobian[:, :, mask]}
    else:
        settings = {"derivatives": "exact"}
        weight = numbers(math.prod(shape), O, seed=7)
        targets = {"teacher": lambda x: (x.flatten(1) @ weight).sin()}
        of_teacher = lambda x: (x.flatten() @ weight).sin()  # noqa: E731
        values, off = vmap(of_teacher)(x.detach()), J - vmap(jacrev(of_teacher))(x.detach())
    expected = (y - values).square().mean() + off.square().mean()
    wanted = gradients(expected, student, x)
    for _ in range(2):  # the second time by what is known of the first
        loss = sk.sobolev_loss(student, x, sk.Targets(**targets), **settings)
        torch.testing.assert_close(loss, expected, **ANOTHER_WAY)
        for ours, theirs in zip(gradients(loss, student, x), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, **ANOTHER_WAY)


@pytest.mark.parametrize("name", STUDENTS)
def test_of_derivatives(name):
    student, shape, O = STUDENTS[name]
    x, v, u = numbers(N, *shape), numbers(P, N, *shape, seed=1), numbers(P, N, O, seed=2)
    y, J = values_and_jacobian(student, x, O)
    _, tangents = sk.jvp(student, x, v)
    torch.testing.assert_close(tangents, torch.einsum("nod,pnd->pno", J.flatten(2), v.flatten(2)), **ANOTHER_WAY)
    values, cotangents = sk.vjp(student, x, u)
    torch.testing.assert_close(values, y, **ANOTHER_WAY)
    torch.testing.assert_close(cotangents, torch.einsum("no...,pno->pn...", J, u), **ANOTHER_WAY)
    mask = numbers(*shape, seed=3) > 0
    some = sk.vjp(student, x, u, wrt=mask)[1]
    torch.testing.assert_close(some, cotangents[:, :, mask], **ANOTHER_WAY)
    exact, doubled = sk.laplacian(student, x)[1], sk.laplacian(student, x, sk.Directions.basis(unbiased=True))[1]
    torch.testing.assert_close(exact, doubled, **ANOTHER_WAY)
    second = sk.jet(student, x, v)[2]
    torch.testing.assert_close(second, sk.hvp(student, x, v, v)[1], **ANOTHER_WAY)


def test_weights_and_units_of_an_input_s_shape():
    student, shape, O = STUDENTS["images"]
    x, target = numbers(N, *shape), sk.Targets(values=numbers(N, O, seed=1), jacobian=numbers(N, O, *shape, seed=2))
    y, J = values_and_jacobian(student, x, O)
    off, value = J - target.jacobian, (y - target.values).square().mean()
    scale, entries, mask = numbers(*shape, seed=3).exp(), numbers(N, O, *shape, seed=4).exp(), numbers(N, *shape) > 0
    for settings, expected in (
        ({"input_scale": scale}, (scale * off).square()),
        ({"derivative_weight": entries}, entries * off.square()),
        ({"derivative_weight": mask}, mask[:, None] * off.square()),
    ):
        loss = sk.sobolev_loss(student, x, target, derivatives="exact", **settings)
        torch.testing.assert_close(loss, value + expected.mean(), **ANOTHER_WAY)


def test_an_mlp_of_images_is_an_mlp():
    student, shape, _ = STUDENTS["an MLP of images"]
    x = numbers(N, *shape)
    direct = sk.jvp(student[1:], x.flatten(1), sk.Directions.normal(P, seed=1), backend="cpu")[1]
    assert torch.equal(sk.jvp(student, x, sk.Directions.normal(P, seed=1), backend="cpu")[1], direct)


def test_what_is_known_of_a_student_is_known_of_each_shape():
    student, x = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()), torch.zeros(1, 12)
    known = known_of(Rows(student, (2, 6)), x)
    assert known_of(Rows(student, (3, 4)), x) is not known
    assert known_of(Rows(student, (2, 6)), x) is known


def test_a_student_of_any_shape_is_warned_once():
    student = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh(), nn.Flatten())
    teacher = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Dropout(0.5), nn.Flatten())
    with pytest.warns(SobolevWarning, match="Dropout") as warned:
        for i in range(3):
            sk.sobolev_loss(student, torch.randn(3 + i, 2, 4), sk.Targets(teacher=teacher)).backward()
    assert len(warned) == 1


@pytest.mark.parametrize(
    "named, said",
    [
        ({"targets": {"jacobian": (N, 3, 32)}}, r"jacobian: expected \[N, O, 2, 4, 4\], as the inputs are"),
        ({"directions": (P, N, 32)}, r"directions: expected \[P, N, 2, 4, 4\]"),
        ({"directions": (N, 2, 4, 4)}, r"v\[:, None\].expand"),
        ({"wrt": (0, 1)}, r"wrt: expected a Boolean mask of one input's shape, torch.bool \[2, 4, 4\]"),
        ({"wrt": torch.ones(4, 4, dtype=torch.bool)}, r"wrt: .* got a mask \[4, 4\]"),
        ({"wrt": torch.zeros(2, 4, 4, dtype=torch.bool)}, "wrt: expected a Boolean mask"),
        ({"wrt": torch.ones(2, 4, 4)}, "wrt: expected a Boolean mask"),
        ({"input_scale": (4, 4)}, r"input_scale: expected"),
        ({"inputs": (N, 0, 4, 4)}, "inputs: .* at least one feature"),
    ],
)
def test_other_shapes_are_refused_in_words(named, said):
    student, shape, O = STUDENTS["images"]
    shapes = {"values": (N, O), "jacobian": (N, O, *shape), **named.pop("targets", {})}
    x = torch.zeros(named.pop("inputs", (N, *shape)), dtype=DTYPE)
    if "directions" in named:
        named = {"directions": sk.Directions.given(torch.ones(named["directions"], dtype=DTYPE))}
    if "input_scale" in named:
        named = {"input_scale": torch.ones(named["input_scale"], dtype=DTYPE)}
    targets = sk.Targets(**{name: torch.zeros(shape, dtype=DTYPE) for name, shape in shapes.items()})
    with pytest.raises(ValueError, match=said):
        sk.sobolev_loss(student, x, targets, **named)


def test_a_batch_norm_below_rows_is_refused():
    student, shape, _ = STUDENTS["images"]
    coupled = nn.Sequential(nn.BatchNorm2d(2, dtype=DTYPE), student)
    with pytest.raises(NotImplementedError, match="BatchNorm2d"):
        sk.jvp(coupled, numbers(N, *shape), sk.Directions.sphere(1))

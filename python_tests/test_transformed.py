"""Named derivatives of a student between transforms: its streams beside nested autograd of the whole, in float64."""

import math

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.partials import layers, transformed
from sobolev_kernels.testing import assert_within_rule

NAMES = {
    "Burgers": ("x t -> u", "u, u_t, u_x, u_xx"),
    "Kuramoto-Sivashinsky": ("x t -> u", "u_t, u_x, u_xx, u_xxxx"),
    "bilaplacian": ("x y -> u", "u_xxxx + 2*u_xxyy + u_yyyy"),
    "flow": ("x y -> u v p", "u, u_x, v_y, p_x, u_xx + u_yy, v_xx + v_yy"),
    "with derivatives": ("x t -> u", "u, u_xt, u_tt, u_xxt, u_xxx"),
}


class Fourier(nn.Module):
    """Features by frequencies that are learnt."""

    def __init__(self, D, F):
        super().__init__()
        self.frequencies = nn.Parameter(torch.linspace(-1, 2, D * F).reshape(D, F))

    def forward(self, x):
        z = x @ self.frequencies
        return torch.cat([z.sin(), z.cos(), x[:, :1] * x[:, 1:2]], 1)


def periodic(x):
    return torch.cat([torch.sin(2 * math.pi * x), torch.cos(2 * math.pi * x), x], 1)


def at_walls(x, y):
    g = torch.exp(x[:, 1:]) * x[:, :1]
    return g + (x[:, :1] * (1 - x[:, :1]) * torch.sin(x[:, 1:])) * y


def mixing(x, y):
    """No linear function of y, of as many outputs."""
    return torch.tanh(y + 0.5 * y.flip(1)) * (1 + x[:, :1]) + x[:, 1:]


INPUTS = {"none": None, "learnt": Fourier, "periodic": periodic}
OUTPUTS = {"none": None, "walls": at_walls, "mixing": mixing}


def student_of(inputs, outputs, O, activation="tanh"):
    torch.manual_seed(0)
    made = Fourier(2, 3) if inputs is Fourier else inputs
    D = {None: 2, Fourier: 7, periodic: 6}[inputs]
    return sk.Transformed(sk.MLP(D, O, width=6, depth=2, activation=activation), inputs=made, outputs=outputs).double()


def nested(student, x, names, fields):
    y, kept = student(x), {}

    def at(o, e):
        if (o, e) not in kept:
            i = next((i for i, n in enumerate(e) if n), None)
            if i is None:
                kept[o, e] = y[:, o : o + 1]
            else:
                before = at(o, (*e[:i], e[i] - 1, *e[i + 1 :])).sum()
                kept[o, e] = torch.autograd.grad(before, x, create_graph=True)[0][:, i : i + 1]
        return kept[o, e]

    return [sum(c * at(o, e) for o, e, c in row) for row in fields.terms(names)]


def compared(student, fields, names, x, again=False):
    """Values and gradients of a loss of all of them, by `partials` and by autograd of autograd."""
    asking = [x, *student.parameters()]
    by_hand = nested(student, x, [name.strip() for name in names.split(",")], sk.Fields(fields))
    found = []
    for outputs in (list(sk.partials(student, x, names, fields=fields).values()), by_hand):
        loss = sum((output.sin() * outputs[0].cos() + output.square()).mean() for output in outputs)
        gradients = torch.autograd.grad(loss, asking, create_graph=again, materialize_grads=True)
        found.append([*outputs, *gradients])
        if again:
            found[-1] += torch.autograd.grad(sum(g.square().sum() for g in gradients), asking, materialize_grads=True)
    for i, (got, expected) in enumerate(zip(*found, strict=True)):
        assert_within_rule(f"tensor {i}", got.detach(), expected.detach())


@pytest.mark.parametrize("fields, names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_streams_go_through_transforms(inputs, outputs, fields, names):
    if inputs is outputs is None or (outputs is mixing and "yyyy" in names):
        pytest.skip("no transform, or a slow reference")
    student = student_of(inputs, outputs, len(sk.Fields(fields).outputs))
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert transformed.parts_of(student, x) is not None
    compared(student, fields, names, x)


@pytest.mark.parametrize("inputs, outputs", [(Fourier, at_walls), (periodic, None), (None, mixing)])
def test_without_the_core_and_again(inputs, outputs, monkeypatch):
    monkeypatch.setattr(transformed, "chosen", lambda *_: None)
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    compared(student_of(inputs, outputs, 1), "x t -> u", "u, u_xx, u_xxt", x)


@pytest.mark.parametrize("inputs, outputs", [(Fourier, at_walls), (periodic, mixing)])
def test_gradients_can_be_differentiated(inputs, outputs):
    x = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    compared(student_of(inputs, outputs, 1), "x t -> u", "u, u_x, u_xx", x, again=True)


def test_a_sequential_that_goes_on_as_an_mlp():
    torch.manual_seed(0)
    student = nn.Sequential(Fourier(2, 3), sk.MLP(7, 1, width=6, depth=2)).double()
    x = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert transformed.parts_of(student, x) is not None
    compared(student, "x t -> u", "u_t, u_xx, u_xxxx", x)


def test_within_is_a_scaled_student():
    torch.manual_seed(0)
    x = torch.rand(16, 2, dtype=torch.float64) * 3
    scaler = sk.Scaler().fit(x, sk.Targets(values=5 * x[:, :1]))
    student = sk.Transformed(sk.Scaled(sk.MLP(2, 1, width=6, depth=2), scaler), outputs=at_walls).double()
    assert transformed.parts_of(student, x) is not None
    compared(student, "x t -> u", "u_t, u_xx", x[:3].requires_grad_())


def test_inputs_of_any_sign_without_gradients():
    student = student_of(periodic, at_walls, 1)
    x = torch.rand(4, 2, dtype=torch.float64)
    with torch.no_grad():
        p = sk.partials(student, x, "u_xx", fields="x t -> u")
    assert not p["u_xx"].requires_grad
    expected = sk.partials(lambda x: student(x), x, "u_xx", fields="x t -> u")["u_xx"]
    assert_within_rule("u_xx", p["u_xx"], expected.detach())


def test_fixed_features_are_no_part_of_the_graph():
    """Else gradients of what nobody asks for would be computed."""
    x = torch.rand(4, 2, dtype=torch.float64)
    streams = sk.Fields("x t -> u").plan(["u_xx", "u_t"])
    assert not any(t.requires_grad for t in transformed.features(periodic, streams, x, 6, True))
    assert all(t.requires_grad for t in transformed.features(Fourier(2, 3).double(), streams, x, 7, True))


def test_a_condition_holds_by_itself():
    student = sk.Transformed(sk.MLP(2, 1, width=6), outputs=lambda x, y: x[:, 1:] + x[:, :1] * y)
    p = sk.partials(student, torch.tensor([[0.0, 0.3], [0.0, 0.7]]), "u, u_t, u_tt", fields="x t -> u")
    assert p["u"].flatten().tolist() == pytest.approx([0.3, 0.7])
    assert p["u_t"].flatten().tolist() == [1.0, 1.0] and p["u_tt"].flatten().tolist() == [0.0, 0.0]


def test_a_training_on_residuals():
    torch.manual_seed(0)
    student = sk.Transformed(sk.MLP(4, 1, width=8), inputs=lambda x: torch.cat([x, x.sin()], 1), outputs=at_walls)
    heat = sk.Residual(lambda p: p.u_t - p.u_xx, "x t -> u", name="heat")
    history = sk.fit(student, residuals=sk.Points(heat, torch.rand(32, 2)), epochs=8, finish=2, lr=1e-2, progress=False)
    assert history["heat"][-1] < 0.5 * history["heat"][0]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"inputs": lambda x: x[:, :1]}, r"inputs: expected features \[3, 2\], as the student takes, got"),
        ({"inputs": lambda x: torch.relu(x)}, "inputs: expected derivatives up to order 1 with Relu"),
        ({"inputs": lambda x: x - x.mean(0)}, "mixes samples"),
        ({"inputs": lambda x: x.detach()}, "no path"),
        ({"outputs": lambda x, y: x[:, :1].detach().exp() + y.detach()}, "no path"),
        ({"outputs": lambda x, y: torch.relu(y)}, "expected derivatives up to order 1 with Relu"),
        ({"outputs": lambda x, y: y.sum(0, keepdim=True).expand(len(x), 1)}, "mixes samples"),
        ({"outputs": lambda x, y: torch.cat([y, y], 1)}, r"expected outputs \[3, 1\]"),
    ],
)
def test_what_is_refused(change, said):
    student = sk.Transformed(sk.MLP(2, 1, width=6), **change)
    with pytest.raises((ValueError, NotImplementedError), match=said):
        sk.partials(student, torch.rand(3, 2), "u_xx", fields="x t -> u")


def test_kinks_of_the_student_within():
    student = sk.Transformed(sk.MLP(2, 1, width=6, activation="relu"), outputs=at_walls)
    with pytest.raises(NotImplementedError, match="ReLU"):
        sk.partials(student, torch.rand(3, 2), "u_xx", fields="x t -> u")
    with pytest.raises(TypeError, match=r"outputs: expected a function, or a module, got 3"):
        sk.Transformed(sk.MLP(2, 1), outputs=3)


def test_layers_are_not_taken_where_somebody_follows():
    student = student_of(periodic, at_walls, 1)
    x = torch.rand(3, 2, dtype=torch.float64)
    named = lambda x: sk.partials(student, x, "u_x", fields="x t -> u")["u_x"]  # noqa: E731
    got = torch.func.vjp(named, x)[0]
    assert_within_rule("u_x", got.detach(), named(x).detach())
    assert not layers.by_plain(x)

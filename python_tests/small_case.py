"""A case small enough to be refused in every way: its numbers, the loss on them, and every result as one scalar."""

import copy

import pytest
import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.testing.problems import Shape, cotangents_of, data, directions_of

N, D, O, P = 6, 3, 2, 2
SHAPE = Shape(N, D, 5, 1, O, P, "small, and all sizes differ where a mistake could hide")
NUMBERS = data(SHAPE)
STUDENT, X, Y, J = NUMBERS.student, NUMBERS.x, NUMBERS.y, NUMBERS.jacobian
V = directions_of("given", SHAPE).values  # [P, N, D]
T = torch.einsum("nod,pnd->pno", J, V)  # [P, N, O]
U = cotangents_of("given", SHAPE).values  # [P, N, O]
G = torch.einsum("nod,rno->rnd", J, U)  # [P, N, D]
H = NUMBERS.hessian  # [N, O, D, D]
S = torch.einsum("node,pnd,pne->pno", H, V, V)  # [P, N, O]
TARGETS = sk.Targets(values=Y, jacobian=J)
TANGENTS = sk.Targets(values=Y, tangents=T, directions=V)
UNFIXED = sk.Targets(values=Y, tangents=T)
SPHERE = sk.Directions.sphere(P)
UP = sk.Cotangents.sphere(P)
CURVED = sk.Targets(values=Y, jacobian=J, hessian=H)
SCALE, ONES, TWO = torch.full((D,), 0.5), torch.ones(N), torch.ones(O)


def loss(student=STUDENT, x=X, targets=TARGETS, **settings):
    return sk.sobolev_loss(student, x, targets, **{"directions": None, **settings})


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


EXACT = NUMBERS.to(torch.float64)
TENSORS = {"x": EXACT.x, "weight": EXACT.student[0].weight.detach(), "values": EXACT.y, "jacobian": EXACT.jacobian}
TENSORS |= {"directions": V.double(), "cotangents": U.double(), "hessian": EXACT.hessian}
TENSORS |= {"sample_weight": 2 * torch.ones(N).double(), "output_weight": TWO.double()}
TENSORS["derivative_weight"] = torch.full((N, O), 1.5).double()
TENSORS["input_scale"] = SCALE.double()
OF_A_LOSS = ("x", "weight", "values", "jacobian")
# By result, the tensors that it depends on.
USED = {
    "loss": (*OF_A_LOSS, "directions"),
    "per sample": (*OF_A_LOSS, "directions"),
    "cotangents": (*OF_A_LOSS, "cotangents"),
    "order 2": (*OF_A_LOSS, "directions", "hessian"),
    "balanced": (*OF_A_LOSS, "directions", "sample_weight", "output_weight", "derivative_weight", "input_scale"),
    "jvp": ("x", "weight", "directions"),
    "vjp": ("x", "weight", "cotangents"),
    "jet": ("x", "weight", "directions"),
    "laplacian": ("x", "weight", "directions"),
    "hvp": ("x", "weight", "directions"),
}
RESULTS = list(USED)
LOSSES = RESULTS[:5]


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
        x, v, u = tensors["x"], tensors["directions"], tensors["cotangents"]
        vectors = {"jvp": [v], "vjp": [u], "jet": [v], "laplacian": [v], "hvp": [v, v + 1]}
        if result in vectors:
            _, *derivatives = getattr(sk, result)(student, x, *vectors[result], backend=backend)
            return sum(derivative.square().sum() for derivative in derivatives)
        settings = {"directions": sk.Directions.given(v)}
        targets = {name: tensors[name] for name in ("values", "jacobian")}
        if result == "per sample":
            settings["reduction"] = "none"
        elif result == "order 2":
            settings["order"], targets["hessian"] = 2, tensors["hessian"]
        elif result == "cotangents":
            settings = {"cotangents": sk.Cotangents.given(u)}
        elif result == "balanced":
            balance = ("sample_weight", "output_weight", "derivative_weight", "input_scale")
            settings |= {name: tensors[name] for name in balance}
            settings |= {"value_loss": "relative_mse", "derivative_loss": "cosine"}
        return sk.sobolev_loss(student, x, sk.Targets(**targets), backend=backend, **settings).sum()

    if "weight" not in replaced:
        return function(EXACT.student)
    return torch.func.functional_call(Calling(function), {"student.0.weight": replaced["weight"]}, ())

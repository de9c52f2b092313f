"""The ways to compute a first-order step without this library, each as good as its author can write it.

A baseline is a loss, a function of the layers and the data returning a scalar, and how it is differentiated; the table
at the end is the list. They get the directions and the target tangents for nothing. Exact gradients differ in nothing
but that they are not projected; what goes beyond is in higher.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import gelu, linear, mse_loss, silu, softplus

from .cases import EXACT, FIRST, SECOND, Case, Data

# Of an activation the value, the slope, and a call for the curvature, which not everybody needs
Jet = tuple[torch.Tensor, torch.Tensor, Callable[[], torch.Tensor]]


def jet_of_tanh(z: torch.Tensor) -> Jet:
    y = torch.tanh(z)
    slope = 1 - y * y
    return y, slope, lambda: -2 * y * slope


def jet_of_sigmoid(z: torch.Tensor) -> Jet:
    y = torch.sigmoid(z)
    slope = y * (1 - y)
    return y, slope, lambda: slope * (1 - 2 * y)


def jet_of_softplus(z: torch.Tensor) -> Jet:
    slope = torch.sigmoid(z)
    return softplus(z), slope, lambda: slope * (1 - slope)


def jet_of_silu(z: torch.Tensor) -> Jet:
    s = torch.sigmoid(z)
    bend = s * (1 - s)
    return z * s, s + z * bend, lambda: bend * (2 + z * (1 - 2 * s))


def jet_of_gelu(z: torch.Tensor) -> Jet:
    below = 0.5 + 0.5 * torch.erf(z * math.sqrt(0.5))
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return z * below, below + z * density, lambda: density * (2 - z * z)


class Layer(NamedTuple):
    weight: torch.Tensor  # [n_l, n_{l-1}]
    bias: torch.Tensor  # [n_l]
    activation: Callable[[torch.Tensor], torch.Tensor] | None  # the last layer has none
    jet: Callable[[torch.Tensor], Jet] | None


Layers = list[Layer]
Result = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
Step = Callable[[], Result]
Build = Callable[[Case, torch.nn.Module, Data], Step]


FUNCTIONS = {
    torch.nn.Tanh: (torch.tanh, jet_of_tanh),
    torch.nn.Sigmoid: (torch.sigmoid, jet_of_sigmoid),
    torch.nn.Softplus: (softplus, jet_of_softplus),
    torch.nn.SiLU: (silu, jet_of_silu),
    torch.nn.GELU: (gelu, jet_of_gelu),
}


def layers_of(student: torch.nn.Module) -> Layers:
    """Cheaper to call than the module, which favours us least."""
    linears = [m for m in student if isinstance(m, torch.nn.Linear)]
    functions = [FUNCTIONS[type(m)] for m in student if type(m) in FUNCTIONS]
    return [Layer(m.weight, m.bias, *both) for m, both in zip(linears, [*functions, (None, None)], strict=True)]


def forward(layers: Layers, x: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., O]
    for layer in layers[:-1]:
        x = layer.activation(linear(x, layer.weight, layer.bias))
    return linear(x, layers[-1].weight, layers[-1].bias)


def sobolev(data: Data, y: torch.Tensor, *derivatives: torch.Tensor) -> torch.Tensor:
    """From y [N, O], and tangents [P, N, O] or the Jacobian [N, O, D], and seconds [P, N, O]; all weights are 1."""
    loss = mse_loss(y, data.y)
    for derivative, target in zip(derivatives, data.derivatives, strict=True):
        loss = loss + mse_loss(derivative, target)
    return loss


def projected(rows: list[torch.Tensor], data: Data) -> torch.Tensor:
    """Tangents [P, N, O] of the rows [N, D] of the Jacobian; where there are no directions the Jacobian [N, O, D]."""
    if data.directions is None:
        return torch.stack(rows, 1)
    if len(rows) == 1:
        return torch.einsum("nd,pnd->pn", rows[0], data.directions)[..., None]
    return torch.einsum("ond,pnd->pno", torch.stack(rows), data.directions)


def values_only(layers: Layers, data: Data) -> torch.Tensor:
    return mse_loss(forward(layers, data.x), data.y)


def columns_of(data: Data) -> torch.Tensor:
    """Directions of the tangents [P, N or 1, D]: the given ones, or for the whole Jacobian the basis."""
    return basis(data) if data.directions is None else data.directions


def basis(data: Data) -> torch.Tensor:
    """[D, 1, D]: of the first layer the tangents are the same for all samples."""
    return torch.eye(data.x.shape[1], dtype=data.x.dtype, device=data.x.device)[:, None]


def along(data: Data, tangents: torch.Tensor) -> torch.Tensor:
    """Tangents [P, N, O] as the data's target has them, which of the whole Jacobian is [N, O, D]."""
    return tangents.permute(1, 2, 0) if data.directions is None else tangents


def vmap_jvp(layers: Layers, data: Data) -> torch.Tensor:
    jvp = lambda v: torch.func.jvp(lambda x: forward(layers, x), (data.x,), (v.expand_as(data.x),))  # noqa: E731
    y, tangents = torch.func.vmap(jvp, out_dims=(None, 0))(columns_of(data))
    return sobolev(data, y, along(data, tangents))


def double_backward(layers: Layers, data: Data) -> torch.Tensor:
    """The whole Jacobian, one backward for each output; then projected, if it is to be."""
    x = data.x.detach().requires_grad_()
    y = forward(layers, x)
    columns = y.sum(0)
    rows = [torch.autograd.grad(column, x, create_graph=True)[0] for column in columns]
    return sobolev(data, y, projected(rows, data))


def double_vjp(layers: Layers, data: Data) -> torch.Tensor:
    """A tangent as the derivative of the VJP with respect to its cotangent, one for each direction."""
    x = data.x.detach().requires_grad_()
    y = forward(layers, x)
    u = torch.zeros_like(y, requires_grad=True)
    g = torch.autograd.grad(y, x, u, create_graph=True)[0]
    tangents = [torch.autograd.grad(g, u, v, create_graph=True)[0] for v in data.directions]
    return sobolev(data, y, torch.stack(tangents))


def func_grad(layers: Layers, data: Data) -> torch.Tensor:
    """A scalar student's whole gradient."""

    def total(x):
        y = forward(layers, x)
        return y.sum(), y

    g, y = torch.func.grad(total, has_aux=True)(data.x)
    return sobolev(data, y, projected([g], data))


def jacobian(layers: Layers, data: Data) -> torch.Tensor:
    """All rows at once, by the VJPs of the unit cotangents."""
    y, pull = torch.func.vjp(lambda x: forward(layers, x), data.x)
    units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, *y.shape)
    (rows,) = torch.func.vmap(pull)(units)
    return sobolev(data, y, projected(list(rows), data))


def stacked(layers: Layers, data: Data) -> torch.Tensor:
    """Above the first layer, value and tangents are (1 + P) N rows of one product for each layer."""
    y, tangents = linear(data.x, layers[0].weight, layers[0].bias), linear(columns_of(data), layers[0].weight)
    for before, (weight, bias, _, _) in pairwise(layers):
        y, slope, _ = before.jet(y)
        z = linear(torch.cat((y[None], slope * tangents)), weight)
        y, tangents = z[0] + bias, z[1:]
    return sobolev(data, y, along(data, tangents.expand(-1, *y.shape)))


@torch.no_grad()
def by_hand(layers: Layers, data: Data) -> Result:
    """Stacked streams with the adjoint chain written out (docs/math.md, section 3), and no autograd at all."""
    v = columns_of(data)  # [P, N or 1, D]
    y, tangents = linear(data.x, layers[0].weight, layers[0].bias), linear(v, layers[0].weight)
    inputs, jets = [], []
    for before, (weight, bias, _, _) in pairwise(layers):
        y, slope, curvature = before.jet(y)
        jets.append((slope, curvature, tangents))
        inputs.append(torch.cat((y[None], slope * tangents)))
        z = linear(inputs[-1], weight)
        y, tangents = z[0] + bias, z[1:]
    target = data.tangents if data.directions is not None else data.jacobian.permute(2, 0, 1)
    r0, r1 = y - data.y, tangents - target
    loss = r0.square().mean() + r1.square().mean()
    dz = torch.cat((2 / r0.numel() * r0[None], 2 / r1.numel() * r1))  # [1 + P, N, O]
    gradients: list[torch.Tensor] = []
    for l in reversed(range(1, len(layers))):
        gradients[:0] = [dz.flatten(0, 1).T @ inputs[l - 1].flatten(0, 1), dz[0].sum(0)]
        slope, curvature, tangents = jets[l - 1]
        a = dz @ layers[l].weight
        q = curvature() * (tangents * a[1:]).sum(0)
        dz = torch.cat(((slope * a[0] + q)[None], slope * a[1:]))
    d = dz[1:] if v.shape[1] == len(data.x) else dz[1:].sum(1, keepdim=True)
    weight = dz[0].T @ data.x + d.flatten(0, 1).T @ v.flatten(0, 1)
    return loss, (weight, dz[0].sum(0), *gradients)


def by_autograd(loss: Callable[[Layers, Data], torch.Tensor], compiled: bool = False) -> Build:
    """Differentiate a loss with respect to all parameters."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        function = torch.compile(loss, dynamic=False) if compiled else loss
        layers, parameters = layers_of(student), tuple(student.parameters())

        def step() -> Result:
            value = function(layers, data)
            return value.detach(), torch.autograd.grad(value, parameters)

        return step

    return build


def as_it_is(function: Callable[[Layers, Data], Result], compiled: bool = False) -> Build:
    """A function that returns loss and gradients itself."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        layers = layers_of(student)
        whole = torch.compile(function, dynamic=False) if compiled else function
        return lambda: whole(layers, data)

    return build


def few_columns(case: Case) -> bool:
    return case.few_columns


def one_gradient(case: Case) -> bool:
    """Of a scalar student, where it may cost less than the tangents."""
    return case.O == 1 and (case.kind == EXACT or case.P > 1)


def several_outputs(case: Case) -> bool:
    return case.O > 1


def installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


@dataclass(frozen=True)
class Variant:
    """A row: how to build the step, for which cases, and what sort of contestant it is.

    A compiled one says what the same (or, of another framework, the like) is in plain PyTorch; one that needs a package
    names it as pip does. `adjoint`: its author derived the adjoint chain too, for this loss alone.
    """

    build: Build
    kinds: tuple[str, ...] = (FIRST,)
    shapes: Callable[[Case], bool] | None = None
    derivatives: bool = True
    uncompiled: Build | None = None
    ours: bool = False
    adjoint: bool = False
    needs: str = ""

    @property
    def compiled(self) -> bool:
        return self.uncompiled is not None

    @property
    def missing(self) -> bool:
        return bool(self.needs) and not installed(self.needs)

    def applies(self, case: Case) -> bool:
        return case.kind in self.kinds and (self.shapes is None or self.shapes(case))


def compiled(loss: Callable[[Layers, Data], torch.Tensor], **which) -> Variant:
    return Variant(by_autograd(loss, compiled=True), uncompiled=by_autograd(loss), **which)


VALUES_ONLY = "values only"
VMAP_JVP = "vmap(jvp)"
DOUBLE_BACKWARD = "double backward"
STACKED = "stacked"
BASELINES = {
    VALUES_ONLY: Variant(by_autograd(values_only), (FIRST, EXACT, SECOND), derivatives=False),
    VMAP_JVP: Variant(by_autograd(vmap_jvp), (FIRST, EXACT), few_columns),
    DOUBLE_BACKWARD: Variant(by_autograd(double_backward), (FIRST, EXACT)),
    "double vjp": Variant(by_autograd(double_vjp), shapes=several_outputs),
    STACKED: Variant(by_autograd(stacked), (FIRST, EXACT), few_columns),
    "by hand": Variant(as_it_is(by_hand), (FIRST, EXACT), few_columns, adjoint=True),
    "stacked, compiled": compiled(stacked, kinds=(FIRST, EXACT), shapes=few_columns),
    "by hand, compiled": Variant(
        as_it_is(by_hand, compiled=True), (FIRST, EXACT), few_columns, uncompiled=as_it_is(by_hand), adjoint=True
    ),
    "func.grad, compiled": compiled(func_grad, kinds=(FIRST, EXACT), shapes=one_gradient),
    "jacrev, compiled": compiled(jacobian, kinds=(EXACT,), shapes=several_outputs),
}

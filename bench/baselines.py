"""The ways to compute a first-order step without this library, each as good as its author can write it.

A baseline is a loss, a function of the layers and the data returning a scalar, and how it is differentiated; the table
at the end is the list. They get the directions and the target tangents for nothing. Exact gradients differ in nothing
but that they are not projected; what goes beyond is in higher.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

import torch
from torch.nn.functional import linear, mse_loss, softplus

from .cases import EXACT, FIRST, SECOND, Case, Data


class Layer(NamedTuple):
    weight: torch.Tensor  # [n_l, n_{l-1}]
    bias: torch.Tensor  # [n_l]
    activation: Callable[[torch.Tensor], torch.Tensor] | None  # the last layer has none


Layers = list[Layer]
Result = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
Step = Callable[[], Result]
Build = Callable[[Case, torch.nn.Module, Data], Step]


FUNCTIONS = {torch.nn.Tanh: torch.tanh, torch.nn.Softplus: softplus}


def layers_of(student: torch.nn.Module) -> Layers:
    """Cheaper to call than the module, which favours us least."""
    linears = [m for m in student if isinstance(m, torch.nn.Linear)]
    activations = [FUNCTIONS[type(m)] for m in student if type(m) in FUNCTIONS]
    return [Layer(m.weight, m.bias, a) for m, a in zip(linears, [*activations, None], strict=True)]


def forward(layers: Layers, x: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., O]
    for weight, bias, activation in layers[:-1]:
        x = activation(linear(x, weight, bias))
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


def vmap_jvp(layers: Layers, data: Data) -> torch.Tensor:
    along = lambda v: torch.func.jvp(lambda x: forward(layers, x), (data.x,), (v,))  # noqa: E731
    return sobolev(data, *torch.func.vmap(along, out_dims=(None, 0))(data.directions))


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


def stacked(layers: Layers, data: Data) -> torch.Tensor:
    """Value and tangents as (1 + P) N rows of one product for each layer."""
    h = torch.cat((data.x[None], data.directions))  # [1 + P, N, D]
    for weight, bias, activation in layers:
        z = linear(h, weight)
        y, tangents = z[0] + bias, z[1:]
        if activation:
            y = torch.tanh(y)
            h = torch.cat((y[None], (1 - y * y) * tangents))
    return sobolev(data, y, tangents)


@torch.no_grad()
def by_hand(layers: Layers, data: Data) -> Result:
    """Stacked streams with the adjoint chain written out (docs/math.md, section 3), and no autograd at all."""
    inputs, dots = [], []
    h = torch.cat((data.x[None], data.directions))  # [1 + P, N, D]
    for weight, bias, activation in layers:
        inputs.append(h)
        z = linear(h, weight)
        y, tangents = z[0] + bias, z[1:]
        if activation:
            y = torch.tanh(y)
            dots.append(tangents)
            h = torch.cat((y[None], (1 - y * y) * tangents))
    r0, r1 = y - data.y, tangents - data.tangents
    loss = r0.square().mean() + r1.square().mean()
    dz = torch.cat((2 / r0.numel() * r0[None], 2 / r1.numel() * r1))  # [1 + P, N, O]
    gradients: list[torch.Tensor] = []
    for l in reversed(range(len(layers))):
        gradients[:0] = [dz.flatten(0, 1).T @ inputs[l].flatten(0, 1), dz[0].sum(0)]
        if l:
            y = inputs[l][0]
            slope = 1 - y * y
            a = dz @ layers[l].weight
            q = -2 * y * slope * (dots[l - 1] * a[1:]).sum(0)
            dz = torch.cat(((slope * a[0] + q)[None], slope * a[1:]))
    return loss, tuple(gradients)


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


def scalar(case: Case) -> bool:
    return case.O == 1


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
    names it as pip does.
    """

    build: Build
    kinds: tuple[str, ...] = (FIRST,)
    shapes: Callable[[Case], bool] | None = None
    derivatives: bool = True
    uncompiled: Build | None = None
    ours: bool = False
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
    VMAP_JVP: Variant(by_autograd(vmap_jvp)),
    DOUBLE_BACKWARD: Variant(by_autograd(double_backward), (FIRST, EXACT)),
    "double vjp": Variant(by_autograd(double_vjp), shapes=several_outputs),
    STACKED: Variant(by_autograd(stacked)),
    "by hand": Variant(as_it_is(by_hand)),
    "stacked, compiled": compiled(stacked),
    "by hand, compiled": Variant(as_it_is(by_hand, compiled=True), uncompiled=as_it_is(by_hand)),
    "func.grad, compiled": compiled(func_grad, kinds=(FIRST, EXACT), shapes=scalar),
}

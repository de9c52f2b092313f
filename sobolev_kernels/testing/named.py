"""Named derivatives by the kernels of a backend beside nested autograd in float64: results and gradients, by the one
rule."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

import sobolev_kernels as sk

from ..math.table import Formula
from ..modules import to_module
from ..partials.along import KERNELS, evaluated
from ..partials.layers import directions_of, results_of
from ..partials.nested import Nested
from ..student import Student
from .rule import assert_within_rule, multiplies_in

PLANS = {
    "Burgers": ("x t -> u", "u, u_t, u_x, u_xx"),
    "Allen-Cahn": ("x t -> u", "u, u_t, u_xx"),
    "KdV": ("x t -> u", "u, u_t, u_x, u_xxx"),
    "Kuramoto-Sivashinsky": ("x t -> u", "u, u_t, u_x, u_xx, u_xxxx"),
    "biharmonic": ("x y -> u", "u_xxxx + 2*u_xxyy + u_yyyy"),
    "biharmonic, closure": ("x y -> u", "u_xxxx, u_xxyy, u_yyyy"),
    "Navier-Stokes": ("x y t -> u v p", "u, u_t, v_t, u_x, u_y, p_x, u_xx + u_yy, v_xx + v_yy"),
    "stream function": ("x y t -> s p", "s_x, s_y, s_xt, s_yt, s_xx, s_xy, s_yy, s_xxx + s_xyy, s_xxy + s_yyy, p_x"),
    "gradient-enhanced Burgers": ("x t -> u", "u, u_t, u_x, u_xx, u_xt, u_tt, u_xxx, u_xxt"),
}


class Named(NamedTuple):
    """A student in float64, by its widths and activations, N inputs, and what is asked for."""

    fields: str
    names: str
    hidden: tuple[int, ...]
    activations: tuple[Formula, ...]
    N: int
    bias: bool = True
    per_sample: bool = False  # directions of each sample, which want their gradients

    def numbers(self, dtype: torch.dtype) -> tuple[Student, torch.Tensor, torch.Tensor]:
        fields, generator = sk.Fields(self.fields), torch.Generator().manual_seed(self.N)
        uniform = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1  # noqa: E731
        widths, parameters = (len(fields.inputs), *self.hidden, len(fields.outputs)), []
        for n_in, n_out in pairwise(widths):
            parameters += [uniform(n_out, n_in) * n_in**-0.5, *[0.5 * uniform(n_out)] * self.bias]
        x = uniform(self.N, widths[0])
        v = directions_of(self.streams, x)
        v = uniform(len(v), *x.shape) if self.per_sample else v
        leaves = [t.to(dtype).requires_grad_() for t in (x, *parameters)]
        v = v.to(dtype).requires_grad_(self.per_sample)
        return Student(widths, (self.bias,) * len(self.activations), self.activations, tuple(leaves[1:])), leaves[0], v

    @property
    def streams(self):
        return sk.Fields(self.fields).plan([name.strip() for name in self.names.split(",")])


def everything(results: torch.Tensor, student: Student, x: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """The results [R, N], and along one cotangent of each the gradients of x, v and parameters."""
    generator = torch.Generator().manual_seed(1)
    along = torch.rand(results.shape, generator=generator, dtype=torch.float64).to(results) - 0.5
    asking = [tensor for tensor in (x, v, *student.parameters) if tensor.requires_grad]
    tied = results + 0 * sum(tensor.sum() for tensor in asking)  # also where no derivative depends on anything
    return [results.detach(), *torch.autograd.grad(tied, asking, along, materialize_grads=True)]


def by_autograd(named: Named) -> list[torch.Tensor]:
    """By autograd of autograd; of directions of each sample by PyTorch's operations on streams."""
    student, x, v = named.numbers(torch.float64)
    if named.per_sample:
        return everything(results_of(named.streams, student, x, v), student, x, v)
    layers = []
    tensors = iter(student.parameters)
    for has_bias, activation in zip(student.biases, student.activations, strict=True):
        layers.append((next(tensors), next(tensors) if has_bias else None, activation))

    def function(x: torch.Tensor) -> torch.Tensor:
        for weight, bias, activation in layers:
            x = to_module(activation)(torch.nn.functional.linear(x, weight, bias))
        return x

    fields = sk.Fields(named.fields)
    rows = fields.terms(tuple(name.strip() for name in named.names.split(",")))
    at = Nested(function, x, len(fields.outputs), named.streams.order, looks=False).at
    found = [sum(c * at(o, e) for o, e, c in row) for row in rows]
    return everything(torch.cat(found, 1).T, student, x, v)


def agree(named: Named, backend: str, precision: str = "ieee", device: str = "cpu") -> list[torch.Tensor]:
    """What the backend computed in float32, checked."""
    student, x, v = named.numbers(torch.float32)
    on = lambda t: t.detach().to(device).requires_grad_(t.requires_grad)  # noqa: E731
    there = Student(student.widths, student.biases, student.activations, tuple(map(on, student.parameters)))
    x_there, v_there = on(x), on(v)
    assert KERNELS[backend](there, x_there) is None, KERNELS[backend](there, x_there)
    results = evaluated(named.streams, there, x_there, v_there, backend, precision)
    got = everything(results, there, x_there, v_there)
    expected = by_autograd(named)
    with multiplies_in(precision):
        baseline = everything(results_of(named.streams, student, x, v), student, x, v)
    for i, numbers in enumerate(zip(got, expected, baseline, strict=True)):
        what = f"{named.names}, {there.widths}, {named.activations[0].name}, N={named.N}, {precision}: tensor {i}"
        assert_within_rule(what, numbers[0].cpu(), *numbers[1:], precision, again=lambda i=i: by_autograd(named)[i])
    return got

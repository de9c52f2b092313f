"""Faults to be planted in the package, each of which the fuzzer must find before it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

import sobolev_kernels as sk
from sobolev_kernels import call, columns, derivatives, ops
from sobolev_kernels.backends import core, reference
from sobolev_kernels.problem import DERIVATIVES, PER_SAMPLE

from .cases import RANDOM, Case


class Plant(NamedTuple):
    """The backend that goes wrong, how it is made to (given pytest's monkeypatch), and in which cases that shows.

    Of "cpu", whose C++ cannot be changed from here, the compiled core is told something wrong.
    """

    backend: str
    put: Callable
    shows: Callable[[Case], bool] = lambda case: True


def with_contiguous_strides(tensor):
    """Strides forgotten, where no memory of others is read by it."""
    if tensor is None:
        return None
    room = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    forgotten = room >= tensor.numel()
    return (tensor.data_ptr(), *(tensor.new_empty(tensor.shape) if forgotten else tensor).stride())


def wrapped(owner, name, change):
    """A plant: `owner.name` becomes `change` of what it was."""
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


def operands_changed(change):
    """The compiled core is told other operands."""
    step_of = lambda before: lambda problem, operands, *rest: before(problem, change(operands), *rest)  # noqa: E731
    return wrapped(core, "step_of", step_of)


def gradients_changed(change):
    def altered(before):
        def guarded(*arguments):
            gradients = before(*arguments)
            change([g for g in gradients if g is not None])
            return gradients

        return guarded

    return wrapped(ops, "guarded", altered)


def cotangents_changed(change):
    return wrapped(ops, "differentiate", lambda before: lambda ctx, given: before(ctx, change(ctx, given)))


def without_offset(operands):
    seed = operands.seed
    return operands if seed is None else operands._replace(seed=torch.stack([seed[0], seed[1] * 0]))


def rolled(operands):
    target = operands.derivative
    return operands if target is None else operands._replace(derivative=target.roll(1, target.dim() - 2))


def lose_a_bias(gradients):
    for gradient in gradients:
        if gradient.dim() == 1:
            gradient.zero_()
            return


def bent(row: int):
    """The same values of a formula's part, with another slope."""

    def change(formula):
        def changed(z):
            parts = list(formula(z))
            parts[row] = parts[row] + 0.01 * (z - z.detach())
            return tuple(parts)

        return changed

    return change


def with_row(table, name, change):
    row = table[name]
    return lambda patch: patch.setitem(table, name, replace(row, function=change(row.function)))


def sorted_columns(before):
    def arrange(self, x, parameters):
        return before(replace(self, wrt=None if self.wrt is None else tuple(sorted(self.wrt))), x, parameters)

    return arrange


def another_seed(before):
    return lambda call, function, scale, seed: before(call, function, scale, None if seed is None else seed + 1)


def only_biases(before):
    return lambda t: with_contiguous_strides(t) if t is not None and t.dim() == 1 else before(t)


def with_ones(before):
    return lambda table, choice: (*before(table, choice)[:1], *(1.0 for _ in before(table, choice)[1:]))


def without_second(ctx, given):
    return (given[0], None, *given[2:]) if ctx.problem.result == DERIVATIVES else given


def averaged(ctx, given):
    return (given[0].mean().expand_as(given[0]), *given[1:]) if ctx.problem.result == PER_SAMPLE else given


def with_half_the_second(before):
    def mlp_jet(*arguments):
        y, first, second = before(*arguments)
        return y, first, None if second is None else 0.5 * second

    return mlp_jet


CPU, REFERENCE = "cpu", "reference"
PLANTS = {
    "strides forgotten": Plant(
        CPU,
        lambda patch: patch.setattr(core, "strided", with_contiguous_strides),
        lambda case: "parameters" in case.views,
    ),
    "strides of biases forgotten": Plant(
        CPU,
        wrapped(core, "strided", only_biases),
        lambda case: "parameters" in case.views and all(case.biases),
    ),
    "a gradient with the wrong sign": Plant(CPU, gradients_changed(lambda gradients: gradients[-1].neg_())),
    "a gradient of another layer": Plant(CPU, gradients_changed(lambda gradients: gradients[0].mul_(1.01))),
    "a bias without gradient": Plant(CPU, gradients_changed(lose_a_bias), lambda case: all(case.biases)),
    "the last term left out": Plant(
        CPU,
        wrapped(core, "terms_of", lambda f: lambda problem, N, w: f(problem, N, (*w[:-1], 0.0))),
        lambda case: case.call == "loss" and case.weights is None,
    ),
    "second derivatives without their curvature": Plant(
        REFERENCE,
        wrapped(reference, "mlp_jet", with_half_the_second),
        lambda case: case.order == 2,
    ),
    "P miscounted": Plant(
        CPU,
        wrapped(core, "terms_of", lambda f: lambda problem, *rest: f(replace(problem, P=problem.P + 1), *rest)),
        lambda case: case.call == "loss" and case.derivative_loss[0] in sk.LOSSES,
    ),
    "N miscounted": Plant(
        CPU,
        wrapped(core, "terms_of", lambda f: lambda problem, N, w: f(problem, N + 1, w)),
        lambda case: case.call == "loss" and case.reduction == "mean",
    ),
    "targets of another sample": Plant(CPU, operands_changed(rolled), lambda case: case.call == "loss" and case.N > 1),
    "the offset of a seed ignored": Plant(
        CPU, operands_changed(without_offset), lambda case: case.drawn == "offset" and case.distribution == "normal"
    ),
    "weights of outputs ignored": Plant(
        CPU, operands_changed(lambda operands: operands._replace(output_weight=None)), lambda case: case.output_weight
    ),
    "weights of samples ignored in the backward": Plant(
        CPU,
        wrapped(ops, "saved", lambda f: lambda ctx: (f(ctx)[0]._replace(sample_weight=None), f(ctx)[1])),
        lambda case: case.sample_weight and case.reduction == "none",
    ),
    "columns in another order": Plant(
        CPU,
        wrapped(columns.Columns, "arrange", sorted_columns),
        lambda case: case.wrt is not None and list(case.wrt) != sorted(case.wrt),
    ),
    "the scale of inputs forgotten": Plant(
        CPU,
        wrapped(columns.Columns, "arrange", lambda f: lambda self, *rest: f(replace(self, scale=None), *rest)),
        lambda case: case.input_scale,
    ),
    "the balance without its square root": Plant(
        CPU,
        wrapped(columns.Columns, "balanced", lambda f: lambda *a: replace(f(*a), scale=f(*a).scale.square())),
        lambda case: case.weights == "differential-ml",
    ),
    "a parameter of an activation ignored": Plant(
        CPU,
        wrapped(core, "formula", with_ones),
        lambda case: any(len(activation) > 1 for activation in case.activations),
    ),
    "the slope of a loss": Plant(
        REFERENCE, with_row(sk.LOSSES, "mse", bent(0)), lambda case: case.call == "loss" and case.value_loss == ("mse",)
    ),
    "the third derivative of an activation": Plant(
        REFERENCE,
        with_row(sk.ACTIVATIONS, "tanh", bent(2)),
        lambda case: case.order == 2 and ("tanh",) in case.activations,
    ),
    "a cotangent dropped": Plant(
        CPU,
        cotangents_changed(without_second),
        lambda case: case.call in ("jvp", "vjp", "jet", "laplacian"),
    ),
    "cotangents of samples averaged": Plant(
        CPU,
        cotangents_changed(averaged),
        lambda case: case.reduction == "none" and case.N > 1,
    ),
    "a teacher along other directions": Plant(
        CPU,
        wrapped(call, "of_teacher_along", another_seed),
        lambda case: case.first == "teacher" and case.distribution in RANDOM and case.drawn != "generator",
    ),
    "an estimate not divided by P": Plant(
        CPU,
        wrapped(derivatives.Directions, "count", lambda f: lambda self, n: max(1, f(self, n) - 1)),
        lambda case: case.call == "laplacian" and case.distribution == "rademacher" and case.P > 2,
    ),
    "float64 computed in float32": Plant(
        REFERENCE,
        wrapped(reference, "mlp_jet", lambda f: lambda p, w, x, *rest: f(p, w, x.float().double(), *rest)),
        lambda case: case.dtype == "float64" and case.projection == "directions",
    ),
    "a result left unwritten": Plant(
        CPU, gradients_changed(lambda gradients: gradients[0].view(-1)[-1:].fill_(torch.nan))
    ),
}  # fmt: skip

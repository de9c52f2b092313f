"""A loss of polynomial residuals with all its gradients, in one pass of the core (csrc/cpu/jet_loss.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import empty, empty_like

from ..backends import core
from ..backends.core import strided
from ..boundary import PLAIN
from ..math.table import Formula
from .along import evaluated
from .fused import as_read
from .known import WHOLE, Found
from .one_pass import Terms, apply, planned
from .residual import Read, Residual, sampled
from .tape import Recording, Tape

LARGEST = 1e30  # of a unit and its inverse: products of some are numbers of float32


class Comparison(NamedTuple):
    """What a loss is beside its formula: of each term a target [N, 1], a scale and a weight, or None of each; weights
    of samples [N]; and whether it is their mean."""

    rho: Formula
    targets: list[torch.Tensor | None]
    scales: list[Any]
    weights: list[Any]
    sample_weight: torch.Tensor | None
    mean: bool


Compared = Callable[[Comparison, Sequence[torch.Tensor]], tuple[torch.Tensor, list[torch.Tensor]]]


def fused_loss(
    found: Found, inputs: torch.Tensor, residuals: Sequence[Residual], names: tuple[str, ...], of: Comparison,
    compared: Compared,
) -> Terms | None:  # fmt: skip
    """The loss and its terms [T], differentiable; None where the residuals are no polynomials.

    `names` of derivatives are the results of the streams; those of coordinates follow, which are columns of `inputs`.
    `compared` makes the same loss of residuals by PyTorch's operations.
    """
    recorded = record(residuals, names, found.x)
    if recorded is None:
        return None
    recording, coefficients = recorded
    columns = names[len(found.frame.call.streams.outputs) :]
    columns = tuple(residuals[0].fields.inputs.index(name) for name in columns)
    loss = Loss(found, recording, columns, of, compared)
    learnt = [weight for weight in of.weights if isinstance(weight, torch.Tensor)]
    tensors = found.x, inputs if columns else None, *found.parameters, *coefficients, *learnt
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors]):
        return apply(loss, *tensors)
    return loss.run(tensors, None)[:2]


def is_provided(residuals: Sequence[Residual], x: torch.Tensor, of: Comparison) -> bool:
    """Whether the core makes such a loss, of polynomials."""
    constant = [t for t in (*of.targets, of.sample_weight, *of.scales) if isinstance(t, torch.Tensor)]
    weights = [weight for weight in of.weights if isinstance(weight, torch.Tensor)]
    if not all([residual.recorded for residual in residuals]) or not len(x) or x.dtype not in WHOLE:
        return False
    if not all([type(t) in PLAIN and t.is_cpu and not t.is_complex() for t in (x, *constant, *weights)]):
        return False
    units = [1.0 if scale is None else float(scale) for scale in of.scales]
    in_reach = all([1 / LARGEST <= abs(unit) <= LARGEST for unit in units])
    return in_reach and not any([t.requires_grad for t in constant])


def record(
    residuals: Sequence[Residual], names: Sequence[str], x: torch.Tensor
) -> tuple[Recording, list[torch.Tensor]] | None:  # fmt: skip
    """Residuals as sums, with their coefficients; None where they are none."""
    tape = Tape({name: i for i, name in enumerate(names)}, x.dtype)
    try:
        recording = tape.recording([value for residual in residuals for value in residual.on(tape)])
    except Exception:  # a symbol is no tensor, so that a function may fail at it in any way
        return None
    form = recording.form()
    if not all([form in residual.agreed for residual in residuals]):
        if not agrees(residuals, names, recording, tape.coefficients, x):
            return None
        for residual in residuals:
            residual.agreed.add(form)
    return recording, tape.coefficients


def agrees(
    residuals: Sequence[Residual], names: Sequence[str], recording: Recording, coefficients: list[torch.Tensor],
    x: torch.Tensor,
) -> bool:  # fmt: skip
    """Whether the sums are, at some numbers, what the functions make of tensors, and have their gradients."""
    with torch.enable_grad():
        p = {name: sampled(i, x).requires_grad_() for i, name in enumerate(names)}
        values = [value for residual in residuals for value in residual.values(Read(p)).values()]
        leaves = list(p.values())
        sums = recording.values([leaf[:, 0] for leaf in leaves], coefficients)
        pairs = [(value[:, 0], found) for value, found in zip(values, sums, strict=True)]
        for pair in list(pairs):
            slopes = [
                torch.autograd.grad(part.sum(), leaves, retain_graph=True, materialize_grads=True) for part in pair
            ]
            pairs += zip(*slopes, strict=True)
    within = 1e3 * torch.finfo(x.dtype).eps
    return all(torch.allclose(a, b, rtol=within, atol=within, equal_nan=True) for a, b in pairs)


class Loss:
    """A loss of which tensors may be given: x, inputs if columns of them are read, parameters, coefficients and
    weights."""

    def __init__(
        self, found: Found, recording: Recording, columns: tuple[int, ...], of: Comparison, compared: Compared
    ):  # fmt: skip
        self.frame, self.addresses, self.held = found.frame, found.addresses, found.held
        self.recording, self.columns, self.of, self.compared = recording, columns, of, compared
        self.count = len(found.parameters)

    def parts(self, tensors: Sequence) -> tuple[Any, Any, Sequence, Sequence, Sequence]:
        x, inputs, *rest = tensors
        end = self.count + self.recording.coefficients
        return x, inputs, rest[: self.count], rest[self.count : end], rest[end:]

    def run(
        self, tensors: Sequence[torch.Tensor | None], asked: Sequence[bool] | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """The loss, its terms, and the gradient of each tensor that is asked for, if any is."""
        x, inputs, parameters, coefficients, weights = self.parts(tensors)
        back, results, of, N = asked is not None, len(self.frame.call.streams.outputs), self.of, len(x)
        of_x, of_inputs, _, of_coefficients, _ = (False, False, [], [], []) if asked is None else self.parts(asked)
        wanted = (back,) * results + (of_inputs,) * len(self.columns) + tuple(of_coefficients)
        plan = planned(self.recording, self.columns, wanted, results, len(of.weights))
        new = lambda *shape: empty(shape, dtype=x.dtype, device=x.device)  # noqa: E731
        total, each = new(), new(len(of.weights))
        dx = new(*x.shape) if of_x else None
        dinputs = new(N, len(self.columns)) if of_inputs else None
        dcoefficients = new(len(coefficients)) if any(of_coefficients) else None
        like = empty_like if self.frame.dense else lambda p: new(*p.shape)
        gradients = list(map(like, parameters)) if back else []
        places = [None if t is None else t.data_ptr() for t in (total, each, dinputs, dcoefficients)]
        *targets, sample_weight, inputs = [
            None if t is None else as_read([t.to(x)])[0] for t in (*of.targets, of.sample_weight, inputs)
        ]
        rho, share, learnt, terms = core.formula("Loss", of.rho), 1 / N if of.mean else 1.0, iter(weights), []
        for scale, weight in zip(of.scales, of.weights, strict=True):
            weight = next(learnt) if isinstance(weight, torch.Tensor) else weight
            unit, weight = 1.0 if scale is None else 1 / float(scale), 1.0 if weight is None else float(weight)
            terms.append((rho, unit, weight, share))
        told = (
            plan, [float(c) for c in coefficients], terms, list(map(strided, targets)),
            strided(inputs), strided(sample_weight), *places,
        )  # fmt: skip
        self.frame.compute(self.addresses, gradients, dx, told)
        if not back:
            return total, each, []
        if dinputs is not None:
            of_all = torch.zeros_like(inputs)
            of_all[:, self.columns] = dinputs
            dinputs = of_all
        slopes = [None] * len(coefficients) if dcoefficients is None else dcoefficients.unbind()
        slopes = [None if s is None else s.reshape(c.shape).to(c.dtype)
                  for s, c in zip(slopes, coefficients, strict=True)]  # fmt: skip
        places = [i for i, weight in enumerate(of.weights) if isinstance(weight, torch.Tensor)]
        of_terms = [each[i].reshape(w.shape).to(w.dtype) for i, w in zip(places, weights, strict=True)]
        found = [dx, dinputs, *gradients, *slopes, *of_terms]
        return total, each, [g if here else None for g, here in zip(found, asked, strict=True)]

    def again(self, tensors: Sequence[torch.Tensor | None]) -> Terms:
        """The same by PyTorch's operations, but for the student's streams, which have derivatives of their own."""
        (x, inputs, parameters, coefficients, weights), call = self.parts(tensors), self.frame.call
        results = evaluated(call.streams, call.student(tuple(parameters)), x, self.frame.directions, "cpu")
        given = [*results.unbind(), *(inputs[:, i] for i in self.columns)]
        values = self.recording.values(given, coefficients)
        learnt = iter(weights)
        by = [next(learnt) if isinstance(weight, torch.Tensor) else weight for weight in self.of.weights]
        total, terms = self.compared(self.of._replace(weights=by), [value[:, None] for value in values])
        return total, torch.stack(terms)

"""Losses of order 3 and 4, of values and derivatives along directions, with all gradients in one pass of the core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import empty, empty_like

from ..backends import core
from ..backends.reference import uncast, vectors_of
from ..backends.residuals import loss_of, orders_of
from ..boundary import PLAIN
from ..columns import Columns
from ..enums import DENSE
from ..math.losses import LOSSES
from ..problem import LOSS, Operands, Problem
from ..student import Student
from .along import TOGETHER, jet_along, towers, unit, way_of
from .fused import as_read
from .known import WHOLE, Found, found_first
from .one_pass import apply, planned
from .tape import Recording

MOST = 512  # numbers of a sample that are compared: each is a slot, and its slope another
Targets = Sequence[torch.Tensor | None]


def fused_towers(problem: Problem, operands: Operands, columns: Columns) -> tuple[torch.Tensor, ...] | None:
    """The loss and, if they are asked for, its terms [1 + order], as the reference's; None of any other problem."""
    if torch.compiler.is_compiling() or not is_provided(problem, operands):
        return None
    x, order = operands.x, problem.order
    with uncast(x):
        v = columns.embed(vectors_of(problem, operands), problem.D)
        student = Student(problem.widths, problem.biases, problem.activations, tuple(operands.parameters))
        if v.requires_grad or way_of(student, x, "cpu") is None:
            return None
        streams = towers(problem.P, problem.O, order)
        along = torch.stack([v[unit(e)] for _, e in streams.first])
        higher = [target for _, target in orders_of(problem, [None] * (order - 1), operands.second)]
        loss = TowerLoss(problem, operands, found_first(streams, student, x, along), v, higher)
        tensors = x, *operands.parameters
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            total, terms = apply(loss, *tensors)
        else:
            total, terms, _ = loss.run(tensors, None)
    return (total, terms) if problem.terms else (total,)


def is_provided(problem: Problem, operands: Operands) -> bool:
    """Whether it is a weighted mean of a function of each residual, with arrays of all that is compared with."""
    if problem.backend != "cpu" or problem.result != LOSS or problem.head is not None or problem.order < 3:
        return False
    if DENSE in (problem.derivative_target, problem.second_target):
        return False
    if any(loss.name not in LOSSES for loss in (problem.value_loss, problem.derivative_loss)):
        return False
    x, targets = operands.x, (operands.values, operands.derivative, operands.second)
    weights = operands.sample_weight, operands.output_weight, operands.derivative_weight
    if any(weight is not None for weight in weights) or x.dtype not in WHOLE or not x.numel():
        return False
    if any(t is not None and (t.requires_grad or type(t) not in PLAIN or t.dtype is not x.dtype) for t in targets):
        return False
    if problem.terms and 0 in operands.weights:
        return False  # it has a term that the loss does not, whatever it is
    few = problem.O * (1 + problem.order * problem.P) <= MOST
    return 0 < problem.P <= TOGETHER // problem.order and few


class TowerLoss:
    """Such a loss, of which x and the parameters may be given."""

    def __init__(self, problem: Problem, operands: Operands, found: Found, v: torch.Tensor, higher: Targets):
        self.problem, self.operands, self.found, self.v = problem, operands, found, v
        targets = zip((operands.values, operands.derivative, *higher), operands.weights, strict=True)
        self.targets = [as_read([t])[0] if t is not None and weight else None for t, weight in targets]

    def run(
        self, tensors: Sequence[torch.Tensor], asked: Sequence[bool] | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """The loss, its terms, and the gradient of each tensor that is asked for, if any is."""
        (x, *parameters), problem, back = tensors, self.problem, asked is not None
        frame, P, O, N = self.found.frame, problem.P, problem.O, len(tensors[0])
        count = O * (1 + problem.order * P)
        places = [(k, i) for k, target in enumerate(self.targets) for i in range(O * (P if k else 1))
                  if target is not None]  # fmt: skip
        results = tuple((O * (1 + (k - 1) * P) if k else 0) + i for k, i in places)
        recording = Recording(count, 0, (), results, tuple(k for k, _ in places))
        plan = planned(recording, (), (back,) * count, count, 1 + problem.order)
        new = lambda *shape: empty(shape, dtype=x.dtype, device=x.device)  # noqa: E731
        total, each, dx = new(), new(1 + problem.order), new(*x.shape) if back and asked[0] else None
        like = empty_like if frame.dense else lambda p: new(*p.shape)
        gradients = list(map(like, parameters)) if back else []
        terms = []
        for k, weight in enumerate(self.operands.weights):
            rho = core.formula("Loss", problem.derivative_loss if k else problem.value_loss)
            share = 1 / (O * (P if k else 1)) / (N if problem.reduction == "mean" else 1)
            terms.append((rho, 1.0, float(weight), share))
        told = (
            plan,
            [],
            terms,
            [*self.columns_of_targets()],
            None,
            None,
            total.data_ptr(),
            each.data_ptr(),
            None,
            None,
        )
        frame.compute(self.found.addresses, gradients, dx, told)
        found = [dx, *gradients]
        return total, each, [g if here else None for g, here in zip(found, asked, strict=True)] if back else []

    def columns_of_targets(self) -> Iterator[tuple[int, int]]:
        """Where each number that is compared with lies, and the way to that of the next sample."""
        for k, target in enumerate(self.targets):
            if target is None:
                continue
            along = target.unbind() if k else (target,)
            for rows in along:
                first, sample, output = rows.data_ptr(), *rows.stride()
                yield from ((first + o * output * rows.itemsize, sample) for o in range(rows.shape[1]))

    def again(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by PyTorch's operations on the jet, which has derivatives of its own."""
        (x, *parameters), problem = tensors, self.problem
        student = Student(problem.widths, problem.biases, problem.activations, tuple(parameters))
        jet = jet_along(student, x, self.v, problem.order, "cpu")
        total, *terms = loss_of(problem, self.operands._replace(x=x, parameters=parameters), None, jet)
        return total, terms[0] if terms else total.new_zeros(1 + problem.order)

"""A fused call amid a forward like one before: its step, found by its place in the forward, and that of its way back.

Nothing is taken for granted but what a call of that place was made of. What comes is compared with it, layer by layer
and tensor by tensor; what is another goes the long way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .. import ops, steps
from ..enums import NONE, PROJECTED
from ..math.table import Formula
from ..problem import DERIVATIVES_GRADIENTS, Operands, Problem
from ..transforms import refuse_forward_mode
from .chain import Layer

MOST = 4  # steps of a place, as of the first and the last of a data set's batches


@dataclass(eq=False, slots=True)
class Known:
    """What is known of a place: no tensor, and no layer of anyone."""

    problem: Problem
    surroundings: tuple
    steps: list[steps.Step] = field(default_factory=list)
    backs: list[steps.Step] = field(default_factory=list)

    def suits(self, layers: Sequence[Layer]) -> bool:
        """Whether these are such layers, but for their numbers."""
        problem = self.problem
        if len(layers) != len(problem.activations):
            return False
        each = zip(layers, problem.activations, problem.biases, strict=True)
        return all([
            is_same(layer.activation, activation) and (layer.bias is not None) == biased
            for layer, activation, biased in each
        ])  # fmt: skip

    def is_usual(self) -> bool:
        if torch._C._len_torch_dispatch_stack() or torch.is_autocast_enabled(self.problem.device):
            return False
        return steps.surroundings() == self.surroundings


def is_same(a: Formula, b: Formula) -> bool:
    return a is b or a == b


def numbers_again(
    known: Known, layers: Sequence[Layer], x: torch.Tensor, parameters: list[torch.Tensor], given: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:  # fmt: skip
    """The value and the tangents of these layers; None if nothing is known of tensors like these."""
    if not known.suits(layers) or not known.is_usual():
        return None
    tensors = [x, *parameters, given]
    for step in known.steps:
        addresses = step.layout.addresses(tensors)
        if addresses is not None:
            return apply(known, step, addresses, x, given, *parameters)
    return None


def learn(found: list[steps.Step], problem: Problem, operands: Operands) -> None:
    """Keep the step of such operands, if it is kept for the way that asks for it again and again."""
    tensors = steps.reads_of(operands)
    for step in steps.STEPS.get(steps.likeness(problem, operands), ()):
        if step not in found and step.layout.addresses(tensors) is not None:
            found[:] = [step, *found][:MOST]
            return


class Again(torch.autograd.Function):
    """As `ops.MlpSobolev` of values and tangents, by a step that is known; and back by one that is."""

    @staticmethod
    def forward(ctx, known, step, addresses, x, given, *parameters):
        made = step.make(ops.empty_like, ())
        step.run(addresses, made, (0, 0))
        ctx.set_materialize_grads(False)
        ctx.known, ctx.problem, ctx.count = known, known.problem, len(parameters)
        ctx.weights, ctx.present = (1.0, 1.0), PRESENT
        ctx.save_for_backward(x, *parameters, given)
        return tuple(made)

    @staticmethod
    def backward(ctx, *cotangents):
        known, problem = ctx.known, ctx.problem
        if any(cotangent is None for cotangent in cotangents) or torch.is_grad_enabled() or not known.is_usual():
            return differentiated(ctx, cotangents)
        x, *parameters, given = ctx.saved_tensors
        tensors = [x, *parameters, given, *cotangents]
        for step in known.backs:
            addresses = step.layout.addresses(tensors)
            if addresses is not None:
                made = step.make(ops.empty_like, parameters)
                step.run(addresses, made, (0, 0))
                return None, None, None, *gradients_in(problem, made)
        found = differentiated(ctx, cotangents, Operands(x, parameters, given, weights=ctx.weights))
        asked = ops.backward_of(problem, DERIVATIVES_GRADIENTS, PROJECTED, NONE)
        learn(known.backs, asked, Operands(x, parameters, given, None, *cotangents))
        return found

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def differentiated(
    ctx, cotangents: Sequence[torch.Tensor | None], read: Operands | None = None
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    """What a backward gives, the long way; of operands that were `read`, or will be."""
    dx, dgiven, _, _, _, *dparameters = ops.differentiate(ctx, cotangents, read)
    return None, None, None, dx, dgiven, *dparameters


def gradients_in(problem: Problem, made: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """[dx or None, dgiven or None, dparameters…]."""
    if not problem.given_gradient:
        made.insert(problem.input_gradient, None)
    return made if problem.input_gradient else [None, *made]


# Of the operands that need not be there, those that are.
PRESENT = [name == "given" for name in Operands._fields[2:-1]]
apply = super(torch.autograd.Function, Again).apply

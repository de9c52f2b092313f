"""One step of a training: the loss and its gradients, and the optimizer's update."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from .. import kept
from ..loss import SobolevLoss
from ..problem import LOSS
from ..rows import are_rows
from ..steps import addresses_of
from ..terms import SobolevTerms, loss_of
from ..weights import weights_of
from .batches import Data
from .optimizers import FusedAdam, needs_closure
from .settings import with_settings


class Stepper:
    """Steps of a student: `loss = gradients(batch)`, then `update()`; or both in `whole(batch, step)`, where the
    optimizer evaluates the loss itself."""

    def __init__(self, student: torch.nn.Module, optimizer: Optimizer, rule: torch.nn.Module | None):
        self.student, self.optimizer, self.rule = student, optimizer, rule
        self.closes = needs_closure(optimizer)
        self.loss: SobolevLoss | None = None

    def begin(self, loss: SobolevLoss) -> None:
        """An epoch, with this loss."""
        self.loss = loss if self.rule is None else with_settings(loss, return_terms=True)

    def evaluate(self, batch: Data, offset: int | None = None) -> torch.Tensor:
        """The loss, to be differentiated."""
        if offset is None:
            result = self.loss(self.student, *batch)
        else:
            result = evaluated_at(self.loss, self.student, batch, offset)
        return result if self.rule is None else self.rule(result)

    def gradients(self, batch: Data) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.evaluate(batch)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        self.optimizer.step()

    def whole(self, batch: Data, offset: int) -> torch.Tensor:
        """A step of an optimizer that takes a closure, along the same directions at all evaluations."""

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = self.evaluate(batch, offset)
            loss.backward()
            return loss

        return torch.as_tensor(self.optimizer.step(closure)).detach()


def evaluated_at(loss: SobolevLoss, student: torch.nn.Module, batch: Data, offset: int) -> torch.Tensor | SobolevTerms:
    """The loss along the directions at this place of their seed's stream."""
    projections = loss.settings.directions or loss.settings.cotangents
    offset = offset if projections is not None and projections.seed is not None else None
    weights = weights_of(batch.sample_weight, loss.output_weight, batch.derivative_weight)
    return loss_of(
        loss.settings, student, batch.x, batch.targets, loss.given, weights, loss.input_scale, offset, head=loss.head
    )


def has_hooks(parameter: torch.Tensor) -> bool:
    """Whether autograd is to call someone with its gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


class Direct(Stepper):
    """The same of a call that is kept and whose gradients come beside its loss, without autograd; and of a fused Adam
    without his bookkeeping. Whatever is out of the ordinary goes the way of any step."""

    def __init__(self, student: torch.nn.Module, optimizer: Optimizer, rule: torch.nn.Module | None):
        super().__init__(student, optimizer, rule)
        self.calls: dict[int, kept.Call] = {}
        self.found: list[torch.Tensor] = []  # gradients of parameters that ask for them
        self.adam: FusedAdam | None = None
        self.direct = False
        self.first: tuple | None = None  # of the call that an epoch begins with, what all others are like
        self.asking: list[torch.Tensor] = []

    def begin(self, loss: SobolevLoss) -> None:
        super().begin(loss)
        self.begun, self.adam = True, None

    def call_of(self, batch: Data) -> kept.Call | None:
        """What is kept of the call of a batch.

        Where only we change the parameters, in place, it is looked for once, and again if the first one of an epoch is
        of another student, of other settings, or of parameters that lie elsewhere.
        """
        call = None if self.begun else self.calls.get(id(batch))
        if call is not None:
            return call
        call = self.looked_for(batch)
        if call is None:
            return None
        parameters = call.made_of.parameters
        if self.begun or self.adam is None:
            self.asking = [p for p in parameters if p.requires_grad]
            self.adam = FusedAdam.of(self.optimizer, self.asking)
        if self.begun:
            first = call.kept, [*map(id, parameters)], addresses_of(parameters), [p.requires_grad for p in parameters]
            if self.first != first:
                self.calls.clear()
            self.first, self.begun = first, False
        if self.adam is not None and call.kept.teacher is None:
            self.calls[id(batch)] = call
        return call

    def looked_for(self, batch: Data) -> kept.Call | None:
        """None of a call that is not kept, or whose gradients are not all that is needed."""
        loss = self.loss
        if loss.settings.return_terms or loss.head is not None or not are_rows(batch.x, loss.settings):
            return None
        if batch.targets.samples is not None or type(loss).forward is not SobolevLoss.forward:
            return None
        weights = weights_of(batch.sample_weight, loss.output_weight, batch.derivative_weight)
        call = kept.look(
            LOSS, self.student, batch.x, loss.settings, loss.given, batch.targets, weights, loss.input_scale
        )
        usual = call is not None and call.kept is not None and call.chain is None and call.fold is None
        if not usual or not (call.kept.finished and call.kept.differentiable):
            return None
        if any(map(has_hooks, call.made_of.parameters)):
            return None
        problem = call.kept.problem
        return None if problem.input_gradient or problem.given_gradient else call

    def gradients(self, batch: Data) -> torch.Tensor:
        call = self.call_of(batch)
        self.direct = call is not None
        if call is None:
            self.calls.clear()
            return super().gradients(batch)
        loss, *gradients = call.finish()
        pairs = zip(call.made_of.parameters, gradients, strict=True)
        if self.adam is not None:
            self.found = [gradient for parameter, gradient in pairs if parameter.requires_grad]
            return loss
        self.optimizer.zero_grad()
        for parameter, gradient in pairs:
            if parameter.requires_grad:
                parameter.grad = gradient
        return loss

    def update(self) -> None:
        if self.direct and self.adam is not None:
            self.adam(self.found)
        else:
            self.optimizer.step()

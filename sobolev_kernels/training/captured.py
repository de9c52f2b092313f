"""On CUDA: a step of a training as one graph, captured once a batch size and replayed."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from ..loss import SobolevLoss
from .batches import Data
from .optimizers import needs_closure
from .stepping import Direct, Stepper

WARM = 3  # steps that run as they are before the capture: they make the optimizer's state and keep the call


class Captured(Stepper):
    """Steps whose loss, backward and update are one CUDA graph. It reads the batch where that lies, and the learning
    rate from a tensor. What cannot be captured runs as any step."""

    def __init__(self, student: torch.nn.Module, optimizer: Optimizer, rule: torch.nn.Module | None):
        super().__init__(student, optimizer, rule)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self.runs: dict[int, int] = {}
        self.fails = self.replayed = False
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)

    def begin(self, loss: SobolevLoss) -> None:
        before = self.loss
        super().begin(loss)
        if before is not None and before.settings is not self.loss.settings:
            self.graphs.clear()  # of other weights

    def gradients(self, batch: Data) -> torch.Tensor:
        key = id(batch)
        self.runs[key] = self.runs.get(key, 0) + 1
        if key not in self.graphs and self.runs[key] > WARM and not self.fails:
            self._capture(batch)
        self.replayed = key in self.graphs
        if not self.replayed:
            return super().gradients(batch)
        graph, loss = self.graphs[key]
        graph.replay()
        return loss

    def update(self) -> None:
        if not self.replayed:
            super().update()

    def _capture(self, batch: Data) -> None:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        try:
            with torch.cuda.graph(graph):
                loss = self.evaluate(batch)
                loss.backward()
                self.optimizer.step()
        except RuntimeError:  # something in it waits for the device
            self.fails = True
            self.optimizer.zero_grad()
            return
        self.graphs[id(batch)] = graph, loss.detach()


def why_not(optimizer: Optimizer, rule: torch.nn.Module | None, x: torch.Tensor) -> str | None:
    """Why steps are not captured, or None."""
    if x.device.type != "cuda":
        return "not on CUDA"
    if rule is not None or needs_closure(optimizer):
        return "the loss is evaluated one by one"
    if not all(group.get("capturable") for group in optimizer.param_groups):
        return "the optimizer is not capturable"
    return None


def stepper_of(
    student: torch.nn.Module, optimizer: Optimizer, rule: torch.nn.Module | None, x: torch.Tensor
) -> Stepper:  # fmt: skip
    """The quickest that takes them."""
    if why_not(optimizer, rule, x) is None:
        return Captured(student, optimizer, rule)
    plain = rule is not None or needs_closure(optimizer)
    return (Stepper if plain else Direct)(student, optimizer, rule)

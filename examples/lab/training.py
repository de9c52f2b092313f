"""Trainings by `sk.fit` that share data, first weights and mini-batches, at equal steps and at equal time."""

from __future__ import annotations

import contextlib
import io
import math
import re
import time
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch

import sobolev_kernels as sk

from .clock import since

STEPS, TIME = "steps", "time"  # the budgets
SAME_PACE = 0.03  # a method that is so near the pace needs no second training


@dataclass(frozen=True)
class Method:
    """What sets a method apart.

    Args:
        settings: of `SobolevLoss`.
        targets: instead of those that all have.
        options: of `fit`.
    """

    settings: dict[str, object] = field(default_factory=dict)
    targets: sk.Targets | None = None
    options: dict[str, object] = field(default_factory=dict)


VALUES_ALONE = Method({"weights": (1.0, 0.0)})


@dataclass(frozen=True)
class Plan:
    """How all methods of an experiment are trained."""

    batch: int
    lr: float
    schedule: str

    def epochs(self, N: int, steps: int) -> int:
        """As few as have at least so many steps."""
        return math.ceil(steps / math.ceil(N / self.batch))


@dataclass(frozen=True)
class Trained:
    """A student that a method has trained within a budget.

    Args:
        ms: of a step, on the processor's clock: what runs beside it, or stops it for a while, does not count.
    """

    method: str
    budget: str
    student: torch.nn.Module
    steps: int
    ms: float

    def record(self, **metrics: float) -> dict:
        return {"method": self.method, "budget": self.budget, "steps": self.steps, "ms": self.ms, **metrics}


def compare(
    first: torch.nn.Module, methods: dict[str, Method], x: torch.Tensor, targets: sk.Targets, plan: Plan, steps: int,
    seed: int, pace: str | None = None,
) -> list[Trained]:  # fmt: skip
    """Copies of the first student, trained with equal steps, and once more in equal time.

    Equal time is what the pace, a method, by default the slowest, takes for the steps: every other one is trained anew
    from the start, the schedule spanning all of it, with as many steps as that time has for it.
    """
    equal = {name: timed(name, STEPS, first, m, x, targets, plan, steps, seed) for name, m in methods.items()}
    pace_ms = max(there.ms for there in equal.values()) if pace is None else equal[pace].ms
    trained = []
    for name, there in equal.items():
        ratio = 1 if name == pace else pace_ms / there.ms
        trained += [there, replace(there, budget=TIME)]
        if abs(ratio - 1) > SAME_PACE:
            count = max(round(steps * ratio), 1)
            trained[-1] = timed(name, TIME, first, methods[name], x, targets, plan, count, seed)
    return trained


def timed(
    name: str, budget: str, first: torch.nn.Module, method: Method, x: torch.Tensor, targets: sk.Targets, plan: Plan,
    steps: int, seed: int,
) -> Trained:  # fmt: skip
    # What is prepared by the first call of a process, or of a method, is not the time of a step
    few = slice(0, plan.batch)
    train(first, replace(method, targets=(method.targets or targets)[few]), x[few], targets, plan, 1, seed)
    start = time.process_time()
    history = train(first, method, x, targets, plan, steps, seed)
    ms = since(start) / history.steps * 1e3
    return Trained(name, budget, history.student, history.steps, ms)


def train(
    first: torch.nn.Module, method: Method, x: torch.Tensor, targets: sk.Targets, plan: Plan, steps: int, seed: int
) -> sk.History:
    """One copy, by the fused path."""
    student, batch = deepcopy(first), slice(0, plan.batch)
    vectors = (method.targets or targets)[batch].directions
    fused(student, x[batch], *(() if vectors is None else (vectors,)), **method.settings)
    loss, generator = sk.SobolevLoss(**method.settings), torch.Generator().manual_seed(seed)
    return sk.fit(
        student, x, method.targets or targets, loss=loss, epochs=plan.epochs(len(x), steps), batch_size=plan.batch,
        lr=plan.lr, schedule=plan.schedule, progress=False, generator=generator, **method.options,
    )  # fmt: skip


def fused(student: torch.nn.Module, x: torch.Tensor, *directions: object, **settings) -> str:
    """The backend that `sk.explain` says a step takes, with the arguments of `sk.explain`.

    Raises:
        RuntimeError: it is the reference, which an experiment that speaks of kernels must not be trained by, unless it
            is for a student's own forward and nothing else, or since few outputs' gradients cost less than tangents.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        text = sk.explain(student, x, *directions, **settings)
    taken = re.search(r"^-> (\w+)", text, re.MULTILINE)[1]
    chosen = "of the values alone" in text or "costs less than" in text or "cost less than" in text
    if taken == "reference" and not chosen:
        raise RuntimeError(f"this student is not trained by a fused step:\n{text}")
    return taken


def predictions(student: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [N] and gradients [N, D], by plain autograd: the verdict does not rest on the library."""
    x = x.clone().requires_grad_()
    y = student(x)[:, 0]
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def root_mean_square(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()

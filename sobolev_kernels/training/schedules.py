"""How the learning rate changes: by name, at every step, or by a scheduler of torch's."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from ..errors import nearest, need

WARM, START, END = 0.3, 25.0, 1e4  # of one cycle: its rising part, and by what its ends are less than its top


def cosine(t: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * t))


def one_cycle(t: float) -> float:
    """As torch's OneCycleLR has it by default."""
    between = lambda a, b, t: b + (a - b) * cosine(t)  # noqa: E731
    return between(1 / START, 1.0, t / WARM) if t < WARM else between(1.0, 1 / START / END, (t - WARM) / (1 - WARM))


NAMED: dict[str, Callable[[float], float]] = {"cosine": cosine, "one-cycle": one_cycle}
EXPECTED = f"one of {', '.join(NAMED)}, a scheduler of torch.optim, or a function of the optimizer that gives one"


class Schedule:
    """Before each step and after each epoch the learning rates are as they should be."""

    def __init__(self, given: object, optimizer: Optimizer, steps: int):
        self.optimizer, self.steps, self.done = optimizer, steps, 0
        self.factor, self.scheduler = None, None
        if isinstance(given, str):
            need(given in NAMED, "schedule", EXPECTED, given, hint=nearest(given, NAMED))
            self.factor = NAMED[given]
            self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        elif given is not None:
            made = given if isinstance(given, (LRScheduler, ReduceLROnPlateau)) else None
            need(made is not None or callable(given), "schedule", EXPECTED, given, TypeError)
            made = given(optimizer) if made is None else made
            need(isinstance(made, (LRScheduler, ReduceLROnPlateau)), "schedule", EXPECTED, made, TypeError)
            need(made.optimizer is optimizer, "schedule", "a scheduler of this optimizer", made)
            self.scheduler = made
        self.by_step = isinstance(self.scheduler, (OneCycleLR, CyclicLR))

    def before_step(self) -> None:
        if self.factor is not None:
            factor = self.factor(self.done / max(1, self.steps))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                set_rate(group, rate * factor)

    def after_step(self) -> None:
        self.done += 1
        if self.by_step and self.done < getattr(self.scheduler, "total_steps", math.inf):
            self.scheduler.step()

    def after_epoch(self, score: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score)
        elif self.scheduler is not None and not self.by_step:
            self.scheduler.step()

    def state_dict(self) -> dict:
        of_torch = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"done": self.done, "rates": getattr(self, "rates", None), "scheduler": of_torch}

    def load_state_dict(self, state: dict) -> None:
        self.done = state["done"]
        if self.factor is not None:
            self.rates = state["rates"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def set_rate(group: dict, rate: float) -> None:
    """In place of a tensor, as that of a captured step."""
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate

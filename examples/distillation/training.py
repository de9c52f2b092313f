"""Trainings with equal steps and in equal time, where a teacher takes time too, and the games of who was trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

import sobolev_kernels as sk
from examples.lab.clock import since
from examples.lab.training import SAME_PACE, STEPS, TIME, Trained


def compare(fit: Callable[[str, int], sk.History], asking: dict[str, float], steps: int) -> Iterator[Trained]:
    """A student by each method within each budget, all from the same first weights.

    Equal time is what the slowest takes for the steps, the time of asking the teacher in it; all times are those of
    this process, which others on its core do not change.

    Args:
        fit: trains one, by the method of this name with so many steps.
        asking: by method the seconds that its targets took.
    """

    def trained(name: str, count: int) -> tuple[sk.History, float]:
        start = time.process_time()
        history = fit(name, count)
        return history, since(start) / history.steps

    for name in asking:
        fit(name, 1)  # what only the first step of a process takes
    equal = {name: trained(name, steps) for name in asking}
    available = max(history.steps * seconds + asking[name] for name, (history, seconds) in equal.items())
    for name, (history, seconds) in equal.items():
        yield Trained(name, STEPS, history.student, history.steps, 1e3 * seconds)
        affordable = round((available - asking[name]) / seconds)
        if affordable > (1 + SAME_PACE) * history.steps:
            history, seconds = trained(name, affordable)
        yield Trained(name, TIME, history.student, history.steps, 1e3 * seconds)


class Played:
    """The scores of students, by budget and method; one who is the same within both budgets plays once.

    Args:
        play: the scores of a student.
    """

    def __init__(self, play: Callable[[torch.nn.Module], np.ndarray]):
        self.play, self.drawn = play, {}
        self.last: dict[str, tuple[torch.nn.Module, np.ndarray]] = {}

    def mean(self, one: Trained) -> float:
        """Of the games that this one plays."""
        before, scores = self.last.get(one.method, (None, None))
        if before is not one.student:
            scores = self.play(one.student)
        self.last[one.method] = one.student, scores
        self.drawn[f"{one.budget} {one.method}"] = scores
        return scores.mean().item()

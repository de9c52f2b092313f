"""Times that can be compared: all variants and the machine's own multiply rate, in turns."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SGEMM = "sgemm"
SGEMM_SIZE = 2048
TURN = 30e-3
SGEMM_FLOPS = 2 * SGEMM_SIZE**3


class Quartiles(NamedTuple):
    q1: float
    median: float
    q3: float


def quartiles(times: list[float]) -> Quartiles:
    return Quartiles(*statistics.quantiles(times, n=4, method="inclusive"))


def sgemm() -> Callable[[], object]:
    a, b, out = (torch.randn(SGEMM_SIZE, SGEMM_SIZE) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def seconds_of(step: Callable[[], object], calls: int = 1) -> float:
    """Of a call, where there are several after one that is not counted; a step of another process has its own clock."""
    if hasattr(step, "seconds"):
        return step.seconds(calls)
    if calls > 1:
        step()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def interleave(
    steps: dict[str, Callable[[], object]], rounds: int, seconds: float, turn: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of one call by name and round: at least `rounds` rounds, and more until `seconds` have gone.

    Everybody has one turn a round, in an order drawn anew (with a fixed seed): a drift of the clock, and what the one
    before leaves in the caches, meets all alike. A turn is as many calls as take `turn` seconds, as in a training
    loop: a step of less than a millisecond would otherwise be measured with caches that others have emptied.
    """
    names = list(steps)
    calls = {name: max(1, math.ceil(turn / max(seconds_of(steps[name]), 1e-9))) if turn else 1 for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        order.shuffle(names)
        for name in names:
            times[name].append(seconds_of(steps[name], calls[name]))
        done += 1
    return times

"""Times that can be compared: all variants and the machine's own multiply rate, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SGEMM = "sgemm"
SGEMM_SIZE = 2048
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
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def interleave(
    steps: dict[str, Callable[[], object]], rounds: int, seconds: float, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of one call by name and round: at least `rounds` rounds, and more until `seconds` have gone.

    Everybody runs once a round, and the round starts one further each time: a drift of the clock, and what the one
    before leaves in the caches, meets all alike.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        first = done % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_of(steps[name], calls))
        done += 1
    return times

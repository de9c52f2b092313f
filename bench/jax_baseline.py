"""The contestant JAX, in a process of its own that stays alive, and never computes while others do.

We wait while it computes, and it waits for us. Before either is timed the other's threads have had time to fall
asleep, and both processes count what they take of the CPU meanwhile: `idleness`.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sobolev_kernels.testing.speed.baselines import Build, Result, Step, Variant, layers_of
from sobolev_kernels.testing.speed.cases import Case, Data, make_teacher

from .jax_worker import SETTLE

ROOT = Path(__file__).parents[1]


class Process:
    """A worker, and how much of a CPU either side took while the other was timed."""

    def __init__(self, threads: int, module: str = "bench.jax_worker"):
        command = [sys.executable, "-m", module, str(threads)]
        pipe, environment = subprocess.PIPE, os.environ | {"JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe)
        atexit.register(self.close)
        self.theirs, self.ours = [0.0, 0.0], [0.0, 0.0]  # seconds of waiting, and of CPU in them
        self.since: float | None = None

    def ask(self, *request: object) -> object:
        """Raises RuntimeError with what was raised there."""
        time.sleep(SETTLE)
        wall, cpu = time.perf_counter(), time.process_time()
        idle = wall - self.since if self.since is not None else 0.0
        pickle.dump(request, self.process.stdin)
        self.process.stdin.flush()
        answer, error, theirs = pickle.load(self.process.stdout)
        if self.since is not None:
            self.theirs = [self.theirs[0] + idle, self.theirs[1] + theirs]
        self.since = time.perf_counter()
        if request[0] == "time":
            self.ours = [self.ours[0] + self.since - wall, self.ours[1] + time.process_time() - cpu]
        if error:
            raise RuntimeError(error)
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@lru_cache(maxsize=1)
def process(threads: int) -> Process:
    return Process(threads)


def idleness() -> str | None:
    """In words, if JAX took part."""
    if not process.cache_info().currsize:
        return None
    worker = process(torch.get_num_threads())
    theirs, ours = (cpu / max(wall, 1e-9) for wall, cpu in (worker.theirs, worker.ours))
    return f"CPU taken while the other was timed: JAX's process {theirs:.2%} of a core, ours {ours:.2%}"


@dataclass(frozen=True)
class Remote:
    """A step over there; its calls are timed there too."""

    worker: Process
    number: int
    result: Result

    def __call__(self) -> Result:
        return self.result

    def seconds(self, calls: int) -> float:
        return self.worker.ask("time", self.number, calls)


def numbers(student: torch.nn.Module) -> list[tuple]:
    """Layers as JAX's users have them: weights [n_{l-1}, n_l]."""
    return [(layer.weight.detach().T.contiguous().numpy(), layer.bias.detach().numpy()) for layer in layers_of(student)]


def by_jax(way: str | None = None) -> Build:
    """By default the way is that of the case's kind."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        arrays = {name: tensor.numpy() for name, tensor in data._asdict().items() if tensor is not None}
        if data.cotangents is not None:
            arrays["teacher"] = numbers(make_teacher(case))
        worker = process(torch.get_num_threads())
        request = ("build", way or case.kind, case.activation, numbers(student), arrays)
        number, loss, layers = worker.ask(*request)
        loss, *gradients = map(torch.from_numpy, (loss.copy(), *(g for w, b in layers for g in (w.T.copy(), b.copy()))))
        return Remote(worker, number, (loss, tuple(gradients)))

    return build


def jax_variant(way: str | None, uncompiled: Build, **which) -> Variant:
    """Its error may be twice that of a like way in PyTorch."""
    return Variant(by_jax(way), uncompiled=uncompiled, needs="jax", **which)

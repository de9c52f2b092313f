"""What a step on a GPU takes of its host, with kernels that do nothing: `python -m bench.host`, on any machine.

Tensors of the CPU stand for a GPU's (sobolev_kernels/testing/dry.py, ptx/triton_driver.py). The time is that of a whole
`sobolev_loss(...)` and `backward()`: all of Python, of autograd and of the C++ core, up to the launches with their
arguments complete; by Triton without its launcher in C. Not in it: these launches themselves and the two beside them
(the cotangent that `backward` makes, and the one multiplication by it, of which only the tensors are made here),
PyTorch's allocator for a GPU in the place of that of the CPU, and the thread of its own that autograd has for a GPU.
There `python -m bench.gpu` measures `host_us`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import kept, ops
from sobolev_kernels.testing import dry
from sobolev_kernels.testing.speed.cases import CASES, FIRST, Case, make_data, make_student
from sobolev_kernels.testing.speed.timing import interleave, quartiles

SHORT, LONG, FORWARD = "a call like one before", "the first of its kind", "forward alone"


def steps(case: Case, backend: str) -> dict:
    """Whole steps of 64 samples, the second of them with nothing kept; and a forward."""
    student, data = make_student(case), make_data(case)
    parameters = tuple(student.parameters())
    targets, directions = sk.Targets(values=data.y, jacobian=data.jacobian), sk.Directions.given(data.directions)

    def forward() -> torch.Tensor:
        return sk.sobolev_loss(student, data.x, targets, directions=directions, backend=backend)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        forward().backward()

    def first() -> None:
        kept.KEPT.clear()
        step()

    return {SHORT: step, LONG: first, FORWARD: forward}


@contextmanager
def without_kernels(backend: str) -> Iterator[None]:
    """Within it a backend goes all its way on tensors of the CPU, but for the kernels, and so does autograd."""
    made = lambda gradients, cotangent: [*map(torch.empty_like, gradients)]  # noqa: E731
    with patch.object(ops, "is_one", lambda cotangent: False), patch.object(torch, "_foreach_mul", made):
        if backend == "cuda":
            with dry.on_cpu():
                yield
        else:
            from ptx.triton_driver import driven

            with driven() as driver:
                driver.recording = False
                yield


def microseconds(case: Case, rounds: int = 30, turn: float = 0.02, backend: str = "cuda") -> dict[str, float]:
    with without_kernels(backend):
        pieces = steps(case, backend)
        interleave(pieces, rounds=2, seconds=0, turn=turn)
        times = interleave(pieces, rounds=rounds, seconds=0, turn=turn)
    return {name: 1e6 * quartiles(each).median for name, each in times.items()}


def main() -> int:
    first = [Case(64, case.D, case.H, case.hidden, case.O, case.P) for case in CASES if case.kind == FIRST]
    for backend, widest in (("cuda", 128), ("triton", 256)):  # above it Triton's multiplies are PyTorch's
        table = Table(title=f"Host µs of a step by {backend}, kernels that do nothing", title_justify="left")
        for heading in ("64 samples of", SHORT, LONG, FORWARD):
            table.add_column(heading)
        for case in [case for case in first if case.H <= widest]:
            table.add_row(str(case), *(f"{time:.0f}" for time in microseconds(case, backend=backend).values()))
        Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

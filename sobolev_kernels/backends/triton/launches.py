"""Launch choices, in one table. Its figures are of ahead-of-time compilation (`docs/triton.md`), not of any GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from ...problem import PRECISIONS, Problem

CUDA, HIP = "cuda", "hip"


def padded(n: int) -> int:
    """A size that tl.dot takes."""
    return max(16, triton.next_power_of_2(n))


@dataclass(frozen=True)
class Launch:
    """For students up to `width`: samples of a tile, warps of a program, columns of a chunk of a multiply.

    With `layers` a tile of students of as many hidden layers, and of up to `features` inputs and outputs, stays in
    registers (on_chip.py), else in the second-level cache (in_cache.py).
    """

    width: int
    block: int
    warps: int
    chunk: int
    precisions: tuple[str, ...] = PRECISIONS
    vendor: str = CUDA
    layers: int | None = None
    features: int = 16

    @property
    def options(self) -> dict[str, int]:
        """Without maxnreg ptxas now and then takes fewer registers than there are, and spills."""
        return {"num_warps": self.warps, "num_stages": 1} | ({"maxnreg": 255} if self.vendor == CUDA else {})

    def takes(self, problem: Problem) -> bool:
        hidden = problem.widths[1:-1]
        fits = self.layers is None or (
            len(hidden) <= self.layers and max(problem.D, problem.O) <= self.features
        )
        return fits and padded(hidden[0]) <= self.width and problem.precision in self.precisions


# No row spills on sm_80, sm_90, sm_100 or gfx942, whatever is projected; twice the samples would. Of the rows that take
# a student the first is his.
ONE_LAUNCH = (
    Launch(width=64, block=16, warps=8, chunk=64, layers=6),
    Launch(width=32, block=32, warps=4, chunk=16),
    Launch(width=64, block=32, warps=8, chunk=16),
    Launch(width=128, block=16, warps=8, chunk=16, precisions=("ieee",)),
    Launch(width=128, block=32, warps=8, chunk=16, precisions=("tf32", "bf16", "fp16")),
    Launch(width=32, block=32, warps=4, chunk=16, vendor=HIP),
    Launch(width=64, block=16, warps=4, chunk=16, vendor=HIP),
    Launch(width=128, block=16, warps=8, chunk=16, vendor=HIP),
)


@dataclass(frozen=True)
class Linear:
    """A multiply with an epilogue: samples, features and depth of a tile, and warps of a program."""

    rows: int
    columns: int
    depth: int
    warps: int


LINEAR = Linear(rows=64, columns=32, depth=32, warps=8)

# Layer by layer, wider students take torch's own multiply. Not yet measured on a GPU.
FUSED_UP_TO = 256


def one_launch(problem: Problem, vendor: str = HIP if torch.version.hip else CUDA) -> Launch:
    return next(row for row in ONE_LAUNCH if row.vendor == vendor and row.takes(problem))

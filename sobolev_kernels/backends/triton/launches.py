"""Launch choices, in one table. Its figures are of ahead-of-time compilation (`docs/triton.md`), not of any GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...problem import PRECISIONS

CUDA, HIP = "cuda", "hip"


@dataclass(frozen=True)
class Launch:
    """For students up to `width`: samples of a tile, warps of a program, columns of a chunk of a multiply."""

    width: int
    block: int
    warps: int
    chunk: int
    precisions: tuple[str, ...] = PRECISIONS
    vendor: str = CUDA

    @property
    def options(self) -> dict[str, int]:
        """Without maxnreg ptxas now and then takes fewer registers than there are, and spills."""
        return {"num_warps": self.warps, "num_stages": 1} | ({"maxnreg": 255} if self.vendor == CUDA else {})


# No row spills on sm_80, sm_90, sm_100 or gfx942, whatever is projected; twice the samples would.
ONE_LAUNCH = (
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


def one_launch(width: int, precision: str, vendor: str = HIP if torch.version.hip else CUDA) -> Launch:
    rows = (row for row in ONE_LAUNCH if row.vendor == vendor and precision in row.precisions)
    return next(row for row in rows if width <= row.width)

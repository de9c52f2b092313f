"""Launch choices, in one table: by the padded width of the student.

The figures are of ptxas for sm_80, tanh, mse, three hidden layers, directions drawn on the sphere (`docs/triton.md`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """For students up to `width`: samples of a tile, warps of a program, columns of a chunk of a multiply."""

    width: int
    block: int
    warps: int
    chunk: int


ONE_LAUNCH = (
    Launch(width=32, block=32, warps=4, chunk=32),
    Launch(width=64, block=16, warps=8, chunk=32),
    Launch(width=128, block=16, warps=8, chunk=16),
)


def one_launch(width: int) -> Launch:
    return next(row for row in ONE_LAUNCH if width <= row.width)

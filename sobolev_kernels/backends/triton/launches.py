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
    Launch(width=32, block=32, warps=4, chunk=16),
    Launch(width=64, block=32, warps=8, chunk=16),
    Launch(width=128, block=32, warps=8, chunk=16),
)


@dataclass(frozen=True)
class Linear:
    """A multiply with an epilogue: samples, features and depth of a tile, and warps of a program."""

    rows: int
    columns: int
    depth: int
    warps: int


LINEAR = Linear(rows=64, columns=64, depth=32, warps=8)

# Layer by layer, wider students take torch's own multiply. Not yet measured on a GPU.
FUSED_UP_TO = 256


def one_launch(width: int) -> Launch:
    return next(row for row in ONE_LAUNCH if width <= row.width)

"""Launch choices, in one table: by ahead-of-time compilation (`docs/triton.md`), and for Hopper by times of an H100
(`docs/gpu/README.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...enums import PRECISIONS
from ...problem import Problem

# Targets that are compiled for; a GPU takes the rows of the one whose tensor cores it has.
SM_80, SM_90, SM_100, GFX942 = "sm_80", "sm_90", "sm_100", "gfx942"
NVIDIA = (SM_80, SM_90, SM_100)
TENSOR_CORES = tuple(precision for precision in PRECISIONS if precision != "ieee")


@cache
def target_of(device: int | None) -> str:
    """Of a GPU, by its number; sm_80 without one."""
    if torch.version.hip:
        return GFX942
    major = 8 if device is None else torch.cuda.get_device_capability(device)[0]
    return {9: SM_90, 10: SM_100, 11: SM_100}.get(major, SM_80)


def padded(n: int) -> int:
    """A size that tl.dot takes."""
    return max(16, triton.next_power_of_2(n))


@dataclass(frozen=True)
class Launch:
    """For students up to `width`: samples of a tile, warps of a program, columns of a chunk of a multiply.

    A chunk as wide as the student needs no shared memory on chip. Gradients there are summed in slices of `slice` rows;
    of 64, Hopper and Blackwell take their own instructions.

    With `layers` a tile of a student of up to as many hidden layers, and up to `features` inputs and outputs, stays in
    registers (on_chip.py), else in the second-level cache (in_cache.py). `stack`: bytes of a thread's stack that were
    measured to pay, where they are more than any row may have.
    """

    width: int
    block: int
    warps: int
    layers: int | None = None
    precisions: tuple[str, ...] = PRECISIONS
    targets: tuple[str, ...] = NVIDIA
    chunk: int = 16
    slice: int = 32
    features: int = 16
    stack: int = 0

    @property
    def place(self) -> str:
        return "in cache" if self.layers is None else f"{self.layers} layers on chip"

    @property
    def label(self) -> str:
        return f"width {self.width}, {self.place}, {self.block} samples, {self.warps} warps"

    @property
    def most_stack(self) -> int:
        """Bytes: on chip for numbers of a tile that the loop over directions does not touch, such as addresses."""
        return max(self.stack, 8 if self.layers is None else 64)

    @property
    def options(self) -> dict[str, int]:
        """Without maxnreg ptxas now and then takes fewer registers than there are, and spills."""
        return {"num_warps": self.warps, "num_stages": 1} | ({} if GFX942 in self.targets else {"maxnreg": 255})

    def takes(self, problem: Problem) -> bool:
        hidden, features = problem.widths[1:-1], max(problem.D, problem.O)
        fits = self.layers is None or (len(hidden) <= self.layers and features <= self.features)
        return fits and padded(hidden[0]) <= self.width and problem.precision in self.precisions


# The first row that takes a student is his, so smaller tiles come after larger ones. Registers were counted of tanh,
# with as many layers as a row takes, whatever is projected (docs/triton.md). On Hopper these are the fastest that were
# timed (docs/gpu/README.md), of widths 32 to 128 with 3 layers and 64 with 4; sm_80 and sm_100, not yet timed, take
# the same rows where the counts allow. `stack` stands where more samples, or the place on chip, pay more than it costs.
ON_CHIP = (
    Launch(width=32, block=32, warps=4, layers=3, chunk=32, precisions=TENSOR_CORES),
    Launch(width=32, block=32, warps=8, layers=6, chunk=32, precisions=TENSOR_CORES),
    Launch(width=32, block=16, warps=4, layers=6, chunk=32, precisions=("ieee",)),
    Launch(width=64, block=32, warps=8, layers=4, chunk=64, precisions=TENSOR_CORES, targets=(SM_90,), stack=120),
    Launch(width=64, block=32, warps=8, layers=3, chunk=64, precisions=TENSOR_CORES, targets=(SM_80, SM_100)),
    Launch(width=64, block=16, warps=8, layers=5, chunk=64, precisions=("bf16", "fp16")),
    Launch(width=64, block=16, warps=8, layers=5, chunk=64, precisions=("tf32",), targets=(SM_80, SM_90)),
    Launch(width=64, block=16, warps=8, layers=6, precisions=TENSOR_CORES, targets=(SM_80, SM_90)),
    Launch(width=64, block=16, warps=8, layers=6, slice=64, precisions=("tf32",), targets=(SM_100,)),
    Launch(width=64, block=16, warps=8, layers=3, chunk=64, precisions=("ieee",)),
    Launch(width=64, block=16, warps=8, layers=6, chunk=32, precisions=("ieee",)),
    Launch(width=128, block=16, warps=8, layers=3, chunk=128, precisions=TENSOR_CORES, targets=(SM_90,), stack=480),
    Launch(width=128, block=16, warps=8, layers=2, chunk=128, precisions=("bf16", "fp16"), targets=(SM_80, SM_100)),
    Launch(width=128, block=16, warps=8, layers=2, slice=128, precisions=("tf32",), targets=(SM_80, SM_100)),
    Launch(width=128, block=16, warps=8, layers=2, slice=64, precisions=("ieee",)),
    Launch(width=32, block=32, warps=4, layers=3, targets=(GFX942,)),
    Launch(width=32, block=16, warps=4, layers=6, targets=(GFX942,)),
    Launch(width=64, block=16, warps=4, layers=6, slice=64, targets=(GFX942,)),
    Launch(width=128, block=16, warps=4, layers=3, slice=128, targets=(GFX942,)),
)
# No row spills but that of width 128 on Hopper's tensor cores.
IN_CACHE = (
    Launch(width=32, block=32, warps=4),
    Launch(width=64, block=32, warps=8, precisions=("ieee",)),
    Launch(width=64, block=32, warps=8, chunk=64, precisions=TENSOR_CORES),
    Launch(width=128, block=16, warps=8, precisions=("ieee",), targets=(SM_80,)),
    Launch(width=128, block=32, warps=8, chunk=32, precisions=("ieee",), targets=(SM_90, SM_100)),
    Launch(width=128, block=32, warps=8, chunk=64, precisions=TENSOR_CORES, targets=(SM_90,), stack=80),
    Launch(width=128, block=32, warps=8, precisions=TENSOR_CORES, targets=(SM_80, SM_100)),
    Launch(width=32, block=32, warps=4, targets=(GFX942,)),
    Launch(width=64, block=16, warps=4, targets=(GFX942,)),
    Launch(width=128, block=16, warps=8, targets=(GFX942,)),
)


@dataclass(frozen=True)
class Linear:
    """A multiply with an epilogue: samples, features and depth of a tile, and warps of a program."""

    rows: int
    columns: int
    depth: int
    warps: int


@dataclass(frozen=True)
class Outer(Linear):
    """Gradients of weights: rows and columns of a tile, samples of a step, and about how many programs there are."""

    programs: int


@dataclass(frozen=True)
class Jet(Linear):
    """A product of all streams at once, of a program of which so many numbers live at most at each place of a tile."""

    alive: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """A warp of AMD's has 64 lanes."""
        return {"num_warps": self.warps // 2 if torch.version.hip else self.warps, "num_stages": self.stages}


# Named derivatives: the first row that a program takes is its own; all that is asked for up to order 4 of two or three
# inputs fits the last one, or is taken apart from the product (JET_BLOCKS: alive, numbers of a block, warps).
JETS = (
    Jet(rows=64, columns=32, depth=32, warps=8, alive=14, stages=2),
    Jet(rows=32, columns=32, depth=32, warps=8, alive=40, stages=2),
)
# All layers of a pass in one launch: a program has so many samples and all features, up to this width and so many
# layers, each of which is compiled; and up to so many numbers of a stream, samples times the widest layer. On an H100
# one launch took 107 us where layers by themselves took 160 (1024 samples, width 20), and 253 where they took 219
# (4096, 64).
JET_CHAINS = (
    Jet(rows=32, columns=16, depth=16, warps=4, alive=40, stages=2),
    Jet(rows=16, columns=32, depth=32, warps=4, alive=40, stages=2),
    Jet(rows=16, columns=64, depth=32, warps=8, alive=40, stages=2),
)
LONGEST_CHAIN, MOST_CHAINED = 6, 1 << 17
JET_BLOCKS = ((20, 1024, 8), (40, 512, 8), (1 << 30, 128, 4))

LINEAR = Linear(rows=64, columns=32, depth=32, warps=8)
OUTER = Outer(rows=64, columns=64, depth=32, warps=4, programs=528)
WIDEST_DRAWN = 8192  # numbers of a direction that a program draws at a time

# Layer by layer, wider students take torch's own multiply, as it was faster on an H100 (8192 samples, widths 64, 128
# and 256). In tf32 torch's is of float32, unless its own switch is on.
FUSED_UP_TO = {"ieee": 32, "tf32": 256, "bf16": 64, "fp16": 64}
# Of named derivatives, whose programs stand behind products of our own: by counts alone.
JETS_FUSED_UP_TO = {"ieee": 128, "tf32": 256, "bf16": 256, "fp16": 256}


def fuses(problem: Problem, up_to: Mapping[str, int] = FUSED_UP_TO) -> bool:
    """Whether products are multiplied by kernels that do what follows them too."""
    return max(problem.widths) <= up_to[problem.precision]


def launch_of(problem: Problem) -> Launch:
    """The row of a problem on torch's current device."""
    target = target_of(torch.cuda.current_device() if problem.device == "cuda" else None)
    return next(row for row in ON_CHIP + IN_CACHE if target in row.targets and row.takes(problem))


class Tile(NamedTuple):
    """Constants of a tile of the one launch: hidden layers (0 in the second-level cache, where their number is not a
    constant), inputs, width and outputs as they are padded, samples, columns of a chunk of a multiply, rows of a slice
    of a gradient, precision."""

    DEPTH: tl.constexpr
    DB: tl.constexpr
    H: tl.constexpr
    OB: tl.constexpr
    BLOCK: tl.constexpr
    CHUNK: tl.constexpr
    SLICE: tl.constexpr
    PRECISION: tl.constexpr


def tile_of(problem: Problem, launch: Launch) -> Tile:
    depth = 0 if launch.layers is None else len(problem.widths) - 2
    sizes = map(padded, (problem.D, problem.widths[1], problem.O))
    return Tile(*map(tl.constexpr, (depth, *sizes, launch.block, launch.chunk, launch.slice, problem.precision)))

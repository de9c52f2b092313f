"""What the CUDA kernel takes of a GPU, from ahead-of-time compilation: `python -m ptx.cuda_report` prints
the tables of docs/cuda.md. Nothing here was run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sobolev_kernels import planner
from sobolev_kernels.backends import cuda
from sobolev_kernels.enums import DENSE, PRECISIONS
from sobolev_kernels.math.table import Formula
from sobolev_kernels.problem import LOSS, Problem

from .compile import assemble, compile_file
from .cuda_on_ptx import KERNEL, options_of

# KiB of shared memory that a block may have
TARGETS = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
# Of the kernel (SK_HALF_WAYS and SK_FLOAT_WAYS of csrc/cuda/registers.h), by precision
HALF_WAYS = ((32, 8, 4, 1), (32, 4, 4, 1), (64, 8, 2, 1), (64, 4, 4, 1), (64, 2, 2, 2), (64, 2, 4, 1), (128, 2, 2, 1))
FLOAT_WAYS = ((32, 4, 4, 1), (64, 2, 4, 1), (128, 1, 2, 1))
PIECES, ROOMY = ((64, 2, 4, 1, True),), ((64, 2, 0, 1, True), (128, 2, 0, 1, True))
SECOND = tuple((*way, 2) for way in ROOMY)  # of order 2
HALF_WAYS, FLOAT_WAYS = HALF_WAYS + PIECES + ROOMY + SECOND, FLOAT_WAYS + PIECES + ROOMY + SECOND
WAYS = tuple((name, way) for name in PRECISIONS for way in (FLOAT_WAYS if name in ("ieee", "tf32") else HALF_WAYS))


class Code(NamedTuple):
    """Of a way's kernel for a target, whatever the student is."""

    registers: int
    stack: int  # bytes a thread
    spills: int  # bytes a thread, stored and loaded
    finish: int  # registers of finish_step


def code(precision: str, taken: tuple[int, ...], target: str) -> Code:
    _, resources = assemble(compile_file(KERNEL, target=target, options=options_of(precision, taken)), target)
    step, finish = (next(r for name, r in resources.items() if k in name) for k in ("register_step", "finish_step"))
    return Code(step.registers, step.stack, step.spill_stores + step.spill_loads, finish.registers)


def student(width: int, precision: str, hidden: int = 3) -> Problem:
    """Hidden layers of tanh, 3 inputs, 1 output, 2 directions on the sphere, a dense Jacobian, all gradients."""
    tanh, identity, mse = Formula("tanh", ()), Formula("identity", ()), Formula("mse", ())
    return Problem(
        LOSS, (3, *[width] * hidden, 1), (True,) * (hidden + 1), (*[tanh] * hidden, identity), "float32", "cuda", P=2,
        distribution="sphere", derivative_target=DENSE, value_loss=mse, derivative_loss=mse, gradients=True,
        precision=precision,
    )  # fmt: skip


def most_layers(width: int, precision: str, target: str) -> int:
    """Hidden layers of such a student that fit on a target's chip."""
    most = 0
    for hidden in range(1, 6):
        problem = student(width, precision, hidden)
        try:
            if cuda.is_roomy(cuda.layout(problem, planner.side(problem), TARGETS[target] << 10)):
                break
        except ValueError:
            break
        most = hidden
    return most


def head(*names: str) -> str:
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def lines() -> Iterator[str]:
    yield head("width", "samples", "layers between", "blocks", "precision", "target", *Code._fields)
    for precision, taken in WAYS:
        for target in ("sm_80", "sm_90"):
            width, groups, between, most, *wide = taken
            kind = ", in pieces" if between else ", order 2" if taken in SECOND else ", roomy"
            cells = (
                f"{width}{kind * any(wide)}", 16 * groups, between or "any", most, precision, target,
                *code(precision, taken, target),
            )  # fmt: skip
            yield f"| {' | '.join(map(str, cells))} |"
    yield "\n" + head("hidden layers that fit", "precision", *TARGETS)
    for width in (32, 64, 128):
        for precision in ("ieee", "tf32", "bf16"):
            cells = (f"of {width}", precision, *(most_layers(width, precision, target) for target in TARGETS))
            yield f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)

"""What the CUDA kernel takes of a GPU, from ahead-of-time compilation: `python -m ptx.cuda_report` prints
the tables of docs/cuda.md. Nothing here was run on a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from sobolev_kernels import planner
from sobolev_kernels.backends import cuda
from sobolev_kernels.enums import DENSE, PRECISIONS
from sobolev_kernels.math.table import Formula
from sobolev_kernels.problem import LOSS, Problem

from .compile import assemble, compile_file, tool
from .cuda_on_ptx import KERNELS, NAMES, REGISTERS, register_options

# KiB of shared memory that a block may have, and threads of a multiprocessor; it has 1 KiB more, and 65536 registers.
TARGETS = {
    "sm_80": (163, 2048), "sm_86": (99, 1536), "sm_89": (99, 1536), "sm_90": (227, 2048), "sm_100": (227, 2048),
    "sm_120": (99, 1536),
}  # fmt: skip
WIDTHS = (16, 32, 64, 128)
KERNELS_OF_A_STEP = ("sobolev_step", "pack_parameters", "finish_step")
THREADS = 256


@dataclass(frozen=True)
class Code:
    """Of a precision's kernels for a target, whatever the student is."""

    registers: int  # of sobolev_step
    pack: int  # registers
    finish: int  # registers
    stack: int  # bytes a thread, of any
    spills: int  # bytes a thread, of all
    tensor: int  # HMMA
    matrices: int  # LDSM
    wide: int  # loads of 16 bytes that may be from global memory


def code(precision: str, target: str) -> Code:
    ptx = compile_file(KERNELS, target=target, options=(f"-DSK_PRECISION={NAMES[precision]}",))
    cubin, resources = assemble(ptx, target)
    registers = [next(r for name, r in resources.items() if kernel in name).registers for kernel in KERNELS_OF_A_STEP]
    spills = sum(used.spill_stores + used.spill_loads for used in resources.values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        text = subprocess.run([tool("nvdisasm"), "-c", str(file)], capture_output=True, text=True, check=True).stdout
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text)
    count = lambda pattern: sum(bool(re.match(pattern, operation)) for operation in operations)  # noqa: E731
    return Code(
        *registers, max(used.stack for used in resources.values()), spills, count("HMMA"), count("LDSM"),
        count(r"LDG?\.E\.(?:\w+\.)*128"),
    )  # fmt: skip


# Ways of the step in registers (SK_HALF_WAYS and SK_FLOAT_WAYS of csrc/cuda/registers.h), by precision
HALF_WAYS = ((32, 8, 4, 1), (32, 4, 4, 1), (64, 8, 2, 1), (64, 4, 4, 1), (64, 2, 2, 2), (64, 2, 4, 1), (128, 2, 2, 1))
FLOAT_WAYS = ((32, 4, 4, 1), (64, 2, 4, 1), (128, 1, 2, 1))
WAYS = tuple((name, way) for name in PRECISIONS for way in (FLOAT_WAYS if name in ("ieee", "tf32") else HALF_WAYS))


def in_registers(precision: str, taken: tuple[int, ...], target: str) -> tuple[int, int, int]:
    """Registers, bytes of stack and of spills of a way."""
    _, resources = assemble(compile_file(REGISTERS, target=target, options=register_options(precision, taken)), target)
    used = next(used for name, used in resources.items() if "register_step" in name)
    return used.registers, used.stack, used.spill_stores + used.spill_loads


def student(width: int, precision: str) -> Problem:
    """Three hidden layers of tanh, 3 inputs, 1 output, 2 directions on the sphere, a dense Jacobian, all gradients."""
    tanh, identity, mse = Formula("tanh", ()), Formula("identity", ()), Formula("mse", ())
    return Problem(
        LOSS, (3, width, width, width, 1), (True,) * 4, (tanh, tanh, tanh, identity), "float32", "cuda", P=2,
        distribution="sphere", derivative_target=DENSE, value_loss=mse, derivative_loss=mse, gradients=True,
        precision=precision,
    )  # fmt: skip


def way(width: int, precision: str, target: str) -> dict:
    """How a block of the target goes about a student."""
    problem = student(width, precision)
    return cuda.layout(problem, planner.side(problem), TARGETS[target][0] << 10, cuda.IN_MEMORY)


def blocks(registers: int, shared: int, target: str) -> int:
    """That a multiprocessor holds at a time."""
    limit, threads = TARGETS[target]
    of_a_warp = -(-registers * 32 // 256) * 256
    return min(65536 // (of_a_warp * THREADS // 32), ((limit + 1) << 10) // (shared + 1024), threads // THREADS)


def codes(targets=tuple(TARGETS)) -> Iterator[tuple[str, str, Code]]:
    for target in targets:
        for precision in PRECISIONS:
            yield target, precision, code(precision, target)


def head(*names: str) -> str:
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def main() -> None:
    columns = ("registers", "pack", "finish", "stack B", "spill B", "HMMA", "LDSM", "16-byte loads")
    print(head("target", "precision", *columns))
    registers = {}
    for target, precision, used in codes():
        registers[target, precision] = used.registers
        cells = (target, precision, *astuple(used))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print("\n" + head("width", "precision", "target", "tile", "parameters", "gradients", "shared B", "blocks"))
    for width in WIDTHS:
        for precision in ("ieee", "bf16"):
            for target in ("sm_80", "sm_86", "sm_90"):
                chosen = way(width, precision, target)
                where = ["on chip" if chosen[name] else "L2" for name in ("parameters", "gradients")]
                held = blocks(registers[target, precision], chosen["shared"], target)
                cells = (width, precision, target, chosen["samples"], *where, chosen["shared"], held)
                print(f"| {' | '.join(map(str, cells))} |")
    print(
        "\n"
        + head("width", "samples", "layers between", "blocks", "precision", "target", "registers", "stack B", "spill B")
    )
    for precision, taken in WAYS:
        for target in ("sm_80", "sm_90"):
            width, groups, *rest = taken
            cells = (width, 16 * groups, *rest, precision, target, *in_registers(precision, taken, target))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()

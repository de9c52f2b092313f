"""What the Triton kernels take of a GPU, from ahead-of-time compilation: `python -m ptx.report` prints the
table of docs/triton.md. Nothing here was run on a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sobolev_kernels.math.activations import ACTIVATIONS
from sobolev_kernels.math.losses import LOSSES
from sobolev_kernels.math.table import choose

from .compile import Compiled, machine_instructions, tool, triton_here

# Bytes of shared memory that a block may have.
LIMITS = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
ACCESS = re.compile(r"(?:ld|st)\.global\S*")


@dataclass(frozen=True)
class Usage:
    kernel: str
    row: str
    target: str
    registers: int
    stack: int  # bytes a thread
    spills: int  # instructions
    tensor: int  # tensor-core instructions
    shared: int  # bytes a block
    wide: str  # global accesses of 8 or 16 bytes by a thread, of all


def usage(kernel: str, row: str, target: str, done: Compiled) -> Usage:
    if target.startswith("gfx"):
        number = lambda what: int(re.search(rf"\.{what}:\s+(\d+)", done.text)[1])  # noqa: E731
        wide = len(re.findall(r"(?:global|buffer)_(?:load|store)_dwordx[24]", done.text))
        every = len(re.findall(r"(?:global|buffer)_(?:load|store)_", done.text))
        spills, tensor = number("vgpr_spill_count"), len(re.findall(r"v_mfma", done.text))
        return Usage(kernel, row, target, number("vgpr_count"), 0, spills, tensor, done.shared, f"{wide} of {every}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(done.binary)
        text = subprocess.run([tool("cuobjdump"), "-res-usage", str(file)], capture_output=True, text=True)
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr).groups()
    counts = machine_instructions(done.binary)
    accesses = ACCESS.findall(done.text)
    wide = sum(".v2" in access or ".v4" in access for access in accesses)
    spills = counts["STL"] + counts["LDL"]
    tensor = sum(counts[name] for name in ("HMMA", "HGMMA", "UTCHMMA", "UTCOMMA"))
    every = f"{wide} of {len(accesses)}"
    return Usage(kernel, row, target, int(registers), int(stack), spills, tensor, done.shared, every)


PROJECTIONS = {
    "drawn": ("sphere", "tangents"), "given": ("given", "tangents"), "cotangents": ("sphere", "cotangents"),
    "gradients": ("sphere", "gradients"),
}  # fmt: skip


def one_launch(row, target: str, projection: str = "drawn", precision: str = "ieee") -> Compiled:
    """Of one of PROJECTIONS: tanh, mse, dense Jacobian, all gradients; on chip as deep as the row takes."""
    from sobolev_kernels.backends.triton import in_cache, on_chip
    from sobolev_kernels.backends.triton.draws import DISTRIBUTION
    from sobolev_kernels.backends.triton.formulas import arguments
    from sobolev_kernels.backends.triton.one_launch import step_kernel

    distribution, side = PROJECTIONS[projection]

    act, count, *_ = arguments(choose(ACTIVATIONS, "activation", "tanh"), 0)
    last, last_count, *_ = arguments(choose(ACTIVATIONS, "activation", "identity"), 0)
    loss, loss_count, *_ = arguments(choose(LOSSES, "loss", "mse"), 1)
    constants = {
        "ACT": act, "ACT_COUNT": count, "LAST": last, "LAST_COUNT": last_count, "VALUE": loss,
        "VALUE_COUNT": loss_count, "FIRST": loss, "FIRST_COUNT": loss_count, "KIND": DISTRIBUTION[distribution],
        "SHARED": False, "FROM": side, "JACOBIAN": True, "GRADIENTS": True, "PRECISION": precision,
        "DB": 16, "H": row.width, "OB": 16, "BLOCK": row.block, "CHUNK": row.chunk, "WEIGHT_OF_SAMPLE": None,
        "WEIGHT_OF_OUTPUT": None, "DX": None, "DEPTH": row.layers or 0,
    }  # fmt: skip
    if row.layers is None:
        constants |= in_cache.CHAINS
    else:
        constants |= on_chip.CHAINS | {"SCRATCH": None}
    if distribution != "given":
        constants["V"] = None
    tensors = {"X", "V", "Y", "T", "BIASES", "SCRATCH", "SLOTS", "BIAS_SLOTS", "TERMS"}
    floats = {"scale", "value_factor", "first_factor", "common", "value_scale", "first_scale"}
    floats |= {f"{name}_{letter}" for name in ("act", "last") for letter in "ab"} | {"value_a", "first_a"}
    signature = signature_of(step_kernel, constants, tensors, floats) | {"seed": "i64", "offset": "i64"}
    signature |= dict.fromkeys(("WEIGHTS", "TRANSPOSED"), f"*{precision if precision in ('bf16', 'fp16') else 'fp32'}")
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    options = row.options
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    return triton_here(step_kernel, signature, constants, target, warps, stages, pointers, options)


def linear(kernel, target: str, order: int) -> Compiled:
    from sobolev_kernels.backends.triton.formulas import arguments
    from sobolev_kernels.backends.triton.launches import LINEAR

    act, count, *_ = arguments(choose(ACTIVATIONS, "activation", "tanh"), 0)
    constants = {
        "F": act, "COUNT": count, "ORDER": order, "BM": LINEAR.rows, "BN": LINEAR.columns, "BK": LINEAR.depth,
        "Q": None, "PRECISION": "ieee",
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = signature_of(kernel, constants, {"BELOW", "ABOVE", "W", "B", "Z", "H", "Z_BAR"}, {"a", "b"})
    divisible = [n for n, t in signature.items() if t.startswith("*")] + ["K", "n"]
    return triton_here(kernel, signature, constants, target, LINEAR.warps, 3, divisible, {})


def signature_of(kernel, constants: dict, tensors: set, floats: set) -> dict[str, str]:
    kinds = {True: "*fp32", False: "i32"}
    names = [name for name in kernel.arg_names if name not in constants]
    return {name: "fp32" if name in floats else kinds[name in tensors] for name in names}


def worst(usages: list[Usage]) -> Usage:
    """The most of everything, and the fewest wide accesses."""
    most = {name: max(getattr(u, name) for u in usages) for name in ("registers", "stack", "spills", "shared")}
    fewest = min(usages, key=lambda u: int(u.wide.split()[0]) / int(u.wide.split()[-1]))
    return replace(fewest, **most, tensor=min(u.tensor for u in usages))


def rows_for(target: str) -> list:
    from sobolev_kernels.backends.triton.launches import IN_CACHE, ON_CHIP

    return [row for row in ON_CHIP + IN_CACHE if target in row.targets]


def usages(targets: Sequence[str], projections: Sequence[str]) -> Iterator[Usage]:
    from sobolev_kernels.backends.triton.fused_multiply import backward_kernel, forward_kernel

    for target in targets:
        for row in rows_for(target):
            for precision in row.precisions:
                label = f"{row.label}, {precision}"
                each = [usage("step_kernel", label, target, one_launch(row, target, p, precision)) for p in projections]
                yield worst(each)
        for kernel in (forward_kernel, backward_kernel):
            for order in (1, 2):
                yield usage(kernel.fn.__name__, f"order {order}", target, linear(kernel, target, order))


HEAD = """| kernel | launch | target | registers | stack B | spills | tensor instr. | shared B | vector accesses |
|---|---|---|---|---|---|---|---|---|"""


def main(names: list[str]) -> None:
    """The table of all targets, or the rows of those named, of all PROJECTIONS or those named.

    An error in AMD's compiler may end its process.
    """
    targets, projections = ([name for name in names if name in known] for known in (LIMITS, PROJECTIONS))
    if not targets:
        print(HEAD, flush=True)
        for target in LIMITS:
            subprocess.run([sys.executable, "-m", "ptx.report", target, *projections])
    for u in usages(targets, projections or tuple(PROJECTIONS)):
        cells = (u.kernel, u.row, u.target, u.registers, u.stack, u.spills, u.tensor, u.shared, u.wide)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

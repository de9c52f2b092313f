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
from unittest.mock import patch

import torch

import sobolev_kernels as sk
from sobolev_kernels.backends.triton import chained, layerwise, one_launch
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing.compare import computed_from
from sobolev_kernels.testing.problems import Shape, asking, data, directions_of

from .compile import Compiled, machine_instructions, tool, variant
from .triton_on_ptx import recorded

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


LINEAR = [("forward_kernel", 1), ("forward_kernel", 2), ("backward_kernel", 1), ("backward_kernel", 2)]
LINEAR += [("outer_kernel", 1), ("pull_kernel", 1), ("push_kernel", 1), ("finish_kernel", 1)]
ALONG = ("pull_kernel", "push_kernel")  # of cotangents
PROJECTIONS = {
    "drawn": ("tangents", lambda shape: {"directions": directions_of("sphere", shape)}),
    "given": ("tangents", lambda shape: {"directions": directions_of("given", shape)}),
    "cotangents": ("tangents", lambda shape: {"cotangents": sk.Cotangents.sphere(shape.P, seed=3)}),
    "gradients": ("gradients", lambda shape: {"directions": directions_of("sphere", shape)}),
    "asking": ("tangents", lambda shape: {"directions": asking(directions_of("given", shape))}),
}


def launches_of(shape: Shape, projection: str, **settings) -> dict[str, tuple]:
    """The first launch of each kernel in a step: tanh, mse, dense Jacobian, all gradients of parameters; of directions
    that ask for their own, tangents."""
    side, projections = PROJECTIONS[projection]
    numbers = data(shape, "tanh")
    second = {"hessian": torch.zeros(shape.N, shape.O, shape.D, shape.D)} if settings.get("order") == 2 else {}
    first = {"jacobian": numbers.jacobian}
    if projection == "asking":
        first = {"tangents": torch.zeros(shape.P, shape.N, shape.O)}
    targets = sk.Targets(values=numbers.y, **first, **second)
    with recorded() as launches, computed_from(side):
        sk.sobolev_loss(numbers.student, numbers.x, targets, backend="triton", **projections(shape), **settings)
    return {kernel.fn.__name__: (kernel, values, named) for kernel, values, named in reversed(launches)}


def compiled_step(row, target: str, projection: str = "drawn", precision: str = "ieee") -> Compiled:
    """Of one of PROJECTIONS; on chip as deep as the row takes."""
    shape = Shape(row.block, 16, row.width, row.layers or 3, 16, 2, "nothing is padded")
    with patch.object(one_launch, "launch_of", lambda problem: row):
        launch = launches_of(shape, projection, precision=precision)["step_kernel"]
    return variant(*launch, target).compiled()


def linear(name: str, target: str, order: int = 1) -> Compiled:
    """A kernel of a step layer by layer."""
    shape, settings = Shape(64, 64, 64, 3, 64, 2, "nothing is padded"), {"order": 2} if order == 2 else {}
    layers = patch.object(chained, "takes", lambda problem, N: False)
    own = patch.object(layerwise, "fuses", lambda problem: True)
    with layers, own, patch.object(one_launch, "refusal", lambda problem: "forced"):
        launch = launches_of(shape, "cotangents" if name in ALONG else "drawn", **settings)[name]
    return variant(*launch, target).compiled()


def worst(usages: list[Usage]) -> Usage:
    """The most of everything, and the fewest wide accesses."""
    most = {name: max(getattr(u, name) for u in usages) for name in ("registers", "stack", "spills", "shared")}
    fewest = min(usages, key=lambda u: int(u.wide.split()[0]) / int(u.wide.split()[-1]))
    return replace(fewest, **most, tensor=min(u.tensor for u in usages))


def rows_for(target: str) -> list:
    from sobolev_kernels.backends.triton.launches import IN_CACHE, ON_CHIP

    return [row for row in ON_CHIP + IN_CACHE if target in row.targets]


def usages(targets: Sequence[str], projections: Sequence[str], precisions: Sequence[str]) -> Iterator[Usage]:
    for target in targets:
        for row in rows_for(target):
            for precision in [p for p in row.precisions if p in precisions]:
                label = f"{row.label}, {precision}"
                each = [
                    usage("step_kernel", label, target, compiled_step(row, target, p, precision)) for p in projections
                ]
                yield worst(each)
        for name, order in LINEAR:
            yield usage(name, f"order {order}", target, linear(name, target, order))


HEAD = """| kernel | launch | target | registers | stack B | spills | tensor instr. | shared B | vector accesses |
|---|---|---|---|---|---|---|---|---|"""


def main(names: list[str]) -> None:
    """The table of all targets, or the rows of those named, of all PROJECTIONS but "asking", and PRECISIONS, or those
    named.

    An error in AMD's compiler may end its process.
    """
    kinds = (LIMITS, PROJECTIONS, PRECISIONS)
    targets, projections, precisions = ([name for name in names if name in known] for known in kinds)
    if not targets:
        print(HEAD, flush=True)
        for target in LIMITS:
            subprocess.run([sys.executable, "-m", "ptx.report", target, *projections, *precisions])
    projections = projections or [name for name in PROJECTIONS if name != "asking"]
    for u in usages(targets, projections, precisions or PRECISIONS):
        cells = (u.kernel, u.row, u.target, u.registers, u.stack, u.spills, u.tensor, u.shared, u.wide)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The CUDA backend on the PTX machine: the kernels as nvcc compiles them, with the arguments that a GPU would get."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from sobolev_kernels import steps
from sobolev_kernels.backends import core, cuda
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing.compare import beside_reference, computed_from
from sobolev_kernels.testing.dry import LIMIT, on_cpu, prepared
from sobolev_kernels.testing.problems import Data

from .compile import compile_file
from .run import loaded

KERNELS = Path(__file__).parents[1] / "csrc" / "cuda" / "kernels.cu"
NAMES = dict(zip(PRECISIONS, ("kIeee", "kTf32", "kBf16", "kFp16"), strict=True))
TARGETS = ("values", "jacobian")
SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]
HOPPER = 227 << 10  # bytes of shared memory


REGISTERS = KERNELS.with_name("registers.cu")


@cache
def register_text(precision: str, way: tuple[int, ...]) -> str:
    return compile_file(REGISTERS, options=register_options(precision, way))


def register_options(precision: str, way: tuple[int, ...]) -> tuple[str, ...]:
    named = zip(("WIDTH", "GROUPS", "BETWEEN", "BLOCKS", "WIDE"), way, strict=False)  # not wide where it is not said
    return f"-DSK_PRECISION={NAMES[precision]}", *(f"-DSK_{name}={int(number)}" for name, number in named)


@cache
def text(precision: str) -> str:
    return compile_file(KERNELS, options=(f"-DSK_PRECISION={NAMES[precision]}",))


class OnPtx:
    """A backend in place of `cuda` that launches on the PTX machine; it keeps the results of the last call, and what it
    launched. By the kernel of tiles in shared memory, unless `tile` says otherwise."""

    def __init__(
        self, limit=LIMIT, blocks=2, schedule="round_robin", findings="raise", ptx=None, tile=cuda.IN_MEMORY
    ):  # fmt: skip
        self.tile = tile
        self.limit, self.blocks, self.schedule, self.findings, self.ptx = limit, blocks, schedule, findings, ptx
        self.results, self.layout, self.problem = {}, None, None
        self.ways: list[tuple[int, ...]] = []  # of all calls
        self.memory: list[torch.Tensor] = []  # of the call that is running
        self.seeds: list[torch.Tensor] = []  # those that only the device would know

    def supports(self, problem):
        return cuda.refusal_while_traced(problem.to_string(), 0)

    def plan(self, problem, N):
        return cuda.plan(problem, N)

    def run(self, problem, operands, outputs, gradients):
        self.problem = problem
        self.memory = [operands.x, *operands.parameters, *operands[2:-1], *outputs.values(), *gradients]
        cuda.run(problem, operands, outputs, gradients)

    def kept(self, problem, operands, outputs, gradients):
        return cuda.kept(problem, operands, outputs, gradients)

    def start(self, launch, where, scratch):
        told = prepared(launch, where, scratch)
        scratch.numpy().fill(255)
        self.layout = core._C.cuda_layout(launch.step, launch.precision, launch.limit)
        self.ways.append(self.layout["way"])
        self.results = {}
        self.execute(launch, *told, [*self.memory, *self.seeds, scratch])

    def execute(self, launch, arguments, pack, finish, in_registers, memory):
        """Pack, step and finish as they are launched."""
        precision = PRECISIONS[launch.precision]
        own = register_text(precision, self.layout["way"]) if in_registers else text(precision)
        ptx = loaded(self.ptx or own)
        tensors = [tensor for tensor in memory if isinstance(tensor, torch.Tensor)]
        known = {f"tensor {i} {tuple(tensor.shape)}": tensor for i, tensor in enumerate(tensors)}
        threads, shared = self.layout["threads"], self.layout["shared"]
        run = lambda name, grid, given=arguments, **more: ptx.launch(  # noqa: E731
            name, grid, threads, [given], memory=known, findings=self.findings, **more
        )
        on_chip = {"shared": shared, "schedule": self.schedule}
        if in_registers:
            self.results["step"] = run("register_step", launch.blocks, in_registers, **on_chip)
        else:
            self.results["pack"] = run("pack_parameters", pack)
            self.results["step"] = run("sobolev_step", launch.blocks, **on_chip)
        if finish is not None:
            self.results["finish"] = run("finish_step", finish)

    @property
    def kinds(self) -> set[str]:
        return set().union(*(result.kinds() for result in self.results.values()))


@contextmanager
def on_ptx(**options):
    """sk.sobolev_loss(..., backend="cuda") within it."""
    backend = OnPtx(**options)
    addresses, run = steps.Layout.addresses, steps.Step.run

    def looked_at(layout, tensors):
        backend.memory = list(tensors)
        return addresses(layout, tensors)

    def ran(step, at, made, seed):
        backend.memory += made
        return run(step, at, made, seed)

    with (
        patch.object(steps.Layout, "addresses", looked_at), patch.object(steps.Step, "run", ran),
        patch.object(cuda, "TILE", backend.tile), on_cpu(backend.start, backend, backend.limit, backend.blocks),
    ):  # fmt: skip
        yield backend


def compare(
    data: Data, projections, precision="ieee", targets=None, on=None, outputs=False, **settings
) -> SimpleNamespace:
    """Loss, terms and all gradients by the one rule.

    Directions go as tangents, or project the outputs' gradients.
    """
    with computed_from("gradients" if outputs else "tangents"), on_ptx(**(on or {})) as backend:
        done = beside_reference(data, projections, targets or TARGETS, "cuda", precision=precision, **settings).check()
    return SimpleNamespace(got=done.got, backend=backend, worst=done.worst()[0])


def compare_in_registers(
    numbers: Data, projections, *arguments, way=None, limit=HOPPER, tile=cuda.CHOSEN, schedule="round_robin",
    precision="bf16", **how,
) -> SimpleNamespace:  # fmt: skip
    """The same, by the kernel whose streams live in registers; `way` is the one that is meant."""
    on = {"limit": limit, "tile": tile, "schedule": schedule}
    done = compare(numbers, projections, precision, *arguments, on=on, **how)
    assert all(width for width, *_ in done.backend.ways)
    assert way is None or done.backend.layout["way"][: len(way)] == way
    return done

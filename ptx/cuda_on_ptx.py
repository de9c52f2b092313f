"""The CUDA backend on the PTX machine: the kernels as nvcc compiles them, with the arguments that a GPU would get."""

from __future__ import annotations

import pickle
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
from sobolev_kernels.testing.dry import on_cpu, prepared
from sobolev_kernels.testing.problems import Data

from .compile import compile_file, kernels_in, missing, sources_of
from .run import Module, kept, loaded

KERNEL = Path(__file__).parents[1] / "csrc" / "cuda" / "registers.cu"
NAMES = dict(zip(PRECISIONS, ("kIeee", "kTf32", "kBf16", "kFp16"), strict=True))
TARGETS = ("values", "jacobian")
SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]
HOPPER = 227 << 10  # bytes of shared memory


@cache
def of_core() -> dict[str, str]:
    """PTX of the kernels that the core has in it; of none, if it was built before its sources were changed, for other
    targets, or without their lines."""
    library = Path(core._C.__file__)
    built = library.stat().st_mtime_ns
    if missing("cuobjdump") or any(file.stat().st_mtime_ns > built for file in sources_of(KERNEL)):
        return {}
    found = kept("core-{}.pickle", (str(library), built), lambda: pickle.dumps(kernels_in(library)))
    return {name: text for name, text in pickle.loads(found).items() if ".loc" in text}


@cache
def text(precision: str, way: tuple[int, ...], kernel: str = "register_step") -> str:
    """Of one of a step's kernels: what the core has in it, or else what nvcc makes of it."""
    name = name_of(precision, way) if kernel == "register_step" else kernel
    known = [text for other, text in of_core().items() if name in other]
    return known[0] if known else compile_file(KERNEL, options=options_of(precision, way))


def name_of(precision: str, way: tuple[int, ...]) -> str:
    """What the compiler calls it."""
    *numbers, wide, order = *way, *(False, 1)[len(way) - 4 :]
    every = "".join(f"Li{number}E" for number in numbers)
    return f"register_stepILNS_9PrecisionE{PRECISIONS.index(precision)}E{every}Lb{int(wide)}ELi{order}EE"


def options_of(precision: str, way: tuple[int, ...]) -> tuple[str, ...]:
    named = zip(("WIDTH", "GROUPS", "BETWEEN", "BLOCKS", "WIDE", "ORDER"), way, strict=False)  # or as it mostly is
    return f"-DSK_PRECISION={NAMES[precision]}", *(f"-DSK_{name}={int(number)}" for name, number in named)


class OnPtx:
    """A backend in place of `cuda` that launches on the PTX machine; it keeps the results of the last call, and what it
    launched."""

    def __init__(
        self, limit=HOPPER, blocks=2, schedule="round_robin", findings="raise", ptx=None, tile=cuda.CHOSEN
    ):  # fmt: skip
        self.tile = tile
        self.limit, self.blocks, self.schedule, self.findings, self.ptx = limit, blocks, schedule, findings, ptx
        self.results, self.layout, self.problem = {}, None, None
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
        self.results = {}
        self.execute(launch, *told, [*self.memory, *self.seeds, scratch])

    def execute(self, launch, of_table, of_step, of_finish, grid, memory):
        """The table of layers, step and finish as they are launched."""
        way = PRECISIONS[launch.precision], self.layout["way"]

        def module(name: str) -> Module:
            own = self.ptx or text(*way, name)
            return own if isinstance(own, Module) else loaded(own)

        tensors = [tensor for tensor in memory if isinstance(tensor, torch.Tensor)]
        known = {f"tensor {i} {tuple(tensor.shape)}": tensor for i, tensor in enumerate(tensors)}
        run = lambda name, grid, given, **more: module(name).launch(  # noqa: E731
            name, grid, self.layout["threads"], [given], memory=known, findings=self.findings, **more
        )
        on_chip = {"shared": self.layout["shared"], "schedule": self.schedule}
        for some in of_table:
            self.results["table"] = run("tell_layers", 1, some)
        self.results["step"] = run("register_step", launch.blocks, of_step, **on_chip)
        if grid is not None:
            self.results["finish"] = run("finish_step", grid, of_finish)

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
    data: Data, projections, targets=None, *, precision="bf16", way=None, outputs=False, limit=HOPPER,
    tile=cuda.CHOSEN, schedule="round_robin", blocks=2, ptx=None, **settings,
) -> SimpleNamespace:  # fmt: skip
    """Loss, terms and all gradients by the one rule; `way` is the one that is meant.

    Directions go as tangents, or project the outputs' gradients.
    """
    on = {"limit": limit, "tile": tile, "schedule": schedule, "blocks": blocks, "ptx": ptx}
    with computed_from("gradients" if outputs else "tangents"), on_ptx(**on) as backend:
        done = beside_reference(data, projections, targets or TARGETS, "cuda", precision=precision, **settings).check()
    assert way is None or backend.layout["way"][: len(way)] == way
    return SimpleNamespace(got=done.got, backend=backend, worst=done.worst()[0])

"""The CUDA backend on the PTX machine: the kernels as nvcc compiles them, with the arguments that a GPU would get."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from sobolev_kernels import dispatch
from sobolev_kernels.backends import core, cuda
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing.compare import beside_reference, computed_from
from sobolev_kernels.testing.problems import Data

from .compile import compile_file
from .run import loaded

KERNELS = Path(__file__).parents[1] / "csrc" / "cuda" / "kernels.cu"
NAMES = dict(zip(PRECISIONS, ("kIeee", "kTf32", "kBf16", "kFp16"), strict=True))
TARGETS = ("values", "jacobian")
LIMIT = 163 << 10  # of shared memory, on sm_80
SCHEDULES = ["round_robin", "ahead", "reverse", "random:1"]


@cache
def text(precision: str) -> str:
    return compile_file(KERNELS, options=(f"-DSK_PRECISION={NAMES[precision]}",))


class OnPtx:
    """A backend in place of `cuda` that launches on the PTX machine; it keeps the results of the last call."""

    def __init__(self, limit=LIMIT, blocks=2, schedule="round_robin", findings="raise", ptx=None):
        self.limit, self.blocks, self.schedule, self.findings, self.ptx = limit, blocks, schedule, findings, ptx
        self.results, self.layout, self.problem = {}, None, None

    def supports(self, problem):
        return cuda.refusal_while_traced(problem.to_string(), 0)

    def plan(self, problem, N):
        return cuda.plan(problem, N)

    def run(self, problem, operands, outputs, gradients):
        self.problem = problem
        tensors = [operands.x, *operands.parameters, *operands[2:-1], *outputs.values(), *gradients]
        self.memory = {f"tensor {i} {tuple(t.shape)}": t for i, t in enumerate(tensors) if isinstance(t, torch.Tensor)}
        launch, cuda.launch = cuda.launch, self.launch
        try:
            cuda.run(problem, operands, outputs, gradients)
        finally:
            cuda.launch = launch

    def launch(self, step, precision, terms):
        terms.fill_(torch.nan)
        chosen = self.layout = core._C.cuda_layout(step, precision, self.limit)
        blocks = max(1, min(chosen["tiles"], self.blocks))
        scratch = torch.full((chosen["packed"] + blocks * chosen["slot"],), 255, dtype=torch.uint8)
        arguments = core._C.cuda_arguments(step, precision, self.limit, scratch.data_ptr(), blocks)
        ptx = loaded(self.ptx or text(PRECISIONS[precision]))
        options = {"memory": self.memory | {"terms": terms, "scratch": scratch}, "findings": self.findings}
        layers = len(self.problem.biases)
        run = lambda name, *size, **more: ptx.launch(name, *size, [arguments], **options, **more)  # noqa: E731
        self.results = {"pack": run("pack_parameters", (2, layers), 128)}
        self.results["step"] = run(
            "sobolev_step", blocks, chosen["threads"], shared=chosen["shared"], schedule=self.schedule
        )
        if chosen["slot"]:
            self.results["sum"] = run("sum_gradients", (2, layers), 128)

    @property
    def kinds(self) -> set[str]:
        return set().union(*(result.kinds() for result in self.results.values()))


@contextmanager
def on_ptx(**options):
    """sk.sobolev_loss(..., backend="cuda") within it."""
    backend, before = OnPtx(**options), cuda.hardware
    registered = dispatch.BACKENDS.get("cuda")
    dispatch.BACKENDS["cuda"], cuda.hardware = backend, lambda device: (backend.limit, 2)
    cuda.refusal.cache_clear()
    try:
        yield backend
    finally:
        cuda.hardware = before
        cuda.refusal.cache_clear()
        dispatch.BACKENDS.pop("cuda") if registered is None else dispatch.BACKENDS.update(cuda=registered)


def compare(
    data: Data, projections, precision="ieee", targets=None, on=None, outputs=False, **settings
) -> SimpleNamespace:
    """Loss, terms and all gradients by the one rule.

    Directions go as tangents, or project the outputs' gradients.
    """
    with computed_from("gradients" if outputs else "tangents"), on_ptx(**(on or {})) as backend:
        done = beside_reference(data, projections, targets or TARGETS, "cuda", precision=precision, **settings).check()
    return SimpleNamespace(got=done.got, backend=backend, worst=done.worst()[0])

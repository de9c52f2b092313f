"""The CUDA backend on tensors of the CPU, up to the launch of its kernels: for tests and measurements without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch

from .. import dispatch
from ..backends import core, cuda
from .compare import forget

LIMIT = 163 << 10  # of shared memory, on sm_80


def prepared(
    launch: cuda.Launch, where: tuple, scratch: torch.Tensor
) -> tuple[list[bytes], bytes, bytes, tuple | None]:
    """The arguments of each launch that tells layers, of the step and of what finishes it, and the latter's grid, if it
    is launched."""
    return core._C.cuda_arguments_at(*launch[:4], 0, *where, scratch.data_ptr())


def do_nothing(launch: cuda.Launch, where: tuple, scratch: torch.Tensor) -> None:
    """Kernels that do nothing: everything before them is done."""
    prepared(launch, where, scratch)


BACKEND = SimpleNamespace(
    supports=lambda problem: cuda.refusal_while_traced(problem.to_string(), 0), plan=cuda.plan, run=cuda.run,
    kept=cuda.kept,
)  # fmt: skip


@contextmanager
def on_cpu(start: Callable = do_nothing, backend: object = BACKEND, limit: int = LIMIT, blocks: int = 2) -> Iterator:
    """Within it backend="cuda" takes tensors of the CPU; `start` is called where the kernels would be launched."""
    patches = (
        patch.dict(dispatch.BACKENDS, cuda=backend), patch.object(cuda, "start", start),
        patch.object(cuda, "hardware", lambda device: (limit, 1)),
        patch.object(cuda, "blocks_at_a_time", lambda *_: blocks),
    )  # fmt: skip
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        for leave in (cuda.refusal.cache_clear, forget):
            leave()
            stack.callback(leave)
        yield

"""What is installed here, and what each backend computes and refuses."""

from __future__ import annotations

import os
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

import sobolev_kernels as sk

from .. import dispatch
from ..backends import core
from ..enums import DENSE
from ..prepare import prepare
from ..problem import LOSS
from ..request import Request
from ..settings import Settings
from ..testing.verify import Residual

OF_A_GPU = ("cuda", "triton")
OTHERS = ("numpy", "triton", "typer", "rich", "matplotlib", "jax")
# What a backend may be asked for: a student of 8 inputs and 4 outputs, and settings.
ASKED = {
    "first derivatives": (partial(sk.MLP, 8, 4), {}),
    "those of a student 512 wide": (partial(sk.MLP, 8, 4, width=512), {}),
    "second derivatives": (partial(sk.MLP, 8, 4), {"order": 2}),
    "a head": (partial(sk.MLP, 8, 4), {"head": "log_softmax"}),
    "float64": (partial(sk.MLP, 8, 4, dtype=torch.float64), {}),
    "products of at least bf16": (partial(sk.MLP, 8, 4), {"precision": "bf16"}),
    "a student that is no MLP": (partial(Residual, 8, 4), {}),
}


def info() -> dict[str, dict[str, object]]:
    """By heading, what is to be said."""
    return {
        "versions": versions(),
        "machine": machine(),
        "compiled core": compiled_core(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("SOBOLEV_")},
        "backends": backends(),
    }


def versions() -> dict[str, object]:
    found = {"sobolev_kernels": sk.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in OTHERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, object]:
    sets = [] if core.MISSING else [name for name, _ in core._C.instruction_sets()]
    said = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instruction sets of the core": ", ".join(sets) or "none",
        "threads of PyTorch": torch.get_num_threads(),
        "CUDA of PyTorch": torch.version.cuda or "none",
    }
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        said[f"GPU {i}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
        )
    return said


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def compiled_core() -> dict[str, object]:
    if core.MISSING:
        return {"missing": core.MISSING}
    with_cuda = hasattr(core._C, "cuda_step_at")
    return {"file": core._C.__file__, "CUDA kernels": "built" if with_cuda else "not built (SOBOLEV_CUDA=on, and nvcc)"}


def backends() -> dict[str, object]:
    """Of each what it computes here, and what it refuses with the reason."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: said_of(name, backend, device) for name, backend in dispatch.BACKENDS.items()}


def said_of(name: str, backend: ModuleType, device: str) -> dict[str, object]:
    device = "cpu" if name == "cpu" else device
    missing = getattr(backend, "MISSING", None)
    if missing is None and device == "cpu" and name in OF_A_GPU:
        missing = "PyTorch finds no GPU"
    if missing is not None:
        return {"missing": missing}
    computes, refuses = [], {}
    for what, (student, settings) in ASKED.items():
        reason = refusal(name, student().to(device), settings)
        if reason is None:
            computes.append(what)
        else:
            refuses.setdefault(reason, []).append(what)
    return {"on": device, "computes": computes, "refuses": refuses}


def refusal(name: str, student: torch.nn.Module, settings: dict[str, object]) -> str | None:
    """Why a backend does not compute a loss of these settings, None if it does."""
    like = next(student.parameters())
    inputs = torch.zeros(4, 8, dtype=like.dtype, device=like.device)
    asked = Settings(directions=sk.Directions.sphere(2), **settings)
    return dispatch.refusal(name, prepare(Request(LOSS, student, inputs, asked, kinds=(DENSE, DENSE))).problem)

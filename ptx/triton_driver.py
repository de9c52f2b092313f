"""Triton's own way to a GPU, without one: its JIT, its compiler and its launches, by a driver whose kernels do nothing.

What it shows is what a host does: which variants are compiled, what is launched with which arguments, and how long the
Python of a step takes. Triton's launcher in C and the CUDA driver under it are not in that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

from triton.runtime import driver

from sobolev_kernels.backends import triton as backend

from .compile import gpu_of, without_ptxas
from .triton_on_ptx import KERNELS, anew

STREAM = 7


class Launched(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    stream: int
    arguments: tuple


class Driver:
    """`compiled` has the names of kernels as they are loaded, one for each variant; `launches` what was launched."""

    def __init__(self, target: str):
        self.target, self.compiled, self.launches, self.recording = gpu_of(target), [], [], True
        properties = {"max_shared_mem": 227 << 10, "multiprocessor_count": 132, "warpSize": 32}
        self.utils = SimpleNamespace(load_binary=self.load, get_device_properties=lambda device: properties)

    def load(self, name, binary, shared, device):
        self.compiled.append(name)
        return name, name, 255, 0, 1024

    def launcher_cls(self, source, metadata):
        return self.launch

    def launch(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        if self.recording:
            self.launches.append(Launched(function, (x, y, z), stream, arguments))

    def get_current_device(self):
        return -1  # the number of tensors on the CPU

    def get_current_stream(self, device):
        return STREAM

    def get_current_target(self):
        return self.target

    def names(self) -> list[str]:
        return [launched.kernel for launched in self.launches]


@contextmanager
def driven(target: str = "sm_80") -> Iterator[Driver]:
    """Within it the backend takes tensors of the CPU, and launches nothing on them."""
    kernels = [getattr(module, name) for module, names in KERNELS.items() for name in names]
    interpreting, active = backend.interpreting, driver._active
    made = Driver(target)
    try:
        backend.interpreting = lambda: True
        driver.set_active(made)
        for kernel in kernels:
            kernel.device_caches.clear()
        anew()
        with without_ptxas():
            yield made
    finally:
        anew()
        backend.interpreting = interpreting
        driver.set_active(active)
        for kernel in kernels:
            kernel.device_caches.clear()

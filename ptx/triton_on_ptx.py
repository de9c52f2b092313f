"""The Triton backend on the PTX machine: its kernels compiled for sm_80, with the arguments that a GPU would get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sobolev_kernels.backends import triton as backend
from sobolev_kernels.backends.triton import layerwise, one_launch

from .compile import compile_triton
from .run import load

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
KERNELS = {
    one_launch: ["step_kernel"],
    layerwise: [
        "activate_kernel", "adjoint_kernel", "delta_kernel", "pull_kernel", "residual_kernel", "forward_kernel",
        "backward_kernel",
    ],
}  # fmt: skip
PLAIN = {(module, name): getattr(module, name) for module, names in KERNELS.items() for name in names}


class OnPtx:
    """A kernel that is launched as on a GPU, but on the PTX machine."""

    compiled: dict = {}  # noqa: RUF012
    traffic: dict = {}  # noqa: RUF012  # of the last launch, by the names of arguments

    def __init__(self, kernel, schedule, results, change):
        self.kernel, self.schedule, self.results, self.change = kernel, schedule, results, change

    def __getitem__(self, grid):
        return lambda *values, **named: self.launch(grid, values, named)

    def launch(self, grid, values, named):
        options = {"warps": named.pop("num_warps", 4), "stages": named.pop("num_stages", 3)}
        options |= {"maxnreg": named.pop("maxnreg")} if "maxnreg" in named else {}
        given = dict(zip(self.kernel.arg_names, values, strict=False)) | named
        signature, constants, arguments = {}, {}, []
        for parameter in self.kernel.params:
            value = given[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[parameter.name] = value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
            else:
                integer = "i32" if abs(value) < 2**31 else "i64"
                signature[parameter.name] = "fp32" if isinstance(value, float) else integer
            arguments.append(value)
        key = (self.kernel.fn.__name__, *signature.items(), *constants.items(), *options.items())
        if key not in self.compiled:
            # slices of a tensor, as TERMS + N, are not multiples of 16 bytes: promise nothing
            self.compiled[key] = compile_triton(self.kernel, signature, constants, divisible=(), **options)
        done = self.compiled[key]
        module = load(self.change(done.text))
        result = module.launch(done.name, grid, None, arguments, shared=done.shared, schedule=self.schedule)
        self.results.append(result)
        names = [p.name for p in self.kernel.params if p.name not in constants]
        self.traffic.clear()
        self.traffic.update({n: result.by_array.get(f"argument {k}") for k, n in enumerate(names)})


@contextmanager
def on_ptx(schedule: str = "round_robin", change: Callable[[str], str] = lambda text: text) -> Iterator[list]:
    """Within it the backend's kernels run on the PTX machine, their text changed; gives the results of the launches."""
    interpreting, backend.interpreting = backend.interpreting, lambda: True
    results: list = []
    try:
        for (module, name), kernel in PLAIN.items():
            setattr(module, name, OnPtx(kernel, schedule, results, change))
        yield results
    finally:
        backend.interpreting = interpreting
        for (module, name), kernel in PLAIN.items():
            setattr(module, name, kernel)

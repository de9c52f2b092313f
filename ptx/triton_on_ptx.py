"""The Triton backend on the PTX machine: its kernels compiled for sm_80, with the arguments that a GPU would get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sobolev_kernels.backends import triton as backend
from sobolev_kernels.backends.triton import finishing, jet_source, jets, layerwise, one_launch, parameters
from sobolev_kernels.testing.compare import forget

from .compile import variant
from .run import loaded

KERNELS = {
    one_launch: ["step_kernel"],
    parameters: ["pack_kernel"],
    finishing: ["finish_kernel"],
    jets: ["sums_kernel"],
    layerwise: [
        "activate_kernel", "adjoint_kernel", "delta_kernel", "along_g_bar_kernel", "residual_kernel", "forward_kernel",
        "product_kernel", "pull_kernel", "push_kernel", "outer_kernel", "start_kernel", "along_kernel", "cast_kernel",
        "backward_kernel", "results_kernel", "slopes_kernel",
    ],
}  # fmt: skip
PLAIN = {(module, name): getattr(module, name) for module, names in KERNELS.items() for name in names}


class OnPtx:
    """A kernel that is launched as on a GPU, but on the PTX machine."""

    compiled: dict = {}  # noqa: RUF012
    traffic: dict = {}  # noqa: RUF012  # of each kernel's last launch, by the names of arguments

    def __init__(self, kernel, schedule, results, change, target):
        self.kernel, self.schedule, self.results, self.change, self.target = kernel, schedule, results, change, target

    def __getitem__(self, grid):
        return lambda *values, **named: self.launch(grid, variant(self.kernel, values, named, self.target))

    def launch(self, grid, wanted):
        key = self.kernel.fn.__name__, self.target, wanted.key
        if key not in self.compiled:
            self.compiled[key] = wanted.compiled(assembled=False)
        done, arguments = self.compiled[key], wanted.arguments()
        module = loaded(self.change(done.text))
        result = module.launch(
            done.name, grid, None, list(arguments.values()), shared=done.shared, schedule=self.schedule
        )
        self.results.append(result)
        by_name = {name: result.by_array.get(f"argument {k}") for k, name in enumerate(arguments)}
        self.traffic[self.kernel.fn.__name__] = by_name


class Recorded:
    """A kernel that is not launched: what it would be launched with is kept."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *values, **named: self.launches.append((self.kernel, values, named))


def anew() -> None:
    """Nothing is known of a step before, nor of the kernels that are written at a call."""
    forget()
    jet_source.forget()
    jets.kernels_of.cache_clear()


@contextmanager
def replaced(replacement: Callable) -> Iterator[None]:
    """Within it the backend takes tensors of the CPU, and `replacement(kernel)` stands for each kernel."""
    interpreting, backend.interpreting = backend.interpreting, lambda: True
    try:
        for (module, name), kernel in PLAIN.items():
            setattr(module, name, replacement(kernel))
        jet_source.finished = replacement
        anew()
        yield
    finally:
        jet_source.finished = lambda kernel: kernel
        anew()
        backend.interpreting = interpreting
        for (module, name), kernel in PLAIN.items():
            setattr(module, name, kernel)


@contextmanager
def on_ptx(
    schedule: str = "round_robin", change: Callable[[str], str] = lambda text: text, target: str = "sm_80"
) -> Iterator[list]:
    """Within it the backend's kernels run on the PTX machine, compiled for a target, their text changed; gives the
    results of the launches. The launch table's rows are those of sm_80."""
    results: list = []
    with replaced(lambda kernel: OnPtx(kernel, schedule, results, change, target)):
        yield results


@contextmanager
def recorded() -> Iterator[list]:
    """Within it the backend's kernels are not launched; gives the (kernel, values, named) of their launches."""
    launches: list = []
    with replaced(lambda kernel: Recorded(kernel, launches)):
        yield launches

"""The benchmark on a GPU: `python -m bench.gpu`. Check, then time; without one, say so.

Both GPU backends in each precision, the reference, the baselines of PyTorch, compiled ones also in TF32 and in bfloat16
by autocast, and, where it is installed, tiny-cuda-nn on values alone. Of each step: the host's time to
launch it, the time of one in a row of eager calls, that of the replay of a captured graph by CUDA events, the same with
the second-level cache emptied before, and the peak of memory. Each row is written when it is there, and a second call
goes on behind the last one; a row whose process died is written as that.

The tests run it in Triton's interpreter on tiny sizes, with a clock.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels.enums import PRECISIONS
from sobolev_kernels.testing import multiplies_in
from sobolev_kernels.testing.compare import Comparison
from sobolev_kernels.testing.graphs import captured
from sobolev_kernels.testing.speed.baselines import BASELINES, DOUBLE_BACKWARD, Result, Step, installed
from sobolev_kernels.testing.speed.cases import CASES, FIRST, Case, Data, make_data, make_student
from sobolev_kernels.testing.speed.check import named
from sobolev_kernels.testing.speed.variants import sobolev_step

from .report import ROOT, environment

FLUSH_BYTES = 256 << 20
OURS = ("cuda", "triton")
REFERENCE, COMPILED, COMPILED_GRADIENT = "reference", "stacked, compiled", "func.grad, compiled"
TINY = "tiny-cuda-nn, values only"
COLUMNS = (
    "case", "backend", "precision", "error_over_rule", "host_us", "eager_us", "graph_us", "graph_cold_us", "tflops",
    "peak_mb", "note",
)  # fmt: skip
DIED = "the process died here"
# After one of these a CUDA context is lost: the next row needs another process.
FATAL = ("CUDA error", "illegal", "misaligned", "launch failure", "device-side", "Accelerator", "Triton Error")


def contestants(precisions: Sequence[str] = PRECISIONS) -> list[tuple[str, str]]:
    """What is timed of each case: (backend or baseline, precision of products)."""
    ours = [(backend, precision) for precision in precisions for backend in OURS]
    baselines = [(name, "ieee") for name in (REFERENCE, COMPILED, COMPILED_GRADIENT, DOUBLE_BACKWARD)]
    rounded = [(COMPILED, precision) for precision in ("tf32", "bf16") if precision in precisions]
    return ours + baselines + rounded + [(TINY, "fp16")] * installed("tinycudann")


def takes_part(case: Case, backend: str) -> bool:
    return backend not in BASELINES or BASELINES[backend].applies(case)


def step_of(case: Case, backend: str, precision: str, device: str) -> tuple[Step, torch.nn.Module]:
    student, numbers = make_student(case).to(device), make_data(case)
    numbers = Data(*(None if t is None else t.to(device) for t in numbers))
    if backend == TINY:
        return tiny_cuda_nn(case, numbers), student
    if backend in BASELINES:
        step = BASELINES[backend].build(case, student, numbers)
        return autocast(step, device) if precision == "bf16" else step, student
    directions = sk.Directions.given(numbers.directions)
    return sobolev_step(student, numbers, directions=directions, backend=backend, precision=precision), student


def autocast(step: Step, device: str) -> Step:
    """The step with PyTorch's own products in bfloat16."""

    def rounded() -> Result:
        with torch.autocast(device, torch.bfloat16):
            return step()

    return rounded


def tiny_cuda_nn(case: Case, data: Data) -> Step:
    """A step on values alone, of a network of its own, fused; it refuses widths that it does not have."""
    import tinycudann

    shape = {"n_neurons": case.H, "n_hidden_layers": case.hidden}
    how = {"otype": "FullyFusedMLP", "activation": "Tanh", "output_activation": "None", **shape}
    network = tinycudann.Network(case.D, case.O, how)
    parameters = tuple(network.parameters())

    def step() -> Result:
        loss = torch.nn.functional.mse_loss(network(data.x).float(), data.y)
        return loss.detach(), torch.autograd.grad(loss, parameters)

    return step


@lru_cache(maxsize=8)
def expectation(case: Case, dtype: torch.dtype, precision: str) -> dict[str, torch.Tensor]:
    """Loss and gradients by the reference, on the CPU."""
    student, numbers = copy.deepcopy(make_student(case)).to(dtype), make_data(case)
    numbers = Data(*(None if t is None else t.to(dtype) for t in numbers))
    with multiplies_in(precision):
        step = sobolev_step(student, numbers, directions=sk.Directions.given(numbers.directions), backend=REFERENCE)
        return named(student, step())


def check(case: Case, student: torch.nn.Module, result: Result, precision: str) -> Comparison:
    expected, baseline = (expectation(case, torch.float64, "ieee"), expectation(case, torch.float32, precision))
    return Comparison(named(student, result), expected, baseline, precision)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def microseconds(step: Callable[[], object], rounds: int, flush: torch.Tensor | None = None) -> float:
    """The median of a step on the GPU: of groups of steps in a row, or of single ones with an empty cache."""
    times, each = [], 1 if flush is not None else 20
    for _ in range(rounds if flush is not None else 5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if flush is not None:
            flush.zero_()
        begin.record()
        for _ in range(each):
            step()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / each)
    return statistics.median(times)


def launched(step: Callable[[], object]) -> list:
    """What the profiler sees of a step on the GPU, an event for each launch."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as recorded:
        step()
        torch.cuda.synchronize()
    return [event for event in recorded.events() if str(event.device_type).endswith("CUDA")]


def host_microseconds(step: Callable[[], object], rounds: int, device: str) -> tuple[float, float]:
    """Of the call alone, and of one in a row of calls that the GPU has finished."""
    alone = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        alone.append(1e6 * (time.perf_counter() - start))
        wait(device)
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    wait(device)
    return statistics.median(alone), 1e6 * (time.perf_counter() - start) / rounds


def row_of(case: Case, backend: str, precision: str, device: str, rounds: int) -> dict[str, object]:
    """Raises AssertionError where one of our backends is further off than the rule allows."""
    if backend not in OURS:  # PyTorch's products are rounded as its switch says, ours as they are asked
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    step, student = step_of(case, backend, precision, device)
    result, row = step(), {}
    if backend == TINY:
        row["note"] = "values only, with parameters of its own: not checked"
    else:
        done = check(case, student, result, precision)
        row["error_over_rule"] = f"{done.worst()[0]:.3g}"
        if backend in OURS:
            done.check(f"{case}, {backend}, {precision}, ")
    for _ in range(3):
        step()
    wait(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        wait(device)
        row["peak_mb"] = f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.1f}"
    host, eager = host_microseconds(step, rounds, device)
    row |= {"host_us": f"{host:.0f}", "eager_us": f"{eager:.0f}"}
    if device == "cuda":
        replay = captured(step)[0].replay
        replay()
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        warm, cold = microseconds(replay, rounds), microseconds(replay, rounds, flush)
        row |= {"graph_us": f"{warm:.1f}", "graph_cold_us": f"{cold:.1f}", "tflops": f"{case.flops / warm * 1e-6:.1f}"}
    return row


def ceilings(device: str) -> Iterator[str]:
    """What this GPU gives large products, and a large copy."""
    if device != "cuda":
        return
    a = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    yield f"copy {2 * a.numel() / microseconds(lambda: b.copy_(a), 5) * 1e-6:.2f} TB/s"
    for dtype, setting in ((torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest")):
        torch.set_float32_matmul_precision(setting)
        p, q = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
        product = microseconds(lambda p=p, q=q: p @ q, 5)
        yield f"{str(dtype).removeprefix('torch.')} {setting} 8192³ {2 * 8192**3 / product * 1e-6:.0f} TFLOP/s"
    torch.set_float32_matmul_precision("highest")


def measure(
    cases: Sequence[Case], device: str, rounds: int, path: Path, who: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, str]]:  # fmt: skip
    """Times row by row into the CSV at `path`; those that stand there already are not taken again."""
    place = {**environment(), "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, interpreted"}
    path.parent.mkdir(parents=True, exist_ok=True)
    started, rows = path.with_suffix(".started"), read(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*place, *COLUMNS], restval="")
        if not rows:
            writer.writeheader()
        done = {(r["case"], r["backend"], r["precision"]) for r in rows}
        for backend, precision in contestants() if who is None else who:
            for case in cases:
                key = {"case": str(case), "backend": backend, "precision": precision}
                if tuple(key.values()) in done or not takes_part(case, backend):
                    continue
                if started.exists() and started.read_text(encoding="utf-8") == repr(key):
                    writer.writerow(place | key | {"note": DIED})
                    file.flush()
                    continue
                started.write_text(repr(key), encoding="utf-8")
                row, fatal = {}, False
                try:
                    row = row_of(case, backend, precision, device, rounds)
                except NotImplementedError as error:
                    row["note"] = f"refused: {str(error)[:150]}"
                except (AssertionError, RuntimeError) as error:
                    row["note"] = f"{type(error).__name__}: {error}".replace("\n", " ")[:250]
                    fatal = device == "cuda" and any(word in row["note"] for word in FATAL)
                writer.writerow(place | key | row)
                file.flush()
                torch.compiler.reset()
                if fatal:
                    sys.exit(3)
    started.unlink(missing_ok=True)
    return read(path)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_of(rows: Sequence[dict[str, str]]) -> Table:
    table = Table(title=f"{rows[0]['device']}: microseconds of a step", title_justify="left")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in ("case", "backend", "precision", "note") else "right")
    for row in sorted(rows, key=lambda row: row["case"]):
        table.add_row(*(row[heading] for heading in COLUMNS))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu.csv", help="the CSV, gone on with")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="*", default=PRECISIONS, help="of our products")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU that PyTorch can use is here: nothing was measured")
        return 1
    for line in ceilings("cuda"):
        print(f"ceiling: {line}", flush=True)
    cases = [case for case in CASES if case.kind == FIRST]
    rows = measure(cases, "cuda", options.rounds, options.results, contestants(options.precision))
    Console(width=180).print(table_of(rows))
    print(f"written: {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

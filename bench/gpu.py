"""The benchmark on a GPU: `python -m bench.gpu`. Check, then time; without one, say so.

Times are CUDA events around one step, the second-level cache flushed before each, the launch of a captured graph beside
the eager call. No GPU has run this yet; the tests run it in Triton's interpreter on tiny sizes, with a clock.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels.problem import PRECISIONS
from sobolev_kernels.testing import assert_within_rule, multiplies_in

from .cases import CASES, FIRST, Case, make_data, make_student
from .report import ROOT, environment, write_csv

FLUSH_BYTES = 256 << 20
Step = Callable[[], torch.Tensor]


def step_on(device: str, case: Case, backend: str, precision: str = "ieee") -> tuple[Step, torch.nn.Module]:
    student, data = make_student(case).to(device), make_data(case)
    x, y, jacobian, directions = (t.to(device) for t in data[:4])
    targets, directions = sk.Targets(values=y, jacobian=jacobian), sk.Directions.given(directions)

    def step() -> torch.Tensor:
        for parameter in student.parameters():
            parameter.grad = None
        loss = sk.sobolev_loss(student, x, targets, directions=directions, backend=backend, precision=precision)
        loss.backward()
        return loss.detach()

    return step, student


def check(case: Case, student: torch.nn.Module, loss: torch.Tensor, precision: str = "ieee") -> None:
    """Loss and gradients against the float64 reference on the CPU, by the one rule."""
    plain = make_student(case)
    data = make_data(case)
    results = []
    ways = ((copy.deepcopy(plain).double(), data.double(), "ieee"), (plain, data, precision))
    for twin, numbers, rounding in ways:
        targets = sk.Targets(values=numbers.y, jacobian=numbers.jacobian)
        directions = sk.Directions.given(numbers.directions)
        with multiplies_in(rounding):
            value = sk.sobolev_loss(twin, numbers.x, targets, directions=directions, backend="reference")
            results.append((value.detach(), *torch.autograd.grad(value, tuple(twin.parameters()))))
    got = (loss, *(p.grad for p in student.parameters()))
    for i, (tensor, expected, baseline) in enumerate(zip(got, *results, strict=True)):
        assert_within_rule(f"{case}, {precision}, result {i}", tensor.cpu(), expected, baseline, precision)


def milliseconds(step: Callable[[], object], device: str, rounds: int) -> float:
    """The median of single steps, each after a flush of the cache."""
    if device != "cuda":
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def captured(step: Step) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def run_case(case: Case, device: str, rounds: int, precisions: Sequence[str]) -> list[dict[str, object]]:
    rows = []
    for backend, precision in [*(("triton", precision) for precision in precisions), ("reference", "ieee")]:
        step, student = step_on(device, case, backend, precision)
        check(case, student, step(), precision)
        for _ in range(2):
            step()
        row = {"case": str(case), "backend": backend, "precision": precision}
        row |= {"ms": milliseconds(step, device, rounds), "graph_ms": None}
        if device == "cuda":
            row["graph_ms"] = milliseconds(captured(step), device, rounds)
        rows.append(row)
    return rows


def measure(
    cases: Sequence[Case], device: str, rounds: int, folder: Path, console: Console,
    precisions: Sequence[str] = PRECISIONS,
) -> Path:  # fmt: skip
    where = environment()
    where["device"] = torch.cuda.get_device_name() if device == "cuda" else f"{where['device']}, interpreted"
    rows = [where | row for case in cases for row in run_case(case, device, rounds, precisions)]
    table = Table(title=f"{where['device']}: milliseconds of a step, eager and as a graph", title_justify="left")
    for heading in ("case", "backend", "precision", "ms", "graph_ms"):
        table.add_column(heading)
    for row in rows:
        graph = "–" if row["graph_ms"] is None else f"{row['graph_ms']:.3f}"
        table.add_row(row["case"], row["backend"], row["precision"], f"{row['ms']:.3f}", graph)
    console.print(table)
    return write_csv(rows, folder, "gpu")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the CSV")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="*", default=PRECISIONS, help="of Triton's products")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU that PyTorch can use is here: nothing was measured")
        return 1
    cases = [case for case in CASES if case.kind == FIRST]
    path = measure(cases, "cuda", options.rounds, options.results, Console(), options.precision)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

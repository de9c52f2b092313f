"""What was measured, as a table for people and as a CSV for everything else."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import dispatch

from .baselines import Variant
from .cases import Case
from .timing import SGEMM_FLOPS, Quartiles
from .variants import JAX, OURS, PLAIN

ROOT = Path(__file__).parents[1]
MEASURED, CRASHES, RED = "measured", "crashes", "red check"
# How many times the fused step's time the best other takes
LIMITS = (1, 1.3, 1.6)
FASTER = "◀ faster"


@dataclass
class Row:
    """One variant of one case; `outcome` says whether there are times."""

    name: str
    variant: Variant
    outcome: str
    error: str = ""
    rounds: int = 0
    seconds: Quartiles | None = None
    peak_bytes: int | None = None


@dataclass
class CaseResult:
    case: Case
    rows: list[Row]
    sgemm: Quartiles | None = None

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name and row.seconds), None)

    def best(self, which: Callable[[Row], bool]) -> Row | None:
        """The fastest of some rows."""
        return min((r for r in self.rows if r.seconds and which(r)), key=lambda row: row.seconds.median, default=None)

    def best_other(self, adjoint: bool = True) -> Row | None:
        """Of those that compute what we compute, with or without those whose author derived the adjoint too."""
        others = lambda v: v.derivatives and not v.ours and (adjoint or not v.adjoint)  # noqa: E731
        return self.best(lambda row: others(row.variant))

    @property
    def jax(self) -> Row | None:
        return self.best(lambda row: row.name in JAX)

    @property
    def values_only(self) -> Row | None:
        return self.best(lambda row: not row.variant.derivatives)

    @property
    def lost(self) -> bool:
        """Whether somebody else is faster."""
        ratio = self.times_ours(self.best_other())
        return ratio is not None and ratio < 1

    def times_ours(self, row: Row | None) -> float | None:
        """How many times the fused step's time."""
        ours = self.row(OURS)
        return row.seconds.median / ours.seconds.median if row and ours and row.seconds else None

    def of_sgemm(self, row: Row | None) -> float | None:
        """The rate of the fused algorithm's FLOPs over the multiply rate of the same rounds.

        Above 1 is possible: a little less is executed than is counted, and another algorithm may need fewer.
        """
        if row is None or row.seconds is None or not row.variant.derivatives:
            return None
        return (self.case.flops / row.seconds.median) / (SGEMM_FLOPS / self.sgemm.median)


def cell(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else format(value * scale, form)


def case_table(result: CaseResult) -> Table:
    case = result.case
    rate = f", sgemm {SGEMM_FLOPS / result.sgemm.median / 1e9:.0f} GFLOP/s" if result.sgemm else ""
    table = Table(title=f"{case}   ({case.flops / 1e9:.3g} GFLOP{rate})", title_justify="left")
    table.add_column("variant")
    for heading in ("ms", "quartiles", "× fused", "of sgemm", "peak MB"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        peak = cell(row.peak_bytes, ".1f", 1e-6)
        if row.seconds is None:
            table.add_row(row.name, row.outcome, "", "", "", peak)
            continue
        q1, median, q3 = (1e3 * s for s in row.seconds)
        ratio, share = cell(result.times_ours(row), ".2f"), cell(result.of_sgemm(row), ".0%")
        style = "bold" if row.name == OURS else None
        table.add_row(row.name, f"{median:.3f}", f"{q1:.3f} … {q3:.3f}", ratio, share, peak, style=style)
    return table


def summary(results: list[CaseResult]) -> Table:
    """Of the cases of one group; a case in which somebody else is faster is marked."""
    table = Table(title="All cases: how many times the fused step's time the others take", title_justify="left")
    table.add_column("case", no_wrap=True)
    for heading in ("fused ms", "of sgemm", "values only", "plain", "JAX"):
        table.add_column(heading, justify="right")
    table.add_column("best other", no_wrap=True)
    for result in results:
        ours, best = result.row(OURS), result.best_other()
        if ours is None:
            table.add_row(str(result.case), result.rows[0].outcome)
            continue
        rows = (result.values_only, result.row(PLAIN[result.case.kind]), result.jax)
        mark = FASTER if result.lost else ""
        table.add_row(
            str(result.case), f"{1e3 * ours.seconds.median:.3f}", cell(result.of_sgemm(ours), ".0%"),
            *(cell(result.times_ours(row), ".2f") for row in rows),
            f"{cell(result.times_ours(best), '.2f')} {best.name} {mark}" if best else "–",
            style="yellow" if result.lost else None,
        )  # fmt: skip
    return table


def print_summary(results: list[CaseResult], console: Console) -> None:
    """The table, and what it says of all of them."""
    console.print(summary(results))
    for adjoint, who in ((True, "the best other"), (False, "the best without an adjoint by hand")):
        ratios = [result.times_ours(result.best_other(adjoint)) for result in results]
        if ratios := sorted(ratio for ratio in ratios if ratio is not None):
            above = ", ".join(f"{sum(r >= limit for r in ratios)} of at least {limit:g}" for limit in LIMITS)
            console.print(
                f"{who} ÷ fused: {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}; "
                f"of {len(ratios)} cases {above}", highlight=False,
            )  # fmt: skip


def print_case(result: CaseResult, console: Console) -> None:
    console.print(case_table(result))
    for row in result.rows:
        if row.error:
            console.print(f"{row.name}: {row.outcome}: {row.error}", markup=False, highlight=False)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    try:
        changed = "+changes" if git("status", "--porcelain") else ""
        return (git("rev-parse", "--short", "HEAD") or "unknown") + changed
    except OSError:
        return "unknown"


def environment() -> dict[str, object]:
    """What every row of the CSV says about where it comes from."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H%M%SZ"),
        "commit": commit(),
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sobolev_kernels": sk.__version__,
    }


def busy() -> str | None:
    """A warning, if other programs had more than a quarter of a core in the last minute."""
    load = os.getloadavg()[0]
    return f"the machine is busy (load {load:.2f}): expect slow and noisy times" if load > 0.25 else None


def plan_of(case: Case) -> str:
    """The backend that a call takes, and how."""
    problem = dispatch.choose(case.problem, None)
    return f"{problem.backend}: {dispatch.BACKENDS[problem.backend].plan(problem, case.N)}"


def fields(result: CaseResult, row: Row) -> dict[str, object]:
    case = result.case
    named = {"case": str(case), "dtype": case.problem.dtype}
    numbers = ("name", "kind", "N", "D", "H", "hidden", "O", "P", "activation", "flops", "bytes")
    named |= {name: getattr(case, name) for name in numbers} | {"group": case.group}
    named |= {"variant": row.name, "plan": plan_of(case) if row.variant.ours else ""}
    named |= {"outcome": row.outcome, "error": row.error, "rounds": row.rounds}
    for prefix, times in (("", row.seconds), ("sgemm_", result.sgemm)):
        for name in Quartiles._fields:
            named[f"{prefix}{name}_ms"] = 1e3 * getattr(times, name) if times else None
    share = {"times_fused": result.times_ours(row), "of_sgemm": result.of_sgemm(row)}
    return named | share | {"peak_bytes": row.peak_bytes}


def write_csv(rows: list[dict[str, object]], folder: Path, what: str = "bench") -> Path:
    """In a new file named by the time, which every row says; see `environment`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}-{rows[0]['date']}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path

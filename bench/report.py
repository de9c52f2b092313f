"""What was measured, as a table for people and as a CSV for everything else."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import dispatch
from sobolev_kernels.command.info import processor
from sobolev_kernels.testing.speed.cases import Case
from sobolev_kernels.testing.speed.measure import CaseResult, Row
from sobolev_kernels.testing.speed.timing import SGEMM_FLOPS, Quartiles
from sobolev_kernels.testing.speed.variants import OURS, PLAIN

ROOT = Path(__file__).parents[1]
# How many times the fused step's time the best other takes
LIMITS = (1, 1.3, 1.6)
FASTER = "◀ faster"


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

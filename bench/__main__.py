"""`python -m bench`: check, then time, then say what was seen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console

from sobolev_kernels.testing.speed.cases import EVERY, FIRST, GROUPS, SMALL, Case, draw_cases
from sobolev_kernels.testing.speed.measure import RED, CaseResult, busy, measure
from sobolev_kernels.testing.speed.variants import OURS, PLAIN

from . import partials
from .any import add_options, measure_any
from .jax_baseline import idleness
from .memory import peak_memory
from .overhead import print_overhead
from .planner import SHAPES, measure_sides
from .report import ROOT, environment, fields, print_case, print_summary, write_csv
from .variants import left_out, variants_of


@dataclass(frozen=True)
class Settings:
    rounds: int = 5
    seconds: float = 4.0
    memory: bool = True
    compiled: bool = True


def run_case(case: Case, settings: Settings) -> CaseResult:
    """One case from check to peak memory, ours and that of plain PyTorch."""
    result = measure(case, variants_of(case, settings.compiled), settings.rounds, settings.seconds)
    for row in result.rows:
        if settings.memory and row.seconds and not case.name and row.name in (OURS, PLAIN[case.kind]):
            row.peak_bytes = peak_memory(case, row.name)
    return result


def benchmark(cases: Sequence[Case], settings: Settings, folder: Path, console: Console) -> int:
    """Run, print, write; returns the exit status, 1 after a red check."""
    for line in left_out(cases):
        console.print(line, highlight=False)
    where, results = environment(), []
    for case in cases:
        results.append(run_case(case, settings))
        print_case(results[-1], console)
    for _, alike in groupby(results, key=lambda result: result.case.group):
        print_summary(list(alike), console)
    if idleness():
        console.print(idleness(), highlight=False)
    rows = [where | fields(result, row) for result in results for row in result.rows]
    console.print(f"written: {write_csv(rows, folder)}", highlight=False)
    red = [result for result in results if result.rows[0].outcome == RED]
    return 1 if red else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    numbered = "; ".join(f"{i}: {case}" for i, case in enumerate(EVERY))
    only = f"only these, of any group. {numbered}"
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=[FIRST, SMALL], help="the cases of these groups")
    for name, groups in (("--large", [FIRST]), ("--small", [SMALL]), ("--higher", GROUPS[2:])):
        short = {"dest": "group", "action": "store_const", "const": groups}
        parser.add_argument(name, **short, help=f"short for --group {' '.join(groups)}")
    parser.add_argument("--case", type=int, nargs="+", choices=range(len(EVERY)), help=only)
    parser.add_argument("--random", type=int, metavar="K", help="only: K small cases that no table has")
    parser.add_argument("--seed", type=int, default=0, help="of --random")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="at least this many, 2 or more")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of rounds for each case, at least")
    parser.add_argument("--threads", type=int, help="of PyTorch, and so of the fused step")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--no-compile", action="store_true", help="leave out JAX and what torch.compile makes")
    parser.add_argument("--overhead", action="store_true", help="only: what small calls cost, piece by piece")
    parser.add_argument("--planner", action="store_true", help="only: whether the planner takes the faster side")
    add_options(parser)
    partials.add_options(parser)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the CSV")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cpu, since PyTorch finds no GPU that it can use, got cuda")
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, got {options.rounds}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(width=max(140, Console().width))
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.overhead:
        print_overhead(console)
        return 0
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), highlight=False)
    if busy():
        console.print(busy(), style="yellow")
    if options.planner:
        measure_sides(SHAPES, options.rounds, options.seconds, options.results, console)
        return 0
    if options.any is not None:
        measure_any(options, console)
        return 0
    if options.partials is not None:
        partials.measure_partials(options, console)
        return 0
    settings = Settings(options.rounds, options.seconds, not options.no_memory, not options.no_compile)
    return benchmark(cases_of(options), settings, options.results, console)


def cases_of(options: argparse.Namespace) -> list[Case]:
    if options.random is not None:
        return draw_cases(options.random, options.seed)
    if options.case is not None:
        return [EVERY[i] for i in options.case]
    chosen = [case for case in EVERY if case.group in options.group]
    named = [replace(case, name="") for case in chosen if case.name]
    return [case for case in chosen if case not in named]


if __name__ == "__main__":
    sys.exit(main())

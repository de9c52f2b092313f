"""Whether the planner takes the faster side: `python -m bench --planner`, estimate against measured time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.enums import COTANGENTS, DIRECTIONS, GRADIENTS, TANGENTS
from sobolev_kernels.problem import Problem
from sobolev_kernels.testing.compare import computed_from
from sobolev_kernels.testing.speed.baselines import Build, Result, Step, Variant
from sobolev_kernels.testing.speed.cases import EXACT, FIRST, SEED, Case, Data
from sobolev_kernels.testing.speed.check import prepare
from sobolev_kernels.testing.speed.timing import SGEMM, SGEMM_FLOPS, TURN, Quartiles, interleave, quartiles, sgemm
from sobolev_kernels.testing.speed.variants import sobolev_step

from .report import environment, write_csv

SIDES = (TANGENTS, GRADIENTS)
# P directions against O gradients, and of the whole Jacobian D columns against O rows
SHAPES = [
    Case(8192, 16, 128, 3, 4, 4),
    Case(8192, 16, 128, 3, 3, 4),
    Case(4096, 8, 64, 4, 2, 3),
    Case(65536, 8, 64, 3, 1, 2),
    Case(1024, 32, 256, 4, 8, 16),
    Case(2048, 64, 128, 2, 10, 16),
    Case(8192, 4, 32, 3, 1, 8),
    Case(8192, 16, 128, 3, 1, kind=EXACT),
    Case(4096, 8, 64, 3, 8, kind=EXACT),
    Case(4096, 4, 64, 3, 8, kind=EXACT),
]


def forced(side: str) -> Build:
    """The fused step from one side, whatever the planner says."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        if case.kind == FIRST:
            how = {"directions": sk.Directions.sphere(case.P, seed=SEED)}
        else:
            how = {"directions": sk.Directions.basis()} if side == TANGENTS else {"cotangents": sk.Cotangents.basis()}
        step = sobolev_step(student, data, **how)

        def run() -> Result:
            with computed_from(side):
                return step()

        return run

    return build


def problem_of(case: Case, side: str) -> Problem:
    if case.kind == FIRST:
        return case.problem
    projection, P = (DIRECTIONS, case.D) if side == TANGENTS else (COTANGENTS, case.O)
    return replace(case.problem, projection=projection, P=P)


def chosen(case: Case) -> str:
    if case.kind == FIRST:
        return planner.side(case.problem)
    return GRADIENTS if case.problem.projection == COTANGENTS else TANGENTS


@dataclass(frozen=True)
class Sides:
    """One case from both sides."""

    case: Case
    times: dict[str, Quartiles]

    def flops(self, side: str) -> int:
        problem = problem_of(self.case, side)
        return planner.flops(problem, self.case.N, planner.chains(problem)[side])

    def estimate(self, side: str) -> float:
        """Seconds at the sgemm's rate of what the planner compares: for the whole Jacobian the products alone."""
        flops = self.flops(side)
        if self.case.kind == FIRST:
            flops = planner.cost(self.case.problem, side) * self.case.N
        return flops * self.times[SGEMM].median / SGEMM_FLOPS

    @property
    def faster(self) -> str:
        return min(SIDES, key=lambda side: self.times[side].median)

    @property
    def right(self) -> bool:
        return chosen(self.case) == self.faster

    def row(self) -> list[str]:
        cells = [str(self.case)]
        for side in SIDES:
            estimate, median = (1e3 * s for s in (self.estimate(side), self.times[side].median))
            cells += [f"{self.flops(side) / 1e9:.3g}", f"{estimate:.2f} → {median:.2f}"]
        medians = [self.times[side].median for side in SIDES]
        margin = max(medians) / min(medians) - 1
        return [*cells, chosen(self.case), f"{'yes' if self.right else 'no'}, by {margin:.0%}"]

    def fields(self, side: str) -> dict[str, object]:
        case = self.case
        named = {name: getattr(case, name) for name in ("kind", "N", "D", "H", "hidden", "O", "P")}
        named |= {"side": side, "flops": self.flops(side), "estimate_ms": 1e3 * self.estimate(side)}
        named |= {f"{name}_ms": 1e3 * s for name, s in self.times[side]._asdict().items()}
        named |= {"sgemm_median_ms": 1e3 * self.times[SGEMM].median}
        return named | {"chosen": side == chosen(case), "faster": side == self.faster}


def both_sides(case: Case, rounds: int, seconds: float) -> Sides:
    """Checked, then timed in turns."""
    steps = prepare(case, {side: Variant(forced(side), (case.kind,), ours=True) for side in SIDES}).steps
    times = interleave({**steps, SGEMM: sgemm()}, rounds, seconds, TURN)
    return Sides(case, {name: quartiles(t) for name, t in times.items()})


def measure_sides(cases: Sequence[Case], rounds: int, seconds: float, folder: Path, console: Console) -> None:
    """Run, print, write."""
    where, results = environment(), [both_sides(case, rounds, seconds) for case in cases]
    title = "A step from either side: what the planner estimates at the sgemm's rate → what was measured"
    table = Table(title=title, title_justify="left")
    table.add_column("case", no_wrap=True)
    for side in SIDES:
        table.add_column("GFLOP", justify="right")
        table.add_column(f"{side}, ms", justify="right", no_wrap=True)
    table.add_column("chosen")
    table.add_column("the faster?")
    for sides in results:
        table.add_row(*sides.row())
    console.print(table)
    right = sum(sides.right for sides in results)
    console.print(f"the planner chose the faster side in {right} of {len(results)} cases", highlight=False)
    path = write_csv([where | sides.fields(side) for sides in results for side in SIDES], folder, "planner")
    console.print(f"written: {path}", highlight=False)

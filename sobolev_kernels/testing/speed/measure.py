"""Check, then time one case: its contestants' rows, and what they say of each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .baselines import Variant
from .cases import Case
from .check import RedCheck, prepare
from .timing import SGEMM, SGEMM_FLOPS, TURN, Quartiles, interleave, quartiles, sgemm
from .variants import OURS

MEASURED, CRASHES, RED = "measured", "crashes", "red check"


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
        return self.best(lambda row: row.variant.needs == "jax")

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


def measure(case: Case, variants: Mapping[str, Variant], rounds: int, seconds: float) -> CaseResult:
    """After a red check there are no times."""
    if any(variant.compiled for variant in variants.values()):
        torch.compiler.reset()
    try:
        ready = prepare(case, variants)
    except RedCheck as error:
        return CaseResult(case, [Row(name, v, RED, str(error)) for name, v in variants.items()])
    times = interleave({**ready.steps, SGEMM: sgemm()}, rounds, seconds, TURN)
    rows = []
    for name, variant in variants.items():
        if name in ready.crashes:
            rows.append(Row(name, variant, CRASHES, ready.crashes[name]))
        else:
            rows.append(Row(name, variant, MEASURED, "", len(times[name]), quartiles(times[name])))
    return CaseResult(case, rows, quartiles(times[SGEMM]))


def busy() -> str | None:
    """A warning, if other programs had more than a quarter of a core in the last minute."""
    load = os.getloadavg()[0]
    return f"the machine is busy (load {load:.2f}): expect slow and noisy times" if load > 0.25 else None

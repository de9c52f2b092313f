"""`bench`: the fused step beside what can be written in PyTorch, at small and large sizes, checked, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

import sobolev_kernels as sk

from ..backends import core
from ..testing.speed.cases import CASES, EXACT, FIRST, LAPLACIAN, SMALL_CASES, Case
from ..testing.speed.measure import RED, CaseResult, Row, busy, measure
from ..testing.speed.timing import SGEMM_FLOPS
from ..testing.speed.variants import OURS, VARIANTS, taking_part
from .info import processor

ROUNDS, SECONDS = 5, 3.0
# A multiply of the same size takes as long in each case, and in each round, unless other programs compute meanwhile.
UNSTEADY = 1.25
# A compiler takes 10 to 30 s for a step, and all of it is to take less than two minutes.
LATEST = 70.0


def chosen() -> list[Case]:
    """Small ones and large ones: along directions, the whole gradient, and a Laplacian."""
    small = {case.name: case for case in SMALL_CASES}
    large = {kind: [case for case in CASES if case.kind == kind] for kind in (EXACT, LAPLACIAN)}
    several = next(case for case in CASES if case.kind == FIRST and case.O > 1)
    return [small["paper, 100 points"], small["differential ML"], several, large[EXACT][0], large[LAPLACIAN][0]]


def contestants(case: Case, compiled: bool) -> dict[str, object]:
    """Ours as it is called, and each other once: of the compiled ones none that its author differentiated on paper."""
    found = taking_part(VARIANTS, case, compiled)
    return {n: v for n, v in found.items() if (not v.ours or n == OURS) and not (v.compiled and v.adjoint)}


def timed(
    cases: list[Case], compiled: bool, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[CaseResult, list[str]]]:
    """Of each case what was measured, and who was left out since time was short."""
    begun = clock()
    for case in cases:
        in_time = clock() - begun < LATEST
        variants = contestants(case, compiled and in_time)
        late = [] if in_time or not compiled else [name for name in contestants(case, True) if name not in variants]
        yield measure(case, variants, ROUNDS, SECONDS), late


def disturbed(results: Sequence[CaseResult]) -> list[bool]:
    """Of each case whether other programs had the cores meanwhile, so that its times are of them too."""
    quiet = min((result.sgemm.median for result in results if result.sgemm), default=0.0)
    took = [result.sgemm for result in results]
    return [t is not None and (t.median > UNSTEADY * quiet or t.q3 > UNSTEADY * t.q1) for t in took]


def where() -> dict[str, object]:
    """What the times are of."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sobolev_kernels": sk.__version__,
        "dtype": "float32",
        "core missing": core.MISSING,
        "warning": busy(),
    }


def as_dict(result: CaseResult, late: list[str], unsteady: bool) -> dict[str, object]:
    rate = None if result.sgemm is None else SGEMM_FLOPS / result.sgemm.median / 1e9
    rows = [row_as_dict(result, row) for row in result.rows]
    return {"case": str(result.case), "sgemm_gflops": rate, "disturbed": unsteady, "left out": late, "ways": rows}


def row_as_dict(result: CaseResult, row: Row) -> dict[str, object]:
    times = {f"{name}_ms": 1e3 * value for name, value in (row.seconds._asdict() if row.seconds else {}).items()}
    what = {"way": row.name, "derivatives": row.variant.derivatives, "outcome": row.outcome, "error": row.error}
    return what | times | {"times_fused": result.times_ours(row)}


def wrong(results: list[CaseResult]) -> bool:
    return any(row.outcome == RED for result in results for row in result.rows)

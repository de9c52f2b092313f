"""The tables of docs/speed.md, from what `python -m bench` wrote: `python -m bench.readme results/*.csv`.

Of each case the last run counts, and everything in a row is of one run.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sobolev_kernels.testing.speed.baselines import DOUBLE_BACKWARD, VALUES_ONLY, VMAP_JVP
from sobolev_kernels.testing.speed.cases import EVERY, FIRST, SMALL, Case
from sobolev_kernels.testing.speed.measure import MEASURED
from sobolev_kernels.testing.speed.variants import OURS, PLAIN

from .variants import JAX, VARIANTS

Rows = dict[str, dict[str, str]]  # of one case, by variant

LARGE = {
    "values only": (VALUES_ONLY,),
    f"`{VMAP_JVP}`": (VMAP_JVP,),
    DOUBLE_BACKWARD: (DOUBLE_BACKWARD,),
    "streams by hand, compiled": ("by hand, compiled", "stacked, compiled"),
    "`func.grad`, compiled": ("func.grad, compiled",),
    "JAX": tuple(JAX),
}


def read(paths: Sequence[Path]) -> dict[str, Rows]:
    """By case; later runs take the place of earlier ones."""
    runs: dict[tuple[str, str], Rows] = {}
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["outcome"] == MEASURED:
                    runs.setdefault((row["date"], row["case"]), {})[row["variant"]] = row
    return {case: rows for (_, case), rows in sorted(runs.items())}


def fastest(rows: Rows, names: Sequence[str]) -> dict[str, str] | None:
    return min((rows[n] for n in names if n in rows), key=lambda row: float(row["median_ms"]), default=None)


def times(row: dict[str, str] | None) -> str:
    """How many times the fused step's time; bold where it is less."""
    if row is None:
        return "–"
    ratio = float(row["times_fused"])
    return f"**{ratio:.2f}×**" if ratio < 1 and VARIANTS[row["variant"]].derivatives else f"{ratio:.2f}×"


def others(rows: Rows) -> list[str]:
    """Those who compute what we compute."""
    return [name for name in rows if VARIANTS[name].derivatives and not VARIANTS[name].ours]


def values_only(rows: Rows) -> dict[str, str] | None:
    return fastest(rows, [name for name in rows if not VARIANTS[name].derivatives])


def large(case: Case, rows: Rows) -> list[str]:
    ours = rows[OURS]
    peaks = (rows[name]["peak_bytes"] for name in (OURS, PLAIN[case.kind]))
    peak = " / ".join(f"{float(p) * 1e-6:.1f}" if p else "–" for p in peaks)
    cells = [times(fastest(rows, names)) for names in LARGE.values()]
    return [str(case), f"{float(ours['median_ms']):.2f}", f"{float(ours['of_sgemm']):.0%}", *cells, peak]


def small(case: Case, rows: Rows) -> list[str]:
    """The best that autograd or torch.func differentiates, the best with the adjoint by hand, and JAX."""
    adjoints = [name for name in others(rows) if VARIANTS[name].adjoint]
    best = fastest(rows, [name for name in others(rows) if name not in (*adjoints, *JAX)])
    which = f"{times(best)} {best['variant']}" if best else "–"
    cells = [times(values_only(rows)), which, times(fastest(rows, adjoints)), times(fastest(rows, list(JAX)))]
    return [str(case), f"{float(rows[OURS]['median_ms']):.3f}", *cells]


TABLES = {
    FIRST: (large, ("case", "fused ms", "of sgemm", *LARGE, "peak MB, fused / `vmap(jvp)`")),
    SMALL: (small, ("case", "fused ms", "values only", "best in PyTorch", "adjoint by hand", "JAX")),
}


def tables(found: dict[str, Rows]) -> Iterator[str]:
    """Of each group that has a case, and how many of its cases somebody else is faster in."""
    for group, (line, headings) in TABLES.items():
        cases = [case for case in EVERY if case.group == group and OURS in found.get(str(case), {})]
        if not cases:
            continue
        lines = [headings, ["---"] * len(headings), *(line(case, found[str(case)]) for case in cases)]
        all_rows = [found[str(case)] for case in cases]
        ratios = [float(fastest(rows, others(rows))["times_fused"]) for rows in all_rows]
        where = all_rows[0][OURS]
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        yield (
            f"{where['device']}, {where['threads']} threads, torch {where['torch']}, commit {where['commit']}: "
            f"somebody else is faster in {sum(r < 1 for r in ratios)} of {len(ratios)} cases."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("csv", type=Path, nargs="+")
    print("\n\n".join(tables(read(parser.parse_args(arguments).csv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

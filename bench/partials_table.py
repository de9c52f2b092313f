"""The table of `bench --partials` in Markdown, of results/partials.csv: `python -m bench.partials_table [CSV]`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from .resident import ROOT

OURS = "sk.residual_loss"
TITLES = {
    "nested autograd.grad": "nested `autograd.grad`", "nested torch.func": "`torch.func`", "streams by hand": "streams",
    "streams, compiled": "streams, compiled", "jet-for-pytorch": "jet-for-pytorch",
    "jet-for-pytorch, compiled": "jet-for-pytorch, compiled", "JAX jet": "JAX jet", "JAX nested": "JAX nested",
}  # fmt: skip


def rows_of(path: Path, what: str) -> list[dict[str, str]]:
    """The last row of each case."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["what"] == what]
    return list({(row["width"], row["N"], row["equation"]): row for row in rows}.values())


def lines_of(rows: list[dict[str, str]], what: str) -> list[str]:
    """Ours in its unit, others as how many times as much; who is ahead of ours is bold."""
    titles = ["equation", "MLP", "N", f"fused {what}", *TITLES.values()]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        ours, cells = float(row[OURS]), []
        for way in TITLES:
            ratio = float(row[way]) / ours if row[way] else None
            said = "–" if ratio is None else f"{ratio:.2f}×"
            cells.append(f"**{said}**" if ratio is not None and ratio < 1 else said)
        case = row["equation"], f"{row['width']}×{row['depth']}", row["N"], f"{ours:.2f}"
        lines.append(f"| {' | '.join([*case, *cells])} |")
    return lines


def main(path: Path = ROOT / "results/partials.csv") -> None:
    for what in ("ms", "peak MB"):
        if rows := rows_of(Path(path), what):
            print("\n".join(lines_of(rows, what)), end="\n\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

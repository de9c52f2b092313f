"""Reports as aligned tables, and as pictures where matplotlib is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# One colour for each kind of thing, told apart also by those who see no red.
COLOURS = {
    "value": "#0072b2", "gradient": "#d55e00", "Hessian-vector": "#009e73", "tangent": "#d55e00", "vjp": "#d55e00",
    "second": "#009e73", "fits": "#0072b2", "does not fit": "#d55e00", "not told": "#999999",
}  # fmt: skip


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under their heads: numbers to the right, words to the left."""
    texts = [[text_of(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    right = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(heads))]
    lines = []
    for cells in (heads, *texts):
        each = zip(cells, widths, right, strict=True)
        lines.append("  ".join(cell.rjust(n) if to_right else cell.ljust(n) for cell, n, to_right in each).rstrip())
    return "\n".join(lines)


def text_of(cell: object) -> str:
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.4g}"
    return "" if cell is None else str(cell)


def axes_of(ax: Any, width: float, height: float) -> Any:
    """The axes that are given, or those of a new figure.

    Raises:
        ImportError: matplotlib is not installed, in words.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot: expected matplotlib, which is not installed; pip install matplotlib") from error
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def plain(ax: Any) -> Any:
    """Without what says nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=0)
    return ax

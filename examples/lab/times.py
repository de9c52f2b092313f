"""Times of a step of training, the same by several ways: taken in turns, printed and written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from .command import Settings
from .tables import write_csv

ROUNDS, WARM = 60, 5


def step_of(student: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A step of this loss: its gradients, and Adam."""
    optimizer = torch.optim.Adam(student.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def in_turns(steps: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, float]:
    """Milliseconds of each, medians, on one thread: in turns, so that what slows the machine down slows all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    try:
        for i in range(WARM + rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if i >= WARM:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: float(np.median(times)) * 1e3 for name, times in seconds.items()}


def report_times(rows: Sequence[dict], settings: Settings, name: str, console: Console) -> None:
    """Rows {"case": …, way: milliseconds, …}, whose first way the others are held against; and their CSV."""
    _, first, *others = rows[0]
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"{name}: a step of training, Adam included, on one thread, ms")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        cells = [f"{row[way]:.3f} ({row[way] / row[first]:.2f}×)" for way in others]
        table.add_row(row["case"], f"{row[first]:.3f}", *cells)
    console.print(table)
    write_csv(rows, settings.out / f"{name}_times.csv")
    console.print(f"see {settings.out / f'{name}_times.csv'}", soft_wrap=True)

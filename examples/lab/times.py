"""The times of steps beside each other: a slice of each in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from .clock import since
from .command import Settings
from .tables import write_csv

WARM, SLICE = 20, 0.02


def interleaved(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median milliseconds of each step on one thread: a slice of each in turn, so many rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return medians(steps, rounds)
    finally:
        torch.set_num_threads(threads)


def medians(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Of the processor's time."""
    counts = {}
    for name, step in steps.items():
        start = time.process_time()
        for _ in range(WARM):
            step()
        counts[name] = max(int(SLICE * WARM / since(start)), 1)
    slices = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(counts[name]):
                step()
            slices[name].append(since(start) / counts[name] * 1e3)
    return {name: statistics.median(found) for name, found in slices.items()}


def report_times(rows: Sequence[dict], settings: Settings, name: str, console: Console) -> None:
    """The times of steps as a table and as NAME_times.csv, with how many times as long others take as the fused one."""
    table = Table(box=None, padding=(0, 1, 0, 0), title="Loss and backward of a batch, ms on one thread")
    others = [n for n in ("reference", "by hand", "jet-for-pytorch") if f"{n} ms" in rows[0]]
    rows = [row | {f"{n} ÷ fused": row[f"{n} ms"] / row["fused ms"] for n in others} for row in rows]
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    write_csv(rows, settings.out / f"{name}_times.csv")
    console.print(f"see {settings.out / f'{name}_times.csv'}", soft_wrap=True)

"""Trials: an experiment's cases side by side, each kept as soon as it is finished."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .command import Settings

INTERRUPTED = 130  # the exit code of a shell's command that Ctrl-C ends


@dataclass(frozen=True)
class Outcome:
    """Of one case.

    Args:
        records: one for each training, flat: method, budget ("steps" or "time"), steps, ms of a step, and the metrics.
        drawn: arrays by name that the picture needs.
    """

    records: list[dict]
    drawn: dict[str, np.ndarray] = field(default_factory=dict)


class Kept:
    """The finished cases of an experiment in a folder: a line of JSON each, and a file of arrays for what is drawn."""

    def __init__(self, folder: Path, fresh: bool):
        self.folder, self.path = folder, folder / "trials.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)
        self.records = dict(whole_lines(self.path))
        # Anew, since the last line may have been cut, when the command was; at once, since this one may be cut too.
        part = self.path.with_suffix(".part")
        part.write_text("".join(line_of(key, records) for key, records in self.records.items()))
        part.replace(self.path)

    def arrays(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"

    def keep(self, key: str, outcome: Outcome) -> None:
        """The arrays before the line: a case whose line is there is whole."""
        if outcome.drawn:
            np.savez_compressed(self.arrays(key), **outcome.drawn)
        self.records[key] = outcome.records
        with self.path.open("a") as file:
            file.write(line_of(key, outcome.records))

    def drawn(self, key: str) -> dict[str, np.ndarray]:
        if not self.arrays(key).exists():
            return {}
        with np.load(self.arrays(key)) as arrays:
            return dict(arrays)


def line_of(key: str, records: list[dict]) -> str:
    return json.dumps({"case": json.loads(key), "records": records}) + "\n"


def whole_lines(path: Path) -> Iterator[tuple[str, list[dict]]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield json.dumps(entry["case"], sort_keys=True), entry["records"]


def key_of(case: object) -> str:
    return json.dumps(asdict(case), sort_keys=True)


def trials(
    run: Callable[[object], Outcome], cases: Sequence, settings: Settings, name: str, console: Console
) -> tuple[list[dict], dict[object, dict[str, np.ndarray]]]:
    """Run what is not there yet, with a bar, longest cases first if they come so.

    Args:
        run: of a module, not a closure: it is called in other processes.
        cases: frozen dataclasses of plain fields.

    Returns:
        All records, with the fields of their cases, in the order of the cases; and by case the arrays to be drawn.

    Raises:
        typer.Exit: interrupted; what is finished is kept.
    """
    kept = Kept(settings.out / name, settings.fresh)
    keys = {case: key_of(case) for case in cases}
    missing = [case for case in cases if keys[case] not in kept.records]
    if there := len(cases) - len(missing):
        console.print(f"{there} of {len(cases)} cases are there already, from {kept.path}", soft_wrap=True)
    start = time.perf_counter()
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=len(missing))
        try:
            for case, outcome in side_by_side(run, missing, settings.workers):
                kept.keep(keys[case], outcome)
                progress.advance(task)
        except KeyboardInterrupt:
            console.print(f"Interrupted. Finished cases are in {kept.path}; the same command goes on from there.")
            raise typer.Exit(INTERRUPTED) from None
    if missing:
        minutes = (time.perf_counter() - start) / 60
        console.print(f"{len(missing)} cases in {minutes:.1f} min, {settings.workers} side by side", soft_wrap=True)
    records = [{**asdict(case), **record} for case in cases for record in kept.records[keys[case]]]
    return records, {case: drawn for case in cases if (drawn := kept.drawn(keys[case]))}


def side_by_side(run: Callable, cases: Sequence, workers: int) -> Iterator[tuple[object, Outcome]]:
    """Cases as they finish, one thread in each process: steps this small gain little from threads."""
    if workers == 1 or len(cases) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from ((case, run(case)) for case in cases)
        finally:
            torch.set_num_threads(threads)
        return
    # fork would copy the locks of torch's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(cases)), context, initializer=begin) as pool:
        futures = {pool.submit(run, case): case for case in cases}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def begin() -> None:
    """In a process that works: one thread, and Ctrl-C is for the one that waits."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

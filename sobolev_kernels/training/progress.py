"""What is seen of a training while it runs: a bar by rich, if it is installed, or a line; nothing but on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..errors import need

SAID = ("loss", "validation_loss", "value_error", "derivative_error")


class Silent:
    def __call__(self, row: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class Told(Silent):
    """A function of the user's, called with the row of each epoch."""

    def __init__(self, function: Callable[[dict[str, float]], object]):
        self.function = function

    def __call__(self, row: dict[str, float]) -> None:
        self.function(dict(row))


class Line(Silent):
    def __init__(self, epochs: int, stream):
        self.epochs, self.stream = epochs, stream

    def __call__(self, row: dict[str, float]) -> None:
        self.stream.write(f"\r\x1b[Kepoch {row['epoch']}/{self.epochs}  {in_words(row)}")
        self.stream.flush()

    def close(self) -> None:
        self.stream.write("\n")


class Bar(Silent):
    def __init__(self, epochs: int, done: int, stream):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
        self.progress = Progress(*columns, console=Console(file=stream))
        self.progress.start()
        self.task = self.progress.add_task("", total=epochs, completed=done)

    def __call__(self, row: dict[str, float]) -> None:
        self.progress.update(self.task, advance=1, description=in_words(row))

    def close(self) -> None:
        self.progress.stop()


def in_words(row: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {row[name]:.3g}" for name in SAID if name in row)


def progress_of(wanted: object, epochs: int, done: int) -> Silent:
    """`wanted`: True, False, or a function of a row."""
    need(
        isinstance(wanted, bool) or callable(wanted),
        "progress",
        "True, False or a function of a row",
        wanted,
        TypeError,
    )
    if not isinstance(wanted, bool):
        return Told(wanted)
    stream = sys.stderr
    if not wanted or stream is None or not getattr(stream, "isatty", lambda: False)():
        return Silent()
    try:
        return Bar(epochs, done, stream)
    except ImportError:
        return Line(epochs, stream)

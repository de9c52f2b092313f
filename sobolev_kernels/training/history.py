"""`History`: what a training was, epoch by epoch."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch

from ..errors import nearest
from .plotting import ERRORS, drawn

SHOWN = 6  # epochs that are printed, besides the last and the best


class History:
    """A table with one row for each epoch, and the trained student.

    `history["loss"]` is a column as a list, `history[3]` a row as a dict, `len(history)` the epochs; `print(history)`
    shows some of them, `history.to_csv(path)` writes all, `history.plot()` draws them.

    Columns: `epoch`, from 1; `loss`, the mean over the epoch's batches; `lr`; `seconds`; with validation `value_error`
    and `derivative_error` (`second_error` of order 2, and above `third_error` and `fourth_error`), the root mean square
    of the error over that of the target, of values without their mean, so that 1 is as bad as a constant;
    `validation_loss` where values are classes or probabilities; `weight_value`, `weight_derivative` … of a rule that
    sets them.

    Attributes:
        student: the module that was trained, a `Scaled` with `scale=True`.
        best_epoch: the epoch of which the student has its parameters; None without validation, where it is the last.
        steps: of the optimizer, in all.
    """

    def __init__(self, student: torch.nn.Module):
        self.student, self.rows = student, []
        self.best_epoch: int | None = None
        self.steps = 0

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: str | int) -> list[float] | dict[str, float]:
        if not isinstance(key, str):
            return self.rows[key]
        if key not in self.columns:
            known, hint = ", ".join(self.columns), nearest(key, self.columns)
            raise KeyError(f"history has no column {key!r}; it has {known}{'; ' + hint if hint else ''}")
        return [row.get(key, math.nan) for row in self.rows]

    def __iter__(self):
        return iter(self.rows)

    @property
    def best(self) -> dict[str, float]:
        """The row of the student's parameters."""
        return self.rows[(self.best_epoch or len(self.rows)) - 1]

    @property
    def seconds(self) -> float:
        return sum(self["seconds"]) if self.rows else 0.0

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no epoch)"
        best = "" if self.best_epoch is None else f", best {self.best_epoch}"
        numbers = [f"{name} {self.best[name]:.3g}" for name in ("loss", *ERRORS) if name in self.best]
        return f"History({len(self)} epochs{best}: {', '.join(numbers)}, {self.seconds:.3g} s)"

    def __str__(self) -> str:
        if not self.rows:
            return repr(self)
        places = sorted({*spread(len(self.rows), SHOWN), (self.best_epoch or len(self.rows)) - 1})
        table = [list(self.columns)]
        for place in places:
            row = self.rows[place]
            mark = "*" if self.best_epoch == place + 1 else ""
            table.append([f"{mark}{row['epoch']}", *(number(row.get(name)) for name in self.columns[1:])])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*lines, repr(self)])

    def to_csv(self, path: str | Path) -> None:
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path: str | Path | None = None):
        """Draw the loss and, with validation, the errors against epochs; needs matplotlib.

        Args:
            path: where to save the picture, if anywhere.

        Returns:
            The figure.
        """
        return drawn(self, path)


def spread(n: int, most: int) -> list[int]:
    """Places from the first to the last."""
    if n <= most:
        return list(range(n))
    return [round(i * (n - 1) / (most - 1)) for i in range(most)]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

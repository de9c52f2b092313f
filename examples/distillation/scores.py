"""Scores of whole games: means with standard errors, as a table and drawn, and whether they tell methods apart."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.lab import METHODS, Settings
from examples.lab.pictures import bare, colour_of

BOUNDS = ("random", "teacher", "pixel teacher")


def scores_of(students: dict[object, dict], bounds: dict[object, dict]) -> list[dict]:
    """A row for each game and player: the mean over all games of all seeds, and its standard error.

    Args:
        students, bounds: by case, with a `game` and of students an `N`, the scores of players by name.
    """
    found: dict[tuple, list] = {}
    for case, drawn in [*bounds.items(), *students.items()]:
        for player, scores in drawn.items():
            found.setdefault((case.game, player, getattr(case, "N", "")), []).append(scores)
    rows = []
    for (game, player, N), parts in found.items():
        scores = np.concatenate(parts)
        error = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
        row = {"game": game, "player": player, "states": N, "games": len(scores)}
        rows.append(row | {"score": float(scores.mean()), "standard_error": error})
    return sorted(rows, key=lambda row: (row["game"], row["player"] not in BOUNDS, row["states"] or 0))


def print_scores(rows: list[dict], console: Console, settings: Settings) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Scores of whole games", caption=settings.remark)
    for name in ("game", "player", "states", "games", "score", "standard error"):
        table.add_column(name, justify="left" if name in ("game", "player") else "right")
    for row in rows:
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.1f}"
        name = METHODS.get(row["player"], row["player"])
        table.add_row(row["game"], name, f"{row['states']}", str(row["games"]), f"{row['score']:.1f}", error)
    console.print(table)


def draw_scores(axis, scores: list[dict]) -> None:
    labels = []
    for place, row in enumerate(scores):
        colour = "black" if row["player"] in BOUNDS else colour_of(row["player"])
        axis.errorbar(row["score"], place, xerr=2 * (row["standard_error"] or 0), fmt="o", color=colour)
        states = f", {row['states']:,}" if row["states"] else ""
        labels.append(f"{METHODS.get(row['player'], row['player'])}{states}")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    bare(axis)


def told_apart(rows: list[dict], method: str, other: str):
    """A sentence for each game and number of states of which both have played."""
    table = {(row["game"], row["player"], row["states"]): row for row in rows}
    for (game, player, N), row in table.items():
        against = table.get((game, other, N))
        if player != method or against is None or row["standard_error"] is None:
            continue
        gain, error = row["score"] - against["score"], np.hypot(row["standard_error"], against["standard_error"])
        said = "tells them apart" if abs(gain) > 2 * error else "does not tell them apart"
        names = (
            f"{METHODS.get(method, method)} students score {gain:+.1f} ± {error:.1f} beside {METHODS.get(other, other)}"
        )
        yield f"{game}, {N:,} states: {names} ones, which {said}."

"""Scores of whole games: means with standard errors, as a table and drawn, and whether they tell methods apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.lab import METHODS, Settings
from examples.lab.pictures import bare, colour_of
from examples.lab.training import STEPS, TIME

BOUNDS = ("random", "teacher", "pixel teacher")
MARKS = {"at equal steps": False, "at equal time": True}  # of students' scores: whether they are hollow


def scores_of(students: dict[object, dict], bounds: dict[object, dict]) -> list[dict]:
    """A row for each game and player: the mean over all games of all seeds, and its standard error, of students at
    equal steps and at equal time. Other players have no budget, and stand the same in both.

    Args:
        students, bounds: by case, with a `game` and of students an `N`, the scores of players by name; of students by
            budget and name.
    """
    found: dict[tuple, dict[str, list]] = {}
    for case, drawn in [*bounds.items(), *students.items()]:
        N = getattr(case, "N", "")
        for key, scores in drawn.items():
            budget, player = key.split(" ", 1) if case in students else (None, key)
            row = found.setdefault((case.game, player, N), {STEPS: [], TIME: []})
            for one in (STEPS, TIME) if budget is None else (budget,):
                row[one].append(scores)
    rows = []
    for (game, player, N), parts in found.items():
        row = {"game": game, "player": player, "states": N, "games": sum(map(len, parts[STEPS]))}
        for budget, each in parts.items():
            scores = np.concatenate(each)
            error = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
            row |= {f"score, equal {budget}": float(scores.mean()), f"standard error, equal {budget}": error}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["game"], row["player"] not in BOUNDS, row["states"] or 0))


def score(row: dict, budget: str) -> tuple[float, float | None]:
    """And its standard error."""
    return row[f"score, equal {budget}"], row[f"standard error, equal {budget}"]


def print_scores(rows: list[dict], console: Console, settings: Settings) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Scores of whole games", caption=settings.remark)
    for name in ("game", "player", "states", "games", "equal steps", "equal time"):
        table.add_column(name, justify="left" if name in ("game", "player") else "right")
    for row in rows:
        cells = []
        for mean, error in (score(row, budget) for budget in (STEPS, TIME)):
            cells.append(f"{mean:.1f} ± {'-' if error is None else f'{error:.1f}'}")
        name = METHODS.get(row["player"], row["player"])
        table.add_row(row["game"], name, f"{row['states']}", str(row["games"]), *cells)
    console.print(table)


def draw_scores(axis, scores: list[dict], joined: Sequence[Sequence[str]]) -> None:
    """A line for each number of states and group of players, with a mark for each player: full at equal steps, hollow
    at equal time below it. A grey line joins the players of a group; those of none have a line of their own.

    Args:
        joined: the groups, as ("ordinary", "sobolev").
    """
    group = {player: tuple(players) for players in joined for player in players}
    lines: dict[tuple, list[dict]] = {}
    for row in scores:
        lines.setdefault((row["states"], group.get(row["player"], (row["player"],))), []).append(row)
    for place, rows in enumerate(lines.values()):
        budgets = ((STEPS, 0.0),) if rows[0]["player"] in BOUNDS else ((STEPS, -0.16), (TIME, 0.16))
        for budget, shift in budgets:
            means = [score(row, budget)[0] for row in rows]
            axis.hlines(place + shift, min(means), max(means), color="0.75", lw=2, zorder=0)
            for row in rows:
                mean, error = score(row, budget)
                colour = "black" if row["player"] in BOUNDS else colour_of(row["player"])
                face = colour if budget == STEPS else "white"
                style = {"fmt": "o", "color": colour, "markerfacecolor": face, "lw": 1}
                axis.errorbar(mean, place + shift, xerr=2 * (error or 0), **style)
    axis.set_yticks(range(len(lines)), [label(players, states) for states, players in lines])
    axis.invert_yaxis()
    bare(axis)


def label(players: Sequence[str], states: int | str) -> str:
    """Of a group what both are of, if they are of something."""
    one = METHODS.get(players[0], players[0])
    who = one if len(players) == 1 else one.partition("ordinary")[0].rstrip(": ")
    return ", ".join(filter(None, (who, states and f"{states:,} states")))


def told_apart(rows: list[dict], method: str, other: str):
    """A sentence for each game and number of states of which both have played, and each budget."""
    table = {(row["game"], row["player"], row["states"]): row for row in rows}
    for (game, player, N), row in table.items():
        against = table.get((game, other, N))
        if player != method or against is None:
            continue
        for budget in (STEPS, TIME):
            (one, its_error), (two, other_error) = score(row, budget), score(against, budget)
            if its_error is None or other_error is None:
                continue
            gain, error = one - two, np.hypot(its_error, other_error)
            said = "tells them apart" if abs(gain) > 2 * error else "does not tell them apart"
            names = METHODS.get(method, method), METHODS.get(other, other)
            yield (
                f"{game}, {N:,} states, equal {budget}: {names[0]} students score {gain:+.1f} ± {error:.1f} beside "
                f"{names[1]} ones, which {said}."
            )

"""What the commands print, by rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..testing.verify import ABSENT, FAILED, IEEE, REFUSED, RIGHT, WRONG, Row

COLOURS = {RIGHT: "green", WRONG: "bold red", FAILED: "bold red", REFUSED: "yellow", ABSENT: "dim"}
TITLE = "Checks against float64"
WORST = "÷ allowed"  # the error over that


def titled(title: str, *columns: str) -> Table:
    """Of which the last column gives way where a line is too long."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        justify, last = "right" if column == WORST else "left", column == columns[-1]
        table.add_column(column, justify=justify, no_wrap=not last, overflow="fold")
    return table


def place_of(row: Row) -> str:
    """The backend, what it runs on, and in which numbers."""
    place = row.place
    if row.outcome == ABSENT:
        return place.backend
    dtype = str(place.dtype).removeprefix("torch.")
    return f"{place.backend} {place.where} {dtype}{'' if place.precision == IEEE else f' {place.precision}'}"


def outcome_of(outcome: str, many: int = 1) -> Text:
    return Text(f"{many} {outcome}" if many > 1 else outcome, style=COLOURS[outcome])


def number(error: float | None) -> str:
    return "" if error is None else f"{error:.3f}"


def of_rows(rows: Sequence[Row]) -> Table:
    table = titled(TITLE, "backend", "check", "outcome", WORST, "of, or why")
    for row in rows:
        table.add_row(place_of(row), row.check, outcome_of(row.outcome), number(row.error), row.note)
    return table


def of_places(rows: Sequence[Row]) -> Table:
    """One line for each place: how many checks had which outcome, and the worst of them."""
    table = titled(TITLE, "backend", "checks", WORST, "in")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(place_of(row), []).append(row)
    for place, group in groups.items():
        counts = Counter(row.outcome for row in group)
        outcomes = Text(", ").join(outcome_of(*count) for count in counts.items())
        worst = max(group, key=lambda row: -1.0 if row.error is None else row.error)
        table.add_row(place, outcomes, number(worst.error), worst.note if worst.outcome == ABSENT else worst.check)
    return table


def verdict(rows: Sequence[Row]) -> Iterator[Text]:
    """What is wrong, line by line, and what all of it amounts to."""
    counts = Counter(row.outcome for row in rows)
    for row in rows:
        if row.outcome in (WRONG, FAILED):
            yield Text(f"{place_of(row)}, {row.check}: {row.outcome}: {row.note}", style=COLOURS[row.outcome])
    for row in {(row.place.backend, row.note): row for row in rows if row.outcome == REFUSED}.values():
        yield Text(f"{row.place.backend} refuses: {row.check}: {row.note}", style="dim")
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in COLOURS if counts[outcome])
    bad = counts[WRONG] + counts[FAILED]
    verdict = "NOT RIGHT" if bad else "all that can run here is right" if counts[RIGHT] else "nothing could run here"
    yield Text(f"{verdict}: {said}", style="bold red" if bad else "bold green")


def of_info(found: dict[str, dict[str, object]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, lines in found.items():
        table.add_row(Text(heading, style="bold cyan"), "")
        for name, said in lines.items() or {"": "none"}.items():
            for i, line in enumerate(of_backend(said) if isinstance(said, dict) else [str(said)]):
                table.add_row("" if i else f"  {name}", line)
    return table


def of_backend(said: dict[str, object]) -> list[str]:
    if "missing" in said:
        return [f"not here: {said['missing']}"]
    lines = [f"computes {', '.join(said['computes'])}"] if said["computes"] else []
    return lines + [f"refuses {', '.join(what)}: {reason}" for reason, what in said["refuses"].items()]

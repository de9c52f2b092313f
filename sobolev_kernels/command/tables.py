"""What the commands print, by rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..testing.speed.measure import RED, CaseResult
from ..testing.speed.timing import SGEMM_FLOPS
from ..testing.speed.variants import OURS
from ..testing.verify import ABSENT, FAILED, IEEE, REFUSED, RIGHT, WRONG, Row

COLOURS = {RIGHT: "green", WRONG: "bold red", FAILED: "bold red", REFUSED: "yellow", ABSENT: "dim"}
TITLE = "Checks against float64"
WORST = "error ÷ allowed"


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
    table = titled(TITLE, "backend", "checks", WORST, "the worst is")
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


def of_where(said: dict[str, object]) -> Iterator[Text]:
    yield Text(f"{said['processor']}, {said['threads']} threads, torch {said['torch']}, {said['dtype']}")
    yield Text("a case is N samples, the student D→H×layers→O, and P directions or none", style="dim")
    for name in ("core missing", "warning"):
        if said[name]:
            yield Text(str(said[name]), style="yellow")


def title_of(result: CaseResult) -> Text:
    rate = f"; a large multiply: {SGEMM_FLOPS / result.sgemm.median / 1e9:.0f} GFLOP/s" if result.sgemm else ""
    return Text.assemble("\n", (str(result.case), "bold cyan"), rate)


def of_case(result: CaseResult, late: list[str]) -> Table:
    """Its contestants, the fastest first, and those without times."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("a step with all gradients", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("times ours", justify="right")
    table.add_column("")
    for row in sorted(result.rows, key=lambda row: row.seconds.median if row.seconds else float("inf")):
        note = row.error if row.error else "no derivatives" if not row.variant.derivatives else ""
        if row.seconds is None:
            table.add_row(row.name, row.outcome, "", note, style=COLOURS[WRONG] if row.outcome == RED else "yellow")
            continue
        ratio = f"{result.times_ours(row):.2f}" if result.row(OURS) else ""
        note = note or ("adjoint derived by hand" if row.variant.adjoint else "")
        name = f"{row.name} (sobolev_kernels)" if row.name == OURS else row.name
        table.add_row(name, f"{1e3 * row.seconds.median:.3f}", ratio, note, style="bold" if row.name == OURS else "")
    for name in late:
        table.add_row(name, "", "", "left out: its compiler would take longer than two minutes allow", style="dim")
    return table


def of_all(results: Sequence[CaseResult], unsteady: Sequence[bool]) -> Iterator[Text]:
    """In how many cases who was faster, of those that nothing disturbed."""
    if any(result.row(OURS) is None for result in results):
        yield Text("NOT RIGHT: nothing is timed that computes something else", style=COLOURS[WRONG])
        return
    if any(unsteady):
        which = "; ".join(str(result.case) for result, noisy in zip(results, unsteady, strict=True) if noisy)
        yield Text(f"disturbed, since other programs computed meanwhile: {which}", style="yellow")
    kept = [result for result, noisy in zip(results, unsteady, strict=True) if not noisy and result.best_other()]
    if not kept:
        yield Text("nothing can be said of these times; measure again when the machine is idle", style="bold yellow")
        return
    ratios = [result.times_ours(result.best_other()) for result in kept]
    lost = [str(result.case) for result in kept if result.lost]
    said = f"the best other takes {min(ratios):.2f} to {max(ratios):.2f} times our time; it is faster in"
    which = f": {'; '.join(lost)}" if lost else ""
    yield Text(f"{said} {len(lost)} of {len(ratios)} cases{which}", style="bold")

"""Write docs/results.md: all experiments on one page, from the tables and pictures of full runs in docs/results.

`docs/results/NAME.md.in` is the section of an experiment, Markdown with these on lines of their own:

    {table}                             docs/results/NAME.csv, a line a method, the best of each group bold
    {table N=100,1000 metrics=value}    only these rows, and these metrics of it
    {table NAME_times.csv}              another one; as it stands, if it has no methods and budgets
    {picture}, {picture NAME_why.png}   with the next words of the line, if there are any, as what it shows

and lines `claim: … | … | …`, which are gathered on top: what the paper, or whoever, claims; what came out here; and
whether it is the same, in a word. Options of a table: metrics=, higher=, of which more is better, and any column.

    python -m examples.results [--check]

With `--check` nothing is written, and a page that is stale is an error.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.lab.lines import Cell, header_of, lines_of
from examples.lab.tables import number

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PAGE = ROOT / "docs/results", ROOT / "docs/results.md"
# In this order; others come after them.
ORDER = (
    "regression",
    "distillation",
    "pixel_distillation",
    "synthetic_gradients",
    "forces",
    "differential_ml",
    "field",
    "pde",
)
DIRECTIVE = re.compile(r"^\{(table|picture)\b([^}]*)\}(.*)$")
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
CLAIM = re.compile(r"^claim: (.+)\n", re.MULTILINE)


class Stale(Exception):
    """What is wrong with a section, in words."""


def rows_of_csv(path: Path) -> list[dict]:
    if not path.exists():
        raise Stale(f"{path.name} is not in {path.parent.name}/: the full run of the experiment writes it")
    with path.open(newline="") as file:
        return [{name: value_of(text) for name, text in row.items()} for row in csv.DictReader(file)]


def value_of(text: str) -> object:
    """A whole number, a number, nothing, or a word."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def table(name: str, asked: str) -> str:
    """The directive of that name, in the section of an experiment."""
    words = asked.split()
    file = words.pop(0) if words and "=" not in words[0] else f"{name}.csv"
    options = dict(word.split("=", 1) for word in (w.replace("~", " ") for w in words))
    rows = rows_of_csv(FOLDER / file)
    lists = {key: options.pop(key, "").split(",") for key in ("metrics", "higher")}
    for column, values in options.items():
        if column not in rows[0]:
            raise Stale(f"{file} has no column {column}, but {', '.join(rows[0])}")
        rows = [row for row in rows if str(row[column]) in values.split(",")]
    if not rows:
        raise Stale(f"{file} has no rows of {asked.strip()}")
    if not {"method", "budget"} <= rows[0].keys():
        same = {column for column, values in options.items() if "," not in values}  # what the directive said
        return plain([{column: value for column, value in row.items() if column not in same} for row in rows])
    there = [column.removesuffix("_median") for column in rows[0] if column.endswith("_median")]
    return by_method(rows, [m for m in lists["metrics"] if m] or there, lists["higher"])


def plain(rows: Sequence[dict]) -> str:
    cells = [[Cell(said(value), number=not isinstance(value, str)) for value in row.values()] for row in rows]
    return markdown(list(rows[0]), cells)


def said(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value) if value is None or type(value) is float else value


def by_method(rows: Sequence[dict], metrics: Sequence[str], higher: Sequence[str]) -> str:
    header = [f"{name}, {budget}" if budget == "equal time" else name for name, budget in header_of(rows, metrics)]
    groups, keys = lines_of(rows, metrics, higher), header.index("method")
    lines = [[*([Cell("")] * keys if i else line[:keys]), *line[keys:]] for g in groups for i, line in enumerate(g)]
    seeds = sorted({row["seeds"] for row in rows})
    note = f"Medians of {' to '.join(map(str, seeds[:: max(len(seeds) - 1, 1)]))} seeds"
    note += "; ms: of a step on one thread; steps: as many as equal time has."
    return f"{markdown(header, lines)}\n\n{note}"


def picture(name: str, asked: str, shows: str) -> str:
    file = asked.strip() or f"{name}.png"
    if not (FOLDER / file).exists():
        raise Stale(f"{file} is not in {FOLDER.name}/")
    return f"![{shows.strip() or 'The picture of this experiment'}]({FOLDER.name}/{file})"


def markdown(header: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    rule = ["---:" if cell.number else "---" for cell in lines[0]]
    rows = [[f"**{cell.text}**" if cell.best else cell.text.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def section(path: Path) -> tuple[str, list[str]]:
    """A section with all that it asks for, and its claims."""
    name, text = path.name.removesuffix(".md.in"), path.read_text(encoding="utf-8").strip() + "\n"
    claims = CLAIM.findall(text)
    lines = []
    for line in CLAIM.sub("", text).splitlines():
        match = DIRECTIVE.match(line)
        if match is None:
            lines.append(line)
        elif match[1] == "picture":
            lines.append(picture(name, match[2], match[3]))
        else:
            lines.append(table(name, match[2]))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)), claims


def sections() -> Iterator[Path]:
    there = {path.name.removesuffix(".md.in"): path for path in sorted(FOLDER.glob("*.md.in"))}
    there.pop("introduction")
    yield from (there.pop(name) for name in ORDER if name in there)
    yield from there.values()


def page() -> str:
    """All of it."""
    claims, bodies = [], []
    for path in sections():
        try:
            body, found = section(path)
        except Stale as error:
            raise Stale(f"{path.name}: {error}") from None
        heading = HEADING.search(body)
        if heading is None:
            raise Stale(f"{path.name} has no heading, ## …")
        anchor = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
        claims += [f"| [{heading[1]}](#{anchor}) | {claim} |" for claim in found]
        bodies.append(body.strip())
    top = (FOLDER / "introduction.md.in").read_text(encoding="utf-8").strip()
    head = ["| experiment | the claim | what came out here | the same |", "|---|---|---|---|"]
    written = "<!-- Written by python -m examples.results from docs/results: edit there. -->"
    return "\n\n".join([written, top, "\n".join(head + claims), *bodies]) + "\n"


def main() -> None:
    try:
        text = page()
    except Stale as error:
        sys.exit(f"docs/results.md cannot be written: {error}")
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/results.md is stale: run python -m examples.results")


if __name__ == "__main__":
    main()

"""Fill the names of all rows of the tables into the support matrix: `python docs/tables.py [--check]`."""

import re
import sys
from pathlib import Path

from sobolev_kernels import ACTIVATIONS, COUPLED, LOSSES
from sobolev_kernels.math.directions import DISTRIBUTIONS, GIVEN

MATRIX = Path(__file__).resolve().parent / "support.md"


def names(table) -> str:
    """The rows, with the names of their parameters."""
    parameters = lambda row: f" ({', '.join(name for name, _ in row.defaults)})" if row.defaults else ""  # noqa: E731
    return ", ".join(f"`{name}`{parameters(row)}" for name, row in table.items())


CELLS = {
    "activations": names(ACTIVATIONS),
    "losses ρ": f'{names(LOSSES)}; {names(COUPLED)}; a parameter is written `("huber", 0.5)`',
    "distributions": f"{', '.join(f'`{name}`' for name in DISTRIBUTIONS)}, and your own: `{GIVEN}`",
}


def filled(text: str) -> str:
    for row, cell in CELLS.items():
        text, count = re.subn(rf"^\| {row} \| [^|]* \|", f"| {row} | {cell} |", text, flags=re.MULTILINE)
        assert count == 1, f"the support matrix has {count} rows of {row}"
    return text


def main() -> None:
    text = MATRIX.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        MATRIX.write_text(filled(text), encoding="utf-8")
    elif filled(text) != text:
        sys.exit("the support matrix of docs/support.md is stale: run make format")


if __name__ == "__main__":
    main()

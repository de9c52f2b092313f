"""The commands, by typer: each prints a table, or one document of JSON."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from ..testing import verify as verifying
from . import tables, timed
from .explained import NoStudent, as_dict, explained, inputs_for, student_in
from .info import info as informed

app = typer.Typer(
    name="sobolev-kernels", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
AsJSON = Annotated[bool, typer.Option("--json", help="One document of JSON instead of tables.")]
OK, WRONG, USAGE = 0, 1, 2


def show_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Training on values and derivatives: is it right here, what is installed, how fast is it, what does a call do?"""


@app.command()
def verify(
    as_json: AsJSON = False,
    every: Annotated[bool, typer.Option("--all", help="A line for each check, not for each backend.")] = False,
) -> None:
    """Check all that can run on this machine against float64.

    Each backend, instruction set, dtype and precision: losses of every kind, derivatives and all gradients, by the rule
    of the tests. Takes under a minute on a CPU; exits with 1 if anything is wrong or fails."""
    rows, console = [], Console()
    with Console(stderr=True).status("checking") as status:
        for row in verifying.verify():
            rows.append(row)
            status.update(f"{row.place.backend} on {row.place.where}: {row.check}")
    bad = [row for row in rows if row.outcome in (verifying.WRONG, verifying.FAILED)]
    if as_json:
        show_json({"right": not bad, "checks": [row.as_dict() for row in rows]})
    else:
        console.print(tables.of_rows(rows) if every else tables.of_places(rows))
        for line in tables.verdict(rows):
            console.print(line)
    raise typer.Exit(WRONG if bad else OK)


@app.command()
def info(as_json: AsJSON = False) -> None:
    """Say what is installed, and what each backend computes here.

    Versions, instruction sets, devices, how the compiled core was built, and what is refused, with the reason."""
    found = informed()
    if as_json:
        show_json(found)
    else:
        Console().print(tables.of_info(found))


@app.command()
def bench(
    as_json: AsJSON = False,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Time what torch.compile makes, too.")
    ] = True,
) -> None:
    """Time a step of training beside PyTorch, on this machine's CPU.

    At sizes small and large, each way checked against float64 first. Takes under two minutes, of which what
    torch.compile makes takes most; exits with 1, without times, if a number is wrong."""
    console, said = Console(), timed.where()
    if not as_json:
        for line in tables.of_where(said):
            console.print(line)
    cases, results = timed.chosen(), []
    with Console(stderr=True).status("") as status:
        coming = timed.timed(cases, compiled)
        for case in cases:
            status.update(f"checking and timing {case}")
            results.append(next(coming))
            if not as_json:
                console.print(tables.title_of(results[-1][0]))
                console.print(tables.of_case(*results[-1]))
    measured = [result for result, _ in results]
    bad, unsteady = timed.wrong(measured), timed.disturbed(measured)
    if as_json:
        found = [timed.as_dict(*result, noisy) for result, noisy in zip(results, unsteady, strict=True)]
        show_json({"right": not bad, "where": said, "cases": found})
    else:
        for line in tables.of_all(measured, unsteady):
            console.print(line)
    raise typer.Exit(WRONG if bad else OK)


@app.command()
def explain(
    student: Annotated[
        str, typer.Argument(metavar="FILE:STUDENT", help="A file or module, WHICH IS EXECUTED, and a name in it.")
    ],
    shape: Annotated[str, typer.Option(help="Of the inputs, as in 256,3,32,32. [default: 256,D]")] = "",
    directions: Annotated[int, typer.Option(min=1, help="So many random directions for each sample.")] = 4,
    exact: Annotated[bool, typer.Option("--exact", help="The whole Jacobian instead of directions.")] = False,
    order: Annotated[int, typer.Option(min=1, max=2, help="Of the derivatives.")] = 1,
    backend: Annotated[str, typer.Option(help="Force one by name.")] = "",
    as_json: AsJSON = False,
) -> None:
    """Say what a step of a student of yours would do and cost.

    Which backend takes it, why the others refuse, and from which side. FILE IS EXECUTED as Python, with its
    `if __name__ == "__main__"` left out; open none that you do not trust. It may be a module, as in package.train."""
    try:
        with redirect_stdout(StringIO()) if as_json else StringIO():
            module = student_in(student)
            inputs = inputs_for(module, numbers(shape) if shape else None)
            text = explained(module, inputs, None if exact else directions, order=order, backend=backend or None)
    except (NoStudent, ValueError, TypeError, NotImplementedError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from None
    if as_json:
        show_json(as_dict(text))


def numbers(text: str) -> list[int]:
    """Raises: NoStudent, of what is no shape."""
    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = []
    if len(shape) < 2 or min(shape) < 1:
        raise NoStudent(f"--shape: expected whole numbers from 1 on, as in 256,8, got {text}")
    return shape

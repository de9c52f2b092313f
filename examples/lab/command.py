"""The command line of an experiment: the options that all have, and those of its own."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, get_type_hints

import typer


class Effort(str, Enum):
    """How much of an experiment is run."""

    full = "full"
    short = "short"
    tiny = "tiny"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """What was chosen on the command line.

    Attributes:
        seeds: repetitions of each case.
        out: the folder of tables and pictures; what an experiment needs to go on with lies in one of its own there.
        workers: trainings side by side.
        fresh: begin anew, whatever is there.
    """

    effort: Effort
    seeds: int
    out: Path
    workers: int
    fresh: bool = False

    @property
    def remark(self) -> str:
        """What table and picture say of a run that is not the full one."""
        return "" if self.effort == Effort.full else f"a {self.effort.value} run (--effort {self.effort.value})"


def run_command(
    main: Callable, *, full: str, short: str, seeds: tuple[int, int, int] = (10, 3, 1), effort: Effort = Effort.full
) -> None:
    """Read the command line and call `main(settings, **its own options)`.

    Args:
        main: its parameters after the first are options; its module's docstring is the help.
        full, short: how long these take on two cores.
        seeds: of a full, short and tiny run.
        effort: what is run without `--effort`.
    """
    own = list(inspect.signature(main).parameters.values())[1:]
    types = get_type_hints(main, include_extras=True)
    by_effort = dict(zip(Effort, seeds, strict=True))
    times = f"On two cores: full {full}, short {short}, tiny a few seconds."

    def command(effort: Effort, seeds: int | None, out: Path, workers: int, fresh: bool, **chosen: object) -> None:
        main(Settings(effort, seeds or by_effort[effort], out, workers, fresh), **chosen)

    common = {
        "effort": (Annotated[Effort, typer.Option(help=times)], effort),
        "seeds": (Annotated[int | None, typer.Option(help=f"By default {said(by_effort)}.", min=1)], None),
        "out": (Annotated[Path, typer.Option(help="Folder of tables and pictures.", file_okay=False)], Path("results")),
        "workers": (Annotated[int, typer.Option(help="Trainings side by side.", min=1)], cores()),
        "fresh": (Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run has left.")], False),
    }
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in common.items()
    ]
    parameters += [p.replace(kind=p.KEYWORD_ONLY, annotation=types[p.name]) for p in own]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    about = as_it_stands(inspect.getmodule(main).__doc__)
    command.__doc__ = f"{about}\n\n{times} What is finished is kept: it goes on from there."
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    app()


def as_it_stands(text: str) -> str:
    """With the mark by which click keeps the lines of paragraphs that are lists: those that are indented."""
    return re.sub(r"\n\n(?= )", "\n\n\b\n", text)


def said(by_effort: dict[Effort, int]) -> str:
    return ", ".join(f"{n} in a {effort.value} run" for effort, n in by_effort.items())

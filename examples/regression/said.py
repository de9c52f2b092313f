"""What `regression.py` says of its rows: tables, which are CSVs of words too, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from examples.lab import METHODS, Settings, number, rows_of, said_of_seeds, write_csv
from examples.lab.tables import BUDGETS
from examples.lab.training import STEPS
from examples.regression.functions import FUNCTIONS

METRICS = ("value", "gradient")
COMPARED = ("sobolev", "P = 1", "P = 2", "order 2", "shuffled", "huber", "balanced", "validated")
NAMES = {**METHODS, "huber": "Huber loss"}
MOST = 500  # samples whose nearest neighbours are looked for
RELATIVE = "relative: 1 is as bad as the mean, or a gradient of 0"
MEAN = "geometric mean over the functions of the error of ordinary training ÷ a method's; trainings that it won"
SAMPLES = (
    "agreement: correlation of a sample's gradient with that of the nearest other one; if it is near 0, gradients say "
    "nothing of what is between samples; 1 % largest: their part of the sum of squares; term: the derivative term at "
    "weight 1, of a student that gives the mean, whose value term is 1"
)


def values_of(rows: Sequence[dict], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))


def sizes_in(rows: Sequence[dict]) -> list[int]:
    return sorted(values_of(rows, "N"))


def median_of(rows: Sequence[dict], metric: str = "value", **of: object) -> float | None:
    found = rows_of(rows, **of)
    return found[0][f"{metric}_median"] if found else None


def ratio_of(rows: Sequence[dict], method: str, metric: str = "value", **of: object) -> float | None:
    """How many times larger the median error of ordinary training is, above 1 where the method is better."""
    other, own = median_of(rows, metric, method="ordinary", **of), median_of(rows, metric, method=method, **of)
    return None if other is None or own is None else other / own


def won(records: Sequence[dict], method: str, **of: object) -> tuple[int, int]:
    """Trainings in which a method's error in value is below that of ordinary training with the same seed, and all."""
    own, other = (
        {(r["function"], r["N"], r["seed"]): r["value"] for r in rows_of(records, method=name, **of)}
        for name in (method, "ordinary")
    )
    return sum(own[key] < other[key] for key in own), len(own)


def functions_table(rows: Sequence[dict]) -> list[dict]:
    """A line for each function, activation, metric and budget: in a cell both errors and their ratio."""
    rows, lines = rows_of(rows, longer=False), []
    for activation in values_of(rows, "activation"):
        for metric in METRICS:
            for function in values_of(rows, "function"):
                for budget in BUDGETS:
                    line = {"metric": metric, "activation": activation, "function": function, "at equal": budget}
                    of = {"activation": activation, "function": function, "budget": budget}
                    lines.append(line | {points(N): cell_of(rows, metric, N=N, **of) for N in sizes_in(rows)})
    return lines


def points(N: int) -> str:
    return f"{N:,} points"


def cell_of(rows: Sequence[dict], metric: str, **of: object) -> str:
    errors = [median_of(rows, metric, method=method, **of) for method in ("ordinary", "sobolev")]
    return "-" if None in errors else f"{number(errors[0])} → {number(errors[1])} {times_of(errors[0] / errors[1])}"


def times_of(ratio: float) -> str:
    """With so many digits that a ratio above 1 and one below are told apart."""
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 1.05 else f"{ratio:.2f}×"


def methods_table(records: Sequence[dict], rows: Sequence[dict]) -> list[dict]:
    """Each method beside ordinary training, over all functions."""
    rows, records, lines = rows_of(rows, longer=False), rows_of(records, longer=False), []
    for activation in values_of(rows, "activation"):
        for method in COMPARED:
            for budget in BUDGETS:
                of = {"activation": activation, "budget": budget, "method": method}
                if not rows_of(rows, **of):
                    continue
                learnt, there = (values_of(some, "function") for some in (rows_of(rows, **of), rows))
                name = NAMES.get(method, method) + (f", {len(learnt)} functions" if len(learnt) < len(there) else "")
                line = {"activation": activation, "method": name, "at equal": budget}
                line |= {points(N): mean_cell(records, rows, N=N, **of) for N in sizes_in(rows)}
                lines.append(line | {"ms": f"{np.median([row['ms'] for row in rows_of(rows, **of)]):.2f}"})
    return lines


def mean_cell(records: Sequence[dict], rows: Sequence[dict], method: str, **of: object) -> str:
    ratios = [ratio_of(rows, method, function=function, **of) for function in FUNCTIONS]
    ratios = [ratio for ratio in ratios if ratio is not None]
    wins, trainings = won(records, method, **of)
    return f"{times_of(float(np.exp(np.mean(np.log(ratios)))))} {wins}/{trainings}" if ratios else "-"


def longer_table(rows: Sequence[dict]) -> list[dict]:
    """The trainings of ten times as many steps, with losses of the gradient that are squares or Huber's."""
    rows, lines = rows_of(rows, longer=True), []
    for activation in values_of(rows, "activation"):
        for function in values_of(rows, "function"):
            for N in sizes_in(rows):
                for budget in BUDGETS:
                    of = {"function": function, "activation": activation, "N": N, "budget": budget}
                    line = {"activation": activation, "function": function, "points": f"{N:,}", "at equal": budget}
                    line |= {metric: cell_of(rows, metric, **of) for metric in METRICS}
                    huber = median_of(rows, method="huber", **of)
                    lines.append(line | {"value, Huber": number(huber)})
    return lines


def lost_table(rows: Sequence[dict], lost: Sequence[str]) -> list[dict]:
    """Errors in value of all methods, of the functions where Sobolev training loses."""
    rows, lines = rows_of(rows, longer=False), []
    keys = product(lost, values_of(rows, "activation"), sizes_in(rows), BUDGETS)
    for function, activation, N, budget in keys:
        of = {"function": function, "activation": activation, "N": N, "budget": budget}
        line = {"function": function, "activation": activation, "points": f"{N:,}", "at equal": budget}
        methods = ("ordinary", "sobolev", "huber", "balanced", "validated")
        line |= {NAMES.get(m, m): number(median_of(rows, method=m, **of)) for m in methods}
        lines.append(line | {"weight": number(median_of(rows, "weight", method="validated", **of))})
    return lines


def samples_table(measured: dict[tuple[str, int], dict[str, float]]) -> list[dict]:
    """One line for each function; what hardly depends on N is of the most samples."""
    lines = []
    for function in values_of([{"function": f} for f, _ in measured], "function"):
        of = {N: numbers for (f, N), numbers in measured.items() if f == function}
        line = {"function": function} | {
            f"agreement, {N:,}": f"{numbers['agreement']:.2f}" for N, numbers in of.items()
        }
        last = of[max(of)]
        lines.append(line | {"1 % largest": f"{last['largest']:.0%}", "term": f"{last['term']:.0f}"})
    return lines


def measures_of(u: torch.Tensor, gradients: torch.Tensor) -> dict[str, float]:
    """What gradients [N, 2] at u [N, 2] are like, in the words of `SAMPLES`."""
    some = min(len(u), MOST)
    distances = torch.cdist(u[:some], u)
    distances[range(some), range(some)] = torch.inf
    centred = gradients - gradients.mean(0)
    own, near = centred[:some], centred[distances.argmin(1)]
    squares = gradients.square().sum(1)
    largest = squares.sort(descending=True)[0][: max(1, len(u) // 100)]
    return {
        "agreement": ((own * near).sum() / own.square().sum()).item(),
        "largest": (largest.sum() / squares.sum()).item(),
        "term": squares.mean().item() / 2,
    }


def say(
    records: Sequence[dict], rows: Sequence[dict], measured: dict, lost: Sequence[str], settings: Settings,
    console: Console,
) -> None:  # fmt: skip
    """Print all tables and the verdict, and write the tables; a short run prints no errors in gradient."""
    seeds = said_of_seeds(rows_of(rows, longer=False))
    functions = functions_table(rows)
    for metric in METRICS if not settings.remark else METRICS[:1]:
        for activation in values_of(rows, "activation"):
            some = [{k: v for k, v in line.items() if k not in ("metric", "activation")}
                    for line in rows_of(functions, metric=metric, activation=activation)]  # fmt: skip
            title = f"Error in {metric}, ordinary → Sobolev, {activation} students"
            print_words(title, some, f"{seeds}; {RELATIVE}", settings, console)
    tables = {
        "methods": ("All methods beside ordinary training, error in value", methods_table(records, rows), MEAN),
        "lost": ("Where Sobolev training loses: error in value", lost_table(rows, lost), seeds),
        "samples": ("What the gradients of the samples are like", samples_table(measured), SAMPLES),
        "longer": ("Trained ten times longer, ordinary → Sobolev", longer_table(rows), RELATIVE),
    }
    for title, lines, note in tables.values():
        if lines:
            print_words(title, lines, note, settings, console)
    for name, (_, lines, _) in {**tables, "functions": ("", functions, "")}.items():
        if lines and name != "samples":  # which lie beside their picture
            write_csv(lines, settings.out / f"regression_{name}.csv")
    for line in verdict(rows):
        console.print(line, soft_wrap=True)


def print_words(title: str, lines: Sequence[dict], note: str, settings: Settings, console: Console) -> None:
    """A word that is the same as that above it is left out; ratios are green above 1, and red below."""
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, title_justify="left")
    names = [n for n in lines[0] if n in ("function", "activation", "method", "at equal")]
    for name in lines[0]:
        table.add_column(name, justify="left" if name in names else "right", no_wrap=True)
    above = [""] * len(names)
    for line in lines:
        words = [line[name] for name in names]
        same = next((i for i, (a, b) in enumerate(zip(words, above, strict=False)) if a != b), len(words))
        shown = ["" if i < same else word for i, word in enumerate(words)]
        above = words
        table.add_row(*shown, *(coloured(text) for name, text in line.items() if name not in names))
    console.print(table)
    console.print("; ".join(filter(None, (settings.remark, note))), style="italic dim")
    console.print()


def coloured(text: str) -> str:
    return re.sub(r"([\d.]+)×", lambda m: f"[{'green' if float(m[1]) > 1 else 'red'}]{m[0]}[/]", text)


def verdict(rows: Sequence[dict]) -> list[str]:
    """The paper's claims: six of seven functions; Ackley worse with few points, and better with many."""
    lines, short = [], rows_of(rows, longer=False)
    for activation in values_of(short, "activation"):
        for budget in BUDGETS:
            parts = []
            for N in sizes_in(short):
                of = {"activation": activation, "N": N, "budget": budget}
                ratios = {f: ratio_of(short, "sobolev", function=f, **of) for f in values_of(short, "function")}
                lost = [function for function, ratio in ratios.items() if ratio <= 1]
                said = f" (not {', '.join(lost)})" if lost else ""
                parts.append(f"{len(ratios) - len(lost)} of {len(ratios)}{said} at {N:,}")
            lines.append(f"{activation}, {BUDGETS[budget]}, Sobolev is better in value in {', '.join(parts)} points.")
    return [*lines, f"The paper says six of seven, without Ackley with few points. {ackley(rows)}"]


def ackley(rows: Sequence[dict]) -> str:
    parts = []
    for longer in sorted(values_of(rows, "longer")):
        some = rows_of(rows, function="Ackley", activation="tanh", longer=longer, budget=STEPS)
        ratios = ", ".join(f"{times_of(ratio_of(some, 'sobolev', N=N))} at {N:,}" for N in sizes_in(some))
        steps = min(row["steps"] for row in rows_of(some, method="ordinary"))
        parts.append(f"{ratios} points in {steps:,.0f} steps")
    more = "" if any(row["longer"] for row in rows) else "; the full run has ten times as many, and 10,000 points"
    return f"Its error, tanh, ordinary ÷ Sobolev: {'; '.join(parts)}{more}."

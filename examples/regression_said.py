"""What `regression.py` says of its rows: tables, what the samples' gradients are like, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from functions import FUNCTIONS
from lab import METHODS, Settings, number, rows_of, said_of_seeds
from lab.tables import BUDGETS
from lab.training import STEPS, TIME
from rich.console import Console
from rich.table import Table

METRICS = ("value", "gradient")
COMPARED = ("sobolev", "P = 1", "P = 2", "order 2", "shuffled", "huber", "balanced", "validated")
BUDGET_NAMES = (STEPS, TIME)
MOST = 2000  # samples whose nearest neighbours are looked for


def named(method: str) -> str:
    return METHODS.get(method, method)


def values_of(rows: Sequence[dict], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))


def median_of(rows: Sequence[dict], metric: str = "value", **of: object) -> float | None:
    found = rows_of(rows, **of)
    return found[0][f"{metric}_median"] if found else None


def ratio_of(rows: Sequence[dict], method: str, metric: str = "value", **of: object) -> float | None:
    """How many times larger the median error of ordinary training is, above 1 where the method is better."""
    other, own = median_of(rows, metric, method="ordinary", **of), median_of(rows, metric, method=method, **of)
    return None if other is None or own is None else other / own


def won(records: Sequence[dict], method: str, metric: str = "value", **of: object) -> tuple[int, int]:
    """Trainings in which a method's error is below that of ordinary training with the same seed, and all."""
    errors = {name: {} for name in (method, "ordinary")}
    for name, found in errors.items():
        for record in rows_of(records, method=name, **of):
            found[record["function"], record["activation"], record["N"], record["seed"]] = record[metric]
    both = errors[method].keys() & errors["ordinary"].keys()
    return sum(errors[method][key] < errors["ordinary"][key] for key in both), len(both)


def table_of(title: str, caption: str, names: Sequence[str], left: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, caption=caption, caption_justify="left")
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=True)
    return table


def print_tables(records: Sequence[dict], rows: Sequence[dict], settings: Settings, console: Console) -> None:
    for title, metric, activation in tables_of_functions(rows, settings):
        console.print(function_table(title, rows, metric, activation, settings))
    console.print(method_table(records, rows, settings))
    if any(row["longer"] for row in rows):
        console.print(longer_table(rows, settings))


def tables_of_functions(rows: Sequence[dict], settings: Settings):
    for activation in values_of(rows, "activation"):
        for metric in METRICS if not settings.remark else METRICS[:1]:
            yield f"Error in {metric}, ordinary → Sobolev: {activation}", metric, activation


def function_table(title: str, rows: Sequence[dict], metric: str, activation: str, settings: Settings) -> Table:
    """A line for each function and budget: in each cell both errors, and their ratio."""
    rows = rows_of(rows, activation=activation, longer=False)
    sizes = sorted(values_of(rows, "N"))
    caption = "; ".join(filter(None, (settings.remark, said_of_seeds(rows), "relative, 1 is as bad as the mean")))
    table = table_of(title, caption, ("function", "at equal", *(f"{N:,} points" for N in sizes)), left=2)
    for function in values_of(rows, "function"):
        for budget in BUDGET_NAMES:
            cells = [cell_of(rows, metric, function=function, N=N, budget=budget) for N in sizes]
            table.add_row(function if budget == STEPS else "", budget, *cells)
    return table


def cell_of(rows: Sequence[dict], metric: str, **of: object) -> str:
    errors = [median_of(rows, metric, method=method, **of) for method in ("ordinary", "sobolev")]
    if None in errors:
        return "-"
    ratio = errors[0] / errors[1]
    colour = "green" if ratio > 1 else "red"
    return f"{number(errors[0])} → {number(errors[1])} [{colour}]{times_of(ratio)}[/]"


def times_of(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def method_table(records: Sequence[dict], rows: Sequence[dict], settings: Settings) -> Table:
    """Each method beside ordinary training: the geometric mean over the functions, and how many trainings it won."""
    rows, records = rows_of(rows, longer=False), rows_of(records, longer=False)
    sizes = sorted(values_of(rows, "N"))
    caption = "geometric mean over the functions of ordinary error ÷ a method's, and trainings won; value error"
    names = ("method", "of", "at equal", *(f"{N:,} points" for N in sizes), "ms")
    table = table_of(
        "Each method beside ordinary training", "; ".join(filter(None, (settings.remark, caption))), names, 3
    )
    for method in COMPARED:
        for activation in values_of(rows_of(rows, method=method), "activation"):
            for budget in BUDGET_NAMES:
                of = {"activation": activation, "budget": budget}
                cells = [mean_cell(records, rows, method, N=N, **of) for N in sizes]
                ms = np.median([row["ms"] for row in rows_of(rows, method=method, **of)])
                first = budget == STEPS
                table.add_row(named(method) if first else "", activation if first else "", budget, *cells, f"{ms:.2f}")
    return table


def mean_cell(records: Sequence[dict], rows: Sequence[dict], method: str, **of: object) -> str:
    ratios = [ratio_of(rows, method, function=function, **of) for function in FUNCTIONS]
    ratios = [ratio for ratio in ratios if ratio is not None]
    wins, all_of_them = won(records, method, **of)
    return f"{times_of(float(np.exp(np.mean(np.log(ratios)))))}, {wins} of {all_of_them}" if ratios else "-"


def longer_table(rows: Sequence[dict], settings: Settings) -> Table:
    rows = rows_of(rows, longer=True)
    steps = max(row["steps"] for row in rows_of(rows, budget=STEPS))
    title = f"Trained ten times longer, {steps:,.0f} steps: ordinary → Sobolev"
    names = ("function", "of", "points", "at equal", *METRICS)
    table = table_of(title, said_of_seeds(rows), names, 2)
    keys = list(dict.fromkeys((row["function"], row["activation"], row["N"]) for row in rows))
    for function, activation, N in sorted(keys):
        for budget in BUDGET_NAMES:
            of = {"function": function, "activation": activation, "N": N, "budget": budget}
            table.add_row(function, activation, f"{N:,}", budget, *(cell_of(rows, metric, **of) for metric in METRICS))
    return table


def measures_of(u: torch.Tensor, gradients: torch.Tensor) -> dict[str, float]:
    """What gradients [N, 2] at u [N, 2] are like: how far one says what the nearest sample's is (a correlation), what
    part of their squares the largest hundredth of the samples has, and the derivative term of a constant, of which the
    value term is 1."""
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


def print_measures(measured: dict[tuple[str, int], dict[str, float]], console: Console) -> None:
    """One line for each function; what does not depend on N is of the most samples."""
    sizes = sorted({N for _, N in measured})
    caption = (
        "agreement: correlation of a sample's gradient with that of the nearest other sample, 0: it says nothing of "
        "what is between them; 1 % largest: their part of the squares; term: the derivative term at weight 1, where "
        "the value term is 1"
    )
    names = ("function", *(f"agreement, {N:,}" for N in sizes), "1 % largest", "term")
    table = table_of("What the gradients of the samples are like", caption, names, 1)
    for function in FUNCTIONS:
        cells = [f"{measured[function, N]['agreement']:.2f}" for N in sizes]
        last = measured[function, sizes[-1]]
        table.add_row(function, *cells, f"{last['largest']:.0%}", f"{last['term']:.0f}")
    console.print(table)


def print_verdict(rows: Sequence[dict], console: Console) -> None:
    """Whether the paper's claims came out: six of seven; Ackley worse with few points and better with many."""
    for line in verdict(rows):
        console.print(line, soft_wrap=True)


def verdict(rows: Sequence[dict]) -> list[str]:
    lines = []
    short = rows_of(rows, longer=False)
    for activation in values_of(short, "activation"):
        for budget in BUDGET_NAMES:
            parts = []
            for N in sorted(values_of(short, "N")):
                of = {"activation": activation, "N": N, "budget": budget}
                ratios = {function: ratio_of(short, "sobolev", function=function, **of) for function in FUNCTIONS}
                lost = [function for function, ratio in ratios.items() if ratio is not None and ratio <= 1]
                there = sum(ratio is not None for ratio in ratios.values())
                parts.append(f"{there - len(lost)} of {there} at {N:,}" + (f" (not {', '.join(lost)})" if lost else ""))
            lines.append(f"Sobolev wins in value, {activation}, {BUDGETS[budget]}: {'; '.join(parts)} points.")
    return [*lines, ackley(rows)]


def ackley(rows: Sequence[dict]) -> str:
    """The claim of this function, from all its rows."""
    parts = []
    for longer in sorted(values_of(rows, "longer")):
        some = rows_of(rows, function="Ackley", activation="tanh", longer=longer, budget=STEPS)
        ratios = {N: ratio_of(some, "sobolev", N=N) for N in sorted(values_of(some, "N"))}
        said = ", ".join(f"{times_of(ratio)} at {N:,}" for N, ratio in ratios.items())
        steps = max(row["steps"] for row in some)
        parts.append(f"{said} points ({steps:,.0f} steps)")
    return f"Ackley, tanh, ordinary ÷ Sobolev: {'; '.join(parts)}."

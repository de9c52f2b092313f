"""Synthetic gradients (Czarnecki et al., 2017, section 4.3): a network of three modules that are trained apart.

Each of the two lower modules is trained by what a small predictor says the gradient at its end is, instead of by
back-propagation (`decoupled.py` has the methods). The critic, which predicts the loss and is differentiated, is fitted
to values alone or, as the paper proposes, to values and derivatives. Shown is how many of the test samples the network
classifies wrongly, %, and how well the synthetic gradient of the lowest module is aligned with the true one.

Each method has its own learning rates, of modules and of predictors: the best on validation data that were taken from
the training data, on a grid that is widened until the best is not at its edge. All methods train for the same number of
steps, in which every module and every predictor takes a step of its own; then, at equal time, the quicker ones once
more with as many steps as the slowest one's time has for them, and with the same rates. The final trainings have seeds
that tuning did not use, and all data but those of the test, which are looked at last.

Data: the digits of scikit-learn, mnist1d, or any torch data set by the name of a function that gives it, without
arguments: one data set, of which a quarter is kept for the test, or a pair, for training and for the test. Each entry
is an input, numbers of any shape, and a label, an integer from 0 on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from examples.lab import (
    Effort,
    Outcome,
    Settings,
    print_lines,
    report,
    report_times,
    rows_of,
    summarise,
    trials,
    write_csv,
)
from examples.lab.training import SAME_PACE
from examples.synthetic_gradients.decoupled import BATCH, METHODS, PREDICTING, Rates, alignment, scores, train
from examples.synthetic_gradients.labelled import Data, DataError, load
from examples.synthetic_gradients.report import draw, print_tuning, rows_of_tuning, times_of_steps, verdict
from examples.synthetic_gradients.tuning import LADDER, Place, Tuned, search

NAME, METRICS = "synthetic_gradients", ("error", "alignment")
BOTH = ("digits", "mnist1d")
VALIDATION, FRESH = 0.2, 1000
STEPS = {Effort.full: 2000, Effort.short: 500, Effort.tiny: 12}
# How often the grid may be widened; and by how many classified samples a place of it is judged at least: if there are
# fewer for validation, after several trainings, but not more than so many.
WIDENINGS = {Effort.full: 6, Effort.short: 3, Effort.tiny: 1}
JUDGES, MOST = {Effort.full: 500, Effort.short: 1, Effort.tiny: 1}, 3
FIRST = {method: (-6, -4) if method in PREDICTING else (-5,) for method in METHODS}


@dataclass(frozen=True)
class Case:
    """One training. Of tuning the test is a part of the training data."""

    data: str
    method: str
    module_rate: float
    predictor_rate: float
    steps: int
    seed: int
    budget: str
    tuning: bool


def of_case(data: str, method: str, rates: tuple[float, ...], steps: int, seed: int, budget: str, tuning=False) -> Case:
    module, predictor = (*rates, 0.0)[:2]
    return Case(data, method, module, predictor, steps, seed, budget, tuning)


def held_out(data: Data) -> tuple[Data, Data]:
    """What is left of training data, and what tuning is judged by."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    kept = max(round(len(data) * VALIDATION), 1)
    return data[order[kept:]], data[order[:kept]]


def run_case(case: Case) -> Outcome:
    learnt, judged = load(case.data)
    if case.tuning:
        learnt, judged = held_out(learnt)
    rates = Rates(case.module_rate, case.predictor_rate)
    modules, predictors, ms = train(learnt, case.method, rates, case.steps, case.seed)
    aligned = None if case.tuning else alignment(case.method, modules, predictors, judged)
    return Outcome([{"ms": ms, "alignment": aligned, **scores(modules, judged)}])


class Trials:
    """The trials of a run, of which only the first may forget what is there."""

    def __init__(self, settings: Settings, console: Console):
        self.settings, self.console = settings, console

    def __call__(self, cases: Sequence[Case]) -> list[dict]:
        records, _ = trials(run_case, cases, self.settings, NAME, self.console)
        self.settings = replace(self.settings, fresh=False)
        return records


def tune(data: str, run: Trials, effort: Effort) -> dict[str, Tuned]:
    """The best rates of each method, by the mean error on validation data; of equal ones by the cross-entropy."""

    seeds = range(min(math.ceil(JUDGES[effort] / len(held_out(load(data)[0])[1])), MOST))

    def evaluate(places: list[tuple[str, Place]]) -> list[tuple[float, float]]:
        cases = [
            of_case(data, method, tuple(LADDER[i] for i in place), STEPS[effort], seed, "steps", tuning=True)
            for method, place in places for seed in seeds
        ]  # fmt: skip
        found = np.array([(r["error"], r["cross_entropy"]) for r in run(cases)]).reshape(len(places), len(seeds), 2)
        return [tuple(mean) for mean in np.nan_to_num(found.mean(1), nan=np.inf)]

    return search(FIRST, evaluate, WIDENINGS[effort])


def final(data: str, tuned: dict[str, Tuned], run: Trials, settings: Settings) -> list[dict]:
    """Of fresh seeds, at equal steps and at equal time; a method that is about the slowest has the same in both."""
    steps = STEPS[settings.effort]
    seeds = range(FRESH, FRESH + settings.seeds)

    def cases(steps_of: dict[str, int], budget: str) -> list[Case]:
        """Seed after seed, so that a run that is interrupted has all methods of some."""
        return [of_case(data, m, tuned[m].rates, n, seed, budget) for seed in seeds for m, n in steps_of.items()]

    equal = run(cases(dict.fromkeys(METHODS, steps), "steps"))
    ms = {method: float(np.median([r["ms"] for r in rows_of(equal, method=method)])) for method in METHODS}
    # Of two digits, so that a run with more seeds knows the trainings again that are there.
    ratios = {method: float(f"{max(ms.values()) / ms[method]:.2g}") for method in METHODS}
    more = {method: round(steps * ratio) for method, ratio in ratios.items() if ratio > 1 + SAME_PACE}
    timed = run(cases(more, "time"))
    same = [{**record, "budget": "time"} for record in equal if record["method"] not in more]
    return equal + sorted(timed + same, key=lambda record: METHODS.index(record["method"]))


def main(
    settings: Settings,
    dataset: Annotated[
        list[str], typer.Option(help="Or torchvision:NAME, or MODULE:FUNCTION; can be repeated.")
    ] = BOTH,
    times: Annotated[bool, typer.Option("--times", help=f"Only the times of a step: {NAME}_times.csv.")] = False,
) -> None:
    console = Console()
    if times:
        return report_times(times_of_steps(settings, BATCH), settings, NAME, console)
    try:
        for name in dataset:
            load(name)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--dataset") from error
    run, tuning, records = Trials(settings, console), [], []
    for name in dict.fromkeys(dataset):
        tuned = tune(name, run, settings.effort)
        tuning += rows_of_tuning(name, tuned)
        records += final(name, tuned, run, settings)
    rows = summarise(records, ("data",), METRICS)
    print_tuning(tuning, console, settings)
    note = "error: per cent wrong in the test; alignment: cosine of the lowest synthetic gradient and the true one"
    title = "Synthetic gradients: three modules that are trained apart"
    print_lines(title, rows, METRICS, console, settings, note, higher=("alignment",))
    verdict(records, rows, console)
    write_csv(tuning, settings.out / f"{NAME}_rates.csv")
    report(rows, draw(rows, tuning), settings, NAME, console)

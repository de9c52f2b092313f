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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import typer
from decoupled import METHODS, PREDICTING, Rates, alignment, scores, train
from lab import (
    Effort,
    Outcome,
    Settings,
    print_table,
    run_command,
    summarise,
    trials,
)
from labelled import Data, load
from rich.console import Console
from tuning import LADDER, Place, Tuned, search

NAME, METRICS = "synthetic_gradients", ("error", "alignment")
VALIDATION, FRESH = 0.2, 1000
STEPS = {Effort.full: 2000, Effort.short: 500, Effort.tiny: 12}
# How often the grid may be widened, and the trainings for each of its places.
WIDENINGS = {Effort.full: 6, Effort.short: 3, Effort.tiny: 1}
TRAININGS = {Effort.full: 2, Effort.short: 1, Effort.tiny: 1}
FIRST = {method: (-6, -4) if method in PREDICTING else (-5,) for method in METHODS}
# Recalled, not read again: CIFAR-10 with three modules, per cent of the test that is classified rightly.
PAPER = {"no-prop": 54.5, "direct": 79.2, "critic": 93.2, "sobolev": 93.5, "backprop": 94.3}


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

    def evaluate(places: list[tuple[str, Place]]) -> list[tuple[float, float]]:
        seeds = range(TRAININGS[effort])
        cases = [
            of_case(data, method, tuple(LADDER[i] for i in place), STEPS[effort], seed, "steps", tuning=True)
            for method, place in places for seed in seeds
        ]  # fmt: skip
        found = np.array([(r["error"], r["cross_entropy"]) for r in run(cases)]).reshape(len(places), len(seeds), 2)
        return [tuple(mean) for mean in np.nan_to_num(found.mean(1), nan=np.inf)]

    return search(FIRST, evaluate, WIDENINGS[effort])


def final(data: str, tuned: dict[str, Tuned], run: Trials, settings: Settings) -> list[dict]:
    """Of fresh seeds, at equal steps and at equal time."""
    steps = STEPS[settings.effort]
    seeds = range(FRESH, FRESH + settings.seeds)
    of = lambda method, steps, budget: [  # noqa: E731
        of_case(data, method, tuned[method].rates, steps, seed, budget) for seed in seeds
    ]
    equal = run(
        [case for cases in zip(*(of(method, steps, "steps") for method in METHODS), strict=True) for case in cases]
    )
    ms = {method: float(np.median([r["ms"] for r in equal if r["method"] == method])) for method in METHODS}
    slowest = max(ms, key=ms.get)
    # Few digits, so that a run that is repeated with more seeds knows its trainings again.
    more = {method: round(float(f"{max(ms[slowest] / ms[method], 1):.2g}") * steps) for method in METHODS}
    timed = run(
        [
            case
            for cases in zip(*(of(m, more[m], "time") for m in METHODS if m != slowest), strict=True)
            for case in cases
        ]
    )
    timed += [{**record, "budget": "time"} for record in equal if record["method"] == slowest]
    return equal + sorted(timed, key=lambda record: METHODS.index(record["method"]))


def main(
    settings: Settings,
    dataset: Annotated[
        list[str], typer.Option(help="digits, mnist1d, torchvision:NAME or MODULE:FUNCTION; repeated.")
    ] = ["digits", "mnist1d"],
    times: Annotated[bool, typer.Option("--times", help="Only the times of a step, fused and otherwise.")] = False,
) -> None:
    console = Console()
    run = Trials(settings, console)
    tuned, records = {}, []
    for name in dataset:
        tuned[name] = tune(name, run, settings.effort)
        records += final(name, tuned[name], run, settings)
    rows = summarise(records, ("data",), METRICS)
    print_table(
        "Synthetic gradients, three modules", rows, ("data",), METRICS, console, settings, higher=("alignment",)
    )


if __name__ == "__main__":
    run_command(main, full="15 minutes", short="90 s")

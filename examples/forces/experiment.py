"""Energies and forces of a small cluster of atoms: what forces are worth beside energies, and curvatures beside forces.

Six atoms with the potential of Lennard and Jones (`clusters.py`). A net of the 15 inverse distances x(q) is to give the
energy E(q); minus its gradient with respect to the coordinates q are the forces. The places of the test come from
walkers of their own. All methods begin with the same weights and see the same batches:

    energy        energies alone
    forces        forces alone; the one constant that they leave open is the mean of the training energies
    both          energies and all forces, through `input_jacobian` = ∂x/∂q
    half          the same where every second place has no forces: NaN, and a `derivative_weight` of 0
    half alone    those places are left out
    along v       energies and, with the descriptors inside the student, derivatives along one random v a step and place
    along v, vHv  the same and the curvature vᵀ(∂²E/∂q²)v (order 2)

Shown on the test are errors over what is to be known, rms over rms: of the energy (over its deviation), of the forces,
and of the curvature along random directions. The weight of each term is in units of the mean square of what it fits.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
import typer
from rich.console import Console

import sobolev_kernels as sk
from examples.forces.clusters import Places, Units, walk
from examples.forces.methods import BATCH, METHODS, METRICS, Learner, first_net, hand_written
from examples.lab import (
    COLOURS,
    Effort,
    Outcome,
    Settings,
    dots,
    figure_of,
    interleaved,
    marks_of,
    number,
    print_lines,
    report,
    report_times,
    rows_of,
    said_of_seeds,
    summarise,
    trials,
)
from examples.lab.training import STEPS, TIME

NAME, PACE = "forces", "both"
WALKERS, TEST_WALKERS, EACH = 100, 50, 10
# As energies alone are ordinary training, and energies with forces Sobolev training.
COLOURS |= {"energy": COLOURS["ordinary"], "both": COLOURS["sobolev"], "forces": "tab:red", "half": "tab:cyan"}
COLOURS |= {"half alone": "tab:gray", "along v": "tab:purple", "along v, vHv": "tab:green"}
# Width, batch and rate were chosen by the errors of seed 0.
FRESH = 1
STEPS_OF = {Effort.full: 2000, Effort.short: 600, Effort.tiny: 5}
PLACES = {Effort.full: (100, 1000), Effort.short: (100, 1000), Effort.tiny: (20,)}


@dataclass(frozen=True)
class Case:
    """All methods of one seed, which draws places and first weights; N: places to learn from."""

    N: int
    seed: int
    steps: int


@lru_cache(maxsize=2)
def data_of(N: int, seed: int) -> tuple[Places, Places, Units]:
    """Places to learn from, of as many walkers as there are, and of the test, of others."""
    generator = torch.Generator().manual_seed(seed)
    q = walk(WALKERS + TEST_WALKERS, EACH, generator)
    learnt = q[:WALKERS].transpose(0, 1).flatten(0, 1)[:N]
    units = Units(learnt)
    return units.places(learnt), units.places(q[WALKERS:].flatten(0, 1)), units


def run_case(case: Case) -> Outcome:
    learnt, test, units = data_of(case.N, case.seed)
    first = first_net(case.seed)

    def record(method: str, budget: str, steps: int) -> dict:
        learner = Learner(method, deepcopy(first), learnt, units)
        ms = learner.train(steps, case.seed)
        return {"method": method, "budget": budget, "steps": steps, "ms": ms, **learner.errors(test)}

    equal = [record(method, STEPS, case.steps) for method in METHODS]
    ms = {r["method"]: r["ms"] for r in equal}
    timed = [
        {**r, "budget": TIME} if r["method"] == PACE
        else record(r["method"], TIME, max(round(case.steps * ms[PACE] / r["ms"]), 1))
        for r in equal
    ]  # fmt: skip
    return Outcome(equal + timed)


def times_of_steps(settings: Settings) -> list[dict]:
    """Loss and backward of a batch, fused, by the reference, and by hand, interleaved."""
    learnt, _, units = data_of(1000, 0)
    batch = torch.arange(BATCH)
    rows = []
    for method in ("both", "along v", "along v, vHv"):
        learner = Learner(method, first_net(0), learnt, units)
        reference = Learner(method, deepcopy(learner.net), learnt, units)
        reference.loss = sk.SobolevLoss(**learner.settings, backend="reference")
        steps = {
            "fused": lambda learner=learner: learner.loss_of(batch).backward(),
            "reference": lambda learner=reference: learner.loss_of(batch).backward(),
            "by hand": lambda learner=learner: hand_written(learner, batch).backward(),
        }
        found = interleaved(steps, rounds=3 if settings.effort == Effort.tiny else 40)
        rows.append({"step": method, "N": BATCH, **{f"{name} ms": ms for name, ms in found.items()}})
    return rows


# Whose errors are told as so many times those of another.
COMPARED = (
    ("energy", "both"), ("forces", "both"), ("half", "both"), ("half alone", "half"), ("along v", "along v, vHv"),
)  # fmt: skip


def verdict(rows: list[dict], console: Console) -> None:
    """Ratios of medians, of errors of the energy, the forces and the curvature."""
    for N in dict.fromkeys(row["N"] for row in rows):
        for budget, where in ((STEPS, "equal steps"), (TIME, "equal time")):
            of = {row["method"]: row for row in rows_of(rows, N=N, budget=budget)}
            said = []
            for worse, better in COMPARED:
                ratios = [of[worse][f"{m}_median"] / of[better][f"{m}_median"] for m in METRICS]
                said.append(f"{worse} ÷ {better} {', '.join(map(number, ratios))}")
            console.print(f"{N:,} places, {where}, errors of {', '.join(METRICS)}: {'; '.join(said)}", soft_wrap=True)


def draw(rows: list[dict]):
    places = list(dict.fromkeys(row["N"] for row in rows))
    figure = figure_of((12, 0.7 + 2.7 * len(places)))
    axes = figure.subplots(len(places), len(METRICS), squeeze=False, sharex="col", sharey=True)
    for line, N in zip(axes, places, strict=True):
        for axis, metric in zip(line, METRICS, strict=True):
            dots(axis, rows_of(rows, N=N), metric, METHODS, joined=("energy", PACE))
            axis.set_title(f"error of the {metric}, {N:,} places", fontsize=11)
    figure.supxlabel(f"rms over rms, on the test; {said_of_seeds(rows)}; equal time: that of {PACE}", fontsize=10)
    marks_of(figure)
    return figure


def main(
    settings: Settings,
    times: Annotated[bool, typer.Option("--times", help="Only the times of a step: forces_times.csv.")] = False,
) -> None:
    console = Console()
    if times:
        return report_times(times_of_steps(settings), settings, NAME, console)
    places, seeds = PLACES[settings.effort], range(FRESH, FRESH + settings.seeds)
    cases = [Case(N, seed, STEPS_OF[settings.effort]) for seed in seeds for N in places]
    records, _ = trials(run_case, cases, settings, NAME, console)
    rows = summarise(records, ("N",), METRICS)
    note = f"equal time is that of {PACE}; N: places to learn from"
    print_lines("Energies and forces of six atoms", rows, METRICS, console, settings, note)
    verdict(rows, console)
    report(rows, draw(rows), settings, NAME, console)

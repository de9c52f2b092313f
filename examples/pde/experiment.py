"""Differential equations solved by a network, from their residuals alone, and from derivatives of these too.

Five equations, each with a solution of another kind to be compared with: Poisson in one dimension (closed form),
Burgers (a quadrature of Cole's and Hopf's transform), Kuramoto-Sivashinsky (Fourier modes), the biharmonic plate
(closed form) and the steady flow in a cavity under a lid at Re 100 (finite differences, within 1 % themselves). A tanh
network of three layers of 24 is trained by `sk.fit` on residuals at N points, at the border and at the start; by Adam,
then by L-BFGS. Two methods, of the same first weights and points:

    residual          the squares of the residual
    with derivatives  and of its first derivatives: gradient-enhanced (Yu et al., 2022), Sobolev training of a residual
                      whose target is zero everywhere; of the equations of fourth order that is of order 5, which is
                      not provided

The error is that of the solution, on a grid, the root of the sum of squares over that of the solution's. Steps are
evaluations of the loss with its gradients. `--times` gives the time of such a one beside nested autograd, as DeepXDE's
PyTorch backend has it, and beside jet-for-pytorch under torch.compile, where that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from bench.partial_ways import COMPILED_JETS, is_there
from examples.lab import (
    COLOURS,
    Effort,
    Outcome,
    Settings,
    dots,
    figure_of,
    interleaved,
    maps,
    marks_of,
    name_ticks,
    print_lines,
    report,
    report_times,
    rows_of,
    said_of_seeds,
    summarise,
    trials,
)
from examples.lab.training import STEPS, TIME
from examples.pde.equations import EQUATIONS, Equation
from examples.pde.learner import DEPTH, WIDTH, Learner, Solved
from sobolev_kernels.testing.rule import IN_SINGLE

NAME, METRICS = "pde", ("error",)
COLOURS |= {"residual": COLOURS["ordinary"], "with derivatives": COLOURS["sobolev"]}
FIRST_SEED = 100  # weights, rate and size of the network were chosen with seeds below
STEPS_OF = {Effort.full: 3000, Effort.short: 800, Effort.tiny: 3}


@dataclass(frozen=True)
class Case:
    """One equation, a number of points, and a seed, which draws these and the first weights."""

    equation: str
    N: int
    seed: int
    steps: int
    drawn: bool = False


def error_of(student: torch.nn.Module, equation: Equation) -> tuple[float, np.ndarray]:
    """Of the solution; and where it is."""
    x, exact, _ = equation.exact()
    with torch.no_grad():
        found = student(torch.from_numpy(x).float())[:, : exact.shape[1]].double().numpy()
    wrong = np.sqrt(((found - exact) ** 2).sum(1))
    return float(np.sqrt((wrong**2).sum() / (exact**2).sum())), wrong


def run_case(case: Case) -> Outcome:
    equation, records, drawn = EQUATIONS[case.equation], [], {}
    methods = ("residual", "with derivatives") if equation.enhanced else ("residual",)
    learners = {method: Learner(equation, method, case.N, case.seed) for method in methods}
    solved = {method: learner.solve(case.steps) for method, learner in learners.items()}

    def record(method: str, budget: str, found: Solved) -> dict:
        error, wrong = error_of(found.student, equation)
        if case.drawn and budget == STEPS:
            drawn[method] = wrong
        return {
            "method": method, "budget": budget, "steps": found.evaluations, "ms": found.ms, "error": error,
        }  # fmt: skip

    for method, found in solved.items():
        records.append(record(method, STEPS, found))
        ratio = solved[methods[-1]].ms / found.ms
        again = found if method == methods[-1] else learners[method].solve(max(round(case.steps * ratio), 1))
        records.append(record(method, TIME, again))
    return Outcome(records, drawn)


def times_of_steps(settings: Settings) -> list[dict]:
    """The loss inside with its gradients, interleaved."""
    rows, rounds = [], 3 if settings.effort == Effort.tiny else 15
    for name, equation in EQUATIONS.items():
        for method in ("residual", "with derivatives")[: 1 + bool(equation.enhanced)]:
            N = 64 if settings.effort == Effort.tiny else 1000
            learner = Learner(equation, method, N, 0)
            student = learner.first()
            ways = {
                "fused ms": lambda learner=learner, student=student: learner.loss(student),
                "reference ms": lambda learner=learner, student=student: learner.loss(lambda x: student(x)),
                "by hand ms": lambda learner=learner, student=student: learner.by_hand(student),
            }
            if is_there(COMPILED_JETS):
                by_jets = ways["jet-for-pytorch ms"] = learner.by_jets(student)
                torch.testing.assert_close(by_jets(), learner.loss(student), rtol=IN_SINGLE, atol=0)
            found = interleaved({way: partial(step, student, loss) for way, loss in ways.items()}, rounds)
            rows.append({"step": f"{name}, {method}", "N": N, **found})
    return rows


def step(student: torch.nn.Module, loss) -> None:
    student.zero_grad()
    loss().backward()


def verdict(rows: list[dict], console: Console) -> None:
    for budget, said in ((STEPS, "equal steps"), (TIME, "equal time")):
        parts = []
        for row in rows_of(rows, method="with derivatives", budget=budget):
            alone = rows_of(rows, equation=row["equation"], N=row["N"], method="residual", budget=budget)[0]
            ratio = alone["error_median"] / row["error_median"]
            parts.append(f"{row['equation']}, {row['N']:,} points {ratio:.2f}")
        console.print(
            f"Error of the residual alone over that with its derivatives, at {said}: {'; '.join(parts)}.",
            soft_wrap=True,
        )


def draw(rows: list[dict], pictures: dict[Case, dict[str, np.ndarray]]):
    figure = figure_of((15, 2.7 * len(pictures)))
    lines = figure.subfigures(len(pictures), 1, squeeze=False)[:, 0]
    for line, (case, drawn) in zip(lines, pictures.items(), strict=True):
        equation = EQUATIONS[case.equation]
        axes = list(line.subplots(1, 5, width_ratios=(0.8, 0.8, 1, 1, 1)))
        of_equation = rows_of(rows, equation=case.equation)
        sizes = list(dict.fromkeys(row["N"] for row in of_equation))
        for axis, N in zip(axes, sizes, strict=False):
            dots(axis, rows_of(of_equation, N=N), "error", [*drawn], joined=[*drawn])
            low, high = axis.get_xlim()
            axis.set_xlim(low / 1.5, high * 1.5)
            name_ticks(axis.xaxis)
            axis.set_title(f"{equation.title}\n{N:,} points" if axis is axes[0] else f"{N:,} points", fontsize=10)
        axes[1].tick_params(labelleft=False)
        if len(sizes) < 2:
            axes[1].set_axis_off()
        used = draw_solution(line, axes[2:], equation, drawn)
        for axis in axes[2 + used :]:
            axis.set_axis_off()
    figure.supxlabel(f"left: relative errors, {said_of_seeds(rows)}; maps: one seed, equal steps", fontsize=10)
    marks_of(figure)
    return figure


def draw_solution(figure, axes: list, equation: Equation, wrong: dict[str, np.ndarray]) -> int:
    """A solution, and where the methods err; how many axes that took."""
    x, exact, shape = equation.exact()
    axes[0].set_title("speed" if exact.shape[1] > 1 else "u", fontsize=10)
    if len(shape) == 1:
        axes[0].plot(x[:, 0], exact[:, 0], color="0.3")
        for method, error in wrong.items():
            axes[1].plot(x[:, 0], error, color=COLOURS[method])
        axes[1].set_yscale("log")
        axes[1].set_title("|error|", fontsize=10)
        return 2
    size = np.linalg.norm(exact, axis=1) if exact.shape[1] > 1 else exact[:, 0]
    extent = [end for side in equation.box for end in side]
    axes[0].imshow(size.reshape(shape), origin="lower", aspect="auto", extent=extent, cmap="viridis")
    errors = {method: error.reshape(shape) for method, error in wrong.items()}
    maps(figure, axes[1 : 1 + len(errors)], errors, extent)
    return 1 + len(errors)


def cases_of(settings: Settings) -> list[Case]:
    steps, cases = STEPS_OF[settings.effort], []
    for seed in range(FIRST_SEED, FIRST_SEED + settings.seeds):
        for name, equation in reversed(EQUATIONS.items()):  # the longest first
            for N in (equation.more, equation.fewer):
                tiny = settings.effort == Effort.tiny
                if not (tiny and N == equation.more):
                    shown = seed == FIRST_SEED and N == (equation.fewer if tiny else equation.more)
                    cases.append(Case(name, N, seed, steps * equation.longer, shown))
    return cases


def main(
    settings: Settings,
    times: Annotated[bool, typer.Option("--times", help="Only the times of a step: pde_times.csv.")] = False,
) -> None:
    console = Console()
    if times:
        return report_times(times_of_steps(settings), settings, NAME, console)
    records, drawn = trials(run_case, cases_of(settings), settings, NAME, console)
    order = list(EQUATIONS)
    records = sorted(records, key=lambda record: (order.index(record["equation"]), record["N"]))
    rows = summarise(records, ("equation", "N"), METRICS)
    note = f"a network of {DEPTH} layers of {WIDTH}; N: points inside; relative error of the solution"
    print_lines("Differential equations", rows, METRICS, console, settings, note)
    verdict(rows, console)
    pictures = dict(sorted(drawn.items(), key=lambda pair: order.index(pair[0].equation)))
    report(rows, draw(rows, pictures), settings, NAME, console)
    return None

"""Policies of Atari games distilled into students 19 times smaller, with and without derivatives.

The paper's second experiment (Czarnecki et al., 2017) on Breakout and Pong. A teacher, an MLP that `teach.py` has
taught by PPO, plays from the 128 bytes of the console's memory; students, MLPs of two hidden layers of 32, learn its
probabilities from states that it met. What they learn:

    ordinary   the teacher's probabilities alone, by their Kullback-Leibler divergence
    Sobolev    besides the derivatives of log-probabilities by the bytes, of one random combination of them at a time:
               the paper's form, projected outputs, `cotangents=Cotangents.sphere(1), head="log_softmax"`
    inputs     besides the derivatives of all log-probabilities along one random direction of the bytes at a time
    changing   as Sobolev, but by those bytes alone that ever change: of the others, most of the 128, the teacher never
               learnt anything, so that its derivatives there are arbitrary

Derivatives are weighed with 1 over the mean square of the teacher's, so that a loss of 1 is that of a student whose
log-probabilities do not depend on the state. With up to 10,000 states the teacher is asked once for all its
derivatives, whose projections are drawn anew at each step; with 100,000 states for one projection of each. The time of
asking counts at equal time, where whoever is quicker than the slowest takes more steps. All times are those of the
process, which others on its core do not change.

What is reported, on about 10,000 states of other games: the divergence from the teacher (KL), how often the likeliest
action is the same, the error of the derivatives of log-probabilities by bytes that change, over their size, and the
score of whole games that the student plays with its probabilities, beside that of the teacher and of random play.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import sobolev_kernels as sk
from examples.distillation.games import play
from examples.distillation.scores import MARKS, draw_scores, print_scores, scores_of, told_apart
from examples.distillation.states import states
from examples.distillation.teacher import Teacher, network
from examples.distillation.times import times as times_of_steps
from examples.distillation.training import Played, compare
from examples.lab import (
    Effort,
    Method,
    Outcome,
    Plan,
    Settings,
    curves,
    figure_of,
    legend_of,
    print_lines,
    report,
    summarise,
    trials,
    write_csv,
)
from examples.lab.training import STEPS, TIME, train

GAMES = ("Breakout", "Pong")
METRICS = ("KL", "agreement", "gradient")
HIGHER = ("agreement",)
HEAD = {"head": "log_softmax", "value_loss": "kl"}
WIDTH, JUDGED = 32, 500
PLAN = Plan(batch=128, lr=1e-3, schedule="cosine")
ASKED = 4096  # states at a time
ONCE = 10_000  # with more states the teacher is asked for one projection of each


@dataclass(frozen=True)
class Case:
    """Of one game, number of states and seed all methods; and how many games those of `PLAYED` play."""

    game: str
    N: int
    seed: int
    steps: int
    pool: int
    held_out: int
    games: int


PLAYED = ("ordinary", "sobolev")
BOUNDING = ("random", "teacher")


@dataclass(frozen=True)
class Extent:
    """Of an effort."""

    games: tuple[str, ...]
    sizes: tuple[int, ...]
    played: tuple[int, ...]
    steps: int
    held_out: int
    episodes: int
    bounding: int


EXTENTS = {
    Effort.full: Extent(GAMES, (100, 1000, 10_000, 100_000), (100, 10_000), 3000, 10_000, 8, 48),
    Effort.short: Extent(GAMES, (100, 1000), (100,), 1500, 2000, 4, 8),
    Effort.tiny: Extent(GAMES[:1], (50,), (50,), 20, 100, 1, 1),
}


@dataclass(frozen=True)
class Bound:
    """A player that is none of the students."""

    game: str
    player: str
    games: int


def run_bound(case: Bound) -> Outcome:
    teacher = Teacher.of(case.game)
    policy = teacher if case.player == "teacher" else lambda memory: torch.zeros(len(memory), teacher.actions)
    return Outcome([], {case.player: play(case.game, policy, case.games, seed=3)})


def taught(teacher: Teacher, memory: torch.Tensor, changing: int) -> tuple[dict[str, Method], dict[str, float]]:
    """Each method with its targets at these states, and the seconds that the teacher took to say them; the first
    columns are of bytes that change."""
    x = teacher.inputs(memory)
    projected = {
        "sobolev": {"cotangents": sk.Cotangents.sphere(1)},
        "inputs": {"directions": sk.Directions.sphere(1)},
        "changing": {"cotangents": sk.Cotangents.sphere(1), "wrt": tuple(range(changing))},
    }
    ask = partial(sk.Targets.from_teacher, teacher.net, batch_size=ASKED, **HEAD)
    start = time.process_time()
    with torch.no_grad():
        values = sk.Targets(values=torch.cat([teacher.net(part) for part in x.split(ASKED)]).log_softmax(1))
    seconds = {"ordinary": time.process_time() - start}
    methods = {"ordinary": Method(HEAD | {"weights": (1.0, 0.0)}, values)}
    start = time.process_time()
    whole = ask(x[:ONCE])
    seconds |= dict.fromkeys(projected, time.process_time() - start)
    for name, vectors in projected.items():
        jacobian = whole.jacobian[..., :changing] if "wrt" in vectors else whole.jacobian
        weighed = HEAD | {"weights": (1.0, 1 / jacobian.square().mean().item())}
        if len(x) <= ONCE:
            methods[name] = Method(weighed | vectors, whole.replace(jacobian=jacobian))
            continue
        start = time.process_time()
        along = ask(x, **vectors)
        seconds[name] = time.process_time() - start
        methods[name] = Method(weighed | {key: value for key, value in vectors.items() if key == "wrt"}, along)
    return methods, seconds


def jacobian(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of the log-probabilities [N, O, D], by plain autograd: the verdict does not rest on the library."""
    x = x.clone().requires_grad_()
    outputs = net(x).log_softmax(1).sum(0)
    return torch.stack([torch.autograd.grad(output, x, retain_graph=True)[0] for output in outputs], 1)


def judged(student: sk.MLP, teacher: Teacher, memory: torch.Tensor, changing: int) -> dict[str, float]:
    x = teacher.inputs(memory)
    with torch.no_grad():
        said, true = student(x).log_softmax(1), teacher.net(x).log_softmax(1)
    divergence = (true.exp() * (true - said)).sum(1).mean().item()
    agreement = (true.argmax(1) == said.argmax(1)).float().mean().item()
    found, slopes = (jacobian(net, x[:JUDGED])[..., :changing] for net in (student, teacher.net))
    error = (found - slopes).norm() / slopes.norm()
    return {"KL": divergence, "agreement": agreement, "gradient": error.item()}


def run(case: Case, folder: Path) -> Outcome:
    pool, held_out = states(case.game, case.pool, case.held_out, folder)
    changes = (pool != pool[0]).any(0)
    # Bytes that change come first: leading columns cost a kernel nothing to tell from the others.
    teacher, changing = Teacher.of(case.game).arranged((~changes).int().argsort(stable=True)), int(changes.sum())
    memory = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(case.seed))[: case.N]]
    torch.manual_seed(case.seed)
    first = network(teacher.actions, WIDTH)
    games = Played(
        lambda student: play(case.game, lambda m: student(teacher.inputs(m)), case.games, seed=100 + case.seed)
    )
    records = []
    x, methods, asking = teacher.inputs(memory), *taught(teacher, memory, changing)
    fit = lambda name, steps: train(first, methods[name], x, methods[name].targets, PLAN, steps, case.seed)  # noqa: E731
    for one in compare(fit, asking, case.steps):
        metrics = judged(one.student, teacher, held_out, changing)
        if case.games and one.method in PLAYED:
            metrics["score"] = games.mean(one)
        records.append(one.record(**metrics))
    return Outcome(records, games.drawn)


def verdicts(rows: list[dict], scores: list[dict]):
    """What came out, in words."""
    pairs = {}
    for row in rows:
        pairs.setdefault((row["budget"], row["game"], row["N"]), {})[row["method"]] = row["KL_median"]
    for budget in (STEPS, TIME):
        here = {key: kl["ordinary"] / kl["sobolev"] for key, kl in pairs.items() if key[0] == budget}
        won = sum(ratio > 1 for ratio in here.values())
        each = ", ".join(f"{ratio:.1f} ({game}, {N:,})" for (_, game, N), ratio in here.items())
        yield f"At equal {budget} Sobolev students are nearer to their teacher in {won} of {len(here)} rows; by {each}."
    yield from told_apart(scores, "sobolev", "ordinary")


def picture(rows: list[dict], scores: list[dict], games: tuple[str, ...]):
    """A row for each game: divergence against states, at equal steps and in equal time, and scores."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = figure_of((13, 3.6 * len(games) + 0.5))
    axes = figure.subplots(len(games), 3, squeeze=False)
    for game, (steps, timed, score) in zip(games, axes, strict=True):
        here = [row for row in rows if row["game"] == game]
        for axis, budget in ((steps, STEPS), (timed, TIME)):
            curves(axis, here, "N", "KL", methods, budget)
            axis.set(xlabel="states (bands: quartiles)", ylabel="held-out KL", title=f"{game}, equal {budget}")
        steps.sharey(timed)
        draw_scores(score, [row for row in scores if row["game"] == game], [PLAYED])
        score.set(title=f"{game}, played", xlabel="score ± 2 standard errors")
    legend_of(figure, methods, MARKS)
    return figure


def main(
    settings: Settings, times: Annotated[bool, typer.Option("--times", help="Only what a step costs.")] = False
) -> None:
    torch.set_num_threads(1)
    console = Console()
    if times:
        times_of_steps(PLAN.batch, 32, WIDTH, settings, console)
        return
    extent, folder = EXTENTS[settings.effort], settings.out / "distillation"
    cases = [
        Case(game, N, seed, extent.steps, max(extent.sizes), extent.held_out, extent.episodes * (N in extent.played))
        for seed, N, game in product(range(settings.seeds), extent.sizes, extent.games)
    ]
    for game in extent.games:
        with console.status(f"{game}: the teacher plays, {max(extent.sizes):,} states"):
            states(game, max(extent.sizes), extent.held_out, folder)
    bounding = [Bound(game, player, extent.bounding) for game in extent.games for player in BOUNDING]
    _, bounds = trials(run_bound, bounding, settings, "distillation_bounds", console)
    records, drawn = trials(partial(run, folder=folder), cases, settings, "distillation", console)
    rows = summarise(records, ("game", "N"), (*METRICS, "score"))
    scores = scores_of(drawn, bounds)
    print_lines("Students on other states", rows, METRICS[:2], console, settings, "", HIGHER)
    print_scores(scores, console, settings)
    write_csv(scores, settings.out / "distillation_scores.csv")
    report(rows, picture(rows, scores, extent.games), settings, "distillation", console)
    for sentence in verdicts(rows, scores):
        console.print(sentence, soft_wrap=True)

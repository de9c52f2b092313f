"""A policy of pixels, by convolutions, distilled from a teacher that plays Breakout from the console's memory.

The student sees the last four screens, 84 × 84, grey; the teacher, `teach.py`'s, plays from 128 bytes. So his
probabilities at a state are known, and his derivatives by its pixels do not exist. What stands for them is either of:

    differences   how his log-probabilities change from a state to the next one, as the derivative along the change of
                  the screens from the one to the next: a secant in place of a tangent, and all there is of him
    tangents      those of a teacher of pixels, 15 times larger than the student, that has learnt his probabilities from
                  24,000 states: its derivatives along the same changes of the screens

A difference tells what the teacher would say at the next state too. So there is a student that learns just that, by
values alone, from both states. The methods, by name of what they learn from:

    ordinary                  the teacher's probabilities, at N states
    next states too           the same, at N states and the N next ones
    Sobolev                   his probabilities and differences, at N states
    of pixels: ordinary       the probabilities of the teacher of pixels, at N states
    of pixels: Sobolev        his probabilities and tangents, at N states

Derivatives run through the student's own forward as pairs of a value and a tangent (the backend `streams`, which is
asserted). They are weighed with 0.1 over the mean square of their targets. All are judged by the teacher of memory, on
1,000 states of other games: the divergence from him (KL), how often the likeliest action is his, the error of the
change of log-probabilities to the next state over its size, and the score of whole games.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

import sobolev_kernels as sk
from examples.distillation.films import LEARNING, TEACHING, WHITE, Film, network, taught
from examples.distillation.games import play
from examples.distillation.scores import MARKS, draw_scores, print_scores, scores_of, told_apart
from examples.distillation.teacher import Teacher
from examples.distillation.training import Played, compare
from examples.lab import (
    METHODS,
    Effort,
    Method,
    Outcome,
    Plan,
    Settings,
    curves,
    figure_of,
    fused,
    legend_of,
    print_lines,
    report,
    run_command,
    summarise,
    trials,
    write_csv,
)
from examples.lab.training import STEPS, TIME

GAME = "Breakout"
METRICS = ("KL", "agreement", "change")
HEAD = {"head": "log_softmax", "value_loss": "kl"}
VALUES_ALONE = HEAD | {"weights": (1.0, 0.0)}
PLAN = Plan(batch=32, lr=1e-3, schedule="cosine")
PAIRS = ("ordinary", "sobolev"), ("pixel-ordinary", "pixel-sobolev")
WEIGHT = 0.1  # of derivatives, in units of their own mean square
LEARNT, HELD_OUT = 1, 2  # the seeds of their games


@dataclass(frozen=True)
class Case:
    """Of one number of states and seed all methods."""

    game: str
    N: int
    seed: int
    steps: int
    decisions: int
    teaching: int
    games: int


@dataclass(frozen=True)
class Bound:
    """The teacher of pixels, who is judged as students are."""

    game: str
    decisions: int
    teaching: int
    games: int


@dataclass(frozen=True)
class Extent:
    """Of an effort: decisions that are filmed, steps of the teacher of pixels and of students, games they play."""

    sizes: tuple[int, ...]
    decisions: int
    teaching: int
    steps: int
    games: int


EXTENTS = {
    Effort.full: Extent((1000, 4000), 24_000, 1500, 600, 8),
    Effort.short: Extent((200,), 3000, 100, 100, 4),
    Effort.tiny: Extent((20,), 160, 2, 2, 1),
}


@dataclass(frozen=True)
class Shown:
    """What there is to learn from: films of two seeds, and the teacher of pixels."""

    learnt: Film
    held_out: Film
    of_pixels: torch.nn.Sequential

    @classmethod
    def of(cls, game: str, decisions: int, teaching: int, folder: Path) -> Shown:
        """Made once, and kept in files."""
        folder.mkdir(parents=True, exist_ok=True)
        teacher, films = Teacher.of(game), []
        for seed, count in ((LEARNT, decisions), (HELD_OUT, max(decisions // 5, 80))):
            path = folder / f"film_{game}_{count}_{seed}.npz"
            if not path.exists():
                Film.of(game, teacher, count, seed).save(path)
            films.append(Film.load(path))
        path = folder / f"pixels_{game}_{decisions}_{teaching}.pt"
        if not path.exists():
            torch.save(
                taught(films[0], teacher.actions, teaching, seed=0).state_dict(), part := path.with_suffix(".part")
            )
            part.replace(path)
        net = network(teacher.actions, films[0].usual(), *TEACHING)
        net.load_state_dict(torch.load(path, weights_only=True))
        return cls(*films, net.requires_grad_(False))


def methods_of(film: Film, of_pixels: torch.nn.Sequential, places: np.ndarray) -> tuple[dict, dict, dict[str, float]]:
    """By name the inputs, the method with its targets, and the seconds that a teacher of pixels took to say them."""
    now, later = film.look(places), film.look(places, 1)
    said, said_later = film.said(places), film.said(places, 1)
    changes, parts = (later - now)[None], range(0, len(now), 250)
    differences = (said_later - said)[None]
    start = time.process_time()
    values = torch.cat([of_pixels(now[i : i + 250]).log_softmax(1) for i in parts])
    spent = time.process_time() - start
    start = time.process_time()
    tangents = sk.Targets.from_teacher(of_pixels, now, directions=sk.Directions.given(changes), batch_size=250, **HEAD)
    asking = dict.fromkeys(("ordinary", "next", "sobolev"), 0.0)
    asking |= {"pixel-ordinary": spent, "pixel-sobolev": time.process_time() - start}
    x = dict.fromkeys(asking, now) | {"next": torch.cat([now, later])}
    methods = {
        "ordinary": Method(VALUES_ALONE, sk.Targets(values=said)),
        "next": Method(VALUES_ALONE, sk.Targets(values=torch.cat([said, said_later]))),
        "sobolev": weighed(sk.Targets(values=said, tangents=differences, directions=changes)),
        "pixel-ordinary": Method(VALUES_ALONE, sk.Targets(values=values)),
        "pixel-sobolev": weighed(tangents),
    }
    return x, methods, asking


def weighed(targets: sk.Targets) -> Method:
    return Method(HEAD | {"weights": (1.0, WEIGHT / targets.tangents.square().mean().item())}, targets)


def trained(first: torch.nn.Module, x: torch.Tensor, method: Method, steps: int, seed: int) -> sk.History:
    """A copy by `sk.fit`; its derivatives by pairs, or it is refused. Values alone are the student's own forward."""
    student, targets, some = deepcopy(first), method.targets, slice(PLAN.batch)
    vectors = targets[some].directions
    taken = fused(student, x[some], *(() if vectors is None else (vectors,)), **method.settings)
    assert taken == ("reference" if vectors is None else "streams"), taken
    return sk.fit(
        student, x, targets, loss=sk.SobolevLoss(**method.settings), epochs=PLAN.epochs(len(x), steps),
        batch_size=PLAN.batch, lr=PLAN.lr, schedule=PLAN.schedule, progress=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


@torch.no_grad()
def judged(net: torch.nn.Module, film: Film) -> dict[str, float]:
    places = np.random.default_rng(0).permutation(film.places())[:1000]
    parts = [places[i : i + 250] for i in range(0, len(places), 250)]
    one, two = (torch.cat([net(film.look(part, later)).log_softmax(1) for part in parts]) for later in (0, 1))
    true, change = film.said(places), film.said(places, 1) - film.said(places)
    return {
        "KL": (true.exp() * (true - one)).sum(1).mean().item(),
        "agreement": (true.argmax(1) == one.argmax(1)).float().mean().item(),
        "change": ((two - one - change).norm() / change.norm()).item(),
    }


def played(net: torch.nn.Module, game: str, games: int, seed: int) -> np.ndarray:
    return play(game, lambda screens: net(screens.float() / WHITE), games, seed, screens=True)


def run(case: Case, folder: Path) -> Outcome:
    shown = Shown.of(case.game, case.decisions, case.teaching, folder)
    places = np.random.default_rng(case.seed).permutation(shown.learnt.places())[: case.N]
    torch.manual_seed(case.seed)
    first = network(shown.learnt.logarithms.shape[2], shown.learnt.usual(), *LEARNING)
    x, methods, asking = methods_of(shown.learnt, shown.of_pixels, places)
    games = Played(lambda student: played(student, case.game, case.games, seed=100 + case.seed))
    records = []
    fit = lambda name, steps: trained(first, x[name], methods[name], steps, case.seed)  # noqa: E731
    for one in compare(fit, asking, case.steps):
        records.append(one.record(**judged(one.student, shown.held_out), score=games.mean(one)))
    return Outcome(records, games.drawn)


def run_bound(case: Bound, folder: Path) -> Outcome:
    shown = Shown.of(case.game, case.decisions, case.teaching, folder)
    record = {"method": "pixel teacher", "budget": STEPS, "steps": case.teaching, "ms": 0.0}
    scores = played(shown.of_pixels, case.game, case.games, seed=3)
    return Outcome([record | judged(shown.of_pixels, shown.held_out)], {"pixel teacher": scores})


def verdicts(rows: list[dict], scores: list[dict], bound: dict):
    """What came out, in words."""
    yield (
        f"The teacher of pixels has a divergence of {bound['KL']:.3f} from the teacher of memory, and his likeliest "
        f"action in {bound['agreement']:.0%} of other states."
    )
    kl = {(row["budget"], row["N"], row["method"]): row["KL_median"] for row in rows}
    for name, other in (("sobolev", "ordinary"), ("sobolev", "next"), ("pixel-sobolev", "pixel-ordinary")):
        one, two = (METHODS.get(method, method) for method in (name, other))
        for budget in (STEPS, TIME):
            ratios = {N: kl[budget, N, other] / kl[budget, N, name] for N in sorted({row["N"] for row in rows})}
            each = ", ".join(f"{ratio:.2f} with {N:,} states" for N, ratio in ratios.items())
            yield f"At equal {budget} the divergence of “{two}” is that of “{one}” times {each}."
    for other, method in PAIRS:
        yield from told_apart(scores, method, other)


def picture(rows: list[dict], scores: list[dict]):
    """Divergence against states, at equal steps and in equal time, and scores."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = figure_of((14, 4.6))
    steps, timed, score = figure.subplots(1, 3)
    for axis, budget in ((steps, STEPS), (timed, TIME)):
        curves(axis, rows, "N", "KL", methods, budget)
        axis.set(xlabel="states (bands: quartiles)", ylabel="held-out KL", title=f"From pixels, equal {budget}")
    steps.sharey(timed)
    draw_scores(score, scores, PAIRS)
    score.set(title="played", xlabel="score ± 2 standard errors")
    legend_of(figure, methods, MARKS)
    return figure


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    console, extent, folder = Console(), EXTENTS[settings.effort], settings.out / "pixel_distillation"
    with console.status(f"{GAME}: filmed, and a teacher of pixels taught"):
        Shown.of(GAME, extent.decisions, extent.teaching, folder)
    cases = [
        Case(GAME, N, seed, extent.steps, extent.decisions, extent.teaching, extent.games)
        for seed, N in product(range(settings.seeds), extent.sizes)
    ]
    bounding = [Bound(GAME, extent.decisions, extent.teaching, 2 * extent.games)]
    (bound, *_), bounds = trials(partial(run_bound, folder=folder), bounding, settings, "pixel_teacher", console)
    records, drawn = trials(partial(run, folder=folder), cases, settings, "pixel_distillation", console)
    rows = summarise(records, ("game", "N"), (*METRICS, "score"))
    scores = scores_of(drawn, bounds)
    print_lines("Students on other states", rows, METRICS[:2], console, settings, higher=("agreement",))
    print_scores(scores, console, settings)
    write_csv(scores, settings.out / "pixel_distillation_scores.csv")
    report(rows, picture(rows, scores), settings, "pixel_distillation", console)
    for sentence in verdicts(rows, scores, bound):
        console.print(sentence, soft_wrap=True)


if __name__ == "__main__":
    run_command(main, full="5 minutes", short="30 seconds", seeds=(2, 1, 1))

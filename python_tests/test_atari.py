"""The distillation of policies: what students see and learn, who judges them, and that both commands run."""

import csv
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sobolev_kernels as sk
from examples.distillation.experiment import GAMES, HEAD, Bound, Case, jacobian, judged, taught
from examples.distillation.films import Film
from examples.distillation.games import COLUMNS, ROWS, Sight, console_of, play
from examples.distillation.scores import scores_of
from examples.distillation.teach import Units
from examples.distillation.teacher import BYTES, Teacher, network
from examples.distillation.training import Played, compare
from examples.lab.training import STEPS, TIME, Trained, fused
from sobolev_kernels.testing.rule import CLOSE_IN_SINGLE

ROOT = Path(__file__).parent.parent


def needs_atari():
    pytest.importorskip("ale_py", reason="ale-py is in the extra `examples`, and is not installed")
    pytest.importorskip("gymnasium", reason="gymnasium is in the extra `examples`, and is not installed")


def memory(N: int = 40) -> torch.Tensor:
    return torch.randint(256, (N, BYTES), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.long
@pytest.mark.parametrize("module", ["distillation", "distillation.pixels"])
def test_tiny_run_gives_tables_pictures_and_verdicts(module, tmp_path):
    needs_atari()
    name = "pixel_distillation" if module.endswith("pixels") else module
    command = [sys.executable, "-W", "error", "-m", f"examples.{module}", "--effort", "tiny", "--out", str(tmp_path)]
    run = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "a tiny run" in run.stdout and "At equal steps" in run.stdout and "At equal time" in run.stdout
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    methods = {row["method"] for row in rows}
    assert len(rows) == 2 * len(methods) and {"ordinary", "sobolev"} < methods
    assert all(float(row["KL_median"]) > 0 and float(row["ms"]) > 0 for row in rows)
    with (tmp_path / f"{name}_scores.csv").open() as file:
        scores = {row["player"]: row for row in csv.DictReader(file)}
    assert {"ordinary", "sobolev"} < scores.keys()
    assert all(float(row[f"score, equal {budget}"]) >= 0 for row in scores.values() for budget in (STEPS, TIME))


def test_without_the_games_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(SystemExit, match=r"pip install 'sobolev_kernels\[examples\]'"):
        console_of("Pong")


def test_a_kept_teacher_plays_far_better_than_chance():
    """Which scores 1.2; Pong, whose games are long, is left to the command."""
    needs_atari()
    assert play("Breakout", Teacher.of("Breakout"), 2, seed=0).mean() > 8


@pytest.mark.parametrize("game", GAMES)
def test_who_judges(game):
    """A teacher is without error, and its derivatives are those that the library makes targets of."""
    teacher = Teacher.of(game)
    found = judged(teacher.net, teacher, memory(), BYTES)
    assert found == {"KL": 0, "agreement": 1, "gradient": 0}
    x = teacher.inputs(memory())
    order = torch.randperm(BYTES)
    torch.testing.assert_close(teacher.arranged(order)(memory()), teacher(memory()), **CLOSE_IN_SINGLE)
    torch.testing.assert_close(
        jacobian(teacher.net, x), sk.Targets.from_teacher(teacher.net, x, **HEAD).jacobian, **CLOSE_IN_SINGLE
    )


def test_derivatives_are_in_units_of_their_own():
    """A student whose log-probabilities do not depend on the state has a loss of 1 in the mean over projections."""
    teacher = Teacher.of("Pong")
    methods, asking = taught(teacher, memory(), 40)
    assert methods.keys() == asking.keys()
    student, x = network(teacher.actions, 32), teacher.inputs(memory())
    torch.nn.init.zeros_(next(student.parameters()))
    for name in ("sobolev", "inputs", "changing"):
        weight = methods[name].settings["weights"][1]
        loss = sk.SobolevLoss(**methods[name].settings, return_terms=True)
        with warnings.catch_warnings():
            # That the same call is made again and again.
            warnings.simplefilter("ignore", sk.SobolevWarning)
            terms = [loss(student, x, methods[name].targets).derivative.item() for _ in range(100)]
        # Within four standard errors of the mean.
        assert abs(weight * np.mean(terms) - 1) < 4 * weight * np.std(terms) / 10, name


@pytest.mark.parametrize(("weights", "n"), [(ROWS, 210), (COLUMNS.T, 160)], ids=["rows", "columns"])
def test_screens_are_means_over_areas(weights, n):
    """Each is a mean, of pixels that it lies over, and all pixels count as much."""
    torch.testing.assert_close(weights.sum(1), torch.ones(84), **CLOSE_IN_SINGLE)
    torch.testing.assert_close(weights.sum(0), torch.full((n,), 84 / n), **CLOSE_IN_SINGLE)
    i, pixel = weights.nonzero().T
    assert (pixel + 1 > i * n / 84 - 1e-4).all() and (pixel < (i + 1) * n / 84 + 1e-4).all()


def test_students_see_in_a_film_what_they_see_in_a_game():
    """The last four screens of every state, across the beginnings of games."""
    T, n = 12, 2
    screens = np.random.default_rng(0).integers(256, size=(T, n, 84, 84)).astype(np.uint8)
    begun = np.zeros((T, n), bool)
    begun[[0, 0, 5, 6], [0, 1, 0, 1]] = True
    age = np.array([[t - max(s for s in range(t + 1) if begun[s, i]) for i in range(n)] for t in range(T)])
    film, now = Film(screens, torch.zeros(T, n, 4), age), {"t": 0}
    sight = Sight(SimpleNamespace(screens=lambda: screens[now["t"]]))
    for t in range(T):
        now["t"] = t
        shown = sight.look(begun[t]).float() / 255
        torch.testing.assert_close(film.look(np.array([[t, 0], [t, 1]])), shown, rtol=0, atol=0)
    places = film.places()
    assert len(places) == 2 * (T - 1) - 2 and not begun[places[:, 0] + 1, places[:, 1]].any()
    torch.testing.assert_close(film.look(places[:-2], 1), film.look(places[:-2] + np.array([1, 0])), rtol=0, atol=0)


def test_units_of_parts_are_those_of_all():
    units, parts = Units(), memory(60).split(20)
    for part in parts:
        units.add(part)
    whole = memory(60).double()
    torch.testing.assert_close(units.mean, whole.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(units.scale, (whole.var(0, correction=0) + 1).sqrt(), rtol=1e-5, atol=0)


def test_equal_time_has_the_teacher_in_it():
    """Who is quicker takes as many more steps as the slowest takes time for its steps and for asking."""
    seconds, asking, taken = {"quick": 5e-4, "slow": 2e-3}, {"quick": 0.0, "slow": 0.1}, []

    def fit(name: str, count: int) -> SimpleNamespace:
        end = time.process_time() + count * seconds[name]
        while time.process_time() < end:
            pass
        taken.append((name, count))
        return SimpleNamespace(steps=count, student=name)

    trained = {(one.method, one.budget): one for one in compare(fit, asking, 50)}
    assert trained["quick", STEPS].steps == trained["slow", STEPS].steps == trained["slow", TIME].steps == 50
    assert trained["quick", TIME].steps == pytest.approx((50 * 2e-3 + 0.1) / 5e-4, rel=0.1)


def test_scores_are_of_both_budgets():
    """Who is the same at equal steps and at equal time plays once, and counts in both."""
    students, plays = [torch.nn.Identity() for _ in range(3)], []

    def scored(student: torch.nn.Module) -> np.ndarray:
        plays.append(student)
        return np.full(2, float(students.index(student)))

    games = Played(scored)
    for method, budget, k in (("slow", STEPS, 0), ("slow", TIME, 0), ("quick", STEPS, 1), ("quick", TIME, 2)):
        assert games.mean(Trained(method, budget, students[k], 1, 1.0)) == k
    assert plays == students
    case, bound = Case("Pong", 100, 0, 1, 1, 1, 2), Bound("Pong", "random", 2)
    rows = scores_of({case: games.drawn}, {bound: {"random": np.array([3.0, 5.0])}})
    assert [(row["player"], row["score, equal steps"], row["score, equal time"]) for row in rows] == [
        ("random", 4, 4), ("slow", 0, 0), ("quick", 1, 2),
    ]  # fmt: skip


def test_a_student_of_pixels_of_values_alone_is_his_own_forward():
    """Which there is nothing to fuse of; any other way to the reference is refused."""
    student, x = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(4, 3)), memory(6)
    x = x[:, None, :4].float()
    assert fused(student, x, weights=(1.0, 0.0)) == "reference"
    with pytest.raises(RuntimeError, match="not trained by a fused step"):
        fused(student, x, sk.Directions.sphere(1), backend="reference")

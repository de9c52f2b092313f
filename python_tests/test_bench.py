"""The benchmark on tiny cases: everybody computes the same, a wrong result is never timed, all is written down."""

import csv
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from bench import __main__ as program
from bench import check, higher, planner, timing
from bench.baselines import BASELINES, STACKED, VALUES_ONLY, VMAP_JVP, Variant
from bench.cases import CASES, Case, in_double, make_data, make_student, project
from bench.memory import CLEAR, peak_memory
from bench.overhead import overhead, pieces
from bench.report import CRASHES, MEASURED, RED
from bench.variants import OURS, VARIANTS, variants_of

TINY = [
    Case(8, 3, 4, 2, 1, 1),
    Case(8, 1, 4, 3, 1, 5),
    Case(9, 3, 5, 2, 4, 3),
    Case(7, 2, 4, 0, 2, 2),
]
EAGER = [(n, c) for n, v in BASELINES.items() for c in TINY if v.derivatives and not v.compiled and v.applies(c)]
QUICK = program.Settings(rounds=2, seconds=0.0, memory=False, compiled=False)
QUIET = Console(quiet=True)


def ascii_id(value) -> str:
    return value.ascii if isinstance(value, Case) else str(value)


@pytest.fixture(autouse=True)
def small_probe(monkeypatch):
    monkeypatch.setattr(timing, "SGEMM_SIZE", 32)


def result_of(variant: Variant, case: Case):
    """Loss and gradients in float64, with directions given."""
    loss, gradients = variant.build(case, *in_double(make_student(case), make_data(case)))()
    return loss, list(gradients)


@pytest.mark.parametrize(("name", "case"), EAGER, ids=ascii_id)
def test_baselines_agree_in_float64(name, case):
    """The reference here is the whole Jacobian by torch.func, which is none of the baselines."""
    student, data = in_double(make_student(case), make_data(case))
    jacobian = torch.func.vmap(torch.func.jacrev(student))(data.x)
    slopes = project(jacobian, data.directions) - data.tangents
    loss = (student(data.x) - data.y).square().mean() + slopes.square().mean()
    expected = loss.detach(), list(torch.autograd.grad(loss, tuple(student.parameters())))
    torch.testing.assert_close(result_of(BASELINES[name], case), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", TINY, ids=ascii_id)
def test_formulas_of_the_compiled_baselines(case):
    expected = result_of(BASELINES[VMAP_JVP], case)
    for variant in BASELINES.values():
        if variant.compiled and variant.applies(case):
            got = result_of(replace(variant, build=variant.uncompiled), case)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", TINY, ids=ascii_id)
def test_values_only_is_the_ordinary_step(case):
    student, data = in_double(make_student(case), make_data(case))
    loss = torch.nn.functional.mse_loss(student(data.x), data.y)
    expected = loss.detach(), list(torch.autograd.grad(loss, tuple(student.parameters())))
    torch.testing.assert_close(result_of(BASELINES[VALUES_ONLY], case), expected)


def test_jacobian_of_the_data_is_that_of_its_values():
    data = make_data(replace(TINY[2], N=4))
    torch.manual_seed(1)
    torch.randn(4, 3)
    A = torch.randn(3, 4)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: torch.sin(x @ A)))(data.x)
    torch.testing.assert_close(data.jacobian, jacobian)


@pytest.mark.parametrize("case", CASES, ids=ascii_id)
def test_flops_of_a_case(case):
    widths = [case.D, *[case.H] * case.hidden, case.O]
    products = sum(a * b for a, b in pairwise(widths))
    assert case.flops == 6 * (1 + min(case.P, case.O)) * case.N * products


def read(folder) -> list[dict[str, str]]:
    (path,) = folder.glob("bench-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_end_to_end(tmp_path):
    assert program.benchmark(TINY, QUICK, tmp_path, QUIET) == 0
    rows = read(tmp_path)
    wanted = [(case.N, name) for case in TINY for name in variants_of(case, compiled=False)]
    assert [(int(row["N"]), row["variant"]) for row in rows] == wanted
    for row in rows:
        assert row["outcome"] == MEASURED, row
        assert 0 < float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])
        assert all(row[name] for name in ("commit", "device", "cores", "threads", "torch", "python", "dtype", "flops"))
        assert bool(row["of_sgemm"]) == (row["variant"] != VALUES_ONLY)


def wrong(build):
    """A variant whose last gradient is off by a thousandth."""

    def build_wrong(*arguments):
        loss, gradients = build(*arguments)()
        return lambda: (loss, (*gradients[:-1], gradients[-1] * 1.001))

    return build_wrong


@pytest.mark.parametrize("name", [OURS, VMAP_JVP, STACKED])
def test_red_check_is_not_timed(name, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], build=wrong(VARIANTS[name].build)))
    monkeypatch.setattr(program, "interleave", lambda *_: pytest.fail("timed"))
    assert program.benchmark(TINY[:1], QUICK, tmp_path, QUIET) == 1
    for row in read(tmp_path):
        assert row["outcome"] == RED and name in row["error"] and not row["median_ms"]


def test_a_compiled_step_is_checked_itself():
    build = BASELINES[STACKED].build
    with pytest.raises(check.RedCheck, match="what the compiler made"):
        check.prepare(TINY[2], {"what the compiler made": Variant(wrong(build), uncompiled=build)})


def crash(*_):
    raise RuntimeError("ZeroTensors are immutable\nand much more")


def test_a_baseline_that_crashes_is_a_word_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, STACKED, Variant(crash))
    assert program.benchmark(TINY[:1], QUICK, tmp_path, QUIET) == 0
    outcomes = {row["variant"]: (row["outcome"], row["error"]) for row in read(tmp_path)}
    assert outcomes[STACKED] == (CRASHES, "RuntimeError: ZeroTensors are immutable")
    assert outcomes[OURS] == (MEASURED, "")


def test_the_library_may_not_crash():
    with pytest.raises(RuntimeError, match="ZeroTensors"):
        check.prepare(TINY[0], {OURS: Variant(crash, ours=True)})


def test_everybody_has_one_turn_a_round_in_changing_order():
    seen = []
    steps = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = timing.interleave(steps, rounds=4, seconds=0)
    rounds = ["".join(seen[i : i + 3]) for i in range(0, 12, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"} and len(set(rounds)) > 1
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux's /proc")
def test_peak_memory_of_one_step():
    """The stacked streams keep [1 + P, N, H] for every hidden layer, to the backward; and not the whole process."""
    case = Case(4096, 4, 64, 2, 1, 4)
    least = case.hidden * (1 + case.P) * case.N * case.H * 4
    assert least <= peak_memory(case, STACKED) <= 20 * least


def test_overhead_has_a_line_for_each_piece():
    assert overhead(rounds=2, turn=0).row_count == len(pieces())


def test_jax_that_is_not_installed_is_refused_in_words(monkeypatch, capsys):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        program.main(["--jax"])
    assert "jax is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "contest",
    [
        lambda: higher.exact(16, 3, 8, 2, "softplus"),
        lambda: higher.second(16, 3, 8, 2, 2, 2),
        lambda: higher.laplacian(16, 3, 8, 2),
    ],
    ids=["exact", "second", "laplacian"],
)
def test_higher_derivatives_are_the_same_number(contest, monkeypatch):
    """Eagerly: what is compiled is the same function."""
    monkeypatch.setattr(higher.torch, "compile", lambda function: function)
    torch.manual_seed(0)
    contest = contest()
    higher.check(contest)
    assert len(contest.losses) >= 3
    contest.losses["wrong"] = lambda: torch.tensor(-1.0)
    with pytest.raises(AssertionError, match="wrong gives -1"):
        higher.check(contest)


@pytest.mark.parametrize("shape", [(16, 3, 8, 1, 1, 2), (16, 3, 8, 1, 2, None)], ids=["directions", "exact"])
def test_planner_row(shape, monkeypatch):
    monkeypatch.setattr("bench.planner.sgemm", lambda: lambda: None)
    cells = planner.row(shape, rounds=2, seconds=0)
    assert len(cells) == 7 and cells[5] == "gradients"
    assert all(float(cell) >= 0 for cell in cells[1:5])

"""The benchmark on tiny cases: everybody computes the same, a wrong result is never timed, all is written down."""

import csv
import io
import pickle
import sys
import types
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from bench import __main__ as program
from bench import (
    calls,
    epoch,
    estimates,
    jax_worker,
    partial_ways,
    partials,
    partials_table,
    planner,
    readme,
    taylor,
    twice,
)
from bench.equations import EQUATIONS
from bench.jax_baseline import idleness
from bench.memory import peak_memory
from bench.overhead import DIFFERENCES, SMALLEST, overhead, pieces
from bench.resident import CLEAR
from bench.variants import JAX, VARIANTS, left_out, variants_of
from ptx import missing
from ptx.compile import missing as missing_tool
from sobolev_kernels import planner as sides
from sobolev_kernels.backends import cpu
from sobolev_kernels.enums import GRADIENTS
from sobolev_kernels.testing.speed import check, measure, timing
from sobolev_kernels.testing.speed.baselines import BASELINES, STACKED, VALUES_ONLY, VMAP_JVP, Variant
from sobolev_kernels.testing.speed.cases import (
    CASES,
    DRAWN,
    EVERY,
    EXACT,
    FIRST,
    GROUPS,
    LAPLACIAN,
    MOST_FLOPS,
    SECOND,
    SMALL,
    SMALL_CASES,
    TAUGHT,
    TEACHER,
    TEACHER_WIDTH,
    VJP,
    Case,
    draw_cases,
    in_double,
    make_data,
    make_student,
    make_teacher,
    project,
)  # fmt: skip
from sobolev_kernels.testing.speed.higher import HIGHER, JET, NESTED, STREAMS
from sobolev_kernels.testing.speed.measure import CRASHES, MEASURED, RED
from sobolev_kernels.testing.speed.taught import TAUGHT_BASELINES, distance
from sobolev_kernels.testing.speed.variants import OURS, PLAIN

TINY = [
    Case(8, 3, 4, 2, 1, 1),
    Case(8, 1, 4, 3, 1, 5),
    Case(9, 3, 5, 2, 4, 3),
    Case(7, 2, 4, 0, 2, 2),
    Case(8, 3, 4, 2, 1, kind=EXACT),
    Case(7, 2, 4, 3, 3, kind=EXACT, activation="softplus"),
    Case(9, 3, 5, 2, 4, 3, kind=SECOND),
    Case(8, 1, 4, 1, 1, 1, kind=SECOND),
    Case(7, 3, 4, 2, 1, kind=LAPLACIAN),
    Case(8, 3, 4, 1, 2, 1, kind=TEACHER, activation="silu"),
    Case(8, 3, 4, 2, 3, 1, kind=VJP, activation="gelu", name="distillation"),
]
PEERS = BASELINES | HIGHER | TAUGHT_BASELINES
# Of the first order, in every activation that baselines by hand know
ACTIVATIONS = [Case(5, 2, 4, 2, 2, 2, activation=name) for name in ("sigmoid", "softplus", "silu", "gelu")]
EAGER = [
    (name, case)
    for case in TINY + ACTIVATIONS
    for name, variant in variants_of(case, compiled=False).items()
    if variant.derivatives and not variant.ours
]
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


def by_torch_func(case: Case):
    """Loss and gradients from whole Jacobians and Hessians of single samples, which is none of the baselines."""
    student, data = in_double(make_student(case), make_data(case))
    y, jacobian = student(data.x), torch.func.vmap(torch.func.jacrev(student))(data.x)
    if case.kind in TAUGHT:
        teacher, (u,) = make_teacher(case).double(), data.cotangents
        target, slopes = teacher(data.x), torch.func.vmap(torch.func.jacrev(teacher))(data.x)
        errors = torch.einsum("no,nod->nd", u, jacobian - slopes).square()
        values = distance(y, target) if case.kind == VJP else (y - target).square().mean()
        loss = values + (errors.sum(1).mean() if case.kind == VJP else errors.mean())
        return loss.detach(), list(torch.autograd.grad(loss, tuple(student.parameters())))
    hessian = torch.func.vmap(torch.func.hessian(student))(data.x)
    if case.kind == LAPLACIAN:
        loss = (y + torch.einsum("nodd->no", hessian)).square().mean()
    else:
        predictions = [jacobian] if case.kind == EXACT else [project(jacobian, data.directions)]
        if case.kind == SECOND:
            predictions.append(torch.einsum("node,pnd,pne->pno", hessian, data.directions, data.directions))
        loss = (y - data.y).square().mean()
        for prediction, target in zip(predictions, data.derivatives, strict=True):
            loss = loss + (prediction - target).square().mean()
    return loss.detach(), list(torch.autograd.grad(loss, tuple(student.parameters())))


@pytest.mark.parametrize(("name", "case"), EAGER, ids=ascii_id)
def test_baselines_agree_in_float64(name, case):
    torch.testing.assert_close(result_of(PEERS[name], case), by_torch_func(case), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", TINY, ids=ascii_id)
def test_formulas_of_the_compiled_baselines(case):
    expected = result_of(PEERS[PLAIN[case.kind]], case)
    for variant in (PEERS | JAX).values():
        if variant.compiled and variant.applies(case):
            got = result_of(replace(variant, build=variant.uncompiled), case)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [case for case in TINY if case.kind not in (LAPLACIAN, *TAUGHT)], ids=ascii_id)
def test_values_only_is_the_ordinary_step(case):
    student, data = in_double(make_student(case), make_data(case))
    loss = torch.nn.functional.mse_loss(student(data.x), data.y)
    expected = loss.detach(), list(torch.autograd.grad(loss, tuple(student.parameters())))
    torch.testing.assert_close(result_of(BASELINES[VALUES_ONLY], case), expected)


def test_data_are_those_of_one_function():
    case = Case(4, 3, 5, 2, 4, 3)
    data, second = make_data(case), make_data(replace(case, kind=SECOND))
    torch.manual_seed(1)
    torch.randn(4, 3)
    A = torch.randn(3, 4)
    f = lambda x: torch.sin(x @ A)  # noqa: E731
    torch.testing.assert_close(data.jacobian, torch.func.vmap(torch.func.jacrev(f))(data.x))
    hessian = torch.func.vmap(torch.func.hessian(f))(data.x)
    seconds = torch.einsum("node,pnd,pne->pno", hessian, second.directions, second.directions)
    torch.testing.assert_close(second.seconds, seconds)
    torch.testing.assert_close(second.tangents, data.tangents)


@pytest.mark.parametrize("case", EVERY, ids=ascii_id)
def test_flops_of_a_case(case):
    """Of the Laplacian: products of the forward (values, tangents, sum), then all with two adjoints each, and the
    tangents once more. A teacher has a forward of its own."""
    widths = [case.D, *[case.H] * case.hidden, case.O]
    products = sum(a * b for a, b in pairwise(widths))
    counts = {
        FIRST: 3 * (1 + min(case.P, case.O)),
        EXACT: 3 * (1 + min(case.D, case.O)),
        SECOND: 3 * (1 + 2 * case.P),
        LAPLACIAN: (1 + case.D + 1) + (3 + 3 * case.D + 3) + case.D,
        TEACHER: 3 * 2,
        VJP: 3 * 2,
    }
    teacher = 2 * (case.D * TEACHER_WIDTH + TEACHER_WIDTH**2 + TEACHER_WIDTH * case.O) if case.kind in TAUGHT else 0
    assert case.flops == 2 * case.N * (counts[case.kind] * products + teacher)


def read(folder, what: str = "bench") -> list[dict[str, str]]:
    (path,) = folder.glob(f"{what}-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_end_to_end(tmp_path):
    assert program.benchmark(TINY, QUICK, tmp_path, QUIET) == 0
    rows = read(tmp_path)
    wanted = [(case.kind, case.N, name) for case in TINY for name in variants_of(case, compiled=False)]
    assert [(row["kind"], int(row["N"]), row["variant"]) for row in rows] == wanted
    for row in rows:
        assert row["outcome"] == MEASURED, row
        assert 0 < float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])
        assert all(row[name] for name in ("commit", "device", "cores", "threads", "torch", "python", "dtype", "flops"))
        assert bool(row["of_sgemm"]) == VARIANTS[row["variant"]].derivatives


def wrong(build):
    """A variant whose last gradient is off by a thousandth."""

    def build_wrong(*arguments):
        loss, gradients = build(*arguments)()
        return lambda: (loss, (*gradients[:-1], gradients[-1] * 1.001))

    return build_wrong


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, TINY[0]) for name in (OURS, VMAP_JVP, STACKED)),
        *((OURS, case) for case in TINY if case.kind != FIRST),
        (NESTED, TINY[6]),
        (STREAMS, TINY[6]),
    ],
    ids=ascii_id,
)
def test_red_check_is_not_timed(name, case, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], build=wrong(VARIANTS[name].build)))
    monkeypatch.setattr(measure, "interleave", lambda *_: pytest.fail("timed"))
    assert program.benchmark([case], QUICK, tmp_path, QUIET) == 1
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
    cases = [SMALLEST, replace(TINY[4], name="exact")]
    ratio = 1
    assert overhead(cases, rounds=2, turn=0).row_count == len(pieces(cases[1])) + len(DIFFERENCES) + ratio


def test_one_process_computes_while_the_other_waits():
    """The worker's end of the pipe, and a step that is timed there."""
    calls = []
    build = lambda *numbers: lambda: calls.append(numbers) or (numbers[0], [(numbers[1], numbers[1])])  # noqa: E731
    requests = [("build", 1.0, 2.0), ("time", 0, 3), ("time", 7, 1)]
    answers = io.BytesIO()
    jax_worker.serve(io.BytesIO(b"".join(map(pickle.dumps, requests))), answers, build)
    answers.seek(0)
    built, timed, failed = (pickle.load(answers) for _ in requests)
    assert built[0] == (0, 1.0, [[2.0, 2.0]]) and 0 < timed[0] < 1 and timed[2] < 1
    assert calls == [(1.0, 2.0)] * (1 + 1 + 3) and failed[1].startswith("IndexError")


def test_a_step_of_another_process_has_its_own_clock():
    class There:
        def seconds(self, calls):
            return 1.0 / calls

    assert timing.interleave({"there": There()}, rounds=2, seconds=0, turn=4.0) == {"there": [0.25, 0.25]}


@pytest.mark.parametrize("name", JAX)
def test_jax_computes_the_same(name):
    pytest.importorskip("jax")
    cases = [case for case in TINY + ACTIVATIONS if JAX[name].applies(case)]
    for case in cases:
        step = check.prepare(case, {name: JAX[name]}).steps[name]
        assert step.seconds(2) > 0
    assert cases and "of a core" in idleness()


def test_drawn_cases_are_small_and_those_of_their_seed():
    cases = draw_cases(40, seed=1)
    assert cases == draw_cases(40, seed=1) != draw_cases(40, seed=2)
    for case in cases:
        assert all(low <= getattr(case, name) <= high for name, (low, high) in DRAWN.items())
        assert case.flops <= MOST_FLOPS and case.group == SMALL and make_student(case)
    assert {case.kind for case in cases} == {FIRST, EXACT} and len({case.activation for case in cases}) == 5


def test_readme_tells_who_is_faster(tmp_path, monkeypatch):
    """Of one large case and one small one, with the times of a tiny one."""
    large, small = Case(8, 3, 4, 2, 1, 1), Case(8, 3, 4, 2, 1, kind=EXACT, name="forces")
    monkeypatch.setattr(readme, "EVERY", [large, small])
    assert program.benchmark([large, small], QUICK, tmp_path, QUIET) == 0
    (path,) = tmp_path.glob("bench-*.csv")
    found = readme.read([path])
    found[str(small)]["double backward"]["times_fused"] = "0.5"
    found[str(small)]["double backward"]["median_ms"] = "0"
    first, _, second, told = readme.tables(found)
    assert [len(table.splitlines()) for table in (first, second)] == [3, 3]
    assert "**0.50×** double backward |" in second and "faster in 1 of 1 cases" in told


def test_groups_are_chosen(monkeypatch, tmp_path):
    chosen = []
    monkeypatch.setattr(program, "benchmark", lambda cases, *_: chosen.append(list(cases)) or 0)
    arguments = (
        ["--large"], ["--small"], [], ["--group", "second", "laplacian"], ["--case", "0", "8"], ["--higher"],
        ["--random", "3", "--seed", "4"],
    )  # fmt: skip
    for some in arguments:
        assert program.main([*some, "--results", str(tmp_path)]) == 0
    large, small, both, groups, by_number, higher, drawn = chosen
    assert {case.kind for case in higher} == {EXACT, SECOND, LAPLACIAN}
    assert {case.kind for case in large} == {FIRST} and {case.kind for case in groups} == {SECOND, LAPLACIAN}
    assert small == SMALL_CASES and drawn == draw_cases(3, seed=4)
    # one case is in both tables
    assert both == [*large[1:], *small] and by_number == [CASES[0], CASES[8]]
    assert {case.group for case in EVERY} == set(GROUPS)


def test_a_package_that_is_not_installed_is_a_line(monkeypatch):
    monkeypatch.setattr("sobolev_kernels.testing.speed.baselines.installed", lambda package: False)
    assert not any(variant.needs for case in TINY for variant in variants_of(case).values())
    assert left_out([TINY[0]]) == ["JAX, jit is left out: jax is not installed"]
    (line,) = left_out([TINY[6]])
    assert line.startswith(f"{JET} is left out: {JET} is not installed")


@pytest.mark.parametrize("case", [case for case in TINY if case.kind == SECOND], ids=ascii_id)
def test_jets_whoever_computes_them(case, monkeypatch):
    """Our side of the call of jet-for-pytorch, which has no release for every Python, on nested forward mode."""

    def jet(function, mock_args):
        def of_function(series):
            x, v, _ = series
            first = lambda x: torch.func.jvp(function, (x,), (v,))  # noqa: E731
            (y, tangent), (_, second) = torch.func.jvp(first, (x,), (v,))
            return y, tangent, second

        return of_function

    monkeypatch.setitem(sys.modules, "jet", types.SimpleNamespace(jet=jet))
    torch.testing.assert_close(result_of(HIGHER[JET], case), by_torch_func(case), rtol=1e-12, atol=1e-14)


SIDES = [Case(16, 3, 8, 1, 1, 2), Case(16, 3, 8, 1, 2, kind=EXACT), Case(16, 2, 8, 1, 3, kind=EXACT)]


def test_planner_against_the_clock(tmp_path):
    planner.measure_sides(SIDES, rounds=2, seconds=0.0, folder=tmp_path, console=QUIET)
    rows = read(tmp_path, "planner")
    assert [(row["kind"], row["side"]) for row in rows] == [(c.kind, side) for c in SIDES for side in planner.SIDES]
    for row, other in zip(rows[::2], rows[1::2], strict=True):
        assert {row["chosen"], other["chosen"]} == {row["faster"], other["faster"]} == {"True", "False"}
    assert [row["side"] for row in rows if row["chosen"] == "True"] == ["gradients", "gradients", "tangents"]
    products = [3 * 8 + 8 * 1, 3 * 8 + 8 * 2, 2 * 8 + 8 * 3]
    streams = [2, 1, 3, 2, 2, 3]
    assert [int(row["flops"]) for row in rows] == [6 * (1 + c) * 16 * products[i // 2] for i, c in enumerate(streams)]
    assert all(float(row["estimate_ms"]) > 0 and float(row["median_ms"]) > 0 for row in rows)


def test_a_side_is_forced_and_let_go():
    before, taken = sides.side, []
    step = planner.forced(GRADIENTS)(SIDES[0], make_student(SIDES[0]), make_data(SIDES[0]))
    plan = cpu.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "plan", lambda problem, N: taken.append(sides.side(problem)) or plan(problem, N))
        step()
    assert set(taken) == {GRADIENTS} and sides.side is before


def test_shapes_of_the_planner_have_two_sides():
    assert len(planner.SHAPES) == 10 and {case.kind for case in planner.SHAPES} == {FIRST, EXACT}
    assert {planner.chosen(case) for case in planner.SHAPES} == set(planner.SIDES)


@pytest.mark.skipif(bool(missing() or missing_tool("triton") or missing_tool("nvcc")), reason="needs nvcc and triton")
def test_estimates_for_gpus():
    """Of a case that both backends take in one launch, and of one that goes layer by layer."""
    narrow, wide = Case(512, 3, 16, 2, 1, 2), Case(256, 64, 1024, 3, 16, 4)
    rows = list(estimates.rows([narrow, wide], ["bf16"]))
    assert [(row["case"], row["GPU"]) for row in rows] == [
        (str(c), g.name) for c in (narrow, wide) for g in estimates.GPUS
    ]
    assert all(row["Triton µs"] > 0 and row["eager µs"] > row["Triton µs"] for row in rows)
    fused, refused = rows[: len(estimates.GPUS)], rows[len(estimates.GPUS) :]
    assert all(row["CUDA launches"] == 2 and "in registers" in row["CUDA"] for row in fused)
    assert all(row["CUDA µs"] > 0 and "tile of" in row["CUDA"] and "on chip" in row["Triton"] for row in fused)
    assert all(row["CUDA"] == "refused" and "layer by layer" in row["Triton"] for row in refused)


@pytest.mark.skipif(bool(missing() or missing_tool("triton")), reason="needs triton")
def test_estimates_of_calls(monkeypatch):
    """Of a narrow student in one launch each way, and layer by layer."""
    for name, value in {"WIDTH": 16, "DEPTH": 2}.items():
        monkeypatch.setattr(calls, name, value)
    one, other = calls.rows(["cosine, P=2"], ["tf32"])
    assert (one[3], other[3]) == ("8", "12") and 8 * 2.5 <= float(one[4]) < float(other[4])


@pytest.mark.parametrize("kind", twice.KINDS)
def test_second_derivatives_of_any_student(kind):
    """All ways give the same before anything is timed."""
    assert twice.measured("residual MLP", kind, 4, 2, 2, rounds=2, seconds=0).keys() == twice.WAYS.keys()


def test_an_epoch_of_fit_is_that_of_the_loop_by_double_backward():
    epoch.check(*epoch.problem(), worker=None)


@pytest.mark.parametrize("name", EQUATIONS)
def test_ways_to_a_residual_agree(name):
    ways = (partial_ways.OURS, partial_ways.NESTED, partial_ways.FUNC, partial_ways.STREAMS)
    assert set(partials.steps_of(name, 5, 2, 6, ways)) == set(ways)


@pytest.mark.parametrize("collapses", [True, False])
@pytest.mark.parametrize("name", EQUATIONS)
def test_series_along_directions_make_the_derivatives(name, collapses):
    task = partial_ways.task_of(name, EQUATIONS[name], 4, 2, 3)
    series = taylor.series_of(task.rows, task.x.shape[1], collapses)
    for row, parts in zip(task.rows, series.rows, strict=True):
        degree = sum(row[0][1])
        for e in {e for _, e, _ in row} if degree else ():
            total = 0.0
            for part in parts:
                bundle = series.bundles[part.bundle]
                along = bundle.along if bundle.collapsed and degree == bundle.order else [bundle.along[part.r]]
                total += part.coefficient * sum(taylor.expanded(v, e) for v in along)
            assert total == pytest.approx(sum(c for _, of, c in row if of == e))


def test_a_residual_is_measured_and_kept(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    arguments = ["--partials", "KdV", "--shape", "0", "--rounds", "2", "--seconds", "0", "--no-compile"]
    options = program.parse([*arguments, "--way", "nested autograd.grad", "--results", str(tmp_path)])
    partials.measure_partials(options, console)
    (row,) = csv.DictReader((tmp_path / "partials.csv").read_text().splitlines())
    assert row["equation"] == "KdV" and float(row["sk.residual_loss"]) > 0 and not row["JAX jet"]
    (line,) = partials_table.lines_of(partials_table.rows_of(tmp_path / "partials.csv", "ms"), "ms")[2:]
    assert line.startswith("| KdV | 20×5 | 1024 | ") and line.endswith("× | – | – | – | – | – | – | – |")

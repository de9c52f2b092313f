"""The command line: what it prints, its JSON, its exit codes, and what it says where it cannot."""

import json
import subprocess
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from typer.testing import CliRunner

import sobolev_kernels as sk
from sobolev_kernels.backends import core, cpu
from sobolev_kernels.command import tables, timed
from sobolev_kernels.command.line import app
from sobolev_kernels.testing import verify
from sobolev_kernels.testing.compare import on_device
from sobolev_kernels.testing.speed import measure, timing
from sobolev_kernels.testing.speed.baselines import DOUBLE_BACKWARD
from sobolev_kernels.testing.speed.cases import EXACT, Case
from sobolev_kernels.testing.speed.variants import OURS, VARIANTS, fused

FILE = """
import torch
assert __name__ != "__main__"
student = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
number = 3


class Convolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.inner(x).mean((2, 3))


def needs(width):
    return student
"""


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def one_place(*checks):
    """`verify` of the first instruction set in float32, and of these checks alone."""
    few = lambda student, every=verify.checks: {n: c for n, c in every(student).items() if n in checks}  # noqa: E731
    place = verify.Place("cpu", core._C.instruction_sets()[0][0])
    return patch.multiple(verify, places=lambda: iter([place]), checks=few)


@pytest.mark.long
def test_verify():
    """Everything that runs here is right, at every place, and says how right."""
    result = run("verify", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = found["checks"]
    assert found["right"] and {row["outcome"] for row in rows} <= {"right", "refused", "not here"}
    for name, _ in core._C.instruction_sets():
        here = [row for row in rows if row["where"] == name]
        assert {row["dtype"] for row in here} == {"float32", "float64"} and len(here) == 32
        assert all(row["outcome"] == "right" for row in here)
        assert all(0 < row["error_over_allowed"] <= 1 for row in here if row["check"] != "the same bits twice")
    assert {row["backend"] for row in rows} == {"cpu", "cuda", "triton", "streams", "reference"}


def test_what_verify_takes_to_a_device():
    """A teacher too; of the CPU the targets as they are."""
    targets = sk.Targets(teacher=torch.nn.Linear(2, 1), values=torch.ones(3, 1))
    there = on_device(targets, "meta")
    assert there.values.is_meta and there.teacher.weight.is_meta and on_device(targets, "cpu") is targets


@pytest.mark.parametrize("asked", [[], ["--all"], ["--json"]], ids=str)
def test_verify_finds_what_is_wrong(asked):
    def wrong(problem, operands, outputs, gradients, right=cpu.run):
        right(problem, operands, outputs, gradients)
        gradients[0].view(-1)[0] += 1e-3

    with one_place("loss along directions", "exact loss"), patch.object(cpu, "run", wrong):
        result = run("verify", *asked)
    assert result.exit_code == 1
    assert ('"right": false' if asked == ["--json"] else "NOT RIGHT") in result.output
    assert "wrong" in result.output and "d0.weight" in result.output


def test_verify_says_what_fails():
    with one_place("exact loss"), patch.object(cpu, "run", side_effect=RuntimeError("no memory")):
        result = run("verify")
    assert result.exit_code == 1 and "RuntimeError: no memory" in result.output


def test_verify_leaves_the_environment(monkeypatch):
    monkeypatch.setenv("SOBOLEV_ISA", "baseline")
    with one_place("exact loss"):
        assert run("verify").exit_code == 0
    assert verify.os.environ["SOBOLEV_ISA"] == "baseline"


def test_info():
    found = json.loads(run("info", "--json").stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["instruction sets of the core"].split(", ")[-1] == "baseline"
    assert "first derivatives" in found["backends"]["cpu"]["computes"]
    assert found["backends"]["streams"]["computes"] == ["a student that is no MLP"]
    if not torch.cuda.is_available():
        assert found["backends"]["cuda"] == {"missing": cuda_is_missing()}
    shown = run("info").output
    assert "compiled core" in shown and "refuses" in shown


def cuda_is_missing():
    from sobolev_kernels.backends import cuda

    return cuda.MISSING or "PyTorch finds no GPU"


def test_info_says_what_is_missing():
    with patch.object(core, "MISSING", "the compiled core is missing"):
        found = json.loads(run("info", "--json").stdout)
    assert found["compiled core"] == {"missing": "the compiled core is missing"}
    assert found["backends"]["cpu"]["refuses"].keys() == {"the compiled core is missing"}


def test_explain(file):
    result = run("explain", f"{file}:student")
    assert result.exit_code == 0 and "3 -> 8 -> 1" in result.output and "-> cpu" in result.output
    found = json.loads(run("explain", f"{file}:student", "--exact", "--json").stdout)
    assert found["backend"] == "cpu" and found["cuda"].startswith("refused") and "N = 256" in found["cotangents"]
    found = json.loads(run("explain", f"{file}:Convolution", "--shape", "8,3,10,10", "--json").stdout)
    assert found["backend"] in ("streams", "reference") and "conv2d" in found["operations"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{}:nothing"], "has no nothing; of torch.nn.Module it has: student, Convolution"),
        (["{}:studnt"], "did you mean 'student'?"),
        (["{}:student.inner"], "Sequential has no inner"),
        (["{}:number"], "expected a torch.nn.Module, got int"),
        (["{}:needs"], "without arguments"),
        (["{}:Convolution"], "--shape 256,3,32,32"),
        (["{}:student", "--shape", "3"], "expected whole numbers"),
        (["{}:student", "--shape", "8,4"], "inputs"),
        (["{}:student", "--backend", "cda"], "did you mean 'cuda'"),
        (["{}.nothing:student"], "there is no file"),
        (["no.such.module:student"], "no module that can be imported from here"),
        (["student"], "expected FILE:STUDENT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_explain_refuses_in_words(file, arguments, words):
    result = run("explain", *(argument.format(file) for argument in arguments))
    assert result.exit_code == 2 and words in result.output, result.output


def test_explain_of_a_module_beside_others(tmp_path, monkeypatch):
    """A file finds what lies beside it, from anywhere; a module is imported from where one is; names have dots."""
    package = tmp_path / "package_of_a_test"
    package.mkdir()
    (package / "net_of_a_test.py").write_text(FILE, encoding="utf-8")
    whole = (
        "from types import SimpleNamespace\nfrom net_of_a_test import student\ntrainer = SimpleNamespace(net=student)"
    )
    (package / "train.py").write_text(whole, encoding="utf-8")
    before = sys.path[:]
    assert "3 -> 8 -> 1" in run("explain", f"{package / 'train.py'}:trainer.net").output
    monkeypatch.chdir(tmp_path)
    assert "3 -> 8 -> 1" in run("explain", "package_of_a_test.net_of_a_test:student").output
    assert sys.path == before


@pytest.mark.parametrize(
    "code, words",
    [
        ("\nraise ValueError('no data')", "ValueError: no data, in line 2"),
        ("import no_such_package", "No module named 'no_such_package', in line 1"),
        ("def f(:", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3, in line 2"),
    ],
)
def test_explain_of_a_file_that_fails(file, code, words):
    file.write_text(code, encoding="utf-8")
    result = run("explain", f"{file}:student")
    assert result.exit_code == 2 and words in result.output and '__name__ == "__main__"' in result.output


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(timed, "chosen", lambda: [Case(8, 3, 4, 2, 1, 1), Case(7, 2, 4, 1, 3, kind=EXACT)])
    monkeypatch.setattr(timed, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "SGEMM_SIZE", 32)
    monkeypatch.setattr(measure, "TURN", 0.0)


def test_bench(tiny):
    result = run("bench", "--no-compile", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["right"] and found["where"]["torch"] == torch.__version__ and len(found["cases"]) == 2
    for case in found["cases"]:
        ways = {way["way"]: way for way in case["ways"]}
        assert ways[OURS]["times_fused"] == 1 and {DOUBLE_BACKWARD, "stacked", "values only"} <= ways.keys()
        assert all(way["outcome"] == "measured" and 0 < way["q1_ms"] <= way["q3_ms"] for way in ways.values())
    shown = run("bench", "--no-compile").output
    assert "double backward" in shown and ("times our time" in shown or "measure again" in shown)


def test_bench_says_what_was_disturbed():
    """A multiply that takes longer in one case than in another, or in some rounds than in others."""
    case = Case(8, 3, 4, 2, 1, 1)
    rows = lambda ours, other: [  # noqa: E731
        measure.Row(name, VARIANTS[name], measure.MEASURED, seconds=timing.Quartiles(time, time, time))
        for name, time in ((OURS, ours), (DOUBLE_BACKWARD, other))
    ]
    results = [
        measure.CaseResult(case, rows(1e-3, 3e-3), timing.Quartiles(1.0, 1.0, 1.1)),
        measure.CaseResult(case, rows(1e-3, 90e-3), timing.Quartiles(1.0, 1.1, 2.0)),
        measure.CaseResult(case, rows(1e-3, 80e-3), timing.Quartiles(1.9, 2.0, 2.1)),
        measure.CaseResult(case, rows(4e-3, 2e-3), timing.Quartiles(1.0, 1.1, 1.2)),
    ]
    unsteady = timed.disturbed(results)
    assert unsteady == [False, True, True, False]
    noisy, said = map(str, tables.of_all(results, unsteady))
    assert noisy.count(str(case)) == 2
    assert "0.50 to 3.00 times" in said and "faster in 1 of 2 cases" in said
    (_, said) = map(str, tables.of_all(results[1:2], [True]))
    assert "measure again" in said


def test_bench_gives_no_time_of_what_is_wrong(tiny, monkeypatch):
    def wrong(*arguments):
        loss, gradients = fused(*arguments)()
        return lambda: (loss * 1.001, gradients)

    monkeypatch.setitem(VARIANTS, OURS, replace(VARIANTS[OURS], build=wrong))
    assert run("bench", "--no-compile").exit_code == 1
    found = json.loads(run("bench", "--no-compile", "--json").stdout)
    assert not found["right"] and not any("median_ms" in way for case in found["cases"] for way in case["ways"])


def test_bench_compiles_nothing_when_time_is_short(tiny):
    hours = iter([0.0, 0.0, 3600.0])
    with patch.object(timed, "measure", lambda case, variants, *_: list(variants)):
        (first, none), (second, late) = timed.timed(timed.chosen(), True, lambda: next(hours))
    assert "stacked, compiled" in first and not none and "by hand, compiled" not in first
    assert late == ["stacked, compiled", "jacrev, compiled"] and not set(late) & set(second)


def test_bench_has_small_and_large_cases_of_three_kinds():
    cases = timed.chosen()
    assert (
        len(set(cases)) == 5
        and len({case.kind for case in cases}) == 3
        and {bool(c.name) for c in cases} == {True, False}
    )


def test_without_typer_it_says_so():
    code = "import sys; sys.modules['typer'] = None; import sobolev_kernels.command as c; sys.exit(c.main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "pip install 'sobolev_kernels[cli]'" in result.stderr


def test_as_a_module():
    result = subprocess.run([sys.executable, "-m", "sobolev_kernels", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "verify" in result.stdout


def test_version():
    assert run("--version").output == f"{sk.__version__}\n"

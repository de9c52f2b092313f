"""The fuzzer: some of its cases, with nothing found; and faults planted in the package, each of which it finds."""

import inspect
from dataclasses import fields
from functools import lru_cache
from itertools import islice

import pytest

import sobolev_kernels as sk
from python_tests import fuzz
from python_tests.fuzzing import compare, oracle
from python_tests.fuzzing.cases import Case, case_of
from python_tests.fuzzing.plants import PLANTS

PARTS, CASES = 6, 30


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_found(part):
    found = [
        f"{case.changes()}: {outcome.findings}"
        for case in (case_of(13, number) for number in range(part * CASES, (part + 1) * CASES))
        if (outcome := compare.run(case)).findings
    ]
    assert not found, "\n".join(found)


def test_every_loss_is_written_out_in_the_oracle():
    assert set(oracle.RHO) == set(sk.LOSSES) and set(oracle.COUPLED) == set(sk.COUPLED)


def test_every_argument_of_the_loss_is_tried():
    asked = set(inspect.signature(sk.sobolev_loss).parameters)
    named = {"student", "reduction", "return_terms", "value_loss", "derivative_loss", "weights", "order", "wrt"}
    named |= {"input_scale", "sample_weight", "output_weight", "derivative_weight", "head"}
    assert named <= {field.name for field in fields(Case)}
    # x and targets have many fields, the three projections one, and every backend is tried
    several = {"inputs", "targets", "directions", "cotangents", "derivatives", "backend"}
    # looked at by tests of their own
    assert asked - named - several == {"precision", "check_finite", "input_jacobian"}


MOST = 12


@lru_cache(maxsize=1)
def small_cases():
    return [case for case in (case_of(17, number) for number in range(3000)) if small(case)]


def small(case):
    few = max(case.D, case.O, case.P, *case.hidden, 1) <= 8 and 1 <= case.N <= 17
    return few and case.recognised and case.dtype in ("float64", "float32") and case.mode == "grad"


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(plant, monkeypatch):
    backend, put, shows = PLANTS[plant]
    tried = list(islice(filter(shows, small_cases()), MOST))
    put(monkeypatch)
    assert any(compare.run(case, [backend]).findings for case in tried), [case.changes() for case in tried]


def test_a_finding_is_shown_with_the_command_that_shows_it_again(monkeypatch, capsys):
    PLANTS["a bias without gradient"].put(monkeypatch)
    case = next(case for case in small_cases() if compare.run(case, ["cpu"]).findings)
    assert fuzz.main(["--seed", "17", "--case", str(case.number), "--shrink"]) == 1
    shown = capsys.readouterr().out
    changes = shown.split("--set ")[1].splitlines()[0].strip('"')
    assert "cpu: dparameter" in shown and len(changes) < len(case.changes())
    assert fuzz.main(["--seed", "17", "--case", str(case.number), "--set", changes]) == 1
    monkeypatch.undo()
    assert fuzz.main(["--seed", "17", "--case", str(case.number), "--set", changes]) == 0

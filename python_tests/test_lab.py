"""What all experiments share, where something is missing, a clock stands still, or a training has diverged."""

import importlib
import inspect
import math
import runpy
import sys
import time
import types
from functools import partial
from pathlib import Path

import pytest
import torch

import sobolev_kernels as sk
from examples import lab
from examples.lab import Plan, compare, summarise
from examples.lab.command import as_it_stands
from examples.lab.lines import lines_of
from examples.lab.training import VALUES_ALONE, Method
from examples.lab.trials import Kept


def test_a_clock_that_stands_still_makes_all_methods_equally_quick(monkeypatch):
    monkeypatch.setattr(time, "process_time", lambda: 1.0)
    x = torch.rand(8, 2)
    targets = sk.Targets(values=x[:, :1], jacobian=torch.rand(8, 1, 2))
    methods = {"ordinary": VALUES_ALONE, "sobolev": Method({"derivatives": "exact"})}
    trained = compare(sk.MLP(2, 1, width=8, depth=2), methods, x, targets, Plan(8, 1e-3, "cosine"), steps=2, seed=0)
    assert len(trained) == 4 and all(one.steps == 2 and 0 < one.ms < math.inf for one in trained)


def test_what_has_diverged_is_neither_the_best_nor_in_its_way():
    of = {"N": 10, "budget": "steps", "steps": 2, "ms": 0.1}
    errors = {"broken": math.nan, "ordinary": 0.2, "sobolev": 0.1}
    rows = summarise([of | {"method": name, "error": error} for name, error in errors.items()], ("N",), ("error",))
    (lines,) = lines_of(rows, ("error",))
    assert [(line[2].text, line[2].best) for line in lines] == [("nan", False), ("0.2", False), ("0.1", True)]


def test_missing_packages_are_told_in_words_before_anything_runs(monkeypatch):
    for name in ("rich", "typer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"rich, typer cannot be imported: pip install 'sobolev_kernels\[examples\]'"):
        runpy.run_path(lab.__file__)


def test_no_experiment_changes_what_methods_are_called_in_all():
    for name in ("forces", "regression", "synthetic_gradients", "field", "differential_ml"):
        importlib.import_module(f"examples.{name}.experiment")
    assert lab.METHODS["sobolev"] == "Sobolev"


def test_lists_keep_their_lines_in_the_help():
    text = "About.\n\nThese:\n\n    one  first\n    two  second\n\nAnd more."
    assert as_it_stands(text) == "About.\n\nThese:\n\n\b\n    one  first\n    two  second\n\nAnd more."


def test_records_survive_a_run_that_is_stopped_at_its_beginning(tmp_path, monkeypatch):
    first = Kept(tmp_path, fresh=False)
    first.path.write_text('{"case": {"N": 1}, "records": []}\n{"case": {"N"')

    def stopped(path, text, *args, **kwargs):
        path.open("w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        Kept(tmp_path, fresh=False)
    monkeypatch.undo()
    assert list(Kept(tmp_path, fresh=False).records) == ['{"N": 1}']


def test_a_data_set_of_the_same_name_is_another_case_when_it_has_changed(monkeypatch):
    experiment = importlib.import_module("examples.synthetic_gradients.experiment")
    labelled = inspect.getmodule(experiment.load)
    cases = []
    for scale in (1.0, 2.0):
        module = types.ModuleType("mine")
        i = torch.arange(40.0)
        module.make = partial(torch.utils.data.TensorDataset, torch.stack([scale * i, i], 1), (i % 2).long())
        monkeypatch.setitem(sys.modules, "mine", module)
        labelled.load.cache_clear()
        labelled.content_of.cache_clear()
        cases.append(experiment.of_case("mine:make", "critic", (0.1, 0.1), 10, 0, "steps"))
    labelled.load.cache_clear()
    labelled.content_of.cache_clear()
    assert cases[0] != cases[1] and cases[0].data == cases[1].data

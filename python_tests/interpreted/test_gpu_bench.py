"""The GPU benchmark's own way, on tiny sizes and in the interpreter, so that it works the first time."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from bench import gpu
from sobolev_kernels.testing.speed.cases import Case

ROOT = Path(__file__).parents[2]
CASES = [Case(20, 3, 8, 2, 1, 2)]


def test_check_then_time(tmp_path):
    # Triton's interpreter knows nothing of TF32, and computes wrong in bfloat16
    who = [
        ("triton", "ieee"),
        ("triton", "fp16"),
        ("cuda", "ieee"),
        (gpu.REFERENCE, "ieee"),
        (gpu.DOUBLE_BACKWARD, "ieee"),
    ]
    rows = gpu.measure(CASES, "cpu", 1, tmp_path / "times.csv", who)
    assert [(row["backend"], row["precision"]) for row in rows] == who
    refused = [row["backend"] for row in rows if "refused: backend: expected cuda" in row["note"]]
    assert refused == ["cuda"]
    assert all(float(row["eager_us"]) > 0 and float(row["error_over_rule"]) < 1 for row in rows if not row["note"])


def test_contestants_that_are_not_ours(tmp_path, monkeypatch):
    """Streams in bfloat16 by autocast; a gradient of scalar students alone; tiny-cuda-nn, which stands for itself."""

    def network(n_in, n_out, how):
        assert how["otype"] == "FullyFusedMLP" and (how["n_neurons"], how["n_hidden_layers"]) == (8, 2)
        return torch.nn.Sequential(torch.nn.Linear(n_in, 8), torch.nn.Tanh(), torch.nn.Linear(8, n_out))

    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Network=network))
    monkeypatch.setattr(gpu, "installed", lambda package: package == "tinycudann")
    who = gpu.contestants()
    assert (gpu.COMPILED, "bf16") in who and (gpu.TINY, "fp16") in who and (gpu.COMPILED_GRADIENT, "ieee") in who
    several = [*CASES, Case(20, 3, 8, 2, 2, 2)]
    assert [gpu.takes_part(case, gpu.COMPILED_GRADIENT) for case in several] == [True, False]
    rows = gpu.measure(CASES, "cpu", 1, tmp_path / "times.csv", [("stacked", "bf16"), (gpu.TINY, "fp16")])
    assert all(float(row["eager_us"]) > 0 for row in rows)
    assert (
        float(rows[0]["error_over_rule"]) > 0 and rows[1]["error_over_rule"] == "" and "not checked" in rows[1]["note"]
    )


def test_it_goes_on_where_it_ended(tmp_path, monkeypatch):
    path, who = tmp_path / "times.csv", [("triton", "ieee"), (gpu.REFERENCE, "ieee")]
    row_of = gpu.row_of

    def dies(case, backend, *rest):
        if backend == gpu.REFERENCE:
            raise KeyboardInterrupt
        return row_of(case, backend, *rest)

    monkeypatch.setattr(gpu, "row_of", dies)
    try:
        gpu.measure(CASES, "cpu", 1, path, who)
    except KeyboardInterrupt:
        pass
    assert [row["backend"] for row in gpu.read(path)] == ["triton"]
    rows = gpu.measure(CASES, "cpu", 1, path, who)
    assert [row["note"] for row in rows] == ["", gpu.DIED]
    assert "microseconds" in gpu.table_of(rows).title


def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch):
    wrong = lambda case, backend, *rest: (lambda: (torch.zeros(()), tuple(torch.zeros_like(p) for p in ps)), student)  # noqa: E731
    student = gpu.make_student(CASES[0])
    ps = tuple(student.parameters())
    monkeypatch.setattr(gpu, "step_of", wrong)
    (row,) = gpu.measure(CASES, "cpu", 1, tmp_path / "times.csv", [("triton", "ieee")])
    assert "allowed" in row["note"] and not row["eager_us"]


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "nothing was measured" in capsys.readouterr().out


def test_a_day_on_a_gpu_goes_its_way(tmp_path):
    environment = os.environ | {"DRY": "1", "PY": sys.executable, "OUT": str(tmp_path), "BUDGET": "1000"}
    done = subprocess.run(["bash", "bench/gpu_day.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0 and "rc" not in done.stdout, done.stdout + log[-3000:]
    verdicts = [row[4] for row in csv.reader((tmp_path / "correct.csv").read_text().splitlines())]
    assert len(verdicts) >= 20 and set(verdicts) == {"ok"}
    rows = gpu.read(tmp_path / "times.csv")
    assert len(rows) == 6 and not any(row["note"] for row in rows)

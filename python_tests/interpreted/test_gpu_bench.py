"""The GPU benchmark's own way, on tiny sizes and in the interpreter, so that it works the first time."""

import csv

import torch
from rich.console import Console

from bench import gpu
from bench.cases import Case


def test_check_then_time(tmp_path):
    # Triton's interpreter knows nothing of TF32, and computes wrong in bfloat16
    settings = {"rounds": 1, "folder": tmp_path, "console": Console(quiet=True), "precisions": ["ieee", "fp16"]}
    path = gpu.measure([Case(20, 3, 8, 2, 1, 2)], "cpu", **settings)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["backend"] for row in rows] == ["triton", "triton", "reference"]
    assert all(float(row["ms"]) > 0 for row in rows)


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "nothing was measured" in capsys.readouterr().out

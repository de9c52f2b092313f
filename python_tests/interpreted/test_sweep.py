"""The sweep's own way, on tiny sizes and in the interpreter, so that it works the first time."""

import torch
from rich.console import Console

from bench import sweep


def test_a_sweep(capsys):
    grid = [(16, 4, 16, 32), (32, 4, 16, None), (24, 4, 16, 32)]
    rows = list(sweep.one_launch_rows([32], ["ieee"], "cpu", rounds=1, N=20, grid=grid))
    assert len(rows) == 1 and rows[0]["ms"] >= rows[0]["best_ms"] > 0
    assert "left out: Launch(width=32, block=24" in capsys.readouterr().out
    (short,) = sweep.one_launch_rows([32], ["ieee"], "cpu", rounds=1, N=20, grid=grid, seconds=0)
    assert rows[0]["tried"] == 3 and short["tried"] == 1  # the row there is
    layers = list(sweep.layer_rows([160], ["fp16"], "cpu", rounds=1, N=20))
    changes = sweep.report(rows, layers, Console(quiet=True))
    assert changes[-1] in [f"FUSED_UP_TO = {{'fp16': {width}}}, of the widths measured" for width in (0, 160)]


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sweep.main([]) == 1
    assert "nothing was measured" in capsys.readouterr().out

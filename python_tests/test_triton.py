"""Triton's kernels: interpreted, in a process of its own; and without a GPU refused in words."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sobolev_kernels as sk

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.mark.parametrize("part", range(6))
def test_interpreted(part):
    """Each sixth test, so that several of these processes can run at a time."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", str(HERE / "interpreted"), f"--part={part}/6"]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_without_a_gpu_triton_is_refused_in_words():
    with pytest.raises(NotImplementedError, match="tensors are on cpu, not on a GPU"):
        sk.sobolev_loss(sk.MLP(2, 1, width=4), torch.zeros(3, 2), sk.Targets(teacher=torch.sum), backend="triton")

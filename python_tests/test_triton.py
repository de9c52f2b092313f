"""Triton's kernels: interpreted, in a process of its own; and without a GPU refused in words."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest
import torch

import sobolev_kernels as sk

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def interpreter_fails() -> bool:
    """Triton 3.6 takes arrays of one number for numbers, which in NumPy 2.4 is an error ("only 0-dimensional...")."""
    release = lambda text: tuple(map(int, text.split(".")[:2]))  # noqa: E731
    return release(version("triton")) < (3, 7) and release(numpy.__version__) >= (2, 4)


# Each process imports torch and triton anew: the two long files have one each, the short ones share one.
LONG = ("test_gpu_bench.py", "test_triton_steps.py")
SHORT = tuple(sorted({path.name for path in (HERE / "interpreted").glob("test_*.py")} - {*LONG}))


@pytest.mark.skipif("interpreter_fails()", reason="triton 3.6 interprets nothing with NumPy 2.4 and later")
@pytest.mark.long
@pytest.mark.parametrize("files", [LONG[1:], LONG[:1], SHORT], ids=" ".join)
def test_interpreted(files):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", *(str(HERE / "interpreted" / name) for name in files)]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_without_a_gpu_triton_is_refused_in_words():
    with pytest.raises(NotImplementedError, match="tensors are on cpu, not on a GPU"):
        sk.sobolev_loss(sk.MLP(2, 1, width=4), torch.zeros(3, 2), sk.Targets(teacher=torch.sum), backend="triton")

"""Every output that a backend is given to fill starts as NaN, so one that is left unwritten fails its test.

`--perturb UNITS` runs the tests as on another machine, whose PyTorch rounds differently. (Not those that look at how a
call goes: within it every call is traced.) SOBOLEV_CORE=PATH runs them with another build of the core.
`--default-device` and `--default-dtype` run them under other defaults of torch.
"""

import gc
import importlib.util
import os
import sys
from contextlib import nullcontext

import pytest
import torch

if path := os.environ.get("SOBOLEV_CORE"):
    spec = importlib.util.spec_from_file_location("sobolev_kernels._C", path)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

from sobolev_kernels import ops
from sobolev_kernels.partials import core_loss, fused, fused_towers, launched_loss
from sobolev_kernels.testing.compare import forget
from sobolev_kernels.testing.rule import MACHINE, perturbed

# Triton reads TRITON_INTERPRET once: test_triton.py runs these in a process of their own
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") else ["python_tests/interpreted"]


def poisoned(*size, **options):
    return torch.full(*size, torch.nan, **options)


@pytest.fixture(autouse=True)
def poison_outputs(monkeypatch):
    monkeypatch.setattr(ops, "empty", poisoned)
    monkeypatch.setattr(fused, "empty", poisoned)
    for module in (core_loss, fused_towers, launched_loss):
        monkeypatch.setattr(module, "empty", poisoned)
    poisoned_like = lambda like, **how: torch.full_like(like, torch.nan, requires_grad=False, **how)  # noqa: E731
    for module in (ops, fused, core_loss, fused_towers, launched_loss):
        monkeypatch.setattr(module, "empty_like", poisoned_like)


def pytest_addoption(parser):
    parser.addoption("--perturb", type=int, default=0, help="units in the last place that PyTorch is off by")
    parser.addoption("--default-device", default=None, help="torch's default device within a test")
    parser.addoption("--default-dtype", default=None, help="torch's default dtype within a test")


def pytest_collection_modifyitems(items):
    """Long tests are begun first, then those of compiled kernels, which take seconds, so that at the end, among the
    thousands that take milliseconds, no worker is waited for."""
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, not item.nodeid.startswith("ptx/")))


def pytest_collection_finish():
    """The modules and the tests stay: no collection of garbage looks at their millions of objects again; and it is
    seldom that one looks for any, which took a tenth of the time of all that is compiled."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def nothing_kept():
    """Each test begins with a call that goes the long way."""
    forget()


@pytest.fixture(autouse=True)
def another_machine(request):
    units = request.config.getoption("--perturb")
    with perturbed(units, operations=MACHINE) if units else nullcontext():
        yield


@pytest.fixture(autouse=True)
def other_defaults(request):
    device, dtype = (request.config.getoption(name) for name in ("--default-device", "--default-dtype"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype) if dtype else before)
    with torch.device(device) if device else nullcontext():
        yield
    torch.set_default_dtype(before)

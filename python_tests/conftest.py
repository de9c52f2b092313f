"""Every output that a backend is given to fill starts as NaN, so one that is left unwritten fails its test."""

import pytest
import torch
from known_gaps import KNOWN_GAPS

from sobolev_kernels import ops


def poisoned(*size, **options):
    return torch.full(*size, torch.nan, **options)


@pytest.fixture(autouse=True)
def poison_outputs(monkeypatch):
    monkeypatch.setattr(ops, "empty", poisoned)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("python_tests/") in KNOWN_GAPS:
            item.add_marker(pytest.mark.xfail(reason="known gap, see known_gaps.py", strict=False))

"""The fused step and its eager streams under pytest-benchmark, an eighth of the samples: `make bench-pytest`.

Never fails on time. `python -m bench` is the measurement to quote: it takes turns and knows the multiply rate.
"""

from dataclasses import replace

import pytest

from sobolev_kernels.testing.speed.baselines import STACKED
from sobolev_kernels.testing.speed.cases import CASES
from sobolev_kernels.testing.speed.check import prepare
from sobolev_kernels.testing.speed.higher import COLLAPSED, STREAMS
from sobolev_kernels.testing.speed.variants import OURS

from .variants import VARIANTS

SCALED = [replace(case, N=max(16, case.N // 8)) for case in CASES]
STEPS = [(c, name) for c in SCALED for name in (OURS, STACKED, STREAMS, COLLAPSED) if VARIANTS[name].applies(c)]


@pytest.fixture
def poison_outputs():
    """Not here: what conftest.py fills with NaN for the tests would be timed too."""


@pytest.mark.parametrize(("case", "name"), STEPS, ids=lambda value: getattr(value, "ascii", value))
def test_step(benchmark, case, name):
    step = prepare(case, {name: VARIANTS[name]}).steps[name]
    benchmark.group = str(case)
    benchmark.extra_info["flops"] = case.flops
    benchmark(step)

"""The fused step and the stacked streams under pytest-benchmark, an eighth of the samples: `make bench-pytest`.

Never fails on time. `python -m bench` is the measurement to quote: it takes turns and knows the multiply rate.
"""

from dataclasses import replace

import pytest

from .baselines import STACKED
from .cases import CASES
from .check import prepare
from .variants import OURS, VARIANTS

SCALED = [replace(case, N=max(16, case.N // 8)) for case in CASES]


@pytest.mark.parametrize("name", [OURS, STACKED])
@pytest.mark.parametrize("case", SCALED, ids=lambda case: case.ascii)
def test_step(benchmark, case, name):
    step = prepare(case, {name: VARIANTS[name]}).steps[name]
    benchmark.group = str(case)
    benchmark.extra_info["flops"] = case.flops
    benchmark(step)

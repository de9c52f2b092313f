"""Peak memory of one step, in a process of its own: `python -m bench.memory CASE VARIANT` prints bytes.

The peak is VmHWM, reset just before the step, less the memory then in use. (Not ru_maxrss: it cannot be reset, and a
child inherits the maximum of the process that started it.)
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

from sobolev_kernels.testing.speed.baselines import Variant
from sobolev_kernels.testing.speed.cases import Case, make_data, make_student

from .variants import variants_of

ROOT = Path(__file__).parents[1]
CLEAR = Path("/proc/self/clear_refs")
# malloc gives freed tensors back at once, so that none of them hides a part of the next peak.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def tiny(case: Case) -> Case:
    """The same structure: what a first call leaves behind for good is not the step's."""
    limits = {"N": 2, "D": 2, "H": 4, "O": 2, "P": 2}
    return replace(case, **{name: min(getattr(case, name), most) for name, most in limits.items()})


def build(case: Case, variant: Variant):
    return variant.build(case, make_student(case), make_data(case))


def measure(case: Case, variant: Variant) -> int:
    """Bytes; includes the gradients, which every variant leaves behind."""
    build(tiny(case), variant)()
    step = build(case, variant)
    if variant.compiled:
        # its compiler would count
        step()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = resident("VmRSS")
    result = step()
    after = resident("VmHWM")
    del result
    return after - before


def peak_memory(case: Case, name: str) -> int | None:
    """Bytes of one step of a variant; None where the system does not say (not Linux), or the variant crashes."""
    if not CLEAR.exists():
        return None
    command = [sys.executable, "-m", "bench.memory", json.dumps(astuple(case)), name]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(case: str, name: str) -> None:
    row = Case(*json.loads(case))
    print(measure(row, variants_of(row)[name]))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Peak memory of one step, in a process of its own: `python -m bench.memory CASE VARIANT` prints bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import astuple, replace

from sobolev_kernels.testing.speed.baselines import Variant
from sobolev_kernels.testing.speed.cases import Case, make_data, make_student

from .resident import ENVIRONMENT, ROOT, can_tell, peak_of
from .variants import variants_of


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
    return peak_of(step)


def peak_memory(case: Case, name: str) -> int | None:
    """Bytes of one step of a variant; None where the system does not say (not Linux), or the variant crashes."""
    if not can_tell():
        return None
    command = [sys.executable, "-m", "bench.memory", json.dumps(astuple(case)), name]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(case: str, name: str) -> None:
    row = Case(*json.loads(case))
    print(measure(row, variants_of(row)[name]))


if __name__ == "__main__":
    main(*sys.argv[1:])

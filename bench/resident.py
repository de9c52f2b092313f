"""The memory that a process takes at most in a step, as the system counts it, whoever allocates.

The peak is VmHWM, reset just before the step, less the memory then in use. (Not ru_maxrss: it cannot be reset, and a
child inherits the maximum of the process that started it.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLEAR = Path("/proc/self/clear_refs")
# malloc gives freed tensors back at once, so that none of them hides a part of the next peak.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def can_tell() -> bool:
    """Not where it is not Linux."""
    return CLEAR.exists()


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_of(step: Callable[[], object]) -> int:
    """Bytes; includes what the step leaves behind, as gradients."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = resident("VmRSS")
    result = step()
    after = resident("VmHWM")
    del result
    return after - before

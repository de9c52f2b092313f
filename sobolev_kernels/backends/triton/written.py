"""The scripts that were written, of all that takes launches of this backend; no Triton is needed to look at them."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .script import Script

# By all that they depend on. A script holds no tensor.
SCRIPTS: dict[tuple, Script] = {}
MOST_SCRIPTS, LOCK = 256, Lock()


def keep(key: tuple, script: Script) -> None:
    with LOCK:
        while len(SCRIPTS) >= MOST_SCRIPTS:
            del SCRIPTS[next(iter(SCRIPTS))]
        SCRIPTS[key] = script

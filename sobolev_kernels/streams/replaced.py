"""Names of PyTorch's modules that stand for ours while pairs flow, in any thread; ours let through what is no pair."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Lock

Replacement = Callable[[object], object]


class Replaced:
    """Within it these attributes of modules, where they are imported, are what is made of them."""

    def __init__(self, names: dict[tuple[str, str], Replacement]):
        self.names, self.lock, self.within = names, Lock(), 0
        self.before: list[tuple[object, str, object]] = []

    def __enter__(self) -> None:
        with self.lock:
            self.within += 1
            if not self.before:
                for (home, name), replacement in self.names.items():
                    module = sys.modules.get(home)
                    if hasattr(module, name):
                        self.before.append((module, name, getattr(module, name)))
                        setattr(module, name, replacement(getattr(module, name)))

    def __exit__(self, *_) -> None:
        with self.lock:
            self.within -= 1
            if not self.within:
                for module, name, value in self.before:
                    setattr(module, name, value)
                self.before = []

"""A training on disk: written as a whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import Fault, refuse

VERSION = 1
FILE = "a file of fit's, or no file yet"


def save(path: Path, state: dict) -> None:
    """Replace the file by a new one, in one operation: who stops us amid it keeps the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path) -> dict | None:
    """None where there is no file.

    Raises:
        ValueError: it is no checkpoint of this version.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        hint = "another path begins anew"
        raise ValueError(f"checkpoint: expected {FILE}, got {path.name}: {str(error)[:200]}; {hint}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        refuse([Fault("checkpoint", f"{FILE}, of version {VERSION}", path.name)])
    return state


def need_same(state: dict, settings: dict[str, object]) -> None:
    """That a checkpoint is of the same training, but for its length.

    Raises:
        ValueError: it is of another.
    """
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            hint = "another path begins anew"
            refuse([Fault(name, f"{state['settings'].get(name)}, as in the checkpoint", value, hint=hint)])


def generators(generator: torch.Generator | None, device: torch.device) -> dict[str, torch.Tensor]:
    """The states of all that draws: the shuffling, torch's, and that of the device."""
    found = {"torch": torch.get_rng_state()}
    if generator is not None:
        found["generator"] = generator.get_state()
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_generators(states: dict[str, torch.Tensor], generator: torch.Generator | None, device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    if generator is not None and "generator" in states:
        generator.set_state(states["generator"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """What is drawn within is drawn again after it."""
    states = generators(None, device)
    try:
        yield
    finally:
        set_generators(states, None, device)

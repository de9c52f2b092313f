"""States that a teacher met: those that students learn from, and those of other games, which they are judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from examples.distillation.games import watch
from examples.distillation.teacher import BYTES, Teacher

LEARNT, HELD_OUT = 1, 2  # the seeds of their games


def different(game: str, teacher: Teacher, count: int, seed: int) -> np.ndarray:
    """So many different states [count, 128], in an order that says nothing."""
    found: dict[bytes, None] = {}
    for seen in watch(game, teacher, seed, n=16 if count > 1000 else 2):
        found |= dict.fromkeys(row.tobytes() for row in seen.memory)
        if len(found) >= count:
            break
    rows = np.frombuffer(b"".join(found), np.uint8).reshape(-1, BYTES)
    return np.random.default_rng(seed).permutation(rows)[:count]


def states(game: str, count: int, held_out: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """To learn from [count, 128], and of games with another seed, without those [<= held_out, 128]; kept in a file."""
    path = folder / f"states_{game}_{count}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        teacher = Teacher.of(game)
        learnt = different(game, teacher, count, LEARNT)
        others = different(game, teacher, held_out, HELD_OUT)
        known = {state.tobytes() for state in learnt}
        new = np.array([state.tobytes() not in known for state in others])
        with open(part := path.with_suffix(".part"), "wb") as file:
            np.savez_compressed(file, learnt=learnt, held_out=others[new])
        part.replace(path)
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["learnt"]), torch.from_numpy(arrays["held_out"])

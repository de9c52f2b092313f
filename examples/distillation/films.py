"""States as pixels, and policies of them: convolutions over the last four screens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from examples.distillation.games import FRAMES, watch
from examples.distillation.teacher import Teacher

WHITE = 255.0
TEACHING, LEARNING = (16, 256), (8, 32)  # channels and width of teachers and students
BATCH = 64


class Without(nn.Module):
    """Screens in units of what they differ by from their mean [84, 84], which is little: of these students learn
    several times as fast."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, screens: torch.Tensor) -> torch.Tensor:
        return (screens - self.mean) / self.deviation


def network(actions: int, usual: Without, channels: int, width: int) -> nn.Sequential:
    """That of Mnih et al. (2013), which has 16 channels and a width of 256, without what is usual."""
    return nn.Sequential(
        usual, nn.Conv2d(FRAMES, channels, 8, 4), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * channels * 81, width), nn.ReLU(), nn.Linear(width, actions),
    )  # fmt: skip


@dataclass
class Film:
    """What a teacher saw at T decisions of n games: screens [T, n, 84, 84], his log-probabilities [T, n, O], and how
    long each game had lasted [T, n]."""

    screens: np.ndarray
    logarithms: torch.Tensor
    age: np.ndarray

    @classmethod
    def of(cls, game: str, teacher: Teacher, decisions: int, seed: int, n: int = 8) -> Film:
        memory, begun, screens = zip(*islice(watch(game, teacher, seed, n, screens=True), decisions // n), strict=True)
        age = np.zeros((len(begun), n), int)
        for t in range(1, len(begun)):
            age[t] = np.where(begun[t], 0, age[t - 1] + 1)
        with torch.no_grad():
            logarithms = torch.stack([teacher.logarithms(torch.from_numpy(m)) for m in memory])
        return cls(np.stack(screens), logarithms, age)

    def usual(self) -> Without:
        mean = self.screens.mean((0, 1), dtype=np.float32)
        few = self.screens[:: max(len(self.screens) // 200, 1)]
        deviation = np.sqrt(np.square(few - mean).mean())
        return Without(torch.from_numpy(mean / WHITE), torch.tensor(float(deviation) / WHITE))

    def places(self) -> np.ndarray:
        """[M, 2], t and which game, of all states whose next one is of the same game."""
        return np.argwhere(self.age[1:] == self.age[:-1] + 1)

    def look(self, places: np.ndarray, later: int = 0) -> torch.Tensor:
        """The last four screens [N, 4, 84, 84] from 0 to 1, of these places or of the next ones; the first screen of a
        game stands for those before it."""
        t, game = places[:, 0] + later, places[:, 1]
        ago = np.minimum(np.arange(FRAMES)[::-1], self.age[t, game][:, None])
        return torch.from_numpy(self.screens[t[:, None] - ago, game[:, None]]).float() / WHITE

    def said(self, places: np.ndarray, later: int = 0) -> torch.Tensor:
        """The teacher's log-probabilities [N, O] there."""
        return self.logarithms[places[:, 0] + later, places[:, 1]]

    def save(self, path: Path) -> None:
        with open(part := path.with_suffix(".part"), "wb") as file:
            np.savez_compressed(file, screens=self.screens, logarithms=self.logarithms.numpy(), age=self.age)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Film:
        with np.load(path) as arrays:
            return cls(arrays["screens"], torch.from_numpy(arrays["logarithms"]), arrays["age"])


def taught(film: Film, actions: int, steps: int, seed: int) -> nn.Sequential:
    """A teacher of pixels: the probabilities of the teacher of memory, learnt from all states of a film."""
    torch.manual_seed(seed)
    net, places = network(actions, film.usual(), *TEACHING), film.places()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        some = places[torch.randint(len(places), (BATCH,)).numpy()]
        said = net(film.look(some)).log_softmax(1)
        optimizer.zero_grad()
        F.kl_div(said, film.said(some), log_target=True, reduction="batchmean").backward()
        optimizer.step()
        schedule.step()
    return net.requires_grad_(False)

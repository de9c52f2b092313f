"""Atari games by gymnasium and ale-py, several side by side: the console's memory, 128 bytes, and its screen.

A decision lasts four frames. A game begins with one to eight decisions to do nothing, and in Breakout with the serve,
so that no two are the same; it ends as the console says, or after 5,000 decisions. Screens are grey, averaged over
areas to 84 × 84; neither of these games flickers, so the last of the four frames is all there is to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

FRAMES, SIDE, MOST = 4, 84, 5000
NOTHING, FIRE = 0, 1
SERVED = ("Breakout",)
MISSING = "{}: this example plays Atari games; pip install 'sobolev_kernels[examples]' brings gymnasium and ale-py"

Policy = Callable[[torch.Tensor], torch.Tensor]


def console_of(game: str):
    """One console, without the wrappers, which check what never changes."""
    try:
        import ale_py
        import gymnasium
    except ImportError as error:
        raise SystemExit(MISSING.format(error)) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    return gymnasium.make(
        f"ALE/{game}-v5", obs_type="ram", frameskip=FRAMES, repeat_action_probability=0.0,
        max_num_frames_per_episode=FRAMES * MOST,
    ).unwrapped  # fmt: skip


def averaging(n: int, to: int) -> torch.Tensor:
    """[to, n]: each row the mean over its share of n pixels, those on the border by the part that is in it."""
    edges = np.linspace(0, n, to + 1)
    pixels = np.arange(n)
    part = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return torch.from_numpy(part.clip(0, 1) * to / n).float()


# What screens [n, 210, 160] are multiplied with from the left and from the right.
ROWS, COLUMNS = averaging(210, SIDE), averaging(160, SIDE).T


class Games:
    """n games of one kind.

    `memory` [n, 128] and `score` [n] are those of now; `step` takes actions and begins anew what has ended.
    """

    def __init__(self, game: str, n: int, seed: int):
        self.rng, self.serve = np.random.default_rng(seed), game in SERVED
        self.consoles = [console_of(game) for _ in range(n)]
        for console in self.consoles:
            # Another seed would load the game anew, which takes as long as 300 decisions; nothing of it is random.
            console.reset(seed=seed)
        self.actions = int(self.consoles[0].action_space.n)
        self.score = np.zeros(n)
        self.memory = np.stack([self._begin(i) for i in range(n)])

    def __len__(self) -> int:
        return len(self.consoles)

    def _begin(self, i: int) -> np.ndarray:
        self.score[i] = 0
        self.consoles[i].reset()
        for action in [NOTHING] * int(self.rng.integers(1, 9)) + [FIRE] * self.serve:
            memory, *_ = self.consoles[i].step(action)
        return memory

    def step(self, actions: np.ndarray, which: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards [n], whether the game has ended [n], and the scores [n] before it began anew; of all, or of some."""
        rewards, ended, scores = np.zeros(len(self), np.float32), np.zeros(len(self), bool), np.zeros(len(self))
        for i in range(len(self)) if which is None else which:
            self.memory[i], rewards[i], over, cut, _ = self.consoles[i].step(int(actions[i]))
            self.score[i] += rewards[i]
            scores[i], ended[i] = self.score[i], over or cut
            if ended[i]:
                self.memory[i] = self._begin(i)
        return rewards, ended, scores

    def screens(self) -> np.ndarray:
        """Grey [n, 84, 84], whole numbers to 255."""
        grey = np.stack([console.ale.getScreenGrayscale() for console in self.consoles])
        return (ROWS @ torch.from_numpy(grey).float() @ COLUMNS).round().to(torch.uint8).numpy()


class Seen(NamedTuple):
    """At one decision of n games: memory [n, 128], whether a game has just begun [n], and screens [n, 84, 84] if they
    were asked for."""

    memory: np.ndarray
    begun: np.ndarray
    screens: np.ndarray | None


def watch(game: str, policy: Policy, seed: int, n: int = 16, screens: bool = False) -> Iterator[Seen]:
    """Look on, for ever, while a policy, of memory [n, 128] to logits, plays with its probabilities."""
    games, generator, begun = Games(game, n, seed), torch.Generator().manual_seed(seed), np.ones(n, bool)
    while True:
        yield Seen(games.memory.copy(), begun, games.screens() if screens else None)
        with torch.inference_mode():
            logits = policy(torch.from_numpy(games.memory))
        _, begun, _ = games.step(drawn(logits, generator))


def drawn(logits: torch.Tensor, generator: torch.Generator) -> np.ndarray:
    return torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0].numpy()


class Sight:
    """The last four screens of each game, as a student sees them: [n, 4, 84, 84]."""

    def __init__(self, games: Games):
        self.games = games
        self.stack = np.repeat(games.screens()[:, None], FRAMES, 1)

    def look(self, begun: np.ndarray) -> torch.Tensor:
        now = self.games.screens()
        self.stack = np.concatenate([self.stack[:, 1:], now[:, None]], 1)
        self.stack[begun] = now[begun][:, None]
        return torch.from_numpy(self.stack)


@torch.inference_mode()
def play(game: str, policy: Policy, episodes: int, seed: int, n: int = 8, screens: bool = False) -> np.ndarray:
    """The scores of whole games, as many of each of n consoles: short games would otherwise count more often.

    The policy is of memory [n, 128], or of the last four screens.
    """
    n = min(n, episodes)
    games, generator = Games(game, n, seed), torch.Generator().manual_seed(seed)
    sight = Sight(games) if screens else None
    shares = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    begun, scores = np.ones(n, bool), []
    while shares.any():
        seen = sight.look(begun) if sight else torch.from_numpy(games.memory)
        _, begun, done = games.step(drawn(policy(seen), generator), shares.nonzero()[0])
        scores += done[begun].tolist()
        shares -= begun
    return np.array(scores)

"""Teach a policy to play from the console's memory, by PPO (Schulman et al., 2017), on one core.

Sixteen games side by side; of every 128 decisions in each of them the advantages (λ = 0.95, discount 0.99), and four
times Adam over all of them in four parts. Rewards count by their sign. Values have a network of their own.

    python -m examples.distillation.teach --game Pong        1,610,000 decisions, 10 minutes
    python -m examples.distillation.teach --game Breakout      430,000 decisions, 5 minutes

A run that was interrupted goes on from its last thirty seconds, with games begun anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from examples.distillation.games import Games, play
from examples.distillation.teacher import BYTES, FAR, FOLDER, Teacher, network

N, T, EPOCHS, PARTS = 16, 128, 4, 4
LR, DISCOUNT, SMOOTH, CLIP, ENTROPY, VALUE, LARGEST = 5e-4, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5
DECISIONS = {"Pong": 1_610_000, "Breakout": 430_000}
SAVED_EVERY = 30.0


@dataclass
class Units:
    """Mean and variance of the bytes so far, the latter plus 1: that of a byte that never changes is 0."""

    count: float = 1e-4
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(BYTES, dtype=torch.float64))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(BYTES, dtype=torch.float64))

    def add(self, memory: torch.Tensor) -> None:
        """More of them [n, 128], by the formula of Chan, Golub and LeVeque (1979)."""
        more, n = memory.double(), len(memory)
        total, apart = self.count + n, more.mean(0) - self.mean
        self.squares += more.var(0, correction=0) * n + apart**2 * self.count * n / total
        self.mean += apart * n / total
        self.count = total

    @property
    def scale(self) -> torch.Tensor:
        return (self.squares / self.count + 1).sqrt()

    def __call__(self, memory: np.ndarray) -> torch.Tensor:
        return ((torch.from_numpy(memory).double() - self.mean) / self.scale).clamp(-FAR, FAR).float()


@dataclass
class Seen:
    """All that is learnt from: [T, N, …], then [T * N, …]."""

    x: torch.Tensor
    action: torch.Tensor
    logarithm: torch.Tensor
    advantage: torch.Tensor
    returned: torch.Tensor

    def part(self, index: torch.Tensor) -> Seen:
        return Seen(*(tensor[index] for tensor in vars(self).values()))


class Learner:
    """Policy, values, optimizer and units."""

    def __init__(self, games: Games):
        self.games, self.units = games, Units()
        self.policy, self.values = network(games.actions), network(1)
        with torch.no_grad():
            [*self.policy.parameters()][-2].mul_(0.01)
        self.parameters = [*self.policy.parameters(), *self.values.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, LR, eps=1e-5)
        self.units.add(torch.from_numpy(games.memory))
        self.decisions, self.scores = 0, []

    @torch.no_grad()
    def watch(self) -> Seen:
        """T decisions in all games, and what came of them."""
        memory, xs, actions, logarithms, rewards, lasting, values = ([] for _ in range(7))
        for _ in range(T):
            memory.append(torch.from_numpy(self.games.memory.copy()))
            x = self.units(self.games.memory)
            known = self.policy(x).log_softmax(1)
            action = torch.multinomial(known.exp(), 1)
            reward, ended, scores = self.games.step(action[:, 0].numpy())
            self.scores += scores[ended].tolist()
            xs.append(x)
            actions.append(action[:, 0])
            logarithms.append(known.gather(1, action)[:, 0])
            rewards.append(torch.from_numpy(np.sign(reward)))
            lasting.append(torch.from_numpy(~ended).float())
            values.append(self.values(x)[:, 0])
        after, advantage, advantages = self.values(self.units(self.games.memory))[:, 0], torch.zeros(N), []
        for reward, last, value in zip(reversed(rewards), reversed(lasting), reversed(values), strict=True):
            surprise = reward + DISCOUNT * after * last - value
            advantage = surprise + DISCOUNT * SMOOTH * last * advantage
            advantages.append(advantage)
            after = value
        advantages = torch.stack(advantages[::-1])
        stacked = map(torch.stack, (xs, actions, logarithms))
        seen = Seen(*stacked, advantages, advantages + torch.stack(values))
        self.units.add(torch.cat(memory))
        self.decisions += N * T
        return Seen(*(tensor.flatten(0, 1) for tensor in vars(seen).values()))

    def learn(self, seen: Seen, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        for _ in range(EPOCHS):
            for index in torch.randperm(N * T).chunk(PARTS):
                self.optimizer.zero_grad()
                self.loss(seen.part(index)).backward()
                nn.utils.clip_grad_norm_(self.parameters, LARGEST)
                self.optimizer.step()

    def loss(self, seen: Seen) -> torch.Tensor:
        known = self.policy(seen.x).log_softmax(1)
        ratio = (known.gather(1, seen.action[:, None])[:, 0] - seen.logarithm).exp()
        gain = (seen.advantage - seen.advantage.mean()) / (seen.advantage.std() + 1e-8)
        gained = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
        missed = (self.values(seen.x)[:, 0] - seen.returned).square().mean()
        return VALUE * missed - gained + ENTROPY * (known.exp() * known).sum(1).mean()

    def state(self) -> dict:
        modules = {name: getattr(self, name).state_dict() for name in ("policy", "values", "optimizer")}
        return modules | {"units": vars(self.units), "decisions": self.decisions, "random": torch.get_rng_state()}

    def go_on(self, state: dict) -> None:
        for name in ("policy", "values", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.units, self.decisions = Units(**state["units"]), state["decisions"]
        torch.set_rng_state(state["random"])

    def teacher(self) -> Teacher:
        return Teacher(self.policy, self.units.mean, self.units.scale)


def main(
    game: Annotated[str, typer.Option(help="Pong, Breakout or another that ale-py knows.")] = "Pong",
    decisions: Annotated[int, typer.Option(help="0: 1,610,000 of Pong, 430,000 of Breakout, else a million.")] = 0,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder of teacher_GAME.pt.")] = FOLDER,
    saved: Annotated[Path, typer.Option(help="Folder of what an interrupted run goes on from.")] = Path("results"),
    episodes: Annotated[int, typer.Option(help="Games that tell the score at the end.")] = 24,
) -> None:
    """Teach a policy to play, on one core: Breakout in 5 minutes, Pong in 10."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    decisions = decisions or DECISIONS.get(game, 1_000_000)
    path = saved / f"teach_{game}_{seed}.pt"
    before = torch.load(path, weights_only=True) if path.exists() else None
    learner = Learner(Games(game, N, seed if before is None else seed + before["decisions"]))
    if before is not None:
        learner.go_on(before)
        print(f"{game}: goes on from {learner.decisions:,} decisions, {path}")
    last = time.monotonic()
    while learner.decisions < decisions:
        left = 1 - learner.decisions / decisions
        learner.learn(learner.watch(), LR * max(0.1, left))
        if time.monotonic() - last > SAVED_EVERY or learner.decisions >= decisions:
            last = time.monotonic()
            saved.mkdir(parents=True, exist_ok=True)
            torch.save(learner.state(), part := path.with_suffix(".part"))
            part.replace(path)
            recent = learner.scores[-20:]
            score = f"{np.mean(recent):.1f} over the last {len(recent)} games" if recent else "no game has ended yet"
            print(f"{game}: {learner.decisions:,} decisions, score {score}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    learner.teacher().save(out / f"teacher_{game}.pt")
    scores = play(game, Teacher.load(out / f"teacher_{game}.pt"), episodes, seed + 1)
    error = scores.std() / np.sqrt(len(scores))
    print(f"{game}: {scores.mean():.1f} ± {error:.1f} (standard error of {len(scores)} games), {out}/teacher_{game}.pt")


if __name__ == "__main__":
    typer.run(main)

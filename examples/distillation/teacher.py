"""A teacher: a policy of the 128 bytes of the console's memory, 128 → 256 → 256 → actions, tanh.

Its file is a plain dictionary of tensors, the network's in half precision: mean and scale of the bytes, weights and
biases.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

import sobolev_kernels as sk

FOLDER = Path(__file__).parent
BYTES, WIDTH, DEPTH, FAR = 128, 256, 2, 5.0


def network(actions: int, width: int = WIDTH) -> sk.MLP:
    return sk.MLP(BYTES, actions, width=width, depth=DEPTH, activation="tanh")


@dataclass(frozen=True)
class Teacher:
    net: sk.MLP
    mean: torch.Tensor
    scale: torch.Tensor
    order: torch.Tensor = field(default_factory=partial(torch.arange, BYTES))  # of the bytes, as columns of inputs

    @classmethod
    def load(cls, path: Path) -> Teacher:
        state = {name: tensor.float() for name, tensor in torch.load(path, weights_only=True).items()}
        mean, scale = state.pop("mean"), state.pop("scale")
        first, *_, last = state.values()
        net = network(len(last), len(first))
        net.load_state_dict(state)
        return cls(net.requires_grad_(False), mean, scale)

    @classmethod
    def of(cls, game: str) -> Teacher:
        """The one that is kept here."""
        return cls.load(FOLDER / f"teacher_{game}.pt")

    def save(self, path: Path) -> None:
        half = {name: tensor.half() for name, tensor in self.net.state_dict().items()}
        torch.save(half | {"mean": self.mean.float(), "scale": self.scale.float()}, path)

    def arranged(self, order: torch.Tensor) -> Teacher:
        """The same policy of inputs whose columns are in another order."""
        net = deepcopy(self.net)
        first = next(net.parameters())
        first.copy_(first[:, order])
        return Teacher(net, self.mean[order], self.scale[order], order)

    @property
    def actions(self) -> int:
        return len([*self.net.parameters()][-1])

    def inputs(self, memory: torch.Tensor) -> torch.Tensor:
        """Bytes [N, 128] in units of their deviation, those of teachers and students."""
        return ((memory[:, self.order].float() - self.mean) / self.scale).clamp(-FAR, FAR)

    def __call__(self, memory: torch.Tensor) -> torch.Tensor:
        """Logits [N, actions]."""
        return self.net(self.inputs(memory))

    def logarithms(self, memory: torch.Tensor) -> torch.Tensor:
        """Those of the probabilities [N, actions]."""
        return self(memory).log_softmax(1)

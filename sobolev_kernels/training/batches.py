"""Mini-batches in tensors that stay where they are, so that one prepared call serves all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..sampled import with_tensor
from ..targets import Targets

# Bytes of the batches that are gathered at a time: a few epochs of small data, and no second copy of large.
ROOM = 1 << 26


class Data(NamedTuple):
    """Inputs, targets and weights of N samples, or of a batch of them; arguments of a SobolevLoss in its order."""

    x: torch.Tensor
    targets: Targets
    sample_weight: torch.Tensor | None = None
    derivative_weight: torch.Tensor | None = None

    def tensors(self) -> dict[str, tuple[torch.Tensor, int]]:
        """All that has a part for each sample, by name, and along which dimension."""
        named = {"x": self.x, "sample_weight": self.sample_weight, "derivative_weight": self.derivative_weight}
        return {name: (tensor, 0) for name, tensor in named.items() if tensor is not None} | self.targets._of_samples()

    def with_tensors(self, tensors: dict[str, torch.Tensor]) -> Data:
        """The same of other samples, of which these are the tensors by name."""
        fields, changed = dict(tensors), {}
        own = {name: fields.pop(name) for name in self._fields if name in fields}
        for name in ("directions", "cotangents"):
            if name in fields:
                new = fields.pop(name)
                changed[name] = with_tensor(getattr(self.targets, name), lambda _, new=new: new)
        return self._replace(**own, targets=self.targets._with(**fields, **changed))

    def part(self, index: torch.Tensor) -> Data:
        """Some samples, in this order."""
        return self.with_tensors({name: t.index_select(axis, index) for name, (t, axis) in self.tensors().items()})


class Batches:
    """Shuffled batches of data, epoch after epoch, in the same tensors each time; the last of an epoch may be smaller.

    They are gathered several at a time. Data that are one batch are not shuffled, and are what they were.
    """

    def __init__(self, data: Data, size: int, together: int | None = None):
        self.data, self.N = data, len(data.x)
        self.size = min(size, self.N)
        whole, self.rest = divmod(self.N, self.size)
        self.count = whole + bool(self.rest)
        if self.count == 1:
            return
        self.sources = data.tensors()
        of_a_sample = sum(t.numel() * t.itemsize // self.N for t, _ in self.sources.values())
        most = ROOM // max(1, of_a_sample * self.size) if together is None else together
        self.together = max(1, min(whole, most))
        self.room = {name: self._room(t, axis) for name, (t, axis) in self.sources.items()}
        self.batches = [self._batch(j, self.size) for j in range(self.together)]
        self.last = self._batch(0, self.rest) if self.rest else None

    def _room(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """For `together` batches, each a tensor without gaps, whichever dimension its samples are."""
        shape = (self.together, *tensor.shape[:axis], self.size, *tensor.shape[axis + 1 :])
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    def _batch(self, j: int, n: int) -> Data:
        if n == self.size:
            return self.data.with_tensors({name: room[j] for name, room in self.room.items()})
        fields = {}
        for name, (tensor, axis) in self.sources.items():
            fields[name] = tensor.new_empty((*tensor.shape[:axis], n, *tensor.shape[axis + 1 :]))
        return self.data.with_tensors(fields)

    def epoch(self, generator: torch.Generator | None) -> Iterator[Data]:
        """All samples once. A batch holds until the next but `together` is asked for."""
        if self.count == 1:
            yield self.data
            return
        order = torch.randperm(self.N, generator=generator).to(self.data.x.device, non_blocking=True)
        step = self.together * self.size
        for start in range(0, self.N - self.rest, step):
            some = order[start : min(start + step, self.N - self.rest)]
            self._gather(some)
            yield from self.batches[: len(some) // self.size]
        if self.last is not None:
            for (tensor, axis), (room, _) in zip(self.sources.values(), self.last.tensors().values(), strict=True):
                torch.index_select(tensor, axis, order[self.N - self.rest :], out=room)
            yield self.last

    def _gather(self, some: torch.Tensor) -> None:
        for name, (tensor, axis) in self.sources.items():
            room = self.room[name]
            if axis == 0:
                torch.index_select(tensor, 0, some, out=room.flatten(0, 1)[: len(some)])
                continue
            for j, index in enumerate(some.split(self.size)):
                torch.index_select(tensor, axis, index, out=room[j])

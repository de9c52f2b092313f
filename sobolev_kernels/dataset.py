"""`SobolevDataset`: inputs and targets for loaders; and how loaders and pytrees take targets apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from .boundary import faults_of_memory
from .directions import Cotangents, Directions, Projections
from .errors import need, need_tensor, refuse
from .sampled import as_index, picked
from .targets import FIELDS, Targets
from .typed import Wrt


class Sample(NamedTuple):
    """Inputs and targets: of one sample x [D], whose targets are of N = 1, or of a batch x [N, D]."""

    inputs: torch.Tensor
    targets: Targets


class Batch(Sequence):
    """Samples of a data set, which are gathered all at once where they are collated, and one by one where not."""

    def __init__(self, dataset: SobolevDataset, numbers: Sequence[int]):
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        numbers = self.numbers[place]
        return Batch(self.dataset, numbers) if isinstance(place, slice) else self.dataset[numbers]

    def gathered(self) -> Sample:
        return self.dataset[list(self.numbers)]


class SobolevDataset(Dataset):
    """Inputs and targets as a map-style data set, for `torch.utils.data.DataLoader` with any sampler and workers.

        for x, targets in DataLoader(SobolevDataset(x, targets), batch_size=256, shuffle=True):

    A batch is gathered at once, by one index for each tensor, also behind a `Subset`. Seeded directions and cotangents
    are given ones from here on, those of a call with all of x, so that a sample has its own in whatever batch.

    Args:
        x: inputs [N, D], or of any shape [N, …].
        targets: those of these N samples; of a teacher alone, they are the same for all.
        wrt: the columns that seeded directions of the targets are of, as in `sobolev_loss`.

    Raises:
        ValueError: another number of samples.

    Example:
        >>> data = SobolevDataset(torch.rand(8, 2), Targets(values=torch.rand(8, 1), jacobian=torch.rand(8, 1, 2)))
        >>> [len(targets) for x, targets in torch.utils.data.DataLoader(data, batch_size=5)]
        [5, 3]
    """

    def __init__(self, x: torch.Tensor, targets: Targets, *, wrt: Wrt = None):
        need_tensor(x, "x", "the inputs [N, D]")
        refuse(faults_of_memory("x", x))
        need(x.dim() > 1, "x", "the inputs [N, D]", x)
        need(isinstance(targets, Targets), "targets", "a sobolev_kernels.Targets", targets, TypeError)
        targets = targets.along(x, wrt)
        N = targets._count()
        need(N in (None, len(x)), "targets", f"those of {len(x)} samples, as there are inputs", f"{N}")
        self.x, self.targets = x, targets

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Sample:
        """One sample, x [D] and targets of N = 1, or those of a slice, whole numbers or a mask."""
        index = as_index(index, len(self.x)) if not isinstance(index, int) else index
        if isinstance(index, int):
            x = self.x[index]
            return Sample(x, self.targets[index])
        return Sample(picked(self.x, 0, index), self.targets[index])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        return Batch(self, numbers)


def collated(samples: Sequence[Sample], *, collate_fn_map: dict | None = None) -> Sample:
    if isinstance(samples, Batch):
        return samples.gathered()
    inputs = collate([sample.inputs for sample in samples], collate_fn_map=collate_fn_map)
    return Sample(inputs, Targets.cat([sample.targets for sample in samples]))


def collated_targets(targets: Sequence[Targets], *, collate_fn_map: dict | None = None) -> Targets:
    return Targets.cat(targets)


# PyTorch's way to have its default_collate take another type (its docstring): there is none but to write to this map.
default_collate_fn_map.update({Targets: collated_targets, Sample: collated})


# Of a pytree None is a leaf, so that a node has what there is alone.
def flatten(targets: Targets) -> tuple[list[Any], tuple]:
    named = {name: getattr(targets, name) for name in FIELDS if name != "teacher"}
    named = {name: value for name, value in named.items() if value is not None}
    return list(named.values()), (tuple(named), targets.teacher)


def flatten_with_keys(targets: Targets) -> tuple[list[tuple], tuple]:
    leaves, context = flatten(targets)
    return [(_pytree.GetAttrKey(name), leaf) for name, leaf in zip(context[0], leaves, strict=True)], context


def unflatten(leaves: Sequence[Any], context: tuple) -> Targets:
    """Of whatever a map over the leaves made: what is no tensor is not looked at."""
    names, teacher = context
    made = object.__new__(Targets)
    for name, value in (dict.fromkeys(FIELDS) | dict(zip(names, leaves, strict=True)) | {"teacher": teacher}).items():
        object.__setattr__(made, name, value)
    return made


def flatten_vectors(vectors: Projections) -> tuple[list[Any], Projections]:
    return ([], vectors) if vectors.values is None else ([vectors.values], vectors.without_values())


def flatten_vectors_with_keys(vectors: Projections) -> tuple[list[tuple], Projections]:
    leaves, context = flatten_vectors(vectors)
    return [(_pytree.GetAttrKey("values"), leaf) for leaf in leaves], context


def unflatten_vectors(leaves: Sequence[Any], context: Projections) -> Projections:
    made = object.__new__(type(context))
    for name, value in vars(context).items():
        object.__setattr__(made, name, value)
    if leaves:
        object.__setattr__(made, "values", leaves[0])
    return made


NODES = {
    Targets: (flatten, unflatten, flatten_with_keys),
    Directions: (flatten_vectors, unflatten_vectors, flatten_vectors_with_keys),
    Cotangents: (flatten_vectors, unflatten_vectors, flatten_vectors_with_keys),
}
for kind, (apart, together, with_keys) in NODES.items():
    name = f"sobolev_kernels.{kind.__name__}"
    _pytree.register_pytree_node(kind, apart, together, serialized_type_name=name, flatten_with_keys_fn=with_keys)

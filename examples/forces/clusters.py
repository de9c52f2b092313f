"""Six atoms that attract and repel each other as Lennard and Jones had it, sampled by walkers; all in float64.

    E(q) = Σ_{i<j} 4 (d_ij⁻¹² - d_ij⁻⁶)

Energies are in depths of a pair's well, lengths in the distance where its energy is 0. All walkers begin at the
octahedron, the least energy of six atoms (-12.71).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import nn

ATOMS, K = 6, 18
I, J = torch.triu_indices(ATOMS, ATOMS, 1)
PAIRS = len(I)
EDGE, TEMPERATURE = 1.12, 0.15
# A walker's moves, of which two in five are taken; those between two places that are kept; places left out at first.
MOVE, APART, SETTLING = 0.02, 100, 10


def distances(q: torch.Tensor) -> torch.Tensor:
    """Of all pairs [..., PAIRS], of atoms whose coordinates are q [..., K]."""
    atoms = q.unflatten(-1, (ATOMS, 3))
    return (atoms[..., I, :] - atoms[..., J, :]).square().sum(-1).sqrt()


def energy(q: torch.Tensor) -> torch.Tensor:
    """[...] of atoms whose coordinates are q [..., K]."""
    sixth = distances(q) ** -6
    return 4 * (sixth.square() - sixth).sum(-1)


def octahedron() -> torch.Tensor:
    corners = EDGE / 2**0.5 * torch.eye(3, dtype=torch.float64)
    return torch.cat([corners, -corners]).flatten()


def walk(walkers: int, places: int, generator: torch.Generator) -> torch.Tensor:
    """Metropolis walkers [walkers, places, K]."""
    q = octahedron().expand(walkers, K)
    e, seen = energy(q), []
    for round in range(SETTLING + places):
        for _ in range(APART):
            tried = q + MOVE * torch.randn(walkers, K, generator=generator, dtype=q.dtype)
            found = energy(tried)
            taken = torch.rand(walkers, generator=generator, dtype=q.dtype) < ((e - found) / TEMPERATURE).exp()
            q, e = torch.where(taken[:, None], tried, q), torch.where(taken, found, e)
        if round >= SETTLING:
            seen.append(q)
    return torch.stack(seen, 1)


@dataclass(frozen=True)
class Places:
    """Coordinates q [N, K], energies E [N, 1], their gradients [N, 1, K], which are minus the forces, and their
    Hessians [N, 1, K, K]; descriptors x(q) [N, PAIRS] and their Jacobian ∂x/∂q [N, PAIRS, K]."""

    q: torch.Tensor
    energy: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    x: torch.Tensor
    slopes: torch.Tensor

    def __getitem__(self, samples: torch.Tensor) -> Places:
        return Places(*(getattr(self, field.name)[samples] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.q)


class Units:
    """In which energies of training have mean 0 and deviation 1, and so has each descriptor; q keeps its own."""

    def __init__(self, q: torch.Tensor):
        e, x = energy(q), 1 / distances(q)
        self.energy, self.energy_scale = e.mean(), e.std()
        self.x, self.x_scale = x.mean(0), x.std(0)

    def energies(self, q: torch.Tensor) -> torch.Tensor:
        return (energy(q) - self.energy) / self.energy_scale

    def descriptors(self, q: torch.Tensor) -> torch.Tensor:
        return (1 / distances(q) - self.x) / self.x_scale

    def places(self, q: torch.Tensor) -> Places:
        """All labels at q [N, K], by torch.func, in float32."""
        each = torch.func.vmap
        labels = (
            q, self.energies(q)[:, None], each(torch.func.grad(self.energies))(q)[:, None],
            each(torch.func.jacrev(torch.func.grad(self.energies)), chunk_size=256)(q)[:, None], self.descriptors(q),
            each(torch.func.jacrev(self.descriptors))(q),
        )  # fmt: skip
        return Places(*(label.float() for label in labels))


class Energy(nn.Module):
    """A net with the descriptors inside: the energy [N, 1] of coordinates q [N, K]."""

    def __init__(self, net: nn.Module, units: Units):
        super().__init__()
        self.net = net
        self.register_buffer("mean", units.x.float())
        self.register_buffer("scale", units.x_scale.float())

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return self.net((1 / distances(q) - self.mean) / self.scale)

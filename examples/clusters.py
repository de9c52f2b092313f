"""A cluster of atoms that attract and repel each other as Lennard and Jones had it, and walkers that sample it.

    E(q) = Σ_{i<j} 4 (d_ij⁻¹² - d_ij⁻⁶)

In units of the depth of a pair's well and of the distance where its energy is 0. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

STEP, SWEEPS, SETTLING = 0.05, 50, 10


def pairs(atoms: int) -> tuple[torch.Tensor, torch.Tensor]:
    i, j = torch.triu_indices(atoms, atoms, 1)
    return i, j


def distances(q: torch.Tensor) -> torch.Tensor:
    """Of all pairs [..., K], of atoms at q [..., atoms, 3]."""
    i, j = pairs(q.shape[-2])
    return (q[..., i, :] - q[..., j, :]).square().sum(-1).sqrt()


def energy(q: torch.Tensor) -> torch.Tensor:
    """[...] of atoms at q [..., atoms, 3]."""
    sixth = distances(q) ** -6
    return 4 * (sixth.square() - sixth).sum(-1)


@dataclass(frozen=True)
class Labels:
    """Energies [N], their gradients [N, K] and Hessians [N, K, K] in the K = 3 · atoms coordinates: forces are -gradient."""

    energy: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor


def labels(q: torch.Tensor) -> Labels:
    """Of atoms at q [N, atoms, 3], by torch.func."""

    def flat(q: torch.Tensor) -> torch.Tensor:
        return energy(q.view(-1, 3))

    rows = q.flatten(1)
    gradient = torch.func.vmap(torch.func.grad(flat))
    hessian = torch.func.vmap(torch.func.hessian(flat))
    return Labels(energy(q), gradient(rows), torch.cat([hessian(some) for some in rows.split(256)]))


def minimum(atoms: int, generator: torch.Generator, starts: int = 100, steps: int = 1500) -> torch.Tensor:
    """The best of what short steps downhill find from random places [atoms, 3]."""
    q = 0.9 * torch.randn(starts, atoms, 3, generator=generator, dtype=torch.float64)
    for _ in range(steps):
        slope = torch.func.grad(lambda q: energy(q).sum())(q)
        q = q - (0.01 * slope).clamp(-0.05, 0.05)
    return q[energy(q).argmin()]


def walk(start: torch.Tensor, walkers: int, each: int, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Places [walkers, each, atoms, 3] of Metropolis walkers, all from one start [atoms, 3], `SWEEPS` moves apart."""
    q = start.expand(walkers, -1, -1).clone()
    e, seen = energy(q), []
    for round in range(SETTLING + each):
        for _ in range(SWEEPS):
            tried = q + STEP * torch.randn(q.shape, generator=generator, dtype=q.dtype)
            found = energy(tried)
            taken = torch.rand(walkers, generator=generator, dtype=q.dtype) < ((e - found) / temperature).exp()
            q, e = torch.where(taken[:, None, None], tried, q), torch.where(taken, found, e)
        if round >= SETTLING:
            seen.append(q)
    return torch.stack(seen, 1)

"""How a net that gives the energy of six atoms is trained by each method of `forces.py`, and how it is judged."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

import sobolev_kernels as sk
from examples.forces.clusters import PAIRS, Energy, K, Places, Units
from examples.lab import fused, root_mean_square

METHODS = ("energy", "forces", "both", "half", "half alone", "along v", "along v, vHv")
METRICS = ("energy", "force", "curvature")
WIDTH, BATCH, RATE = 64, 64, 1e-2


@dataclass(frozen=True)
class Sizes:
    """Mean squares of the forces and of the curvatures in training: what their terms are measured in."""

    force: float
    curvature: float


def curvatures(places: Places, v: torch.Tensor) -> torch.Tensor:
    """vᵀ(∂²E/∂q²)v [N] along v [N, K]."""
    return torch.einsum("nij,ni,nj->n", places.hessian[:, 0], v, v)


def sizes_of(places: Places) -> Sizes:
    v = nn.functional.normalize(torch.randn(len(places), K, generator=torch.Generator().manual_seed(0)), dim=1)
    return Sizes(places.gradient.square().mean().item(), curvatures(places, v).square().mean().item())


class Learner:
    """A net, alone or with the descriptors inside, and what a method trains it on."""

    def __init__(self, method: str, net: nn.Module, places: Places, units: Units):
        self.method, self.net, self.units, self.learnt = method, net, units, places
        self.inside = method.startswith("along v")
        self.student = Energy(net, units) if self.inside else net
        self.known: torch.Tensor | None = None
        if method == "half":
            self.known = (torch.arange(len(places)) % 2 == 0).float()
            unknown = torch.where(self.known[:, None, None] > 0, places.gradient, torch.nan)
            self.learnt = replace(places, gradient=unknown)
        elif method == "half alone":
            self.learnt = places[::2]
        self.settings = self.settings_of(method, sizes_of(places))
        self.loss = sk.SobolevLoss(**self.settings)
        fused(self.student, (places.q if self.inside else places.x)[:BATCH], **self.settings)

    def settings_of(self, method: str, sizes: Sizes) -> dict[str, object]:
        """Of a unit vector a derivative is, in the mean, as large as one of the K entries of the gradient."""
        if method == "energy":
            return {"weights": (1.0, 0.0)}
        weights = (0.0 if method == "forces" else 1.0, 1 / sizes.force)
        if not self.inside:
            return {"weights": weights, "derivatives": "exact"}
        along = {"directions": sk.Directions.sphere(1)}
        if method == "along v":
            return {"weights": weights, **along}
        return {"weights": (*weights, 1 / sizes.curvature), "order": 2, **along}

    def loss_of(self, batch: torch.Tensor) -> torch.Tensor:
        """Of the places with these numbers."""
        learnt = self.learnt
        energy = learnt.energy[batch]
        if self.method == "energy":
            return self.loss(self.student, learnt.x[batch], sk.Targets(values=energy))
        gradient = learnt.gradient[batch]
        if self.inside:
            hessian = learnt.hessian[batch] if "order" in self.settings else None
            targets = sk.Targets(values=energy, jacobian=gradient, hessian=hessian)
            return self.loss(self.student, learnt.q[batch], targets)
        # What is known counts twice, for the mean over those that are known.
        weight = None if self.known is None else 2 * self.known[batch]
        targets = sk.Targets(values=energy, jacobian=gradient)
        slopes = learnt.slopes[batch]
        return self.loss(self.student, learnt.x[batch], targets, derivative_weight=weight, input_jacobian=slopes)

    def train(self, steps: int, seed: int) -> float:
        """The milliseconds of a step, of the processor's time."""
        optimizer = torch.optim.Adam(self.net.parameters(), RATE, fused=True)
        generator = torch.Generator().manual_seed(seed)
        start = time.process_time()
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            batch = torch.randint(len(self.learnt), (BATCH,), generator=generator)
            optimizer.zero_grad()
            self.loss_of(batch).backward()
            optimizer.step()
        return (time.process_time() - start) / steps * 1e3

    def errors(self, test: Places) -> dict[str, float]:
        """By plain autograd through net and descriptors: the verdict does not rest on the library."""
        student = Energy(self.net, self.units)
        constant = torch.zeros(())
        if self.method == "forces":
            constant = (self.learnt.energy - student(self.learnt.q)).mean().detach()
        v = nn.functional.normalize(torch.randn(len(test), K, generator=torch.Generator().manual_seed(1)), dim=1)
        q = test.q.clone().requires_grad_()
        e = student(q)
        (gradient,) = torch.autograd.grad(e.sum(), q, create_graph=True)
        (product,) = torch.autograd.grad((gradient * v).sum(), q)
        found = (e.detach() + constant, gradient.detach()[:, None], (product * v).sum(1))
        truth = (test.energy, test.gradient, curvatures(test, v))
        middle = (self.learnt.energy.mean(), 0.0, 0.0)
        return {
            metric: root_mean_square(f - t) / root_mean_square(t - m)
            for metric, f, t, m in zip(METRICS, found, truth, middle, strict=True)
        }


def first_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return sk.MLP(PAIRS, 1, width=WIDTH, depth=2, activation="silu")


def hand_written(learner: Learner, batch: torch.Tensor) -> torch.Tensor:
    """What `learner.loss_of` gives, as one writes it in PyTorch."""
    learnt, sizes = learner.learnt, learner.settings["weights"]
    energy, gradient = learnt.energy[batch], learnt.gradient[batch]
    x = (learnt.q if learner.inside else learnt.x)[batch].requires_grad_()
    e = learner.student(x)
    values = (e - energy).square().mean()
    (slope,) = torch.autograd.grad(e.sum(), x, create_graph=True)
    if not learner.inside:
        return sizes[0] * values + sizes[1] * (slope[:, None] @ learnt.slopes[batch] - gradient).square().mean()
    v = nn.functional.normalize(torch.randn_like(x), dim=1)
    along = (slope * v).sum(1)
    loss = sizes[0] * values + sizes[1] * (along - (gradient[:, 0] * v).sum(1)).square().mean()
    if len(sizes) == 2:
        return loss
    (product,) = torch.autograd.grad(along.sum(), x, create_graph=True)
    truth = torch.einsum("nij,ni,nj->n", learnt.hessian[batch][:, 0], v, v)
    return loss + sizes[2] * ((product * v).sum(1) - truth).square().mean()

"""All contestants: the fused step of this library, the baselines of PyTorch, and on request one of JAX."""

from __future__ import annotations

import torch

import sobolev_kernels as sk

from .baselines import BASELINES, STACKED, Build, Result, Step, Variant
from .cases import SEED, Case, Data


def fused(given: bool) -> Build:
    """`sobolev_loss` and its backward: the step draws its directions, unless `given`, and projects the Jacobian."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        targets = sk.Targets(values=data.y, jacobian=data.jacobian)
        sphere = sk.Directions.sphere(case.P, seed=SEED)
        directions = sk.Directions.given(data.directions) if given else sphere
        parameters = tuple(student.parameters())

        def step() -> Result:
            for parameter in parameters:
                parameter.grad = None
            loss = sk.sobolev_loss(student, data.x, targets, directions=directions)
            loss.backward()
            return loss.detach(), tuple(parameter.grad for parameter in parameters)

        return step

    return build


OURS = "fused"
JAX = "jax, jit"
VARIANTS = {
    OURS: Variant(fused(given=False), ours=True),
    "fused, given v": Variant(fused(given=True), ours=True),
    **BASELINES,
}


def variants_of(case: Case, jax: bool = False, compiled: bool = True) -> dict[str, Variant]:
    """The contestants of one case by name, ours first."""
    rows = {n: v for n, v in VARIANTS.items() if v.applies(case) and (compiled or not v.compiled)}
    if jax:
        from .jax_baseline import build

        rows[JAX] = Variant(build, uncompiled=BASELINES[STACKED].build)
    return rows

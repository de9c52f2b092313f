"""All contestants: the fused step of this library, the baselines of PyTorch, and on request one of JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import sobolev_kernels as sk

from .baselines import BASELINES, DOUBLE_BACKWARD, STACKED, VMAP_JVP, Result, Step, Variant
from .cases import EXACT, FIRST, KINDS, LAPLACIAN, SECOND, SEED, Case, Data
from .higher import HIGHER, NESTED, TRACE, mean_square


def differentiated(loss: Callable[[], torch.Tensor], student: torch.nn.Module) -> Step:
    parameters = tuple(student.parameters())

    def step() -> Result:
        for parameter in parameters:
            parameter.grad = None
        value = loss()
        value.backward()
        return value.detach(), tuple(parameter.grad for parameter in parameters)

    return step


def sobolev_step(student: torch.nn.Module, data: Data, **how: object) -> Step:
    """`sobolev_loss` and its backward; where there is a Jacobian the step projects it itself."""
    tangents = data.tangents if data.jacobian is None else None
    targets = sk.Targets(values=data.y, jacobian=data.jacobian, tangents=tangents, seconds=data.seconds)
    return differentiated(lambda: sk.sobolev_loss(student, data.x, targets, **how), student)


def fused(case: Case, student: torch.nn.Module, data: Data) -> Step:
    """Of the first order the step draws its directions; the Laplacian's loss stands on top of a fused output."""
    if case.kind == LAPLACIAN:
        return differentiated(lambda: mean_square(*sk.laplacian(student, data.x)), student)
    if case.kind == EXACT:
        return sobolev_step(student, data, derivatives="exact")
    if case.kind == SECOND:
        return sobolev_step(student, data, directions=sk.Directions.given(data.directions), order=2)
    return sobolev_step(student, data, directions=sk.Directions.sphere(case.P, seed=SEED))


def fused_given(case: Case, student: torch.nn.Module, data: Data) -> Step:
    return sobolev_step(student, data, directions=sk.Directions.given(data.directions))


OURS = "fused"
JAX = "jax, jit"
VARIANTS = {
    OURS: Variant(fused, KINDS, ours=True),
    "fused, given v": Variant(fused_given, ours=True),
    **BASELINES,
    **HIGHER,
}
# Plain PyTorch, by kind: we may round twice as much as it does, and the summary compares with it
PLAIN = {FIRST: VMAP_JVP, EXACT: DOUBLE_BACKWARD, SECOND: NESTED, LAPLACIAN: TRACE}


def variants_of(case: Case, jax: bool = False, compiled: bool = True) -> dict[str, Variant]:
    """The contestants of one case by name, ours first; without those whose package is not installed."""
    rows = {n: v for n, v in VARIANTS.items() if v.applies(case) and (compiled or not v.compiled) and not v.missing}
    if jax and case.kind == FIRST:
        from .jax_baseline import build

        rows[JAX] = Variant(build, uncompiled=BASELINES[STACKED].build)
    return rows


def left_out(cases: Sequence[Case]) -> list[str]:
    """A line for each contestant of these cases that cannot take part."""
    missing = {n: v for n, v in VARIANTS.items() if v.missing and any(v.applies(case) for case in cases)}
    how = "is not installed (it needs Python 3.12 or newer)"
    return [f"{name} is left out: {variant.needs} {how}" for name, variant in missing.items()]

"""All contestants: the fused step of this library, the baselines of PyTorch, and where it is installed JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import sobolev_kernels as sk

from .baselines import BASELINES, DOUBLE_BACKWARD, VMAP_JVP, Result, Step, Variant, one_gradient
from .cases import EXACT, FIRST, KINDS, LAPLACIAN, SECOND, SEED, TAUGHT, TEACHER, VJP, Case, Data, make_teacher
from .higher import HIGHER, NESTED, TRACE, mean_square
from .jax_baseline import jax_variant
from .taught import TAUGHT_BACKWARD, TAUGHT_BASELINES, distilled


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


def beside_teacher(case: Case, student: torch.nn.Module, data: Data) -> Step:
    """The loss of the library, or a user's own on the outputs of `vjp`."""
    teacher = make_teacher(case).to(data.x.dtype)
    if case.kind == TEACHER:
        targets, cotangents = sk.Targets(teacher=teacher), sk.Cotangents.given(data.cotangents)
        return differentiated(lambda: sk.sobolev_loss(student, data.x, targets, cotangents=cotangents), student)

    def loss() -> torch.Tensor:
        with torch.no_grad():
            target = sk.vjp(teacher, data.x, data.cotangents)
        return distilled(sk.vjp(student, data.x, data.cotangents), target)

    return differentiated(loss, student)


def fused(case: Case, student: torch.nn.Module, data: Data) -> Step:
    """Of the first order the step draws its directions; the Laplacian's loss stands on top of a fused output."""
    if case.kind == LAPLACIAN:
        return differentiated(lambda: mean_square(*sk.laplacian(student, data.x)), student)
    if case.kind in TAUGHT:
        return beside_teacher(case, student, data)
    if case.kind == EXACT:
        return sobolev_step(student, data, derivatives="exact")
    if case.kind == SECOND:
        return sobolev_step(student, data, directions=sk.Directions.given(data.directions), order=2)
    return sobolev_step(student, data, directions=sk.Directions.sphere(case.P, seed=SEED))


def fused_given(case: Case, student: torch.nn.Module, data: Data) -> Step:
    return sobolev_step(student, data, directions=sk.Directions.given(data.directions))


OURS = "fused"
JAX = {
    "JAX, jit": jax_variant("vmap_jvp", BASELINES[VMAP_JVP].build),
    "JAX, jit of gradients": jax_variant("projected", BASELINES[DOUBLE_BACKWARD].build, shapes=one_gradient),
    "JAX, jit, exact": jax_variant(None, BASELINES[DOUBLE_BACKWARD].build, kinds=(EXACT,)),
    "JAX, jit (teacher)": jax_variant(None, TAUGHT_BASELINES[TAUGHT_BACKWARD].build, kinds=TAUGHT),
}
VARIANTS = {
    OURS: Variant(fused, KINDS, ours=True),
    "fused, given v": Variant(fused_given, ours=True),
    **BASELINES,
    **HIGHER,
    **TAUGHT_BASELINES,
    **JAX,
}
# Plain PyTorch, by kind: we may round twice as much as it does, and the summary compares with it
PLAIN = {FIRST: VMAP_JVP, EXACT: DOUBLE_BACKWARD, SECOND: NESTED, LAPLACIAN: TRACE}
PLAIN |= {TEACHER: TAUGHT_BACKWARD, VJP: TAUGHT_BACKWARD}


def variants_of(case: Case, compiled: bool = True) -> dict[str, Variant]:
    """The contestants of one case by name, ours first; without those whose package is not installed."""
    return {n: v for n, v in VARIANTS.items() if v.applies(case) and (compiled or not v.compiled) and not v.missing}


def left_out(cases: Sequence[Case]) -> list[str]:
    """A line for each contestant of these cases that cannot take part."""
    missing = {n: v for n, v in VARIANTS.items() if v.missing and any(v.applies(case) for case in cases)}
    return [f"{name} is left out: {variant.needs} is not installed" for name, variant in missing.items()]

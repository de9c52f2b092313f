"""The contestants: the fused step of this library, and the baselines of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

import sobolev_kernels as sk

from .baselines import BASELINES, DOUBLE_BACKWARD, VMAP_JVP, Result, Step, Variant
from .cases import EXACT, FIRST, KINDS, LAPLACIAN, SECOND, SEED, TAUGHT, TEACHER, VJP, Case, Data, make_teacher
from .higher import HIGHER, NESTED, TRACE, mean_square
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
VARIANTS = {
    OURS: Variant(fused, KINDS, ours=True),
    "fused, given v": Variant(fused_given, ours=True),
    **BASELINES,
    **HIGHER,
    **TAUGHT_BASELINES,
}
# Plain PyTorch, by kind: we may round twice as much as it does, and the summary compares with it
PLAIN = {FIRST: VMAP_JVP, EXACT: DOUBLE_BACKWARD, SECOND: NESTED, LAPLACIAN: TRACE}
PLAIN |= {TEACHER: TAUGHT_BACKWARD, VJP: TAUGHT_BACKWARD}


def taking_part(among: Mapping[str, Variant], case: Case, compiled: bool = True) -> dict[str, Variant]:
    """The contestants of one case by name, ours first; without those whose package is not installed."""
    return {n: v for n, v in among.items() if v.applies(case) and (compiled or not v.compiled) and not v.missing}

"""Policy distillation without this library: baselines as those of baselines.py, whose targets are a teacher's.

The student's values and gradients along given cotangents are compared with the teacher's, which are computed at every
step. Of logits, centred cotangents give the gradients of log-probabilities too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import kl_div, mse_loss

from .baselines import DOUBLE_BACKWARD, VALUES_ONLY, Build, Layers, Step, Variant, by_autograd, forward, layers_of
from .cases import TAUGHT, TEACHER, VJP, Case, Data, make_teacher

# values [N, O] and gradients [P, N, D]
Outputs = tuple[torch.Tensor, torch.Tensor]
Way = Callable[[Layers, Data], Outputs]


def distance(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence of policies, from their logits [N, O]."""
    return kl_div(z.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


def distilled(student: Outputs, teacher: Outputs) -> torch.Tensor:
    (z, gradient), (target, slope) = student, teacher
    return distance(z, target) + (gradient - slope).square().sum(-1).mean()


def squares(student: Outputs, teacher: Outputs) -> torch.Tensor:
    """What `sobolev_loss` computes."""
    (z, gradient), (target, slope) = student, teacher
    return mse_loss(z, target) + mse_loss(gradient, slope)


LOSSES = {VJP: (distilled, distance), TEACHER: (squares, mse_loss)}


def by_grad(layers: Layers, data: Data) -> Outputs:
    with torch.enable_grad():
        x = data.x.detach().requires_grad_()
        y = forward(layers, x)
        create = layers[0].weight.requires_grad
        (gradient,) = torch.autograd.grad(y, x, data.cotangents[0], create_graph=create)
    return y, gradient[None]


def by_pull(layers: Layers, data: Data) -> Outputs:
    y, pull = torch.func.vjp(lambda x: forward(layers, x), data.x)
    (gradient,) = pull(data.cotangents[0])
    return y, gradient[None]


def taught(way: Way | None, compiled: bool = False) -> Build:
    """Both by one way, without gradients to the teacher; without a way, values alone."""

    def build(case: Case, student: torch.nn.Module, data: Data) -> Step:
        teacher = layers_of(make_teacher(case).to(data.x.dtype))
        loss, of_values = LOSSES[case.kind]

        def whole(layers: Layers, data: Data) -> torch.Tensor:
            with torch.no_grad():
                target = way(teacher, data) if way else forward(teacher, data.x)
            return loss(way(layers, data), target) if way else of_values(forward(layers, data.x), target)

        return by_autograd(whole, compiled)(case, student, data)

    return build


TAUGHT_VALUES, TAUGHT_BACKWARD = f"{VALUES_ONLY} (teacher)", f"{DOUBLE_BACKWARD} (teacher)"
TAUGHT_BASELINES = {
    TAUGHT_VALUES: Variant(taught(None), TAUGHT, derivatives=False),
    TAUGHT_BACKWARD: Variant(taught(by_grad), TAUGHT),
    "func.vjp, compiled": Variant(taught(by_pull, compiled=True), TAUGHT, uncompiled=taught(by_pull)),
}

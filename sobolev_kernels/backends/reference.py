"""The reference that everything is checked against: plain PyTorch, slow, obvious, differentiable again and again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..autocast import casting
from ..columns import Columns
from ..drawing import drawn, over_samples
from ..enums import COTANGENTS
from ..math import heads
from ..math.activations import activation_jet
from ..math.table import Formula
from ..partials.along import jet_along
from ..problem import DERIVATIVES, UNSEEN, Operands, Plan, Problem
from ..student import Student, widened
from .dependence import Evaluated, Jets
from .functions import by_gradients, function_jet, units, vjps
from .residuals import loss_of
from .running import by_transforms

SHARDED = (
    "FSDP frees a student's parameters after a backward, and this takes several; first derivatives along directions, "
    "which go through streams, take one"
)


def supports(problem: Problem) -> str | None:
    if not problem.sharded:
        return None
    return SHARDED if problem.unfollowed in (None, UNSEEN) else f"{SHARDED}, but {problem.unfollowed}"


def plan(problem: Problem, N: int) -> Plan:
    if not problem.unrecognised:
        return Plan("reference", "plain PyTorch streams")
    return Plan("reference", "autograd, VJPs of VJPs" if problem.P else "autograd, of the values alone")


def run(
    problem: Problem, operands: Operands, columns: Columns, ran: Evaluated | None = None
) -> tuple[torch.Tensor, ...]:
    """What the op returns, but differentiable again and again; of a multi-layer perceptron, or of the function run.

    Operands are those of the fused backends, of the inputs as they come: it is here that `columns` are told.
    """
    x = operands.x
    vectors = None if has_rows(problem, ran) else vectors_of(problem, operands)
    around = uncast(x)
    with nullcontext() if ran is not None and by_transforms() else around:
        y, first, second = derivatives_along(problem, operands, columns, ran, vectors)
    if problem.result == DERIVATIVES:
        y = y if problem.head is None else heads.value(problem.head, y)
        results = tuple(result for result in (y, first, second) if result is not None)
        return results if ran is not None else tuple(tied(result, operands) for result in results)
    with around:
        loss, *terms = loss_of(problem, operands, widened(vectors), (y, first, second))
    if ran is not None:
        return loss, *terms
    return tied(loss, operands), *(tied(each, operands) if each.requires_grad else each for each in terms)


def vectors_of(problem: Problem, operands: Operands) -> torch.Tensor:
    """Directions or cotangents, given or drawn, or none."""
    x, N = operands.x, operands.x.shape[0]
    if operands.given is not None:
        vectors = over_samples(operands.given, N)
    elif operands.seed is not None:
        vectors = drawn(problem.drawing, operands.seed, N)
    else:
        vectors = x.new_empty((0, N, problem.drawn))
    return vectors.to(x.dtype)


def tied(result: torch.Tensor, operands: Operands) -> torch.Tensor:
    """A result of a multi-layer perceptron, such that what it does not depend on gets a gradient of zeros, not None.

    So it is with the fused backends, and an optimizer with momentum or decay steps differently without one.
    """
    inputs = (operands.x, operands.given, *operands.parameters)
    asking = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    nothing = [tensor.reshape(-1)[:0].sum() for tensor in asking] if torch.is_grad_enabled() else []
    return sum(nothing, result)


def uncast(x: torch.Tensor) -> AbstractContextManager:
    """Within it torch.autocast rounds no product of ours; a student's own forward keeps it."""
    device = x.device.type
    return nullcontext() if casting(device) is None else torch.autocast(device, enabled=False)


def derivatives_along(
    problem: Problem, operands: Operands, columns: Columns, ran: Evaluated | None, vectors: torch.Tensor | None
) -> Jets:
    """y [N, O], projected derivatives, and second derivatives or None; of collapsed ones the second alone. Derivatives
    are those of the head of y, if there is one.

    A function that computes in half precision has rounded each of them; nothing else is rounded before the result is.
    """
    x, parameters = operands.x, operands.parameters
    if problem.projection == COTANGENTS:
        if ran is None:
            y, gradients = mlp_vjp(problem, parameters, x, vectors, problem.head)
        else:
            y, gradients = vjps(ran, seeds(problem.head, ran.y, vectors))
        return widened(y), columns.restrict(widened(gradients)), None
    if vectors is None:
        y, rows = vjps(ran, units(ran.y))
        tangents = columns.restrict(widened(rows)).permute(2, 1, 0)
        tangents = tangents if problem.magnitude == 1 else problem.magnitude * tangents
        return behind_head(problem, (widened(y), tangents, None))
    v = columns.embed(vectors, problem.D)
    if ran is not None:
        jet = function_jet(ran, v, problem.order)
    elif problem.order > 2:
        student = Student(problem.widths, problem.biases, problem.activations, tuple(parameters))
        jet = jet_along(student, x, v, problem.order, problem.backend, problem.precision)
    else:
        jet = mlp_jet(problem, parameters, x, v, problem.order)
    y, first, second = behind_head(problem, tuple(map(widened, jet)))
    return (y, None, second.sum(0)) if problem.collapsed else (y, first, second)


def behind_head(problem: Problem, jet: Jets) -> Jets:
    """Outputs as they are, and the derivatives of their head: docs/math.md, section 14."""
    return jet if problem.head is None else (jet[0], *heads.derivatives(problem.head, *jet))


def seeds(head: Formula | None, y: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The cotangents of outputs y that those of their head are."""
    return u if head is None else heads.pulled(head, widened(y), widened(u)).to(y.dtype)


def has_rows(problem: Problem, ran: Evaluated | None) -> bool:
    """Whether derivatives along the basis are the entries of the gradient of each output, which nobody projects."""
    if ran is None or problem.distribution != "basis" or problem.projection == COTANGENTS or problem.order > 1:
        return False
    return by_gradients(ran, problem.P)


def layer_by_layer(problem: Problem, parameters: list[torch.Tensor]):
    """(weight, bias or None, activation) of each layer."""
    tensors = iter(parameters)
    for has_bias, activation in zip(problem.biases, problem.activations, strict=True):
        yield next(tensors), next(tensors) if has_bias else None, activation


def mlp_jet(problem: Problem, parameters: list[torch.Tensor], x: torch.Tensor, v: torch.Tensor, order: int = 1):
    """y [N, O], tangents [P, N, O] and, of order 2, second derivatives [P, N, O] of a multi-layer perceptron along
    v [P, N, D]: docs/math.md, sections 2 and 10."""
    h, h_dot, h_ddot = x, v, torch.zeros_like(v) if order == 2 else None
    for weight, bias, activation in layer_by_layer(problem, parameters):
        z = h @ weight.T
        z = z if bias is None else z + bias
        z_dot = h_dot @ weight.T
        h, d1, *d2 = activation_jet(activation, z, order)
        if h_ddot is not None:
            h_ddot = d1 * (h_ddot @ weight.T) + d2[0] * z_dot * z_dot
        h_dot = d1 * z_dot
    return h, h_dot, h_ddot


def mlp_vjp(
    problem: Problem, parameters: list[torch.Tensor], x: torch.Tensor, u: torch.Tensor, head: Formula | None = None
):  # fmt: skip
    """y [N, O] and gradients Jᵀu [R, N, D] for cotangents u [R, N, O] of y, or its head: docs/math.md, section 4."""
    h, below = x, []
    for weight, bias, activation in layer_by_layer(problem, parameters):
        z = h @ weight.T
        h, d1 = activation_jet(activation, z if bias is None else z + bias, 1)
        below.append((weight, d1))
    a = seeds(head, h, u)
    for weight, d1 in reversed(below):
        a = (d1 * a) @ weight
    return h, a

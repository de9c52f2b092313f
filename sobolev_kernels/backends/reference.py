"""The reference that everything is checked against: plain PyTorch, slow, obvious, differentiable again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..columns import Columns
from ..drawing import drawn, over_samples
from ..enums import COTANGENTS, DENSE, DIRECTIONS
from ..errors import NotProvided
from ..math.activations import derivatives
from ..math.losses import coupled, is_coupled, residual
from ..math.table import Formula
from ..problem import DERIVATIVES, Operands, Plan, Problem
from ..student import widened
from .finish import finish

# y [N, O], derivatives, second derivatives
Jets = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def supports(problem: Problem) -> str | None:
    return None


def plan(problem: Problem, N: int) -> Plan:
    return Plan("reference", "autograd, VJPs of VJPs" if problem.unrecognised else "plain PyTorch streams")


class Evaluated(NamedTuple):
    """A function and what it gave; x asks for its gradient. Without y it has not been run yet."""

    function: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor
    y: torch.Tensor | None


def run(
    problem: Problem, operands: Operands, columns: Columns, ran: Evaluated | None = None
) -> tuple[torch.Tensor, ...]:
    """What the op returns, but differentiable again and again; of a multi-layer perceptron, or of the function run.

    Operands are those of the fused backends, of the inputs as they come: it is here that `columns` are told.
    """
    x, N = operands.x, operands.x.shape[0]
    if operands.given is not None:
        vectors = over_samples(operands.given, N)
    elif operands.seed is not None:
        vectors = drawn(problem.drawing, operands.seed, N)
    else:
        vectors = x.new_empty((0, N, problem.drawn))
    vectors = vectors.to(x.dtype)
    with nullcontext() if ran is not None and ran.y is None else uncast(x):
        y, first, second = derivatives_along(problem, operands, columns, ran, vectors)
    if problem.result == DERIVATIVES:
        return tuple(result for result in (y, first, second) if result is not None)
    with uncast(x):
        return loss_of(problem, operands, widened(vectors), (y, first, second))


def uncast(x: torch.Tensor) -> AbstractContextManager:
    """Within it torch.autocast rounds no product of ours; a student's own forward keeps it."""
    device = x.device.type
    cast = is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if cast else nullcontext()


def derivatives_along(
    problem: Problem, operands: Operands, columns: Columns, ran: Evaluated | None, vectors: torch.Tensor
) -> Jets:
    """y [N, O], its projected derivatives, and second derivatives or None; of collapsed ones the second alone.

    A function that computes in half precision has rounded each of them; nothing else is rounded before the result is.
    """
    x, parameters = operands.x, operands.parameters
    if problem.projection == COTANGENTS:
        y, gradients = mlp_vjp(problem, parameters, x, vectors) if ran is None else vjps(ran, vectors)
        return widened(y), columns.restrict(widened(gradients)), None
    v = columns.embed(vectors, problem.D)
    jet = mlp_jet(problem, parameters, x, v, problem.order) if ran is None else function_jet(ran, v, problem.order)
    y, first, second = map(widened, jet)
    return (y, None, second.sum(0)) if problem.collapsed else (y, first, second)


def loss_of(problem: Problem, operands: Operands, vectors: torch.Tensor, predictions: Jets):
    """(loss, terms): the loss differentiable as often as needed."""
    cotangents, outputs, N = problem.projection == COTANGENTS, operands.output_weight, operands.x.shape[0]
    y, derivative, second = predictions[0], operands.derivative, operands.second
    if problem.derivative_target == DENSE and derivative is not None:
        derivative = (pull if cotangents else project)(derivative, vectors)
    if problem.second_target == DENSE and second is not None:
        second = project_twice(second, vectors)
    rows, of_each = (
        outputs[:, None, None] if cotangents and outputs is not None else outputs,
        operands.derivative_weight,
    )
    rows = of_each if rows is None else rows if of_each is None else rows * of_each
    samples, others = (None, None) if operands.sample_weight is None else operands.sample_weight
    parts = (
        (problem.value_loss, y, operands.values, outputs, samples),
        (problem.derivative_loss, predictions[1], derivative, rows, others),
        (problem.derivative_loss, predictions[2], second, rows, others),
    )
    terms = []
    for loss, prediction, target, weight, sample in parts[: 1 + problem.order]:
        each = y.new_zeros(N) if target is None else term(loss, prediction, target, weight, sample)
        terms.append(each / max(1, N) if problem.reduction == "mean" else each)
    loss, terms = finish(problem, operands.weights, terms)
    if not any(operands.weights):
        loss = loss + 0 * (y.sum(-1) if problem.reduction == "none" else y.sum())
    return loss, terms


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
        h, d1, d2, _ = derivatives(activation, z)
        if h_ddot is not None:
            h_ddot = d1 * (h_ddot @ weight.T) + d2 * z_dot * z_dot
        h_dot = d1 * z_dot
    return h, h_dot, h_ddot


def mlp_vjp(problem: Problem, parameters: list[torch.Tensor], x: torch.Tensor, u: torch.Tensor):
    """y [N, O] and gradients Jᵀu [R, N, D] for cotangents u [R, N, O]: docs/math.md, section 4."""
    h, below = x, []
    for weight, bias, activation in layer_by_layer(problem, parameters):
        z = h @ weight.T
        h, d1, *_ = derivatives(activation, z if bias is None else z + bias)
        below.append((weight, d1))
    a = u
    for weight, d1 in reversed(below):
        a = (d1 * a) @ weight
    return h, a


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """torch.nn.functional.layer_norm, in steps that autograd differentiates any number of times."""
    dims = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class ExactNorms(TorchFunctionMode):
    """torch's own norms take mean and deviation for constants in their third derivative (pytorch#196700).

    layer_norm is written out; those that couple the samples are refused.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is functional.layer_norm:
            function = layer_norm
        if function in (functional.batch_norm, functional.instance_norm):
            if args[5] if len(args) > 5 else kwargs.get("training", kwargs.get("use_input_stats")):
                name = function.__name__
                raise NotProvided(f"{name}: no derivative is provided through statistics of the batch; use eval()")
        return function(*args, **kwargs)


def with_graph(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x, asking for its gradient, and y = function(x)."""
    with torch.enable_grad(), ExactNorms():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return x, function(x)


def evaluate(function: Callable, x: torch.Tensor, problem: Problem) -> Evaluated:
    """Run a function, so that it is known what it gives before anything else happens."""
    along_directions = problem.projection == DIRECTIONS
    if torch.compiler.is_compiling() and not torch.is_grad_enabled() and problem.order == 1 and along_directions:
        return Evaluated(function, x, None)
    return Evaluated(function, *with_graph(function, x))


def vjps(ran: Evaluated, u: torch.Tensor):
    """y and its gradients Jᵀu."""
    graph, x, y = torch.is_grad_enabled(), ran.x, ran.y
    with torch.enable_grad():
        gradients = [gradient(y, x, cotangent) for cotangent in u]
    gradients = torch.stack(gradients) if gradients else x.new_empty((0, *x.shape))
    return (y, gradients) if graph else (y.detach(), gradients.detach())


def gradient(y: torch.Tensor, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """Jᵀu, differentiable; zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y, x, cotangent, create_graph=True, materialize_grads=True)[0]


def function_jet(ran: Evaluated, v: torch.Tensor, order: int = 1) -> Jets:
    """Derivatives along v of any function of x [N, D]: the VJP of its VJP, which is linear in the cotangent.

    Not torch.func.jvp, which many operations do not support.
    """
    graph, (function, x, y) = torch.is_grad_enabled(), ran
    if y is None:
        # without a gradient forward mode is right, and dynamo can follow it
        tangents = [torch.func.jvp(function, (x,), (direction,))[1] for direction in v]
        y = function(x)
        return y, torch.stack(tangents) if tangents else x.new_empty((0, *y.shape)), None
    with torch.enable_grad():
        tangents = along(y, x, v)
        seconds = [along(t, x, d[None])[0] for t, d in zip(tangents, v, strict=True)] if order == 2 else None
    stacked = [None if t is None else torch.stack(t) if t else x.new_empty((0, *y.shape)) for t in (tangents, seconds)]
    results = (y, *stacked)
    return results if graph else tuple(r if r is None else r.detach() for r in results)


def along(y: torch.Tensor, x: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """The derivatives of y along each direction, differentiable."""
    u = torch.zeros_like(y, requires_grad=True)
    if not (y.requires_grad and len(v)):
        return [torch.zeros_like(y) for _ in v]
    g = gradient(y, x, u)
    return [gradient(g, u, direction) if g.requires_grad else torch.zeros_like(y) for direction in v]


def project(jacobian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's tangents [P, N, O] from its Jacobian [N, O, D] along v [P, N, D]."""
    return torch.einsum("nod,pnd->pno", jacobian, v)


def pull(jacobian: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The target's gradients [R, N, D] from its Jacobian [N, O, D] for cotangents u [R, N, O]."""
    return torch.einsum("nod,rno->rnd", jacobian, u)


def project_twice(hessian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's second derivatives [P, N, O] from its Hessian [N, O, D, D] along v [P, N, D]."""
    return torch.einsum("node,pnd,pne->pno", hessian, v, v)


def term(
    loss: Formula, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
    sample: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """A term for each sample [N], from [N, O], [P, N, O] or [R, N, D]; `weight` broadcasts over the residuals.

    Pointwise, the mean of ρ over everything but the samples; of a coupled loss, ρ of the sums over the same; by
    `sample` [N]. What has weight 0 is selected, not multiplied: its target may be NaN.
    """
    if prediction.shape != target.shape:
        # broadcasting [N, 1] - [N] would quietly make an N × N loss
        raise ValueError(f"target: expected shape {tuple(prediction.shape)}, got {tuple(target.shape)}")
    dims = (-1,) if prediction.dim() == 2 else (0, -1)
    w = 1.0 if weight is None else weight
    if not (weight is None and sample is None):
        counting = (w if sample is None else w * sample[:, None]) != 0
        prediction, target = torch.where(counting, prediction, 0.0), torch.where(counting, target, 0.0)
    r = prediction - target
    if is_coupled(loss):
        products = (r * r, prediction * prediction, prediction * target, target * target)
        each = coupled(loss, *((w * product).sum(dims) for product in products))
    else:
        each = (w * residual(loss, r)[0]).mean(dims)
    if sample is None:
        return each
    # so that a cotangent of what does not count, which may be infinite, ends here
    return torch.where(sample == 0, 0.0, sample * each)

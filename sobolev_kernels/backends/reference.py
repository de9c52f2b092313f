"""The reference that everything is checked against: plain PyTorch, slow, obvious, differentiable again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch._functorch.eager_transforms import _jvp_with_argnums
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

from ..columns import Columns
from ..drawing import drawn, over_samples
from ..enums import COTANGENTS, DENSE, GRADIENTS
from ..errors import NotProvided
from ..math import heads
from ..math.activations import activation_jet
from ..math.losses import coupled, is_coupled, is_likelihood, is_summed, likelihood, residual
from ..math.table import Formula
from ..planner import side_of_function
from ..problem import DERIVATIVES, LOSS, UNSEEN, Operands, Plan, Problem
from ..student import widened
from .dependence import SILENT, Evaluated, refuse_dependence, refuse_slope
from .exact import ExactNorms, graphs, tracked
from .finish import finish
from .graph import leads_to, nodes_of, refuse_inexact
from .running import are_own, by_transforms, with_graph

MSE = Formula("mse")
# y [N, O], derivatives, second derivatives
Jets = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


SHARDED = (
    "FSDP frees a student's parameters after a backward, and this takes several; first derivatives along directions, "
    "which go through streams, take one"
)


def supports(problem: Problem) -> str | None:
    if not problem.sharded:
        return None
    return SHARDED if problem.unfollowed in (None, UNSEEN) else f"{SHARDED}, but {problem.unfollowed}"


def plan(problem: Problem, N: int) -> Plan:
    return Plan("reference", "autograd, VJPs of VJPs" if problem.unrecognised else "plain PyTorch streams")


def run(
    problem: Problem, operands: Operands, columns: Columns, ran: Evaluated | None = None
) -> tuple[torch.Tensor, ...]:
    """What the op returns, but differentiable again and again; of a multi-layer perceptron, or of the function run.

    Operands are those of the fused backends, of the inputs as they come: it is here that `columns` are told.
    """
    x = operands.x
    vectors = None if has_rows(problem, ran) else vectors_of(problem, operands)
    with nullcontext() if ran is not None and by_transforms() else uncast(x):
        y, first, second = derivatives_along(problem, operands, columns, ran, vectors)
    if problem.result == DERIVATIVES:
        y = y if problem.head is None else heads.value(problem.head, y)
        results = tuple(result for result in (y, first, second) if result is not None)
        return results if ran is not None else tuple(tied(result, operands) for result in results)
    with uncast(x):
        loss, terms = loss_of(problem, operands, widened(vectors), (y, first, second))
    if ran is not None:
        return loss, terms
    return tied(loss, operands), tied(terms, operands) if terms.requires_grad else terms


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
    cast = is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if cast else nullcontext()


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
    jet = mlp_jet(problem, parameters, x, v, problem.order) if ran is None else function_jet(ran, v, problem.order)
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
    return side_of_function(problem.P, ran.y.shape[1]) == GRADIENTS and are_own(ran)


def loss_of(problem: Problem, operands: Operands, vectors: torch.Tensor | None, predictions: Jets):
    """(loss, terms): the loss differentiable as often as needed."""
    cotangents, outputs, N = problem.projection == COTANGENTS, operands.output_weight, operands.x.shape[0]
    if problem.head is not None:
        of_value = heads.logits if is_likelihood(problem.value_loss) else heads.value
        predictions = (of_value(problem.head, predictions[0]), *predictions[1:])
    if is_plain(problem, operands):
        return plain_loss_of(problem, operands, predictions)
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
        h, d1, d2, _ = activation_jet(activation, z)
        if h_ddot is not None:
            h_ddot = d1 * (h_ddot @ weight.T) + d2 * z_dot * z_dot
        h_dot = d1 * z_dot
    return h, h_dot, h_ddot


def mlp_vjp(
    problem: Problem, parameters: list[torch.Tensor], x: torch.Tensor, u: torch.Tensor, head: Formula | None = None
):  # fmt: skip
    """y [N, O] and gradients Jᵀu [R, N, D] for cotangents u [R, N, O] of y, or its head: docs/math.md, section 4."""
    h, below = x, []
    for weight, bias, activation in layer_by_layer(problem, parameters):
        z = h @ weight.T
        h, d1, *_ = activation_jet(activation, z if bias is None else z + bias)
        below.append((weight, d1))
    a = seeds(head, h, u)
    for weight, d1 in reversed(below):
        a = (d1 * a) @ weight
    return h, a


def differentiably(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """function(x), where derivatives can be taken of what is run in it."""
    if by_transforms():
        return function(x)
    if torch.compiler.is_compiling():
        from .uncompiled import uncompiled

        return uncompiled(by_autograd, function, x)
    return by_autograd(function, x)


def by_autograd(function: Callable, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """function(x); amid transforms of torch.func in one of their own, since only there x can ask for a gradient."""
    if not torch._C._are_functorch_transforms_active():
        return function(x)
    results = torch.func.vjp(function, x)[0]
    return results if torch.is_grad_enabled() else tuple(map(without_graph, results))


def without_graph(result: torch.Tensor) -> torch.Tensor:
    """Where gradients are off: without its graph, but with its tangent of forward mode."""
    return result.detach() if forward_ad._current_level < 0 else result.clone()


def vjps(ran: Evaluated, u: torch.Tensor):
    """y and its gradients Jᵀu."""
    if by_transforms():
        return ran.y, transformed_vjps(ran, u)
    with graphs():
        gradients = of_each(gradients_of(ran, tracked(u)), ran.x)
    return (ran.y, gradients) if ran.kept else (without_graph(ran.y), without_graph(gradients))


def gradients_of(ran: Evaluated, u: torch.Tensor) -> list[torch.Tensor]:
    x, y = ran.x, ran.y
    gradients = [gradient(y, x, cotangent) for cotangent in u]
    if gradients and gradients[0] is None:
        need_constant(ran)
        return [torch.zeros_like(x) for _ in u]
    if gradients and ran.kept:
        need_second_derivatives(ran, gradients[0], lambda x: gradients_of(values_at(ran, x), u[:1])[0])
    return gradients


def need_second_derivatives(ran: Evaluated, derivative: torch.Tensor, derivative_at: Callable) -> None:
    """Raise where the graph of a derivative is no such graph as gives it its own derivatives."""
    if ran.alike is not None and ran.alike.again:
        return
    nodes = nodes_of(derivative)
    refuse_inexact(nodes, again=True)
    if ran.looked < 2 and not leads_to(ran.x, nodes):
        refuse_dependence(Evaluated(derivative_at, ran.x, derivative))
    if ran.alike is not None:
        ran.alike.again = True


def need_constant(ran: Evaluated) -> None:
    """Raise where no path leads from y to x, and nobody has looked yet whether y changes with x."""
    if not ran.looked:
        refuse_dependence(ran)


def values_at(ran: Evaluated, x: torch.Tensor) -> Evaluated:
    """The same function at another x, of which only values are wanted."""
    return with_graph(ran.function, x)._replace(kept=False, looked=ran.looked)


def gradient(y: torch.Tensor, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor | None:
    """Jᵀu, differentiable; None where no path leads from y to x."""
    if not y.requires_grad:
        return None
    return torch.autograd.grad(y, x, cotangent, create_graph=True, allow_unused=True)[0]


def function_jet(ran: Evaluated, v: torch.Tensor, order: int = 1) -> Jets:
    """Derivatives along v of any function of x [N, D]: the VJP of its VJP, which is linear in the cotangent.

    Not torch.func.jvp, which many operations do not support.
    """
    if by_transforms():
        return transformed_jet(ran, v, order)
    x, y, kept = ran.x, ran.y, ran.kept
    with graphs():
        v, seconds = tracked(v), None
        if order == 1 and side_of_function(len(v), y.shape[1]) == GRADIENTS and are_own(ran):
            results = y, along_by_gradients(ran, v), None
            return results if kept else (without_graph(y), without_graph(results[1]), None)
        tangents = along(ran, v, again=kept or order == 2)
        if order == 2:
            of_tangents = (Evaluated(tangent(ran, d), x, t, kept) for t, d in zip(tangents, v, strict=True))
            seconds = [along(t, d[None], again=kept)[0] for t, d in zip(of_tangents, v, strict=True)]
    results = (y, *(of_each(t, y) if t is not None else None for t in (tangents, seconds)))
    return results if kept else tuple(r if r is None else without_graph(r) for r in results)


def of_each(derivatives: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """[P, ...] of those of each direction, which may be none."""
    return torch.stack(derivatives) if derivatives else like.new_empty((0, *like.shape))


def along_by_gradients(ran: Evaluated, v: torch.Tensor) -> torch.Tensor:
    """The derivatives of y along each direction, as projections of the gradient of each output."""
    gradients = gradients_of(ran, units(ran.y))
    if len(gradients) == 1:
        return (v * gradients[0]).sum(-1, keepdim=True)
    return torch.einsum("ond,pnd->pno", torch.stack(gradients), v)


def units(y: torch.Tensor) -> torch.Tensor:
    """The cotangents [O, N, O] of each output alone."""
    if y.shape[1] == 1:
        return torch.ones_like(y)[None]
    return torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, len(y), -1)


def along(ran: Evaluated, v: torch.Tensor, again: bool) -> list[torch.Tensor]:
    """The derivatives of y along each direction, differentiable; `again`, if they will be differentiated."""
    x, y = ran.x, ran.y
    if not len(v):
        return []
    u = torch.zeros_like(y, requires_grad=True)
    g = gradient(y, x, u)
    if g is None:
        need_constant(ran)
        return [torch.zeros_like(y) for _ in v]
    tangents = [gradient(g, u, direction) for direction in v]
    if tangents[0] is None:
        refuse_slope(ran)
        return [torch.zeros_like(y) for _ in v]
    if again:
        need_second_derivatives(ran, g, tangent(ran, v[0]))
    return tangents


def tangent(ran: Evaluated, direction: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The derivative along direction [N, D] as a function of x."""
    return lambda x: along(values_at(ran, x), direction[None], again=False)[0]


def tangent_of(function: Callable, D: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The derivative [N, O] of a function that was looked at, along one direction of D numbers, as a function of x."""

    def tangent_at(x: torch.Tensor) -> torch.Tensor:
        direction = torch.linspace(1, 2, D, dtype=x.dtype, device=x.device).expand_as(x)
        return along(with_graph(function, x)._replace(looked=2), direction[None], again=True)[0]

    return tangent_at


def transformed_vjps(ran: Evaluated, u: torch.Tensor) -> torch.Tensor:
    """Gradients Jᵀu."""
    with sdpa_kernel(SDPBackend.MATH), ExactNorms():
        forward_tangent(ran.function, ran.x, torch.ones_like(ran.x))
        pull = torch.func.vjp(ran.function, ran.x)[1]
        gradients = [pull(cotangent)[0] for cotangent in u]
    return of_each(gradients, ran.x).detach()


def transformed_jet(ran: Evaluated, v: torch.Tensor, order: int) -> Jets:
    """y, tangents in forward mode, and second derivatives by VJPs of VJPs: dynamo does not follow forward mode in
    itself through a norm with weights."""
    # of one layout: of tensors with others, sizes that are variables are not followed
    x, v, seconds = ran.x.contiguous().clone(), [direction.contiguous().clone() for direction in v], None
    with sdpa_kernel(SDPBackend.MATH), ExactNorms():
        tangents = [forward_tangent(ran.function, x, direction) for direction in v]
        if order == 2:
            seconds = [pulled_twice(lambda x, d=d: pulled_twice(ran.function, x, d), x, d) for d in v]
    return ran.y, *(of_each(t, ran.y).detach() if t is not None else None for t in (tangents, seconds))


def pulled_twice(function: Callable, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """D f(x)[v] as the VJP of the VJP, which is linear in the cotangent."""
    y, pull = torch.func.vjp(function, x)
    return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1](direction)[0]


def forward_tangent(function: Callable, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """As torch.func.jvp, but an output that no tangent reaches is an error, which compilers meet while they trace."""
    try:
        return _jvp_with_argnums(function, (x,), (direction,), None, strict=True, has_aux=False)[1]
    except RuntimeError as error:
        if "strict" not in str(error):
            raise
        raise NotProvided(SILENT) from error


def project(jacobian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's tangents [P, N, O] from its Jacobian [N, O, D] along v [P, N, D]."""
    return torch.einsum("nod,pnd->pno", jacobian, v)


def pull(jacobian: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The target's gradients [R, N, D] from its Jacobian [N, O, D] for cotangents u [R, N, O]."""
    return torch.einsum("nod,rno->rnd", jacobian, u)


def project_twice(hessian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's second derivatives [P, N, O] from its Hessian [N, O, D, D] along v [P, N, D]."""
    return torch.einsum("node,pnd,pne->pno", hessian, v, v)


def is_plain(problem: Problem, operands: Operands) -> bool:
    """Whether the terms, all of which count, are means over all numbers."""
    if problem.result != LOSS or problem.terms or DENSE in (problem.derivative_target, problem.second_target):
        return False
    targets = operands.values, operands.derivative, operands.second
    if any(target is None or not target.numel() for target in targets[: 1 + problem.order]):
        return False
    if any(weights is not None for weights in (operands.sample_weight, operands.output_weight)):
        return False
    if operands.derivative_weight is not None or not all(operands.weights):
        return False
    return not (is_summed(problem.value_loss) or is_coupled(problem.derivative_loss))


def plain_loss_of(problem: Problem, operands: Operands, predictions: Jets):
    """The same loss, each term in one operation where that is possible; of the terms the numbers."""
    losses = problem.value_loss, problem.derivative_loss, problem.derivative_loss
    targets = operands.values, operands.derivative, operands.second
    each = zip(losses[: 1 + problem.order], predictions, targets, strict=False)
    terms = [term_of_all(*of_term) for of_term in each]
    factor = 1 if problem.reduction == "mean" else len(operands.x)
    weights = [factor * w for w in operands.weights]
    loss = sum(term if w == 1 else w * term for w, term in zip(weights, terms, strict=True))
    return loss, factor * torch.stack([term.detach() for term in terms])


def term_of_all(loss: Formula, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean of the terms of all samples, of a pointwise loss without weights."""
    need_alike(prediction, target)
    if is_likelihood(loss):
        return likelihood(loss, prediction, target).mean()
    # which is the row of the table in one operation
    return mse_loss(prediction, target) if loss == MSE else residual(loss, prediction - target)[0].mean()


def need_alike(prediction: torch.Tensor, target: torch.Tensor) -> None:
    """Broadcasting [N, 1] - [N] would quietly make an N × N loss."""
    if prediction.shape != target.shape:
        raise ValueError(f"target: expected shape {tuple(prediction.shape)}, got {tuple(target.shape)}")


def term(
    loss: Formula, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None,
    sample: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """A term for each sample [N], from [N, O], [P, N, O] or [R, N, D]; `weight` broadcasts over the residuals.

    Pointwise, the mean of ρ over everything but the samples, or the sum (`is_summed`); of a coupled loss, ρ of the sums
    over the same; by `sample` [N]. What has weight 0 is selected, not multiplied: its target may be NaN.
    """
    need_alike(prediction, target)
    dims = (-1,) if prediction.dim() == 2 else (0, -1)
    w = 1.0 if weight is None else weight
    if not (weight is None and sample is None):
        counting = (w if sample is None else w * sample[:, None]) != 0
        prediction, target = torch.where(counting, prediction, 0.0), torch.where(counting, target, 0.0)
    if is_coupled(loss):
        a, t = prediction.double(), target.double()
        r = a - t
        products = (r * r, a * a, a * t, t * t, torch.ones_like(t))
        each = coupled(loss, *((w * product).sum(dims) for product in products)).to(prediction.dtype)
    elif is_likelihood(loss):
        each = w * likelihood(loss, prediction, target)
        each = each.sum(dims) if is_summed(loss) else each.mean(dims)
    else:
        each = (w * residual(loss, prediction - target)[0]).mean(dims)
    if sample is None:
        return each
    # so that a cotangent of what does not count, which may be infinite, ends here
    return torch.where(sample == 0, 0.0, sample * each)

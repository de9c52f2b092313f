"""The one op, `torch.ops.sobolev_kernels.mlp_sobolev`, and its one autograd function.

Eager calls go straight to `compute` through the autograd function, which is cheaper than the dispatcher's way
(`python -m bench --overhead` prints both). Under torch.compile, export or any other tracer they go through
the registered op, whose gradient is the same code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .boundary import entering
from .dispatch import BACKENDS
from .enums import NONE, PROJECTED
from .problem import DERIVATIVES, DERIVATIVES_GRADIENTS, LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Problem
from .transforms import RefuseDoubleBackward, refuse_forward_mode

empty = torch.empty  # the tests replace it by one that returns NaN

DEVICES = ("CPU", "CUDA")
library = torch.library.Library("sobolev_kernels", "DEF")
library.define(
    "mlp_sobolev(Tensor x, Tensor[] parameters, Tensor? given, Tensor? seed, Tensor? values, Tensor? derivative, "
    "Tensor? second, Tensor? sample_weight, Tensor? output_weight, float[] weights, str problem) -> Tensor[]"
)


def outputs_of(problem: Problem, operands: Operands) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Unfilled outputs by name, and one gradient for each parameter if wanted: from shapes alone."""
    x, N = operands.x, operands.x.shape[0]
    shapes: dict[str, tuple[int, ...]] = {}
    if problem.result == LOSS:
        shapes = {"loss": (), "terms": (1 + problem.order,)}
    elif problem.result == PER_SAMPLE:
        shapes = {"loss": (N,), "terms": (1 + problem.order, N)}
    elif problem.result == DERIVATIVES:
        each = (problem.P, N, problem.derived)
        shapes = {"y": (N, problem.O)}
        shapes |= {} if problem.collapsed else {"derivatives": each}
        shapes |= {"second": (N, problem.O) if problem.collapsed else each} if problem.order == 2 else {}
    if problem.gradients and problem.input_gradient:
        shapes["dx"] = (N, problem.D)
    new = lambda shape: empty(shape, dtype=x.dtype, device=x.device)  # noqa: E731
    gradients = [new(p.shape) for p in operands.parameters] if problem.gradients else []
    return {name: new(shape) for name, shape in shapes.items()}, gradients


def compute(problem: Problem, operands: Operands) -> list[torch.Tensor]:
    """Outputs in the order of `outputs_of`, then the gradients: what the op returns."""
    operands = entering(problem, operands)
    outputs, gradients = outputs_of(problem, operands)
    run = BACKENDS[problem.backend].run
    if torch.is_autocast_enabled(problem.device):  # the Problem has its precision; a backend's own steps have theirs
        with torch.autocast(problem.device, enabled=False):
            run(problem, operands, outputs, gradients)
    else:
        run(problem, operands, outputs, gradients)
    return [*outputs.values(), *gradients]


def invoke(problem: Problem, operands: Operands) -> list[torch.Tensor]:
    if tracing(operands):
        head, weights = operands[:-1], list(operands.weights)
        return torch.ops.sobolev_kernels.mlp_sobolev(*head, weights, problem.to_string())
    return compute(problem, operands)


def tracing(operands: Operands) -> bool:
    """Whether someone watches: torch.compile, a dispatch mode, or a tensor subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return type(operands.x) not in (torch.Tensor, torch.nn.Parameter)


def from_op(*arguments: Any) -> tuple[Problem, Operands]:
    *operands, problem = arguments
    return Problem.from_string(problem), Operands(*operands)


def op_eager(*arguments: Any) -> list[torch.Tensor]:
    return compute(*from_op(*arguments))


def op_fake(*arguments: Any) -> list[torch.Tensor]:
    outputs, gradients = outputs_of(*from_op(*arguments))
    return [*outputs.values(), *gradients]


def gradients_of(problem: Problem, operands: Operands) -> list[torch.Tensor]:
    """(dx, parameters…) for cotangents that were not known in the forward: computed from the start again."""
    if problem.result == PER_SAMPLE:
        problem = replace(problem, result=PER_SAMPLE_GRADIENTS, gradients=True)
    else:
        kinds = (NONE if cotangent is None else PROJECTED for cotangent in (operands.derivative, operands.second))
        problem = replace(problem, result=DERIVATIVES_GRADIENTS, gradients=True)
        problem = replace(problem, **dict(zip(("derivative_target", "second_target"), kinds, strict=True)))
    return invoke(problem, operands)


def save(ctx, problem: Problem, operands: Operands, outputs: list[torch.Tensor]) -> None:
    """Keep what the backward needs: the finished gradients, or the operands to compute them from."""
    ctx.problem, ctx.count = problem, len(operands.parameters)
    if problem.result == LOSS:
        ctx.save_for_backward(operands.x, *operands.parameters, *outputs[2:])
        return
    *tensors, weights = operands
    ctx.weights = weights
    x, parameters, *optional = tensors
    ctx.present = [tensor is not None for tensor in optional]
    ctx.save_for_backward(x, *parameters, *(tensor for tensor in optional if tensor is not None))


def saved_operands(ctx) -> Operands:
    x, *rest = ctx.saved_tensors
    parameters, optional = rest[: ctx.count], iter(rest[ctx.count :])
    return Operands(x, parameters, *(next(optional) if present else None for present in ctx.present), ctx.weights)


def differentiate(ctx, cotangents: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
    """[dx or None, dparameters…] from the cotangents of the op's outputs."""
    problem = ctx.problem
    if all(g is None for g in cotangents):
        return [None] * (1 + ctx.count)
    if problem.result == LOSS:
        gradients = list(torch._foreach_mul(list(ctx.saved_tensors[1 + ctx.count :]), cotangents[0]))
    else:
        operands = saved_operands(ctx)
        if problem.result == PER_SAMPLE:
            weight = cotangents[0] if operands.sample_weight is None else cotangents[0] * operands.sample_weight
            operands = operands._replace(sample_weight=weight)
        else:
            outputs = ("values", "second") if problem.collapsed else ("values", "derivative", "second")
            operands = operands._replace(**dict(zip(outputs, cotangents, strict=False)))
        gradients = gradients_of(problem, operands)
    if torch.is_grad_enabled():
        inputs = ctx.saved_tensors[: 1 + ctx.count]
        gradients = list(RefuseDoubleBackward.apply(len(inputs), *inputs, *gradients))
    return gradients if problem.input_gradient else [None, *gradients]


OPTIONAL = len(Operands._fields) - 3  # the tensors between the parameters and the weights


class MlpSobolev(torch.autograd.Function):
    """The op as eager PyTorch calls it. (With `setup_context`, as the op has it, `apply` alone takes 40 µs more.)"""

    @staticmethod
    def forward(ctx, problem, weights, x, *tensors):
        optional, parameters = tensors[:OPTIONAL], list(tensors[OPTIONAL:])
        operands = Operands(x, parameters, *optional, weights)
        outputs = compute(problem, operands)
        save(ctx, problem, operands, outputs)
        ctx.set_materialize_grads(False)
        if problem.result == DERIVATIVES:
            return tuple(outputs)
        loss, terms = outputs[:2]
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx, *cotangents):
        dx, *dparameters = differentiate(ctx, cotangents)
        return None, None, dx, *[None] * OPTIONAL, *dparameters

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


def op_setup_context(ctx, inputs, output):
    problem, operands = from_op(*inputs)
    save(ctx, problem, operands, output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*([] if problem.result == DERIVATIVES else output[1:]))


def op_backward(ctx, cotangents):
    dx, *dparameters = differentiate(ctx, tuple(cotangents))
    return dx, dparameters, *[None] * OPTIONAL, None, None


for device in DEVICES:
    library.impl("mlp_sobolev", op_eager, device)
torch.library.register_fake("sobolev_kernels::mlp_sobolev", op_fake, lib=library)
torch.library.register_autograd(
    "sobolev_kernels::mlp_sobolev", op_backward, setup_context=op_setup_context, lib=library
)


def mlp_sobolev(problem: Problem, operands: Operands) -> tuple[torch.Tensor, ...]:
    """The fused step, differentiable: the outputs of the Problem's result."""
    if tracing(operands):
        return tuple(invoke(problem, operands))
    x, parameters, *optional, weights = operands
    return MlpSobolev.apply(problem, weights, x, *optional, *parameters)

"""The one op, `torch.ops.sobolev_kernels.mlp_sobolev`, and its one autograd function.

Eager calls go straight to `compute` through the autograd function, which is cheaper than the dispatcher's way
(`python -m bench --overhead` prints both). Under torch.compile, export or any other tracer they go through
the registered op, whose gradient is the same code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from . import again, steps
from .boundary import entering
from .changed import replace
from .dispatch import BACKENDS
from .enums import DENSE, NONE, PROJECTED
from .problem import (
    DERIVATIVES,
    DERIVATIVES_GRADIENTS,
    DIFFERENTIABLE,
    LOSS,
    NO_COTANGENTS,
    PER_SAMPLE,
    PER_SAMPLE_GRADIENTS,
    Operands,
    Problem,
)  # fmt: skip
from .transforms import RefuseDoubleBackward, need_no_batch, refuse_forward_mode, several

empty, empty_like = torch.empty, torch.empty_like  # the tests replace them by ones that return NaN

DEVICES = ("CPU", "CUDA")
library = torch.library.Library("sobolev_kernels", "DEF")
library.define(
    "mlp_sobolev(Tensor x, Tensor[] parameters, Tensor? given, Tensor? seed, Tensor? values, Tensor? derivative, "
    "Tensor? second, Tensor? sample_weight, Tensor? output_weight, Tensor? derivative_weight, float[] weights, "
    "str problem) -> Tensor[]"
)


def outputs_of(problem: Problem, operands: Operands) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Unfilled outputs by name, and one gradient for each parameter if wanted: from shapes alone."""
    x, N = operands.x, operands.x.shape[0]
    shapes: dict[str, tuple[int, ...]] = {}
    if problem.result == LOSS:
        shapes = {"y": (N, problem.O)} if problem.looked else {}
        shapes |= {"loss": (), "terms": (1 + problem.order,)}
    elif problem.result == PER_SAMPLE:
        shapes = {"loss": (N,), "terms": (1 + problem.order, N)}
    elif problem.result == DERIVATIVES:
        each = (problem.P, N, problem.derived)
        shapes = {"y": (N, problem.O)}
        shapes |= {} if problem.collapsed else {"derivatives": each}
        shapes |= {"second": (N, problem.O) if problem.collapsed else each} if problem.order == 2 else {}
    if problem.gradients and problem.input_gradient:
        shapes["dx"] = (N, problem.D)
    if problem.gradients and problem.given_gradient:
        shapes["dgiven"] = (problem.P, N, problem.drawn)
    new = lambda shape: empty(shape, dtype=x.dtype, device=x.device)  # noqa: E731
    gradients = [new(p.shape) for p in operands.parameters] if problem.gradients else []
    return {name: new(shape) for name, shape in shapes.items()}, gradients


def compute(problem: Problem, operands: Operands) -> list[torch.Tensor]:
    """Outputs in the order of `outputs_of`, then the gradients: what the op returns."""
    keeps, came = steps.keeps(problem), operands
    if keeps and not torch.is_autocast_enabled(problem.device):
        made = steps.again(problem, operands, empty_like)
        if made is not None:
            return made
    operands = entering(problem, operands)
    outputs, gradients = outputs_of(problem, operands)
    run = BACKENDS[problem.backend].run
    if torch.is_autocast_enabled(problem.device):  # the Problem has its precision; a backend's own steps have theirs
        with torch.autocast(problem.device, enabled=False):
            run(problem, operands, outputs, gradients)
    else:
        run(problem, operands, outputs, gradients)
    if keeps and operands is came:
        steps.keep(problem, operands, outputs, gradients)
    return [*outputs.values(), *gradients]


def finished(outputs: list[torch.Tensor], looked: bool) -> list[torch.Tensor]:
    """A loss and its gradients, after the outputs if they are asked for, without the terms that nobody asks for."""
    *before, loss, _ = outputs[: 2 + looked]
    return [*before, loss, *outputs[2 + looked :]]


def invoke(problem: Problem, operands: Operands) -> list[torch.Tensor]:
    if tracing(operands):
        head, weights = operands[:-1], list(operands.weights)
        return torch.ops.sobolev_kernels.mlp_sobolev(*head, weights, problem.to_string())
    if problem.result == DERIVATIVES_GRADIENTS and torch.is_grad_enabled():  # they may be differentiated again
        return list(MlpSobolev.apply(compute, problem, operands, *inputs_of(problem, operands)))
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


def save(ctx, problem: Problem, operands: Operands, outputs: list[torch.Tensor]) -> None:
    """Keep what the backward needs: the finished gradients, or the operands to compute others from."""
    *tensors, weights = operands
    x, parameters, *optional = tensors
    if problem.result == LOSS and not problem.terms:  # of given vectors it is only asked what a gradient of theirs is
        optional = [optional[0] if problem.given_gradient else None, *[None] * (len(optional) - 1)]
    ctx.problem, ctx.weights, ctx.count = problem, weights, len(parameters)
    ctx.present = [tensor is not None for tensor in optional]
    finished = outputs[2:] if problem.result == LOSS else []
    ctx.save_for_backward(x, *parameters, *(tensor for tensor in optional if tensor is not None), *finished)


def saved(ctx) -> tuple[Operands, list[torch.Tensor]]:
    """The operands that were kept, and the finished gradients."""
    x, *rest = ctx.saved_tensors
    parameters, others = rest[: ctx.count], iter(rest[ctx.count :])
    optional = [next(others) if present else None for present in ctx.present]
    return Operands(x, parameters, *optional, ctx.weights), list(others)


def inputs_of(problem: Problem, operands: Operands) -> tuple[torch.Tensor | None, ...]:
    """What the autograd function is given: x, given vectors, cotangents if gradients are computed, parameters."""
    if problem.result == DERIVATIVES_GRADIENTS:
        return (operands.x, operands.given, *operands[4:7], *operands.parameters)
    given = operands.given if problem.given_gradient else None
    return (operands.x, given, *NO_COTANGENTS, *operands.parameters)


def differentiate(
    ctx, cotangents: tuple[torch.Tensor | None, ...], read: Operands | None = None
) -> list[torch.Tensor | None]:
    """Gradients of what `inputs_of` gives, None where there is none, from the cotangents of the op's outputs.

    `read`: the operands of derivatives, if they were; a checkpoint gives what was saved only once.
    """
    problem, (operands, finished) = ctx.problem, saved(ctx) if read is None else (read, [])
    if all(g is None for g in cotangents):
        return [None] * (5 + ctx.count)
    if problem.result == DERIVATIVES and several(*cotangents):
        return again.of_several(problem, operands, cotangents)
    need_no_batch(*cotangents)
    if problem.result == DERIVATIVES_GRADIENTS:
        return again.gradients(problem, operands, cotangents)
    if problem.result == DERIVATIVES:
        gradients = gradients_of_derivatives(problem, operands, cotangents)
    elif problem.result == LOSS and not problem.terms:
        gradients = list(torch._foreach_mul(finished, cotangents[0]))
    else:
        gradients = gradients_of_terms(problem, operands, cotangents[0], cotangents[1] if problem.terms else None)
    if problem.result != DERIVATIVES:
        gradients = guarded(gradients, (operands.x, *operands.parameters, operands.given, *cotangents))
    dx, dgiven, *dparameters = placed(problem, gradients, operands.given)
    return [dx, dgiven, *NO_COTANGENTS, *dparameters]


def guarded(gradients: list[torch.Tensor], inputs: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor]:
    """Those of a loss, of which no further derivative can be asked for without a word."""
    if not torch.is_grad_enabled():
        return gradients
    inputs = [tensor for tensor in inputs if tensor is not None]
    return list(RefuseDoubleBackward.apply(len(inputs), *inputs, *gradients))


def placed(problem: Problem, gradients: list[torch.Tensor], given: torch.Tensor | None) -> list[torch.Tensor | None]:
    """[dx or None, dgiven or None, dparameters…]; of vectors that all samples share the sum over these."""
    found = iter(gradients)
    dx = next(found) if problem.input_gradient else None
    dgiven = next(found) if problem.given_gradient else None
    if dgiven is not None and given.dim() == 2:
        dgiven = dgiven.sum(1)
    return [dx, dgiven, *found]


def is_one(cotangent: torch.Tensor) -> bool:
    """Whether finished gradients are what is asked for as they are.

    Only the CPU knows a number without waiting for it, and only outside of a tracer is there one.
    """
    if type(cotangent) is not torch.Tensor or not cotangent.is_cpu or torch._C._len_torch_dispatch_stack() > 0:
        return False
    try:
        return not torch.compiler.is_compiling() and cotangent.item() == 1.0
    except RuntimeError:  # of several cotangents at a time, which `need_no_batch` refuses
        return False


def gradients_of_derivatives(problem: Problem, operands: Operands, cotangents: tuple) -> list[torch.Tensor]:
    """(dx, dgiven, parameters…) from the cotangents of values and derivatives."""
    values, *others = cotangents
    first, second = (None, *others) if problem.collapsed else (*others, None)[:2]
    operands = operands._replace(values=values, derivative=first, second=second)
    kinds = NONE if first is None else PROJECTED, NONE if second is None else PROJECTED
    asked = backward_of(problem, DERIVATIVES_GRADIENTS, *kinds)
    return invoke(asked, operands)


def is_apart(problem: Problem) -> bool:
    """Whether a loss is made of fused derivatives, since it is above order 2, or since given vectors ask for a gradient
    that no kernel gives beside the loss: through a target that is projected on them, too."""
    asked = problem.given_gradient and problem.result not in DIFFERENTIABLE
    return problem.order > 2 or (asked and DENSE in (problem.derivative_target, problem.second_target))


def backward_of(problem: Problem, result: str, first: str, second: str) -> Problem:
    """What a backward computes; the same one each time, since a Problem takes longer to make than to find."""
    return (gradients_of if torch.compiler.is_compiling() else known)(problem, result, first, second)


def gradients_of(problem: Problem, result: str, first: str, second: str) -> Problem:
    return replace(problem, result=result, gradients=True, derivative_target=first, second_target=second)


known = lru_cache(maxsize=256)(gradients_of)


def gradients_of_terms(
    problem: Problem, operands: Operands, loss: torch.Tensor | None, terms: torch.Tensor | None
) -> list[torch.Tensor]:
    """(dx, parameters…) from the cotangents of a loss and of its terms, computed from the start again.

    On the CPU the cotangents of a scalar loss and its terms are weights of one step. Elsewhere that would wait for the
    device, and be seen by who traces, so that each term has a step of its own.
    """
    count = 1 + problem.order
    if terms is None:
        steps = [(operands.weights, loss)]
    else:
        whole = [0 if loss is None else weight * loss for weight in operands.weights]
        each = [term + more for term, more in zip(terms.unbind(), whole, strict=True)]
        if problem.result == LOSS and problem.device == "cpu" and not tracing(operands):
            steps = [(tuple(float(term.detach()) for term in each), None)]
        else:
            targets = operands.values, operands.derivative, operands.second
            units = [tuple(float(i == k) for i in range(count)) for k in range(count)]
            steps = [(unit, term) for unit, term, t in zip(units, each, targets, strict=False) if t is not None]
    total: list[torch.Tensor] = []
    for weights, factor in steps:
        gradients = gradients_of_loss(problem, operands._replace(weights=weights), factor)
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
    return total


def gradients_of_loss(problem: Problem, operands: Operands, factor: torch.Tensor | None) -> list[torch.Tensor]:
    """(dx, parameters…) of the weighted loss times a factor, one for each sample if losses are per sample."""
    if problem.result == LOSS:
        gradients = invoke(replace(problem, gradients=True), operands)[2:]
        return gradients if factor is None else [gradient * factor for gradient in gradients]
    weight = weighed(operands.sample_weight, factor)
    targets = problem.derivative_target, problem.second_target
    return invoke(backward_of(problem, PER_SAMPLE_GRADIENTS, *targets), operands._replace(sample_weight=weight))


def weighed(sample_weight: torch.Tensor | None, cotangent: torch.Tensor) -> torch.Tensor:
    """Weights of samples by a cotangent of each [N]; one of 0 stays 0, also of an infinite cotangent."""
    if sample_weight is None:
        return cotangent.expand(2, -1)
    return torch.where(sample_weight == 0, 0.0, sample_weight * cotangent)


class MlpSobolev(torch.autograd.Function):
    """The op as eager PyTorch calls it. (With `setup_context`, as the op has it, `apply` alone takes 40 µs more.)

    `run` computes the outputs: `compute`, or a call that is kept. What may have gradients comes from `inputs_of`.
    """

    @staticmethod
    def forward(ctx, run, problem, operands, *_):
        outputs = run(problem, operands)
        ctx.set_materialize_grads(False)
        save(ctx, problem, operands, outputs)
        return tuple(outputs if problem.result in DIFFERENTIABLE else outputs[: 1 + problem.terms])

    @staticmethod
    def backward(ctx, *cotangents):
        return None, None, None, *differentiate(ctx, cotangents)

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


class Finished(torch.autograd.Function):
    """A loss whose gradients `run` computes beside it, after the outputs if they are asked for: no number is needed any
    more, and none need be as it was.

    The gradients are nobody else's, and so they are held as they are, without a look at their versions.
    """

    @staticmethod
    def forward(ctx, run, problem, *inputs):
        made = run()  # inputs: x, given vectors if their gradient is asked for, the parameters
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.held = problem, (inputs, made[1 + problem.looked :])
        if not problem.looked:
            return made[0]
        ctx.mark_non_differentiable(made[0])
        return made[1], made[0]

    @staticmethod
    def backward(ctx, loss, *_):
        if ctx.held is None:
            raise RuntimeError(AGAIN)
        inputs, gradients = ctx.held
        if loss is None:
            return None, None, *[None] * len(inputs)
        last = not torch._C._autograd._get_current_graph_task_keep_graph()
        if last:
            ctx.held = None
        if not (last and is_one(loss)):
            need_no_batch(loss)
            gradients = torch._foreach_mul(gradients, loss)
        if torch.is_grad_enabled():
            gradients = guarded(gradients, (*inputs, loss))
        return None, None, *placed(ctx.problem, gradients, inputs[1])

    @staticmethod
    def jvp(ctx, *_):
        refuse_forward_mode()


AGAIN = (
    "Trying to backward through the graph a second time: the gradients of a fused loss were given away by the first. "
    "Specify retain_graph=True if you need to backward through the graph a second time."
)
# Without what torch.func would be told of it, and PyTorch looks at in Python: a kept call is none of its business.
apply, finish = (super(torch.autograd.Function, function).apply for function in (MlpSobolev, Finished))


def op_setup_context(ctx, inputs, output):
    problem, operands = from_op(*inputs)
    save(ctx, problem, operands, output)
    ctx.set_materialize_grads(False)
    differentiable = len(output) if problem.result in DIFFERENTIABLE else 1 + problem.terms
    ctx.mark_non_differentiable(*output[differentiable:])


def op_backward(ctx, cotangents):
    dx, dgiven, *others = differentiate(ctx, tuple(cotangents))
    return dx, others[3:], dgiven, None, *others[:3], *[None] * (len(Operands._fields) - 7), None


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
    if problem.result == LOSS and not problem.terms:
        run = lambda: finished(compute(problem, operands), problem.looked)  # noqa: E731
        given = operands.given if problem.given_gradient else None
        made = Finished.apply(run, problem, operands.x, given, *operands.parameters)
        return made if problem.looked else (made,)
    return MlpSobolev.apply(compute, problem, operands, *inputs_of(problem, operands))

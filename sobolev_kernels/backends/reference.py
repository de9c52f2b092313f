"""The reference that everything is checked against: plain PyTorch, slow, obvious, differentiable again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import NotProvided
from ..math.activations import derivatives
from ..math.losses import residual
from ..math.table import Formula
from ..problem import Plan, Problem
from ..student import Student


def supports(problem: Problem) -> str | None:
    return None


def plan(problem: Problem, N: int) -> Plan:
    return Plan(
        "reference", "autograd, one VJP of the VJP a direction" if problem.unrecognised else "plain PyTorch streams"
    )


def mlp_jvp(student: Student, parameters: list[torch.Tensor], x: torch.Tensor, v: torch.Tensor):
    """y [N, O] and tangents [P, N, O] of a multi-layer perceptron along v [P, N, D]: docs/math.md, section 2."""
    tensors = iter(parameters)
    h, h_dot = x, v  # [N, n], [P, N, n]
    for has_bias, activation in zip(student.biases, student.activations, strict=True):
        weight = next(tensors)
        z = h @ weight.T
        if has_bias:
            z = z + next(tensors)
        z_dot = h_dot @ weight.T
        h, d1, *_ = derivatives(activation, z)
        h_dot = d1 * z_dot
    return h, h_dot


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


def function_jvp(function: Callable, x: torch.Tensor, v: torch.Tensor):
    """The same for any function of x [N, D]: the VJP of its VJP, which is linear in the cotangent.

    Not torch.func.jvp, which many operations do not support.
    """
    graph = torch.is_grad_enabled()
    if torch.compiler.is_compiling() and not graph:
        # without a gradient forward mode is right, and dynamo can follow it
        tangents = [torch.func.jvp(function, (x,), (direction,))[1] for direction in v]
        y = function(x)
        return y, torch.stack(tangents) if tangents else x.new_empty((0, *y.shape))
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        with ExactNorms():
            y = function(x)
        u = torch.zeros_like(y, requires_grad=True)
        tangents = [torch.zeros_like(y) for _ in v]
        if y.requires_grad and len(v):
            (g,) = torch.autograd.grad(y, x, u, create_graph=True, materialize_grads=True)
            if g.requires_grad:
                options = {"create_graph": True, "materialize_grads": True}
                tangents = [torch.autograd.grad(g, u, direction, **options)[0] for direction in v]
    tangents = torch.stack(tangents) if tangents else x.new_empty((0, *y.shape))
    return (y, tangents) if graph else (y.detach(), tangents.detach())


def project(jacobian: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The target's tangents [P, N, O] from its Jacobian [N, O, D] along v [P, N, D]."""
    return torch.einsum("nod,pnd->pno", jacobian, v)


def term(loss: Formula, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean of ρ over everything but the samples: [N] from [N, O] or [P, N, O]."""
    if prediction.shape != target.shape:
        # broadcasting [N, 1] - [N] would quietly make an N × N loss
        raise ValueError(f"target: expected shape {tuple(prediction.shape)}, got {tuple(target.shape)}")
    rho, _ = residual(loss, prediction - target)
    rho = rho.mean(-1)
    return rho if rho.dim() == 1 else rho.mean(0)

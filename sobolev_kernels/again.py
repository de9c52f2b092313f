"""Derivatives of the gradients of a fused call: its backward is fused, and what is differentiated again is the
reference, as often as it is asked for."""

from __future__ import annotations

from dataclasses import replace

import torch

from .backends import reference
from .columns import Columns
from .drawing import over_samples
from .enums import NONE
from .problem import DERIVATIVES, NO_COTANGENTS, Operands, Problem


def gradients(
    problem: Problem, operands: Operands, cotangents: tuple[torch.Tensor | None, ...]
) -> list[torch.Tensor | None]:
    """What the gradients of values and derivatives give x, given vectors, their own cotangents and the parameters.

    `problem` is the one that computed them, `cotangents` are theirs: of x and given vectors where they were asked for,
    and of the parameters. The result can be differentiated again where gradients are on.
    """
    kept = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = Operands(*(map_tensors(alias, operand) for operand in operands[:7]), weights=operands.weights)
        firsts = first_gradients(problem, aliases, cotangents)
        inputs = (aliases.x, aliases.given, *aliases[4:7], *aliases.parameters)
        asking = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        seconds = [None] * len(asking)
        if firsts and asking:
            first, theirs = zip(*firsts, strict=True)
            seconds = torch.autograd.grad(first, asking, theirs, create_graph=kept, materialize_grads=True)
    found = iter(seconds)
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def of_several(
    problem: Problem, operands: Operands, cotangents: tuple[torch.Tensor | None, ...]
) -> list[torch.Tensor | None]:
    """What several cotangents at a time of values and derivatives give x, given vectors and the parameters: the batched
    gradients of autograd, which no kernel takes."""
    kept = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = Operands(*(map_tensors(alias, operand) for operand in operands[:7]), weights=operands.weights)
        inputs = (aliases.x, aliases.given, *NO_COTANGENTS, *aliases.parameters)
        asking = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
        results = zip(differentiable(problem, aliases), cotangents, strict=True)
        there = [(result, c) for result, c in results if c is not None and result.requires_grad]
        found = iter([None] * len(asking))
        if there and asking:
            results, theirs = zip(*there, strict=True)
            found = iter(torch.autograd.grad(results, asking, theirs, create_graph=kept, materialize_grads=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def first_gradients(
    problem: Problem, operands: Operands, cotangents: tuple[torch.Tensor | None, ...]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The gradients that have a cotangent, by the reference, each with it."""
    if operands.given is not None:  # of shared ones there is a gradient for each sample
        operands = operands._replace(given=over_samples(operands.given, operands.x.shape[0]))
    results = differentiable(problem, operands)
    theirs = (operands.values, operands.second) if problem.collapsed else (operands.values, *operands[5:7])
    there = [(result, c) for result, c in zip(results, theirs, strict=False) if c is not None and result.requires_grad]
    wanted = [operands.x] * problem.input_gradient + [operands.given] * problem.given_gradient + operands.parameters
    asked = [
        (tensor, c) for tensor, c in zip(wanted, cotangents, strict=True) if c is not None and tensor.requires_grad
    ]
    if not (there and asked):
        return []
    tensors = [tensor for tensor, _ in asked]
    results, theirs = zip(*there, strict=True)
    found = torch.autograd.grad(results, tensors, theirs, create_graph=True, materialize_grads=True)
    return [(g, c) for g, (_, c) in zip(found, asked, strict=True) if g.requires_grad]


def differentiable(problem: Problem, operands: Operands) -> tuple[torch.Tensor, ...]:
    """Values and derivatives by the reference."""
    changes = {"result": DERIVATIVES, "gradients": False, "derivative_target": NONE, "second_target": NONE}
    columns = Columns(tuple(range(problem.W))) if problem.wrt else Columns()
    return reference.run(replace(problem, **changes), operands, columns)


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers at the same place in the graph, of which nothing but what follows depends."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


def map_tensors(function, operand):
    if operand is None:
        return None
    return [*map(function, operand)] if isinstance(operand, list | tuple) else function(operand)

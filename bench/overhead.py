"""What a call costs when there is nothing to compute: one sample, 1 -> 1, one direction, piece by piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import dispatch, ops

from .baselines import BASELINES, VALUES_ONLY
from .cases import Case, make_data, make_student
from .timing import TURN, interleave, quartiles

SMALLEST = Case(1, 1, 1, 0, 1, 1)


def captured(call: Callable[[], object]) -> tuple:
    """The Problem and the Operands with which a call reaches the op."""
    with patch.object(ops, "mlp_sobolev", wraps=ops.mlp_sobolev) as op:
        call()
    return op.call_args.args


def pieces() -> dict[str, Callable[[], object]]:
    """The whole call, the two ways to the op, and what both end in."""
    student, data = make_student(SMALLEST), make_data(SMALLEST)
    targets = sk.Targets(values=data.y, jacobian=data.jacobian)
    directions = sk.Directions.sphere(SMALLEST.P)
    parameters = tuple(student.parameters())

    def backward(loss: torch.Tensor) -> None:
        for parameter in parameters:
            parameter.grad = None
        loss.backward()

    forward = lambda: sk.sobolev_loss(student, data.x, targets, directions=directions)  # noqa: E731
    problem, operands = captured(forward)
    outputs, gradients = ops.outputs_of(problem, operands)
    text, head, weights = problem.to_string(), operands[:-1], list(operands.weights)
    registered = torch.ops.sobolev_kernels.mlp_sobolev
    run = dispatch.BACKENDS[problem.backend].run
    return {
        "ordinary step of PyTorch (values only)": BASELINES[VALUES_ONLY].build(SMALLEST, student, data),
        "sobolev_loss, forward + backward": lambda: backward(forward()),
        "sobolev_loss, forward": forward,
        "eager way to the op, forward + backward": lambda: backward(ops.mlp_sobolev(problem, operands)[0]),
        "eager way to the op, forward": lambda: ops.mlp_sobolev(problem, operands),
        "registered op, forward + backward": lambda: backward(registered(*head, weights, text)[0]),
        "registered op, forward": lambda: registered(*head, weights, text),
        "compute: outputs and kernel": lambda: ops.compute(problem, operands),
        "kernel alone": lambda: run(problem, operands, outputs, gradients),
    }


def overhead(rounds: int = 50, turn: float = TURN) -> Table:
    steps = pieces()
    with warnings.catch_warnings():
        # the same call again and again is what is measured
        warnings.simplefilter("ignore", sk.SobolevWarning)
        interleave(steps, rounds=2, seconds=0, turn=turn)
        times = interleave(steps, rounds=rounds, seconds=0, turn=turn)
    table = Table(title="The smallest call: N = 1, 1→1, P = 1", title_justify="left")
    table.add_column("piece")
    table.add_column("µs", justify="right")
    table.add_column("quartiles", justify="right")
    for name in steps:
        q1, median, q3 = (1e6 * s for s in quartiles(times[name]))
        table.add_row(name, f"{median:.1f}", f"{q1:.1f} … {q3:.1f}")
    return table


def print_overhead(console: Console) -> None:
    console.print(overhead())

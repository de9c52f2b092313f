"""What small calls cost, piece by piece: around the kernel there is little to compute, and much to do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import dispatch, ops
from sobolev_kernels.backends import core, cpu
from sobolev_kernels.testing.compare import forget
from sobolev_kernels.testing.speed.cases import SMALL_CASES, Case, make_data, make_student
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

from .variants import VARIANTS, variants_of

SMALLEST = Case(1, 1, 1, 0, 1, 1, name="smallest")
CASES = (SMALLEST, *(case for case in SMALL_CASES if case.name in ("forces", "option surrogate")))
OPTIMIZERS = {"Adam": {}, "Adam(foreach=True)": {"foreach": True}, "Adam(fused=True)": {"fused": True}}
ORDINARY = "ordinary step of PyTorch, values only"
STEP, FORWARD = "sobolev_loss, forward + backward", "sobolev_loss, forward"
KERNEL = "kernel alone"
# What is no call of its own
DIFFERENCES = {"sobolev_loss, backward": (STEP, FORWARD), "around the kernel": (STEP, KERNEL)}

Call = Callable[[], object]


def captured(call: Call) -> tuple:
    """Arguments with which a call reaches the kernel: the Problem, the Operands, the outputs and the gradients."""
    backend = dispatch.BACKENDS["cpu"]
    forget()  # a call that is kept does not come by there
    with patch.object(backend, "run", wraps=backend.run) as run:
        call()
    return run.call_args.args


def loss_of(case: Case, student: torch.nn.Module) -> Call:
    """The forward of the case's fused step, with directions drawn anew."""
    data = make_data(case)
    targets = sk.Targets(values=data.y, jacobian=data.jacobian)
    how = {"directions": sk.Directions.sphere(case.P)} if case.P else {"derivatives": "exact"}
    return lambda: sk.sobolev_loss(student, data.x, targets, **how)


def trained(case: Case, **how: bool) -> Call:
    """A step of training, of a student of its own."""
    student = copy.deepcopy(make_student(case))
    loss, optimizer = loss_of(case, student), torch.optim.Adam(student.parameters(), lr=1e-5, **how)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def pieces(case: Case) -> dict[str, Call]:
    """The ordinary step, the whole call and what it ends in, two ways to the op, and steps of training."""
    student, data = make_student(case), make_data(case)
    parameters = tuple(student.parameters())
    forward = loss_of(case, student)

    def backward(loss: torch.Tensor) -> None:
        for parameter in parameters:
            parameter.grad = None
        loss.backward()

    problem, operands, outputs, gradients = captured(forward)
    values = next(name for name, variant in variants_of(case, compiled=False).items() if not variant.derivatives)
    text, head, weights = problem.to_string(), operands[:-1], list(operands.weights)
    registered = torch.ops.sobolev_kernels.mlp_sobolev
    step = cpu.step_of(problem, operands, outputs, gradients)
    return {
        ORDINARY: VARIANTS[values].build(case, student, data),
        STEP: lambda: backward(forward()),
        FORWARD: forward,
        KERNEL: lambda held=(operands, outputs, gradients): core._C.mlp_sobolev(*step),  # which has their addresses
        "eager way to the op, forward + backward": lambda: backward(ops.mlp_sobolev(problem, operands)[0]),
        "registered op, forward + backward": lambda: backward(registered(*head, weights, text)[0]),
        **{f"a step of training, {name}": trained(case, **how) for name, how in OPTIMIZERS.items()},
    }


def microseconds(case: Case, rounds: int, turn: float) -> dict[str, float]:
    """Of each piece the median; of a difference that of the rounds."""
    steps = pieces(case)
    interleave(steps, rounds=2, seconds=0, turn=turn)
    times = interleave(steps, rounds=rounds, seconds=0, turn=turn)
    for name, (whole, part) in DIFFERENCES.items():
        times[name] = [a - b for a, b in zip(times[whole], times[part], strict=True)]
    return {name: 1e6 * quartiles(t).median for name, t in times.items()}


def overhead(cases: Sequence[Case] = CASES, rounds: int = 30, turn: float = TURN) -> Table:
    with warnings.catch_warnings():
        # the same call again and again is what is measured
        warnings.simplefilter("ignore", sk.SobolevWarning)
        columns = [microseconds(case, rounds, turn) for case in cases]
    table = Table(title="What small calls cost, µs", title_justify="left")
    table.add_column("piece")
    for case in cases:
        table.add_column(case.name, justify="right")
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.1f}" for column in columns))
    table.add_row(f"{STEP} ÷ {ORDINARY}", *(f"{column[STEP] / column[ORDINARY]:.2f}" for column in columns))
    return table


def print_overhead(console: Console) -> None:
    console.print(overhead())

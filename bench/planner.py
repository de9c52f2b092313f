"""Whether the planner takes the faster side: `python -m bench --planner`, estimate against measured time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.backends import cpu
from sobolev_kernels.call import begin
from sobolev_kernels.problem import DENSE, LOSS, Problem

from .timing import SGEMM, SGEMM_FLOPS, TURN, interleave, quartiles, sgemm

# N, D, H, hidden, O, and P directions, or None for the whole Jacobian
SHAPES = [
    (8192, 16, 128, 3, 1, 4),
    (8192, 16, 128, 3, 4, 4),
    (8192, 16, 128, 3, 3, 4),
    (4096, 8, 64, 4, 2, 3),
    (65536, 8, 64, 3, 1, 2),
    (1024, 32, 256, 4, 8, 16),
    (2048, 64, 128, 2, 10, 16),
    (8192, 4, 32, 3, 1, 8),
    (4096, 8, 64, 3, 8, None),
    (4096, 8, 64, 3, 4, None),
    (4096, 4, 64, 3, 8, None),
    (8192, 16, 128, 3, 1, None),
]


def sides(shape: tuple) -> Iterator[tuple[str, Problem, Callable[[], object]]]:
    """(side, its Problem, a step forced to it)."""
    N, D, H, hidden, O, P = shape
    student = sk.MLP(D, O, width=H, depth=hidden)
    x, targets = torch.randn(N, D), sk.Targets(values=torch.randn(N, O), jacobian=torch.randn(N, O, D))
    directions = sk.Directions.basis() if P is None else sk.Directions.sphere(P, seed=1)
    for side in (planner.TANGENTS, planner.GRADIENTS):
        rows = P is None and side == planner.GRADIENTS
        projected = {"cotangents": sk.Cotangents.basis()} if rows else {"directions": directions}
        projections = next(iter(projected.values()))
        problem = begin(student, x, projections, None, result=LOSS, derivative_target=DENSE).problem

        def step(side=side, projected=projected) -> None:
            student.zero_grad(set_to_none=True)
            with mock.patch.object(cpu, "side", lambda problem: side):
                sk.sobolev_loss(student, x, targets, **projected).backward()

        yield side, problem, step


def row(shape: tuple, rounds: int, seconds: float) -> list[str]:
    N, D, H, hidden, O, P = shape
    problems, steps = {}, {}
    for side, problem, step in sides(shape):
        problems[side], steps[side] = problem, step
    times = interleave({**steps, SGEMM: sgemm()}, rounds, seconds, TURN)
    medians = {name: quartiles(t).median for name, t in times.items()}
    if P is None:
        taken = planner.GRADIENTS if planner.exact_projection(D, O) == "cotangents" else planner.TANGENTS
    else:
        taken = planner.side(problems[planner.TANGENTS])
    flop = medians[SGEMM] / SGEMM_FLOPS
    cells = [f"{N}, {D}→{H}×{hidden}→{O}, {'exact' if P is None else f'P={P}'}"]
    for side, problem in problems.items():
        cells += [f"{1e3 * planner.cost(problem, side) * N * flop:.2f}", f"{1e3 * medians[side]:.2f}"]
    faster = min(steps, key=medians.get)
    return [*cells, taken, "yes" if faster == taken else f"no, by {medians[taken] / medians[faster] - 1:.0%}"]


def print_planner(console: Console, rounds: int, seconds: float) -> None:
    torch.manual_seed(0)
    table = Table(title="Milliseconds of a step from either side: estimate (at the sgemm rate), measured")
    for heading in ("shape", "tangents: est.", "meas.", "gradients: est.", "meas.", "taken", "the faster"):
        table.add_column(heading, justify="right" if "." in heading else "left")
    for shape in SHAPES:
        table.add_row(*row(shape, rounds, seconds))
    console.print(table)

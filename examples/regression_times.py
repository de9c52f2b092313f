"""What a step of the regression costs: fused, by the reference, and by hand in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from lab import Settings, number, write_csv
from lab.training import fused
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk

ROUNDS, IN_A_ROUND, OF_FIT = 15, 20, 100
CURVED = {"directions": sk.Directions.basis(), "order": 2}
KINDS = {"ordinary": {"weights": (1.0, 0.0)}, "sobolev": {"derivatives": "exact"},
         "P = 1": {"directions": sk.Directions.sphere(1)}, "order 2": CURVED}  # fmt: skip


def times(make_student: Callable, settings: Settings, console: Console) -> None:
    """Print and write milliseconds of a step, Adam included, of the experiment's student and of the paper's width."""
    torch.set_num_threads(1)
    rows = [times_of(make_student, *key) for key in product(KINDS, (64, 256), (20, 100))]
    table = Table(box=None, padding=(0, 2, 0, 0), title="ms of a training step on one thread, tanh, Adam included")
    for name in rows[0]:
        table.add_column(name, justify="right" if name != "method" else "left")
    for row in rows:
        table.add_row(*(number(value) if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    write_csv(rows, settings.out / "regression_times.csv")


def times_of(make_student: Callable, kind: str, width: int, N: int) -> dict:
    """Medians of rounds in which the ways take turns."""
    x, y, dy, d2y = (torch.rand(N, *shape) for shape in ((2,), (1,), (1, 2), (1, 2, 2)))
    second = KINDS[kind].get("order") == 2
    targets = sk.Targets(values=y, jacobian=dy, hessian=d2y if second else None)

    def step_of(loss_of: Callable) -> Callable:
        student = make_student("tanh", width)
        optimizer = torch.optim.Adam(student.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(student).backward()
            optimizer.step()

        return step

    fused(make_student("tanh", width), x, **KINDS[kind])
    own, reference = sk.SobolevLoss(**KINDS[kind]), sk.SobolevLoss(**KINDS[kind], backend="reference")
    d2 = d2y[:, 0].diagonal(dim1=-2, dim2=-1)
    steps = {
        "fused": step_of(lambda student: own(student, x, targets)),
        "reference": step_of(lambda student: reference(student, x, targets)),
        "by hand": step_of(lambda student: by_hand(kind, student, x, y, dy[:, 0], d2)),
    }
    student = make_student("tanh", width)
    found = {name: [] for name in (*steps, "sk.fit")}
    for number_of_round in range(1 + ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(IN_A_ROUND):
                step()
            if number_of_round:
                found[name].append((time.perf_counter() - start) / IN_A_ROUND * 1e3)
        history = sk.fit(student, x, targets, loss=own, epochs=OF_FIT, batch_size=None, progress=False)
        if number_of_round:
            found["sk.fit"].append(history.seconds / OF_FIT * 1e3)
    return {"method": kind, "width": width, "N": N} | {name: float(np.median(ms)) for name, ms in found.items()}


def by_hand(
    kind: str, student: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, dy: torch.Tensor, d2y: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """The loss as one writes it in PyTorch, by backward passes through backward passes."""
    if kind == "ordinary":
        return (student(x) - y).square().mean()
    x = x.detach().requires_grad_()
    values = student(x)
    (slopes,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    value = (values - y).square().mean()
    if kind == "P = 1":
        v = torch.nn.functional.normalize(torch.randn_like(x), dim=1)
        return value + ((slopes - dy) * v).sum(1).square().mean()
    loss = value + (slopes - dy).square().mean()
    if kind == "order 2":
        bends = [torch.autograd.grad(slopes[:, d].sum(), x, create_graph=True)[0][:, d] for d in range(2)]
        loss = loss + (torch.stack(bends, 1) - d2y).square().mean()
    return loss

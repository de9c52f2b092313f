"""What a step of the regression costs: fused, by the reference, and by hand in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from rich.console import Console

import sobolev_kernels as sk
from examples.lab import METHODS, Method, Settings
from examples.lab.times import report_times
from examples.lab.ways import times_of_ways

WIDTHS, SIZES = (64, 256), (20, 100)  # the width of the experiment, and the paper's


def times(make_student: Callable, methods: dict[str, Method], settings: Settings, console: Console) -> None:
    rows = []
    for (name, method), width, N in product(methods.items(), WIDTHS, SIZES):
        x, y, dy, d2y = (torch.rand(N, *shape) for shape in ((2,), (1,), (1, 2), (1, 2, 2)))
        second = method.settings.get("order") == 2
        targets = sk.Targets(values=y, jacobian=dy, hessian=d2y if second else None)
        hand = partial(by_hand, method=method, x=x, targets=targets)
        step = f"{METHODS.get(name, name)}, {N} points, 2 × {width} tanh"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sk.SobolevWarning)  # fresh directions, and no training around them
            found = times_of_ways(make_student("tanh", width), method, x, targets, hand)
        rows.append({"step": step} | found)
    report_times(rows, settings, "regression", console)


def by_hand(student: torch.nn.Module, method: Method, x: torch.Tensor, targets: sk.Targets) -> torch.Tensor:
    """The loss as one writes it in PyTorch, by backward passes through backward passes."""
    weights, directions = method.settings.get("weights", (1.0, 1.0)), method.settings.get("directions")
    x, dy = x.detach().requires_grad_(), targets.jacobian[:, 0]
    values = student(x)
    loss = (values - targets.values).square().mean()
    if not weights[1]:
        return loss
    (slopes,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    if directions is None or directions.P is None:
        loss = loss + weights[1] * (slopes - dy).square().mean()
    else:
        v = torch.nn.functional.normalize(torch.randn(directions.P, *x.shape), dim=-1)
        loss = loss + weights[1] * ((slopes - dy) * v).sum(-1).square().mean()
    if method.settings.get("order") == 2:
        bends = [torch.autograd.grad(slopes[:, d].sum(), x, create_graph=True)[0][:, d] for d in range(2)]
        wanted = targets.hessian[:, 0].diagonal(dim1=-2, dim2=-1)
        loss = loss + weights[2] * (torch.stack(bends, 1) - wanted).square().mean()
    return loss

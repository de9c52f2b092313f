"""Losses of residuals on a GPU, for `bench.gpu_day partials`: beside float64 on the CPU, then timed as a call and as a
captured graph, all layers in one launch or each by itself, and the residual by PyTorch's operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch

import sobolev_kernels as sk
from sobolev_kernels.backends.triton import jets
from sobolev_kernels.partials import residual_loss
from sobolev_kernels.testing import assert_within_rule
from sobolev_kernels.testing.compare import forget
from sobolev_kernels.testing.graphs import captured, replayed

from . import gpu
from .equations import EQUATIONS, Equation

WIDE = (("Burgers", 64, 4), ("biharmonic", 64, 4), ("biharmonic", 20, 5))
NUMBERS, FEW = (4096, 65536), 1000  # points that are timed, and that are checked
WAYS = {"chained": (1 << 40, False), "layer by layer": (0, False), "by PyTorch's operations": (jets.MOST_CHAINED, True)}
Step = Callable[[], list[torch.Tensor]]


def step_of(equation: Equation, student: sk.MLP, x: torch.Tensor) -> Step:
    """The loss and the gradients of the parameters."""
    first = sk.Residual(equation.inside or equation.residuals, equation.fields)
    residuals, parameters = [first, *map(first.diff, equation.by)], list(student.parameters())

    def step() -> list[torch.Tensor]:
        loss = sk.residual_loss(student, x, residuals)
        return [loss.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    return step


def student_of(equation: Equation, width: int, depth: int) -> sk.MLP:
    fields = sk.Fields(equation.fields)
    return sk.MLP(len(fields.inputs), len(fields.outputs), width=width, depth=depth, activation="tanh")


def checked(name: str, device: str) -> str:
    """Of a call, of another one like it, and of a graph's replay after the weights have changed."""
    equation = EQUATIONS[name]
    exact = student_of(equation, 64, 3).double()
    x = torch.rand(FEW if device == "cuda" else 20, len(sk.Fields(equation.fields).inputs), dtype=torch.float64)
    plain, there = copy.deepcopy(exact).float(), copy.deepcopy(exact).float().to(device)
    step = step_of(equation, there, x.float().to(device))
    expected, baseline = (step_of(equation, s, x.to(next(s.parameters()).dtype))() for s in (exact, plain))
    calls = [step(), step()]
    same = all(map(torch.equal, *calls))
    if device == "cuda":
        graph, results = captured(step)
        same &= all(map(torch.equal, calls[0], replayed(graph, results)))
        with torch.no_grad():
            for p in (*there.parameters(), *exact.parameters(), *plain.parameters()):
                p.mul_(1.25)
        calls.append(replayed(graph, results))
        after = [step_of(equation, s, x.to(next(s.parameters()).dtype))() for s in (exact, plain)]
    try:
        for i, tensors in enumerate(zip(calls[0], expected, baseline, strict=True)):
            assert_within_rule(f"tensor {i}", tensors[0].cpu(), *tensors[1:])
        for i, tensors in enumerate(zip(calls[2], *after, strict=True) if device == "cuda" else ()):
            assert_within_rule(f"tensor {i} of a graph", tensors[0].cpu(), *tensors[1:])
    except AssertionError as error:
        return str(error)
    return "within the rule" if same else "NOT REPEATABLE"


def times(name: str, width: int, depth: int, N: int, device: str) -> Iterator[str]:
    """Microseconds of the host alone, of a call in a row of calls, and of a graph's replay."""
    equation, rounds = EQUATIONS[name], 20 if device == "cuda" else 1
    student = student_of(equation, width, depth).to(device)
    x = torch.rand(N, len(sk.Fields(equation.fields).inputs), device=device)
    for way, (most, by_torch) in WAYS.items():
        with patch.object(jets, "MOST_CHAINED", most), patch.object(residual_loss, "fused_loss", plain(by_torch)):
            forget()
            step = step_of(equation, student, x)
            for _ in range(3):
                step()
            gpu.wait(device)
            host, row = gpu.host_microseconds(step, rounds, device)
            replay = f", graph {gpu.microseconds(captured(step)[0].replay, 5):.0f}" if device == "cuda" else ""
            yield f"residual_loss, {name} {width}x{depth} N={N}, {way}: us host {host:.0f}, call {row:.0f}{replay}"
    forget()


def plain(by_torch: bool) -> Callable:
    return (lambda *_: None) if by_torch else residual_loss.fused_loss


def lines(device: str) -> Iterator[str]:
    small = device != "cuda"
    for name in EQUATIONS:
        yield f"residual_loss, {name}: {checked(name, device)}"
    for name, width, depth in WIDE[:1] if small else WIDE:
        for N in (20,) if small else NUMBERS:
            yield from times(name, 8 if small else width, depth, N, device)

"""Named partials of a PDE residual: `python -m bench --partials`, our step against what is written by hand."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels.partials.layers import directions_of, results_of
from sobolev_kernels.student import Student, recognise
from sobolev_kernels.testing.rule import IN_SINGLE
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

Parts = dict[str, torch.Tensor]
Step = Callable[[], tuple[torch.Tensor, ...]]
OURS, NESTED, FUNC, STREAMS, COMPILED = (
    "sk.residual_loss", "nested autograd.grad", "nested torch.func", "streams by hand", "compiled streams"
)  # fmt: skip


class Equation(NamedTuple):
    fields: str
    names: str
    residuals: Callable[[Parts], tuple[torch.Tensor, ...]]


def navier_stokes(p: Parts) -> tuple[torch.Tensor, ...]:
    u, v = p["u"], p["v"]
    along = [p[f"{f}_t"] + u * p[f"{f}_x"] + v * p[f"{f}_y"] + p[f"p_{d}"] for f, d in (("u", "x"), ("v", "y"))]
    return along[0] - 0.01 * p["u_xx + u_yy"], along[1] - 0.01 * p["v_xx + v_yy"], p["u_x"] + p["v_y"]


VELOCITIES = "u, v, u_t, v_t, u_x, v_x, p_x, u_y, v_y, p_y, u_xx + u_yy, v_xx + v_yy"
EQUATIONS = {
    "Burgers": Equation(
        "x t -> u", "u, u_t, u_x, u_xx", lambda p: (p["u_t"] + p["u"] * p["u_x"] - 0.01 * p["u_xx"],)
    ),
    "Allen-Cahn": Equation("x t -> u", "u, u_t, u_xx", lambda p: (p["u_t"] - 1e-4 * p["u_xx"] + p["u"] ** 3 - p["u"],)),
    "KdV": Equation("x t -> u", "u, u_t, u_x, u_xxx", lambda p: (p["u_t"] + 6 * p["u"] * p["u_x"] + p["u_xxx"],)),
    "Kuramoto-Sivashinsky": Equation(
        "x t -> u", "u, u_t, u_x, u_xx, u_xxxx", lambda p: (p["u_t"] + p["u"] * p["u_x"] + p["u_xx"] + p["u_xxxx"],)
    ),
    "biharmonic": Equation(
        "x y -> u", "u_xxxx + 2*u_xxyy + u_yyyy", lambda p: (p["u_xxxx + 2*u_xxyy + u_yyyy"] - 1,)
    ),
    "Navier-Stokes": Equation("x y t -> u v p", VELOCITIES, navier_stokes),
}  # fmt: skip
SHAPES = ((20, 5, 1024), (64, 4, 1024), (64, 4, 4096), (128, 4, 1024), (128, 4, 4096))


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--partials", nargs="*", choices=EQUATIONS, metavar="EQUATION", help="only: named partials")
    parser.add_argument("--shape", type=int, nargs="+", default=range(len(SHAPES)), help="of --partials, which")


def loss_of(equation: Equation, parts: Parts) -> torch.Tensor:
    return sum(residual.square().mean() for residual in equation.residuals(parts))


def nested(function: Callable, x: torch.Tensor, equation: Equation) -> Parts:
    """As DeepXDE and most hand-written code do: each gradient once, however many derivatives are read from it."""
    y = function(x)
    kept: dict = {}

    def at(o: int, e: tuple[int, ...]) -> torch.Tensor:
        if not any(e):
            return y[:, o : o + 1]
        i = max(i for i, n in enumerate(e) if n)
        below = (*e[:i], e[i] - 1, *e[i + 1 :])
        if (o, below) not in kept:
            kept[o, below] = torch.autograd.grad(at(o, below).sum(), x, create_graph=True)[0]
        return kept[o, below][:, i : i + 1]

    return summed(equation, at)


def by_func(function: Callable, x: torch.Tensor, equation: Equation) -> Parts:
    """jvp of jvp along unit vectors, of all outputs and the whole batch."""
    kept: dict = {}

    def derived(e: tuple[int, ...]) -> Callable:
        i = next((i for i, n in enumerate(e) if n), None)
        if i is None:
            return function
        below = derived((*e[:i], e[i] - 1, *e[i + 1 :]))
        along = torch.zeros_like(x)
        along[:, i] = 1
        return lambda x: torch.func.jvp(below, (x,), (along,))[1]

    def at(o: int, e: tuple[int, ...]) -> torch.Tensor:
        if e not in kept:
            kept[e] = derived(e)(x)
        return kept[e][:, o : o + 1]

    return summed(equation, at)


def summed(equation: Equation, at: Callable[[int, tuple[int, ...]], torch.Tensor]) -> Parts:
    names = names_of(equation)
    rows = sk.Fields(equation.fields).terms(tuple(names))
    return {name: sum(c * at(o, e) for o, e, c in row) for name, row in zip(names, rows, strict=True)}


def names_of(equation: Equation) -> list[str]:
    return [name.strip() for name in equation.names.split(",")]


def by_streams(student: torch.nn.Module, equation: Equation) -> Callable:
    """The same streams as ours, in PyTorch's operations: the best that its user could derive and write."""
    names, known = names_of(equation), recognise(student)
    streams = sk.Fields(equation.fields).plan(names)

    def loss(x: torch.Tensor, v: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        of = Student(known.widths, known.biases, known.activations, parameters)
        return loss_of(equation, dict(zip(names, results_of(streams, of, x, v), strict=True)))

    return loss


def steps_of(equation: Equation, width: int, depth: int, N: int, compiled: bool) -> dict[str, Step]:
    """A step with the gradients of all parameters, by way; losses and gradients are compared first."""
    torch.manual_seed(0)
    fields = sk.Fields(equation.fields)
    student = sk.MLP(len(fields.inputs), len(fields.outputs), width=width, depth=depth)
    parameters, x, names = tuple(student.parameters()), torch.rand(N, len(fields.inputs)), names_of(equation)
    leaf, v = x.clone().requires_grad_(), directions_of(fields.plan(names), x)
    by_hand = by_streams(student, equation)
    residual = sk.Residual(equation.residuals, fields, name="equation")
    losses = {
        OURS: lambda: sk.residual_loss(student, x, residual),
        NESTED: lambda: loss_of(equation, nested(student, leaf, equation)),
        FUNC: lambda: loss_of(equation, by_func(student, x, equation)),
        STREAMS: lambda: by_hand(x, v, *parameters),
    }
    if compiled:
        torch.compiler.reset()
        whole = torch.compile(by_hand, fullgraph=True, dynamic=False)
        losses[COMPILED] = lambda: whole(x, v, *parameters)
    steps = {
        way: lambda loss=loss: torch.autograd.grad(loss(), parameters, materialize_grads=True)
        for way, loss in losses.items()
    }
    found = {way: [losses[way]().detach(), *steps[way]()] for way in steps}
    for way, results in found.items():
        for got, expected in zip(results, found[OURS], strict=True):
            within = {"rtol": IN_SINGLE, "atol": IN_SINGLE * float(expected.abs().max())}
            torch.testing.assert_close(got, expected, **within, msg=lambda m, w=way: f"{w}: {m}")
    return steps


def measure_partials(options: Namespace, console: Console) -> None:
    """Run and print: milliseconds of each way, and of the best other over ours."""
    ways = (OURS, NESTED, FUNC, STREAMS, *(() if options.no_compile else (COMPILED,)))
    table = Table(title="A residual and its gradients, ms", title_justify="left")
    for column in ("equation", "MLP", "N", *ways, "best other ÷ ours"):
        table.add_column(column, justify="left" if column == "equation" else "right")
    for shape, name in product(options.shape, options.partials or EQUATIONS):
        width, depth, N = SHAPES[shape]
        steps = steps_of(EQUATIONS[name], width, depth, N, not options.no_compile)
        times = interleave(steps, options.rounds, options.seconds, TURN)
        found = {way: 1e3 * quartiles(each).median for way, each in times.items()}
        best = min(number for way, number in found.items() if way != OURS)
        row = [f"{found[way]:.2f}" for way in ways]
        table.add_row(name, f"{width}×{depth}", str(N), *row, f"{best / found[OURS]:.2f}")
    console.print(table)

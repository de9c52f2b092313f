"""Ways to compute a residual's loss from named derivatives: ours, and what else one could write."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

import sobolev_kernels as sk
from sobolev_kernels.partials.layers import directions_of, results_of
from sobolev_kernels.student import Student, recognise

from . import taylor
from .equations import Equation, loss_of
from .jax_baseline import Process, Remote, numbers

OURS, NESTED, FUNC, STREAMS, COMPILED, JETS, COMPILED_JETS, JAX_JET, JAX_NESTED = WAYS = (
    "sk.residual_loss", "nested autograd.grad", "nested torch.func", "streams by hand", "streams, compiled",
    "jet-for-pytorch", "jet-for-pytorch, compiled", "JAX jet", "JAX nested",
)  # fmt: skip
NEEDS = {JETS: "jet", COMPILED_JETS: "jet", JAX_JET: "jax", JAX_NESTED: "jax"}
IN_COMPILERS = (COMPILED, COMPILED_JETS, JAX_JET, JAX_NESTED)  # whose first call is no measure of memory
Step = Callable[[], tuple]


class Task(NamedTuple):
    """An equation at points x, with what of it the ways read."""

    name: str
    equation: Equation
    fields: sk.Fields
    names: tuple[str, ...]
    student: torch.nn.Module
    x: torch.Tensor

    @property
    def rows(self) -> taylor.Rows:
        return self.fields.terms(self.names)


def task_of(name: str, equation: Equation, width: int, depth: int, N: int, device: str = "cpu") -> Task:
    torch.manual_seed(0)
    fields = sk.Fields(equation.fields)
    student = sk.MLP(len(fields.inputs), len(fields.outputs), width=width, depth=depth)
    names = sk.Residual(equation.residuals, fields).reads
    return Task(name, equation, fields, names, student.to(device), torch.rand(N, len(fields.inputs)).to(device))


def is_there(way: str) -> bool:
    return way not in NEEDS or importlib.util.find_spec(NEEDS[way]) is not None


def step_of(way: str, task: Task) -> Step:
    """The loss and the gradients of all parameters."""
    if way in (JAX_JET, JAX_NESTED):
        return by_jax(way, task)
    loss, parameters = LOSSES[way](task), tuple(task.student.parameters())

    def step() -> tuple:
        value = loss()
        return value.detach(), torch.autograd.grad(value, parameters, materialize_grads=True)

    return step


def ours(task: Task) -> Callable[[], torch.Tensor]:
    equation = task.equation
    if equation.inside is None:
        residuals = [sk.Residual(equation.residuals, task.fields)]
    else:
        inside = sk.Residual(equation.inside, task.fields)
        residuals = [inside, *map(inside.diff, equation.by)]
    return lambda: sk.residual_loss(task.student, task.x, residuals)


def by_nested(task: Task) -> Callable[[], torch.Tensor]:
    """As DeepXDE and most hand-written code do: each gradient once, however many derivatives are read from it."""
    x = task.x.clone().requires_grad_()

    def loss() -> torch.Tensor:
        y = task.student(x)
        kept: dict = {}

        def at(o: int, e: tuple[int, ...]) -> torch.Tensor:
            if not any(e):
                return y[:, o : o + 1]
            i = max(i for i, n in enumerate(e) if n)
            below = (*e[:i], e[i] - 1, *e[i + 1 :])
            if (o, below) not in kept:
                kept[o, below] = torch.autograd.grad(at(o, below).sum(), x, create_graph=True)[0]
            return kept[o, below][:, i : i + 1]

        parts = {
            name: sum(c * at(o, e) if c != 1 else at(o, e) for o, e, c in row)
            for name, row in zip(task.names, task.rows, strict=True)
        }
        return loss_of(task.equation, parts)

    return loss


def by_func(task: Task) -> Callable[[], torch.Tensor]:
    """jvp of jvp along unit vectors, of all outputs and the whole batch."""
    x = task.x

    def derived(e: tuple[int, ...]) -> Callable:
        i = next((i for i, n in enumerate(e) if n), None)
        if i is None:
            return task.student
        below = derived((*e[:i], e[i] - 1, *e[i + 1 :]))
        along = torch.zeros_like(x)
        along[:, i] = 1
        return lambda x: torch.func.jvp(below, (x,), (along,))[1]

    def loss() -> torch.Tensor:
        at = lru_cache(maxsize=None)(lambda e: derived(e)(x))
        return loss_of(task.equation, taylor.nested(at, task.rows, task.names))

    return loss


def by_streams(task: Task) -> Callable[..., torch.Tensor]:
    """The same streams as ours, in PyTorch's operations: the best that its user could derive and write."""
    known, streams = recognise(task.student), task.fields.plan(task.names)

    def loss(x: torch.Tensor, v: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        of = Student(known.widths, known.biases, known.activations, parameters)
        results = results_of(streams, of, x, v)[:, :, None]
        return loss_of(task.equation, dict(zip(task.names, results, strict=True)))

    return loss


def streamed(task: Task, compiled: bool) -> Callable[[], torch.Tensor]:
    loss, v = by_streams(task), directions_of(task.fields.plan(task.names), task.x)
    parameters = tuple(task.student.parameters())
    if compiled:
        torch.compiler.reset()
        loss = torch.compile(loss, fullgraph=True, dynamic=False)
    return lambda: loss(task.x, v, *parameters)


def derivatives_by_jets(
    student: torch.nn.Module, x: torch.Tensor, rows: taylor.Rows, names: Sequence[str]
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:  # fmt: skip
    """jet-for-pytorch: a series along each direction that is needed, collapsed where the highest order is one sum."""
    from jet import jet

    series = taylor.series_of(rows, x.shape[1], collapses=True)
    functions = {how: jet(student, (x,), collapsed=how) for how in {b.collapsed for b in series.bundles}}
    along = [torch.tensor(b.along, dtype=x.dtype)[:, None, :].expand(-1, *x.shape) for b in series.bundles]

    def given(bundle: taylor.Bundle, x: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        of, (R, N, D), K = functions[bundle.collapsed], v.shape, bundle.order
        if bundle.collapsed:
            return of((x, v, *(x.new_zeros(R, N, D) for _ in range(K - 2)), x.new_zeros(N, D)))
        zeros = [x.new_zeros(N, D) for _ in range(K - 1)]
        if R == 1:
            return [part if k == 0 else part[None] for k, part in enumerate(of((x, v[0], *zeros)))]
        value, *others = torch.func.vmap(lambda d: of((x, d, *zeros)))(v)
        return [value[0], *others]

    def derivatives(x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = [given(bundle, x, v) for bundle, v in zip(series.bundles, along, strict=True)]
        return taylor.summed(series, found, names)

    return derivatives


def by_jets(task: Task, compiled: bool) -> Callable[[], torch.Tensor]:
    x, derivatives = task.x, derivatives_by_jets(task.student, task.x, task.rows, task.names)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return loss_of(task.equation, derivatives(x))

    if compiled:
        from jet import capture_graph

        torch.compiler.reset()
        loss = torch.compile(capture_graph(loss, (x,))[0], fullgraph=True, dynamic=False)
    return lambda: loss(x)


LOSSES: dict[str, Callable[[Task], Callable[[], torch.Tensor]]] = {
    OURS: ours, NESTED: by_nested, FUNC: by_func,
    STREAMS: lambda task: streamed(task, False), COMPILED: lambda task: streamed(task, True),
    JETS: lambda task: by_jets(task, False), COMPILED_JETS: lambda task: by_jets(task, True),
}  # fmt: skip


@lru_cache(maxsize=1)
def worker(threads: int) -> Process:
    return Process(threads, "bench.jax_partials")


def asked_of_jax(way: str, task: Task) -> tuple:
    series = taylor.series_of(task.rows, task.x.shape[1], collapses=False) if way == JAX_JET else None
    return task.name, numbers(task.student), task.x.numpy(), task.rows, task.names, series


def by_jax(way: str, task: Task) -> Remote:
    process = worker(torch.get_num_threads())
    number, loss, layers = process.ask("build", *asked_of_jax(way, task))
    loss, *gradients = map(torch.from_numpy, (loss.copy(), *(g for w, b in layers for g in (w.T.copy(), b.copy()))))
    return Remote(process, number, (loss, tuple(gradients)))

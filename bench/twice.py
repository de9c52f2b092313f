"""Second derivatives of any student: `python -m bench.twice`, our step and what its author could write, in turns."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.func import jvp, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import IN_SINGLE
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

from .students import STUDENTS

# what is matched: first and second derivatives along P given directions; or a Laplacian
JETS, LAPLACIAN = KINDS = "jets", "laplacian"
OURS, REFERENCE, BACKWARD, NESTED = "ours", "reference", "double backward", "vmap(jvp of jvp)"


class Data(NamedTuple):
    x: torch.Tensor  # [N, D]
    v: torch.Tensor  # [P, N, D]
    y: torch.Tensor  # [N, O]
    first: torch.Tensor  # [P, N, O]
    second: torch.Tensor  # [P, N, O], or their sum [N, O]


def data_of(kind: str, N: int, D: int, O: int, P: int) -> Data:
    made = torch.Generator().manual_seed(1)
    drawn = lambda *shape: torch.randn(*shape, generator=made)  # noqa: E731
    if kind == JETS:
        return Data(drawn(N, D), drawn(P, N, D), drawn(N, O), drawn(P, N, O), drawn(P, N, O))
    return Data(drawn(N, D), torch.eye(D)[:, None].expand(-1, N, -1), drawn(N, O), drawn(0), drawn(N, O))


def loss_of(kind: str, data: Data, y: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    if kind == JETS:
        return mse_loss(y, data.y) + mse_loss(first, data.first) + mse_loss(second, data.second)
    return mse_loss(y, data.y) + mse_loss(second.sum(0), data.second)


def ours(student: nn.Module, data: Data, kind: str, backend: str | None = None) -> torch.Tensor:
    if kind == LAPLACIAN:
        y, total = sk.laplacian(student, data.x, backend=backend)
        return mse_loss(y, data.y) + mse_loss(total, data.second)
    targets = sk.Targets(values=data.y, tangents=data.first, seconds=data.second, directions=data.v)
    return sk.sobolev_loss(student, data.x, targets, order=2, backend=backend)


def along(y: torch.Tensor, x: torch.Tensor, v: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The derivatives along each direction: projections of the gradient of one output, or VJPs of a VJP."""
    of_y = partial(torch.autograd.grad, create_graph=True)
    if y.shape[1] == 1:
        (g,) = of_y(y.sum(), x)
        return [(g * d).sum(-1, keepdim=True) for d in v]
    u = torch.zeros_like(y, requires_grad=True)
    (g,) = of_y(y, x, u)
    return [of_y(g, u, d)[0] for d in v]


def layer_norm(x: torch.Tensor, shape: list[int], weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


@contextmanager
def written() -> Iterator[None]:
    """With norms written out, since PyTorch's own third derivative is wrong, and attention that has a second one."""
    torchs, functional.layer_norm = functional.layer_norm, layer_norm
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        functional.layer_norm = torchs


def by_double_backward(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    x = data.x.detach().requires_grad_()
    with written():
        y = student(x)
    first = along(y, x, data.v)
    second = [along(t, x, d[None])[0] for t, d in zip(first, data.v, strict=True)]
    return loss_of(kind, data, y, torch.stack(first), torch.stack(second))


def by_nested_jvp(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    def along(d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (y, first), (_, second) = jvp(lambda x: jvp(student, (x,), (d,)), (data.x,), (d,))
        return y, first, second

    with written():
        return loss_of(kind, data, *vmap(along, out_dims=(None, 0, 0))(data.v))


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    OURS: ours, REFERENCE: partial(ours, backend="reference"), BACKWARD: by_double_backward, NESTED: by_nested_jvp,
}  # fmt: skip


def measured(name: str, kind: str, N: int, O: int, P: int, rounds: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a step with the gradients of all parameters, by way; losses and gradients are compared first."""
    torch.manual_seed(0)
    student = STUDENTS[name](O)
    data, parameters, steps, expected = data_of(kind, N, student.D, O, P), tuple(student.parameters()), {}, None
    for way, loss in WAYS.items():
        steps[way] = lambda loss=loss: torch.autograd.grad(
            loss(student, data, kind), parameters, materialize_grads=True
        )
        found = [loss(student, data, kind).detach(), *steps[way]()]
        expected = found if expected is None else expected
        for got, right in zip(found, expected, strict=True):
            within = {"rtol": IN_SINGLE, "atol": IN_SINGLE * float(right.abs().max())}
            torch.testing.assert_close(got, right, **within, msg=lambda m, w=way: f"{w}: {m}")
    return {way: 1e3 * quartiles(times).median for way, times in interleave(steps, rounds, seconds, TURN).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.twice", description=__doc__)
    parser.add_argument("students", nargs="*", default=[name for name in STUDENTS if name != "transformer"])
    parser.add_argument("--match", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title="Second derivatives of any student: ms, and those of others over ours", title_justify="left")
    for column in ("student", "matched", "N", "O", "P", *WAYS, *(f"{way} ÷ ours" for way in list(WAYS)[1:])):
        table.add_column(column, justify="left" if column in ("student", "matched") else "right")
    for name, kind, N, O in product(options.students, options.match, options.batch, options.outputs):
        for P in (1, 4) if kind == JETS else ("D",):
            times = measured(name, kind, N, O, P, options.rounds, options.seconds)
            ratios = [f"{ms / times[OURS]:.2f}" for ms in list(times.values())[1:]]
            table.add_row(name, kind, str(N), str(O), str(P), *(f"{ms:.2f}" for ms in times.values()), *ratios)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

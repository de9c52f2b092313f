"""Any student: `python -m bench --any`, our step against what its author could write with PyTorch, eager, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import sobolev_kernels as sk

from .timing import TURN, interleave, quartiles


class LeNet(nn.Module):
    D = 64

    def __init__(self, O: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 16, 3)
        self.head = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, O))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.avg_pool2d(torch.tanh(self.first(x.view(-1, 1, 8, 8))), 2)
        return self.head(F.avg_pool2d(torch.tanh(self.second(h)), 2).flatten(1))


class ResidualMLP(nn.Module):
    D = 16

    def __init__(self, O: int):
        super().__init__()
        self.first, self.last = nn.Linear(self.D, 64), nn.Linear(64, O)
        of_block = lambda: nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))  # noqa: E731
        self.blocks = nn.ModuleList(of_block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


class Transformer(nn.Module):
    D = 32

    def __init__(self, O: int):
        super().__init__()
        self.embed, self.place, self.last = nn.Linear(4, 32), nn.Parameter(torch.randn(8, 32)), nn.Linear(32, O)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.embed(x.unflatten(-1, (8, 4))) + self.place).mean(1))


class Fourier(nn.Module):
    D = 4

    def __init__(self, O: int):
        super().__init__()
        self.register_buffer("waves", torch.randn(self.D, 32))
        layers = nn.Linear(64, 128), nn.Softplus(), nn.Linear(128, 128), nn.Softplus(), nn.Linear(128, O)
        self.net = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = x @ self.waves
        return self.net(torch.cat([angles.sin(), angles.cos()], -1))


class Gated(nn.Module):
    D = 16

    def __init__(self, O: int):
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(self.D, 128), nn.Linear(self.D, 128), nn.Linear(128, 128)
        self.last = nn.Linear(128, O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.a(x)) * torch.sigmoid(self.b(x)))))


STUDENTS = {"LeNet": LeNet, "residual MLP": ResidualMLP, "transformer": Transformer, "Fourier": Fourier, "gated": Gated}
# what is matched: tangents along P given directions, gradients for P given cotangents, the whole Jacobian
TANGENTS, COTANGENTS, EXACT = KINDS = "tangents", "cotangents", "exact"
OURS, STREAMS, REFERENCE, BACKWARD, VMAP = "ours", "streams", "reference", "double backward", "vmap(jvp)"
NORMS = (ResidualMLP, Transformer)  # of which vmap(jvp) has wrong gradients


class Data(NamedTuple):
    x: torch.Tensor  # [N, D]
    vectors: torch.Tensor | None  # [P, N, D], or [P, N, O]
    y: torch.Tensor  # [N, O]
    derivative: torch.Tensor  # as the kind has it


def data_of(kind: str, N: int, D: int, O: int, P: int, dtype: torch.dtype = torch.float32) -> Data:
    made = torch.Generator().manual_seed(1)
    drawn = lambda *shape: torch.randn(*shape, generator=made, dtype=dtype)  # noqa: E731
    x, y, jacobian = drawn(N, D), drawn(N, O), drawn(N, O, D)
    if kind == EXACT:
        return Data(x, None, y, jacobian)
    if kind == TANGENTS:
        return Data(x, drawn(P, N, D), y, drawn(P, N, O))
    return Data(x, drawn(P, N, O), y, drawn(P, N, D))


def by_double_backward(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    """As its author writes it: a gradient for each output or cotangent; for fewer directions VJPs of a VJP."""
    x = data.x.detach().requires_grad_()
    y = student(x)
    O = y.shape[1]
    if kind == COTANGENTS:
        got = torch.stack([torch.autograd.grad(y, x, u, create_graph=True)[0] for u in data.vectors])
    elif kind == TANGENTS and O > len(data.vectors):
        u = torch.zeros_like(y, requires_grad=True)
        g = torch.autograd.grad(y, x, u, create_graph=True)[0]
        got = torch.stack([torch.autograd.grad(g, u, v, create_graph=True)[0] for v in data.vectors])
    else:
        rows = torch.stack([torch.autograd.grad(column.sum(), x, create_graph=True)[0] for column in y.unbind(1)], 1)
        got = rows if kind == EXACT else torch.einsum("nod,pnd->pno", rows, data.vectors)
    return F.mse_loss(y, data.y) + F.mse_loss(got, data.derivative)


def by_vmap(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    jvp = lambda v: torch.func.jvp(student, (data.x,), (v,))  # noqa: E731
    vectors = torch.eye(data.x.shape[1])[:, None].expand(-1, *data.x.shape) if kind == EXACT else data.vectors
    y, got = torch.func.vmap(jvp, out_dims=(None, 0))(vectors)
    return F.mse_loss(y, data.y) + F.mse_loss(got.permute(1, 2, 0) if kind == EXACT else got, data.derivative)


def ours(student: nn.Module, data: Data, kind: str, backend: str | None = None) -> torch.Tensor:
    if kind == EXACT:
        targets = sk.Targets(values=data.y, jacobian=data.derivative)
        return sk.sobolev_loss(student, data.x, targets, derivatives="exact", backend=backend)
    if kind == TANGENTS:
        targets = sk.Targets(values=data.y, tangents=data.derivative, directions=data.vectors)
    else:
        targets = sk.Targets(values=data.y, vjps=data.derivative, cotangents=data.vectors)
    return sk.sobolev_loss(student, data.x, targets, backend=backend)


def ways(student: nn.Module, kind: str, O: int, P: int, forced: bool) -> dict[str, Callable[[Data], torch.Tensor]]:
    found = {
        OURS: lambda data: ours(student, data, kind),
        BACKWARD: lambda data: by_double_backward(student, data, kind),
    }
    if forced:
        found[REFERENCE] = lambda data: ours(student, data, kind, REFERENCE)
        if kind == TANGENTS:
            found[STREAMS] = lambda data: ours(student, data, kind, STREAMS)
    if kind != COTANGENTS and not isinstance(student, NORMS):
        found[VMAP] = lambda data: by_vmap(student, data, kind)
    return found


def measured(
    name: str, kind: str, N: int, O: int, P: int, rounds: int, seconds: float, forced: bool
) -> dict[str, float]:
    """Milliseconds of a step with the gradients of all parameters, by way; first all losses are compared."""
    torch.manual_seed(0)
    student = STUDENTS[name](O)
    data, parameters = data_of(kind, N, student.D, O, P), tuple(student.parameters())
    steps, losses = {}, {}
    for way, loss in ways(student, kind, O, P, forced).items():
        if way == BACKWARD:

            def loss(data, loss=loss):
                with sdpa_kernel(SDPBackend.MATH):
                    return loss(data)

        steps[way] = lambda loss=loss: torch.autograd.grad(loss(data), parameters)
        losses[way] = loss(data).detach()
        torch.testing.assert_close(losses[way], losses[OURS], rtol=1e-4, atol=1e-5)
        for got, expected in zip(steps[way](), steps[OURS](), strict=True):
            if not torch.allclose(got, expected, rtol=1e-2, atol=1e-4):
                print(way, name, "wrong", (got - expected).abs().max() / expected.abs().max())
                break
    return {way: 1e3 * quartiles(times).median for way, times in interleave(steps, rounds, seconds, TURN).items()}


def measure_any(
    names: Iterable[str], kinds: Iterable[str], batches: Iterable[int], rounds: int, seconds: float, forced: bool,
    console: Console,
) -> None:  # fmt: skip
    """Run and print: times of each way, and of the author's best over ours."""
    columns = [OURS, *((STREAMS, REFERENCE) if forced else ()), BACKWARD, VMAP]
    table = Table(title="A step of any student, ms, eager, in turns", title_justify="left")
    for column in ("student", "kind", "N", "O", "P", *columns, "backward / ours", "best / ours"):
        table.add_column(column, justify="left" if column in ("student", "kind") else "right", no_wrap=True)
    for name, kind, N, O, P in product(names, kinds, batches, (1, 10), (1, 4)):
        if kind == EXACT and P > 1:
            continue
        times = measured(name, kind, N, O, P, rounds, seconds, forced)
        others = [times[way] for way in (BACKWARD, VMAP) if way in times]
        numbers = [f"{times[way]:.2f}" if way in times else "-" for way in columns]
        ratios = times[BACKWARD] / times[OURS], min(others) / times[OURS]
        print(name, kind, N, O, P, *numbers, *(f"{ratio:.2f}" for ratio in ratios), flush=True)
        table.add_row(name, kind, str(N), str(O), str(P), *numbers, *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)

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
OURS, BACKWARD, WRITTEN, VMAP = WAYS = "ours", "double backward", "the same, norms written out", "vmap(jvp)"
NORMED = ResidualMLP, Transformer  # whose gradients are wrong by PyTorch's layer norm (pytorch#196700)


class Data(NamedTuple):
    x: torch.Tensor  # [N, D]
    vectors: torch.Tensor | None  # [P, N, D], or [P, N, O]
    y: torch.Tensor  # [N, O]
    derivative: torch.Tensor  # as the kind has it


def data_of(kind: str, N: int, D: int, O: int, P: int) -> Data:
    made = torch.Generator().manual_seed(1)
    drawn = lambda *shape: torch.randn(*shape, generator=made)  # noqa: E731
    x, y = drawn(N, D), drawn(N, O)
    if kind == EXACT:
        return Data(x, None, y, drawn(N, O, D))
    if kind == TANGENTS:
        return Data(x, drawn(P, N, D), y, drawn(P, N, O))
    return Data(x, drawn(P, N, O), y, drawn(P, N, D))


def by_double_backward(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    """As its author writes it: a gradient for each output or cotangent; of fewer directions, VJPs of a VJP."""
    x = data.x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        y = student(x)
    if kind == COTANGENTS:
        got = torch.stack([torch.autograd.grad(y, x, u, create_graph=True)[0] for u in data.vectors])
    elif kind == TANGENTS and y.shape[1] > len(data.vectors):
        u = torch.zeros_like(y, requires_grad=True)
        g = torch.autograd.grad(y, x, u, create_graph=True)[0]
        got = torch.stack([torch.autograd.grad(g, u, v, create_graph=True)[0] for v in data.vectors])
    else:
        rows = torch.stack([torch.autograd.grad(column.sum(), x, create_graph=True)[0] for column in y.unbind(1)], 1)
        got = rows if kind == EXACT else torch.einsum("nod,pnd->pno", rows, data.vectors)
    return F.mse_loss(y, data.y) + F.mse_loss(got, data.derivative)


def by_written_norms(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    torchs, F.layer_norm = F.layer_norm, layer_norm
    try:
        return by_double_backward(student, data, kind)
    finally:
        F.layer_norm = torchs


def layer_norm(x: torch.Tensor, shape: list[int], weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def by_vmap(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    jvp = lambda v: torch.func.jvp(student, (data.x,), (v,))  # noqa: E731
    vectors = torch.eye(data.x.shape[1])[:, None].expand(-1, *data.x.shape) if kind == EXACT else data.vectors
    y, got = torch.func.vmap(jvp, out_dims=(None, 0))(vectors)
    return F.mse_loss(y, data.y) + F.mse_loss(got.permute(1, 2, 0) if kind == EXACT else got, data.derivative)


def ours(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    if kind == EXACT:
        return sk.sobolev_loss(student, data.x, sk.Targets(values=data.y, jacobian=data.derivative), derivatives=EXACT)
    along = {"tangents": data.derivative, "directions": data.vectors}
    pulled = {"vjps": data.derivative, "cotangents": data.vectors}
    return sk.sobolev_loss(student, data.x, sk.Targets(values=data.y, **(along if kind == TANGENTS else pulled)))


def ways_of(student: nn.Module, kind: str) -> dict[str, Callable[..., torch.Tensor]]:
    """Those that apply; `vmap(jvp)` where its gradients are right."""
    normed = isinstance(student, NORMED)
    found = {OURS: ours, BACKWARD: by_double_backward} | ({WRITTEN: by_written_norms} if normed else {})
    return found if normed or kind == COTANGENTS else found | {VMAP: by_vmap}


def measured(name: str, kind: str, N: int, O: int, P: int, rounds: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a step with the gradients of all parameters, by way; losses and gradients are compared first."""
    torch.manual_seed(0)
    student = STUDENTS[name](O)
    data, parameters, steps, found = data_of(kind, N, student.D, O, P), tuple(student.parameters()), {}, {}
    for way, loss in ways_of(student, kind).items():
        steps[way] = lambda loss=loss: torch.autograd.grad(loss(student, data, kind), parameters)
        found[way] = [loss(student, data, kind).detach(), *steps[way]()]
        right = way != BACKWARD or not isinstance(student, NORMED)
        for got, expected in zip(found[way] if right else found[way][:1], found[OURS], strict=right):
            size = float(expected.abs().max())
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * size, msg=lambda m, w=way: f"{w}: {m}")
    return {way: 1e3 * quartiles(times).median for way, times in interleave(steps, rounds, seconds, TURN).items()}


def measure_any(
    names: Iterable[str], kinds: Iterable[str], batches: Iterable[int], rounds: int, seconds: float, console: Console
) -> None:
    """Run and print: milliseconds of each way, and of others over ours."""
    table = Table(title="A step of any student, ms, eager; † has wrong gradients", title_justify="left")
    for column in ("student", "matched", "N", "O", "P", *WAYS, "backward ÷ ours", "best right ÷ ours"):
        table.add_column(column, justify="left" if column in ("student", "matched") else "right")
    for name, kind, N, O, P in product(names, kinds, batches, (1, 10), (1, 4)):
        if kind == EXACT and P > 1:
            continue
        times = measured(name, kind, N, O, P, rounds, seconds)
        wrong = {BACKWARD} if WRITTEN in times else set()
        numbers = [f"{times[way]:.2f}{'†' * (way in wrong)}" if way in times else "-" for way in WAYS]
        best = min(ms for way, ms in times.items() if way != OURS and way not in wrong)
        ratios = [f"{ms / times[OURS]:.2f}" for ms in (times[BACKWARD], best)]
        table.add_row(name, kind, str(N), str(O), "D" if kind == EXACT else str(P), *numbers, *ratios)
    console.print(table)

"""A step of any student as we do it, and as its author would write it with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import sobolev_kernels as sk

from .students import NORMED

# what is matched: tangents along P given directions, gradients for P given cotangents, the whole Jacobian
TANGENTS, COTANGENTS, EXACT = KINDS = "tangents", "cotangents", "exact"
OURS, BACKWARD, WRITTEN, VMAP, HAND = WAYS = (
    "ours",
    "double backward",
    "the same, norms written out",
    "vmap(jvp)",
    "by hand",
)


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


def compared(y: torch.Tensor, derivative: torch.Tensor, data: Data) -> torch.Tensor:
    return F.mse_loss(y, data.y) + F.mse_loss(derivative, data.derivative)


def ours(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    if kind == EXACT:
        return sk.sobolev_loss(student, data.x, sk.Targets(values=data.y, jacobian=data.derivative), derivatives=EXACT)
    along = {"tangents": data.derivative, "directions": data.vectors}
    pulled = {"vjps": data.derivative, "cotangents": data.vectors}
    return sk.sobolev_loss(student, data.x, sk.Targets(values=data.y, **(along if kind == TANGENTS else pulled)))


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
    return compared(y, got, data)


def by_transforms(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    """The same by torch.func, which a compiler follows; of fewer directions, by forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        if kind == TANGENTS and data.y.shape[1] > len(data.vectors):
            pairs = [torch.func.jvp(student, (data.x,), (v,)) for v in data.vectors]
            return compared(pairs[0][0], torch.stack([d for _, d in pairs]), data)
        y, pull = torch.func.vjp(student, data.x)
    if kind == COTANGENTS:
        return compared(y, torch.stack([pull(u)[0] for u in data.vectors]), data)
    units = torch.eye(y.shape[1], device=y.device)[:, None].expand(-1, len(y), -1)
    rows = torch.stack([pull(unit)[0] for unit in units], 1)
    return compared(y, rows if kind == EXACT else torch.einsum("nod,pnd->pno", rows, data.vectors), data)


def with_written_norms(way: Callable, student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    torchs, F.layer_norm = F.layer_norm, layer_norm
    try:
        return way(student, data, kind)
    finally:
        F.layer_norm = torchs


def layer_norm(x: torch.Tensor, shape: list[int], weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def vectors_of(data: Data, kind: str) -> torch.Tensor:
    if kind != EXACT:
        return data.vectors
    return torch.eye(data.x.shape[1], device=data.x.device)[:, None].expand(-1, *data.x.shape)


def by_vmap(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    jvp = lambda v: torch.func.jvp(student, (data.x,), (v,))  # noqa: E731
    y, got = torch.func.vmap(jvp, out_dims=(None, 0))(vectors_of(data, kind))
    return compared(y, got.permute(1, 2, 0) if kind == EXACT else got, data)


def by_hand(student: nn.Module, data: Data, kind: str) -> torch.Tensor:
    y, got = student.streams(data.x, vectors_of(data, kind))
    return compared(y, got.permute(1, 2, 0) if kind == EXACT else got, data)


def ways_of(student: nn.Module, kind: str, compiled: bool) -> dict[str, Callable[..., torch.Tensor]]:
    """Those that apply; `vmap(jvp)` where its gradients are right. A compiler does not follow torch.autograd.grad."""
    normed, forward = isinstance(student, NORMED), kind != COTANGENTS
    backward = by_transforms if compiled else by_double_backward
    found = {OURS: ours, BACKWARD: backward}
    if normed:
        found[WRITTEN] = partial(with_written_norms, backward)
    if forward and not normed and not compiled:  # compiled by PyTorch 2.13, a derivative of it ends the process
        found[VMAP] = by_vmap
    if forward and hasattr(student, "streams"):
        found[HAND] = by_hand
    return found

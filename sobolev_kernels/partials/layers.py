"""Streams through the layers of an MLP: docs/math.md, section 15."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.autograd import forward_ad

from ..math.activations import activation_jet
from ..math.table import Formula
from ..modules import IDENTITY
from ..student import Student
from ..transforms import several
from .constants import kept
from .plan import Streams

Parts = dict[int, torch.Tensor]
Products = list[tuple[torch.Tensor | float, torch.Tensor, float]]


def sum_of(products: Products, out: torch.Tensor | None) -> torch.Tensor:
    """Σ c a b, into `out` where no graph is kept of it."""
    (a, b, c), *rest = products
    if out is None:
        total = a * b if c == 1 else (a * b) * c
        for a, b, c in rest:
            total = torch.addcmul(total, a, b, value=c) if torch.is_tensor(a) else total + (c * a) * b
        return total
    torch.mul(b, a, out=out)
    out = out if c == 1 else out.mul_(c)
    for a, b, c in rest:
        out = out.addcmul_(a, b, value=c) if torch.is_tensor(a) else out.add_(b, alpha=c * a)
    return out


def gathered(rows: Iterable[Products], count: int, like: torch.Tensor) -> torch.Tensor:
    """The sums [count, N, n]; of no products 0."""
    rows = [*rows]
    if torch.is_grad_enabled() or by_plain(like) or several(*(b for row in rows for _, b, _ in row)):
        zeros = torch.zeros_like(like)
        return torch.stack([sum_of(row, None).expand_as(like) if row else zeros for row in rows])
    total = like.new_empty((count, *like.shape))
    for row, out in zip(rows, total.unbind(), strict=True):
        sum_of(row, out) if row else out.zero_()
    return total


def powers(streams: Streams, z: Parts) -> list[Parts]:
    """u_m = (z - z₀)ᵐ, m from 1 on."""
    u: list[Parts] = [{}, {k: part for k, part in z.items() if k}]
    for a, b, terms in streams.powers:
        rows: dict[int, Products] = {}
        for k, i, j, c in terms:
            if i in u[a] and j in u[b]:
                rows.setdefault(k, []).append((u[a][i], u[b][j], c))
        u.append({k: sum_of(row, None) for k, row in rows.items()})
    return u


def composed(
    streams: Streams, sigma: tuple, u: list[Parts], wanted: Iterable[int], shift: int
) -> list[Products]:  # fmt: skip
    """Streams of σ⁽ˢʰⁱᶠᵗ⁾(z) as the sums Σ_m σ⁽ᵐ⁺ˢʰⁱᶠᵗ⁾ / m! u_m."""
    rows: list[Products] = []
    for k in wanted:
        if k == 0:
            value = sigma[shift]
            rows.append([(1.0, value, 1.0)] if torch.is_tensor(value) else [])
            continue
        found = [(sigma[m + shift], u[m][k], 1 / math.factorial(m)) for m in range(1, len(u)) if k in u[m]]
        rows.append([row for row in found if torch.is_tensor(row[0]) or row[0] != 0])
    return rows


def parts_of(streams: Streams, z: torch.Tensor, rows: torch.Tensor | None, bias: torch.Tensor | None) -> Parts:
    """What an activation is given, by stream: the bias is on the value alone."""
    parts = dict(enumerate(z.unbind()))
    if rows is not None:
        parts |= {k: row for (k, _), row in zip(streams.first, rows.unbind(), strict=True)}
    if bias is not None:
        parts[0] = parts[0] + bias
    return parts


def activated(
    streams: Streams, formula: Formula, wanted: tuple[int, ...], z: torch.Tensor, rows: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """h [wanted, N, n] by plain operations, which autograd and its like follow as far as they want."""
    parts = parts_of(streams, z, rows, bias)
    sigma = activation_jet(formula, parts[0], streams.order)
    return gathered(composed(streams, sigma, powers(streams, parts), wanted, 0), len(wanted), parts[0])


class Activated(torch.autograd.Function):
    """The same with its adjoint z̄_j = Σ c[k,i,j] g_i h̄_k, of the streams g of σ'(z), which are kept."""

    @staticmethod
    def forward(ctx, streams, formula, wanted, z, rows, bias):
        parts = parts_of(streams, z, rows, bias)
        sigma, u = activation_jet(formula, parts[0], streams.order + 1), powers(streams, parts)
        h = gathered(composed(streams, sigma, u, wanted, 0), len(wanted), parts[0])
        count = streams.count
        g = gathered(composed(streams, constant(sigma, parts[0]), u, range(count), 1), count, parts[0])
        ctx.asked = streams, formula, wanted
        ctx.save_for_backward(z, rows, bias, g)
        return h

    @staticmethod
    def backward(ctx, dh):
        (streams, formula, wanted), (z, rows, bias, g) = ctx.asked, ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated again, and so must depend on z
            parts = parts_of(streams, z, rows, bias)
            sigma = constant(activation_jet(formula, parts[0], streams.order + 1), parts[0])
            u = powers(streams, parts)
            g = gathered(composed(streams, sigma, u, range(streams.count), 1), streams.count, parts[0])
        known = [*range(len(z)), *((k for k, _ in streams.first) if rows is not None else ())]
        dz = gathered(
            adjoint(streams, g.unbind(), dict(zip(wanted, dh.unbind(), strict=True)), known), len(known), g[0]
        )
        dbias = None if bias is None else dz[0].sum(0)
        if rows is None:
            return None, None, None, dz, None, dbias
        of_rows = dz[len(z) :]
        return None, None, None, dz[: len(z)], of_rows if rows.dim() == 3 else of_rows.sum(1), dbias


def constant(sigma: tuple, like: torch.Tensor) -> tuple:
    """With a σ' that is a number everywhere as a tensor."""
    return (sigma[0], sigma[1] + torch.zeros_like(like), *sigma[2:]) if not torch.is_tensor(sigma[1]) else sigma


def adjoint(streams: Streams, g: tuple[torch.Tensor, ...], dh: Parts, known: list[int]) -> list[Products]:
    rows: dict[int, Products] = {k: [] for k in known}
    for k, i, j, c in streams.table:
        if k in dh and j in rows:
            rows[j].append((g[i], dh[k], c))
    return list(rows.values())


def by_plain(tensor: torch.Tensor) -> bool:
    """Whether somebody follows each operation: a compiler, a transform of torch.func, forward mode."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 or type(tensor) is not torch.Tensor


def directions_of(streams: Streams, x: torch.Tensor) -> torch.Tensor:
    """Those [F, D] of the streams that the inputs have beside their value."""
    rows = tuple(row for _, row in streams.first)
    made = torch.tensor if by_plain(x) else kept
    return made(rows, dtype=x.dtype, device=x.device).reshape(len(rows), x.shape[1])


def results_of(streams: Streams, student: Student, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The results [R, N] of inputs x [N, D] along v, [F, D] or [F, N, D]."""
    outputs, results = through(streams, student, x, v), []
    for row in streams.outputs:
        parts = [outputs[k][:, o] if c == 1 else c * outputs[k][:, o] for k, o, c in row]
        results.append(sum(parts[1:], parts[0]))
    return torch.stack(results)


def through(streams: Streams, student: Student, x: torch.Tensor, v: torch.Tensor) -> dict[int, torch.Tensor]:
    """The wanted streams of the outputs, each [N, O]."""
    tensors = iter(student.parameters)
    layers = [(next(tensors), next(tensors) if bias else None) for bias in student.biases]
    curved = [l for l, formula in enumerate(student.activations) if formula != IDENTITY]
    apply: Callable = activated if by_plain(x) or not torch.is_grad_enabled() else Activated.apply
    every, h, present = tuple(range(streams.count)), x[None], (0,)
    for l, ((weight, bias), formula) in enumerate(zip(layers, student.activations, strict=True)):
        z = torch.matmul(h, weight.T) if l else torch.mm(x, weight.T)[None]
        rows = None
        if l == 0 and streams.first:
            rows = torch.matmul(v, weight.T)
        if formula != IDENTITY:
            wanted = streams.wanted if l == curved[-1] else every
            h, present = apply(streams, formula, wanted, z, rows, bias), wanted
            continue
        if rows is not None:
            zeros, found = torch.zeros_like(z[0]), dict(zip((k for k, _ in streams.first), rows.unbind(), strict=True))
            z = torch.stack([z[0], *(found[k].expand_as(zeros) if k in found else zeros for k in every[1:])])
            present = every
        h = torch.cat([z[:1] + bias, z[1:]]) if bias is not None and 0 in present else z
    return dict(zip(present, h.unbind(), strict=True))


def tied(results: torch.Tensor, student: Student, x: torch.Tensor) -> torch.Tensor:
    """Such that what none depends on, as the last bias of a derivative, gets a gradient of zeros and not None, with
    which an optimizer would step differently."""
    if not torch.is_grad_enabled():
        return results
    asking = [tensor for tensor in (x, *student.parameters) if tensor.requires_grad]
    if not asking:
        return results
    nothing = torch.cat([tensor.reshape(-1)[:0] for tensor in asking]).sum()
    return results + nothing.to(results.dtype)

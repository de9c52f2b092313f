"""What a step of distillation costs: fused, by the reference, and by hand in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from rich.console import Console
from torch.nn import functional as F

import sobolev_kernels as sk
from examples.distillation import films as pixels
from examples.distillation import teacher
from examples.distillation.games import FRAMES, SIDE
from examples.lab import Settings, fused
from examples.lab.times import interleaved, report_times

ACTIONS, ROUNDS, WITHIN = 6, 15, 1e-4
HEAD = {"head": "log_softmax", "value_loss": "kl"}


def times(batch: int, pixel_batch: int, width: int, settings: Settings, console: Console) -> None:
    """Print and write milliseconds of loss and backward, of random states: their numbers do not matter."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # That the same call is made again and again is what is measured.
        warnings.simplefilter("ignore", sk.SobolevWarning)
        # torch itself, on the first torch.func.jvp of a process
        warnings.filterwarnings("ignore", ".torch.jit.script", DeprecationWarning)
        rows = [*of_memory(batch, width), of_pixels(pixel_batch)]
    report_times(rows, settings, "distillation", console)


def of_memory(N: int, width: int):
    net, x = teacher.network(ACTIONS, width), torch.randn(N, teacher.BYTES)
    taught = teacher.network(ACTIONS).requires_grad_(False)
    u = F.normalize(torch.randn(N, ACTIONS), dim=1)
    jacobian = sk.Targets.from_teacher(taught, x, **HEAD)
    along = sk.Targets.from_teacher(taught, x, cotangents=sk.Cotangents.given(u[None]), **HEAD)

    def slopes(of: torch.nn.Module, u: torch.Tensor, again: bool) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = x.detach().requires_grad_()
        said = of(inputs).log_softmax(1)
        return said, torch.autograd.grad(said, inputs, u, create_graph=again)[0]

    def of_both(one: tuple, two: tuple) -> torch.Tensor:
        return F.kl_div(one[0], two[0], log_target=True, reduction="batchmean") + F.mse_loss(one[1], two[1])

    def drawn() -> torch.Tensor:
        return F.normalize(torch.randn(N, ACTIONS), dim=1)

    def asked() -> torch.Tensor:
        v = drawn()
        true, rows = slopes(taught, v, again=False)
        return of_both(slopes(net, v, again=True), (true.detach(), rows))

    def known() -> torch.Tensor:
        v = drawn()
        return of_both(slopes(net, v, again=True), (jacobian.values, torch.einsum("no,nod->nd", v, jacobian.jacobian)))

    said = along.values, along.vjps[0]
    projected = HEAD | {"cotangents": sk.Cotangents.sphere(1)}
    yield row_of("memory, a projection given", net, x, along, HEAD, lambda: of_both(slopes(net, u, True), said), u)
    yield row_of("memory, the Jacobian given", net, x, jacobian, projected, known)
    yield row_of("memory, the teacher asked", net, x, sk.Targets(teacher=taught), projected, asked)


def of_pixels(N: int) -> dict:
    net = pixels.network(ACTIONS, torch.zeros(SIDE, SIDE), *pixels.LEARNING)
    x, v = torch.rand(2, N, FRAMES, SIDE, SIDE)
    said, tangents = torch.randn(2, N, ACTIONS)
    targets = sk.Targets(values=said.log_softmax(1), tangents=tangents[None], directions=v[None])

    def by_hand() -> torch.Tensor:
        value, tangent = torch.func.jvp(lambda x: net(x).log_softmax(1), (x,), (v,))
        kl = F.kl_div(value, targets.values, log_target=True, reduction="batchmean")
        return kl + F.mse_loss(tangent, tangents)

    return row_of("pixels, along the change of screens", net, x, targets, HEAD, by_hand, v)


def row_of(
    name: str, net: torch.nn.Module, x: torch.Tensor, targets: sk.Targets, settings: dict, by_hand: Callable,
    vectors: torch.Tensor | None = None,
) -> dict:  # fmt: skip
    """`vectors`: those that are given, where all ways have one loss, which is compared before."""
    if targets.directions is not None:
        backend = fused(net, x, targets.directions, **settings)
    elif targets.cotangents is not None:
        backend = fused(net, x, cotangents=targets.cotangents, **settings)
    else:
        backend = fused(net, x, **settings)
    ours = sk.SobolevLoss(**settings)
    slow = sk.SobolevLoss(backend="reference", **settings)
    losses = {"fused": lambda: ours(net, x, targets), "reference": lambda: slow(net, x, targets), "by hand": by_hand}
    if vectors is not None:
        first, *others = (loss().item() for loss in losses.values())
        assert all(abs(other - first) <= WITHIN * abs(first) for other in others), (name, first, others)

    def step(loss: Callable) -> None:
        net.zero_grad()
        loss().backward()

    ms = interleaved({key: lambda loss=loss: step(loss) for key, loss in losses.items()}, ROUNDS)
    return {"step": name, "N": len(x), "backend": backend} | {f"{key} ms": value for key, value in ms.items()}

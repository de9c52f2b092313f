"""A step of policy distillation behind a log-softmax, fused and by PyTorch: `python -m bench.distil [threads [H ...]]`.

KL of values and projected outputs (Czarnecki et al., 2017), a teacher of width 256, 128 samples, students 128→32×2→6
and wider; with the teacher in the step, and with what he says given. By hand is double backward as one writes it, by
paper the gradient written out layer by layer, compiled.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import sobolev_kernels as sk
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

N, D, O = 128, 128, 6
WIDTHS = [32, 64, 128]
HEAD = "log_softmax"
WITHIN = 1e-4  # of the largest gradient, in float32, so that what is timed is right


def unit_vectors() -> torch.Tensor:
    return F.normalize(torch.randn(N, O), dim=-1)


def by_autograd(net: torch.nn.Module, x: torch.Tensor, u: torch.Tensor, again: bool) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    y = torch.log_softmax(net(x), -1)
    return y, torch.autograd.grad(y, x, u, create_graph=again)[0]


def by_paper(net: torch.nn.Module, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same without autograd: 1 - h² is the slope of a tanh, and u - softmax Σu what its log-softmax makes of u."""
    linears, h = [layer for layer in net if isinstance(layer, torch.nn.Linear)], [x]
    for layer in linears[:-1]:
        h.append(torch.tanh(layer(h[-1])))
    y = torch.log_softmax(linears[-1](h[-1]), -1)
    a = (u - y.exp() * u.sum(-1, keepdim=True)) @ linears[-1].weight
    for layer, value in zip(reversed(linears[:-1]), reversed(h[1:]), strict=True):
        a = (a * (1 - value * value)) @ layer.weight
    return y, a


def loss_of(student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...]) -> torch.Tensor:
    kl = F.kl_div(student[0], teacher[0].detach(), log_target=True, reduction="batchmean")
    return kl + F.mse_loss(student[1], teacher[1].detach())


def steps(width: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Loss and gradients of one step, the same numbers in each but for the draw of the vectors."""
    torch.manual_seed(0)
    net, teacher, x = sk.MLP(D, O, width=width, depth=2), sk.MLP(D, O, width=256, depth=2), torch.randn(N, D)
    teacher.requires_grad_(False)
    u = unit_vectors()
    said = tuple(tensor.detach() for tensor in by_autograd(teacher, x, u, again=False))
    given = sk.Targets(values=said[0], vjps=said[1][None], cotangents=u[None])
    settings, parameters = {"head": HEAD, "value_loss": "kl"}, list(net.parameters())
    fused_given = lambda: sk.sobolev_loss(net, x, given, **settings)  # noqa: E731
    taught = sk.Targets(teacher=teacher)
    fused = lambda: sk.sobolev_loss(net, x, taught, cotangents=sk.Cotangents.sphere(1), **settings)  # noqa: E731
    paper_given = torch.compile(lambda x, u, y, g: loss_of(by_paper(net, x, u), (y, g)))
    paper = torch.compile(lambda x, u: loss_of(by_paper(net, x, u), by_paper(teacher, x, u)))

    def hand() -> torch.Tensor:
        v = unit_vectors()
        return loss_of(by_autograd(net, x, v, again=True), by_autograd(teacher, x, v, again=False))

    forwards = {
        "fused, targets given": fused_given,
        "by hand, targets given": lambda: loss_of(by_autograd(net, x, u, again=True), said),
        "by paper, compiled, targets given": lambda: paper_given(x, u, *said),
        "fused, teacher": fused,
        "by hand, teacher": hand,
        "by paper, compiled, teacher": lambda: paper(x, unit_vectors()),
    }

    def step(forward: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.grad = None
        forward().backward()
        return [parameter.grad for parameter in parameters]

    check([step(forward) for name, forward in forwards.items() if "given" in name])
    return {name: lambda forward=forward: step(forward) for name, forward in forwards.items()}


def check(gradients: list[list[torch.Tensor]]) -> None:
    for others in gradients[1:]:
        for a, b in zip(gradients[0], others, strict=True):
            assert (a - b).abs().max() <= WITHIN * b.abs().max(), "a variant has other gradients"


def main() -> None:
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    widths = [int(width) for width in sys.argv[2:]] or WIDTHS
    table = Table(title=f"Policy distillation, N = {N}, {D} → H×2 → {O}, µs", title_justify="left")
    table.add_column("step")
    with warnings.catch_warnings():
        # the same call again and again is what is measured
        warnings.simplefilter("ignore", sk.SobolevWarning)
        columns = [interleave(steps(width), rounds=20, seconds=0, turn=TURN) for width in widths]
    for width in widths:
        table.add_column(f"H = {width}", justify="right")
    medians = [{name: 1e6 * quartiles(times).median for name, times in column.items()} for column in columns]
    for name in medians[0]:
        fused = f"fused, {name.rsplit(', ', 1)[1]}"
        table.add_row(name, *(f"{m[name]:.0f} ({m[name] / m[fused]:.2f})" for m in medians))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

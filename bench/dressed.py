"""An MLP in a dress beside the bare one: `python -m bench.dressed`, a loss with all gradients, in turns; and what the
dress by itself costs a step of values."""

from __future__ import annotations

import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

import sobolev_kernels as sk
from sobolev_kernels.testing.rule import IN_SINGLE
from sobolev_kernels.testing.speed.timing import TURN, interleave, quartiles

D, WIDTH, DEPTH, P = 8, 64, 3, 4
BARE, ORDINARY = "bare", ", of values alone"


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Functional(Wrapper):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *hidden, last = (layer for layer in self.net if isinstance(layer, nn.Linear))
        for layer in hidden:
            x = torch.tanh(F.linear(x, layer.weight, layer.bias))
        return F.linear(x, last.weight, last.bias)


class OwnSequential(nn.Sequential):
    """It adds nothing."""


class LowRank(nn.Module):
    def __init__(self, n_out: int, n_in: int):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, n_in) / 8), nn.Parameter(torch.zeros(n_out, 4))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


def linears(net: nn.Module) -> list[nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def parametrized(how: Callable[[nn.Linear], object], net: nn.Module) -> nn.Module:
    for layer in linears(net):
        how(layer)
    return net


def low_rank(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))


def hooked(register: str, modules: Callable[[nn.Module], list[nn.Module]], net: nn.Module) -> nn.Module:
    for module in modules(net):
        getattr(module, register)(lambda *_: None)
    return net


def itself(net: nn.Module) -> list[nn.Module]:
    return [net]


def with_dropout(net: nn.Module) -> nn.Module:
    *layers, last = net
    return nn.Sequential(*layers, nn.Dropout(0.1), last).eval()


def sharded_by_layers(net: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in linears(net):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


DRESSES: dict[str, Callable[[nn.Module], nn.Module]] = {
    BARE: lambda net: net,
    "wrapper": Wrapper,
    "subclass of Sequential": lambda net: OwnSequential(*net),
    "Dropout in eval": with_dropout,
    "torch.compile": torch.compile,
    "AveragedModel": AveragedModel,
    "functional calls": Functional,
    "weight norm": partial(parametrized, parametrizations.weight_norm),
    "spectral norm": partial(parametrized, parametrizations.spectral_norm),
    "LoRA": partial(parametrized, low_rank),
    "forward hook": partial(hooked, "register_forward_hook", itself),
    "forward hooks of all layers": partial(hooked, "register_forward_hook", list),
    "backward hook": partial(hooked, "register_full_backward_hook", itself),
    "backward pre-hook": partial(hooked, "register_full_backward_pre_hook", itself),
    "backward hook of one layer": partial(hooked, "register_full_backward_hook", lambda net: [net[2]]),
    "backward hooks of all layers": partial(hooked, "register_full_backward_hook", list),
    "DDP": nn.parallel.DistributedDataParallel,
    "FSDP": lambda net: FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=True),
    "FSDP2": lambda net: fully_shard(net, mesh=init_device_mesh("cpu", (1,))),
    "FSDP2 of each layer": sharded_by_layers,
}


def step_of(student: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A loss and its gradients, which come into `.grad`, as a wrapper of processes wants it."""

    def step() -> torch.Tensor:
        loss = loss_of(student)
        loss.backward()
        for parameter in parameters:
            parameter.grad = None
        return loss

    parameters = list(student.parameters())
    return step


def measure(options: Namespace, console: Console) -> None:
    """Run and print; a loss other than that of the bare student is an error, but where the weights are others."""
    N, O = options.batch, options.outputs
    torch.manual_seed(0)
    x, v = torch.randn(N, D), torch.randn(P, N, D)
    values, tangents = torch.randn(N, O), torch.randn(P, N, O)
    targets = sk.Targets(values=values, tangents=tangents, directions=sk.Directions.given(v))
    losses = {
        "": lambda student: sk.sobolev_loss(student, x, targets),
        ORDINARY: lambda student: F.mse_loss(student(x), values),
    }
    steps = {}
    for name in dict.fromkeys([BARE, *(options.only or DRESSES)]):
        torch.manual_seed(1)
        student = DRESSES[name](sk.MLP(D, O, width=WIDTH, depth=DEPTH, activation="tanh"))
        for kind, loss_of in losses.items():
            steps[name + kind] = step = step_of(student, loss_of)
            for _ in range(3):
                loss = step()
            if name != "spectral norm":
                expected = steps[BARE + kind]()
                torch.testing.assert_close(loss, expected, rtol=IN_SINGLE, atol=IN_SINGLE, msg=lambda m, n=name: n + m)
    times = {n: 1e3 * quartiles(t).median for n, t in interleave(steps, 9, options.seconds, TURN).items()}
    table = Table(title=f"An MLP {D}→{WIDTH}×{DEPTH}→{O}, N = {N}, P = {P}", title_justify="left")
    for column in ("dress", "ms", "÷ bare", "ms more", "in an ordinary step"):
        table.add_column(column, justify="left" if column == "dress" else "right")
    for name in (name for name in times if not name.endswith(ORDINARY)):
        more, own = (times[name + kind] - times[BARE + kind] for kind in losses)
        ratio = f"{times[name] / times[BARE]:.2f}"
        table.add_row(name, f"{times[name]:.2f}", ratio, f"{more:.2f}", f"{own:.2f}")
    console.print(table)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=DRESSES, metavar="DRESS")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.init_process_group("gloo", init_method=f"file://{place}/store", rank=0, world_size=1)
        try:
            measure(options, Console(width=100))
        finally:
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()

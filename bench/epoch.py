"""`python -m bench.epoch`: an epoch of differential machine learning by `fit`, by PyTorch and by JAX, Adam included.

8,192 samples of 20 inputs, batches of 256, a student 20 -> 20 x 4 -> 1 of softplus, values and all derivatives. PyTorch
differentiates twice; the best of what can be written without a compiler: batches by one index a tensor and epoch, a
fused Adam, no number asked for. JAX scans over the batches of an epoch in one jitted function, Adam written out
(optax has the same formula). Data are shuffled anew in each epoch by all. Before anything is timed, all have made the
same epoch from the same weights, in the same order, and their weights are compared.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

import sobolev_kernels as sk

from .gpu import wait
from .jax_baseline import Process, numbers

N, D, BATCH, WIDTH, DEPTH, LR = 8192, 20, 256, 20, 4, 1e-3
NAMES = ("fit", "PyTorch", "JAX")
ROUNDS, EPOCHS = 7, 6


def problem(device: str = "cpu") -> tuple[torch.nn.Module, torch.Tensor, sk.Targets]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    weights = torch.rand(D, generator=generator) / D
    gain = x @ weights
    values, jacobian = gain.clamp(min=0)[:, None], ((gain > 0)[:, None] * weights)[:, None, :]
    torch.manual_seed(0)
    student = sk.MLP(D, 1, width=WIDTH, depth=DEPTH, activation="softplus")
    return student.to(device), x.to(device), sk.Targets(values=values, jacobian=jacobian).to(device)


def by_fit(student: torch.nn.Module, x: torch.Tensor, targets: sk.Targets, epochs: int, seed: int) -> float:
    """Seconds of an epoch: the median of those after the first, in which a call is prepared."""
    history = sk.fit(
        student, x, targets, loss=sk.SobolevLoss(derivatives="exact"), epochs=epochs, batch_size=BATCH, lr=LR,
        progress=False, generator=generator_of(seed),
    )  # fmt: skip
    return statistics.median(history["seconds"][1:] or history["seconds"])


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orders(epochs: int, seed: int) -> torch.Tensor:
    """What `fit` shuffles by, [epochs, N]; its first number is for torch's own generator."""
    generator = generator_of(seed)
    torch.randint(2**62, (), generator=generator)
    return torch.stack([torch.randperm(N, generator=generator) for _ in range(epochs)])


def by_torch(student: torch.nn.Module, x: torch.Tensor, targets: sk.Targets, epochs: int, seed: int) -> float:
    optimizer = torch.optim.Adam(student.parameters(), LR, fused=True)
    y, dy = targets.values, targets.jacobian[:, 0]
    seconds = []
    for order in orders(epochs, seed).to(x.device):
        start = time.perf_counter()
        shuffled = [tensor[order].split(BATCH) for tensor in (x, y, dy)]
        for u, t, dt in zip(*shuffled, strict=True):
            u.requires_grad_()
            out = student(u)
            (slope,) = torch.autograd.grad(out, u, torch.ones_like(out), create_graph=True)
            loss = torch.nn.functional.mse_loss(out, t) + torch.nn.functional.mse_loss(slope, dt)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait(x.device.type)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds)


def by_jax(worker: Process, student: torch.nn.Module, x: torch.Tensor, targets: sk.Targets, epochs: int, seed: int):
    arrays = x.numpy(), targets.values.numpy(), targets.jacobian[:, 0].numpy(), orders(epochs, seed).numpy()
    return worker.ask("train", numbers(student), arrays, BATCH, LR)


def measure(threads: int, rounds: int, jax: bool, device: str = "cpu") -> dict[str, list[float]]:
    torch.set_num_threads(threads)
    first, x, targets = problem(device)
    worker = Process(threads, "bench.jax_epoch") if jax else None
    ways: dict[str, Callable[[int, int], float]] = {
        "fit": lambda epochs, seed: by_fit(copy.deepcopy(first), x, targets, epochs, seed),
        "PyTorch": lambda epochs, seed: by_torch(copy.deepcopy(first), x, targets, epochs, seed),
    }
    if worker is not None:
        ways["JAX"] = lambda epochs, seed: by_jax(worker, first, x, targets, epochs, seed)[0]
    check(first, x, targets, worker)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for name, way in ways.items():
            times[name].append(way(EPOCHS, round_))
    if worker is not None:
        worker.close()
    return times


def check(first: torch.nn.Module, x: torch.Tensor, targets: sk.Targets, worker: Process | None) -> None:
    """That all make the same two epochs.

    Raises:
        AssertionError: they do not.
    """
    ours, theirs = copy.deepcopy(first), copy.deepcopy(first)
    by_fit(ours, x, targets, 2, 0), by_torch(theirs, x, targets, 2, 0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    if worker is None:
        return
    _, layers = by_jax(worker, first, x, targets, 2, 0)
    found = [torch.from_numpy(array.copy()) for weight, bias in layers for array in (weight.T, bias)]
    for a, b in zip(ours.parameters(), found, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-3, atol=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads(), 1])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-jax", action="store_true")
    parser.add_argument("--device", default="cpu", help="of fit and PyTorch; on another than the CPU JAX is left out")
    options = parser.parse_args()
    for threads in options.threads:
        times = measure(threads, options.rounds, not options.no_jax and options.device == "cpu", options.device)
        ours = times["fit"]
        print(f"{threads} thread{'s' if threads > 1 else ''}: ms of an epoch of {N // BATCH} steps, and ÷ fit")
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
            print(f"  {name:<8}{statistics.median(seconds) * 1e3:8.2f}  {ratio:6.2f}")


if __name__ == "__main__":
    main()

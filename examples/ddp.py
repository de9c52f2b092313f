"""Sobolev training in several processes: DistributedDataParallel, each process with its part of every batch.

    torchrun --nproc-per-node=2 examples/ddp.py [--steps 200] [--samples 256]

The student learns sin(3 x_1) x_2 and its gradient. Nothing but DDP's own mean of gradients is communicated, although
directions are drawn afresh at each step: every process draws for its own samples, which it numbers from rank · N, so
that together they draw what one process draws for the whole batch (docs/distributed.md). That its gradients are theirs
is looked at before the first step and after the last. NCCL where each process has a GPU, gloo elsewhere.
"""

from __future__ import annotations

import argparse
import os
from copy import deepcopy

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import sobolev_kernels as sk

Batch = tuple[torch.Tensor, sk.Targets]


def batch_of(samples: int, step: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [N, 2], values [N, 1] and gradients [N, 2] of a whole batch, the same in each process."""
    x = 2 * torch.rand(samples, 2, generator=torch.Generator().manual_seed(step)).to(device) - 1
    y = torch.sin(3 * x[:, :1]) * x[:, 1:]
    dy = torch.stack((3 * torch.cos(3 * x[:, 0]) * x[:, 1], torch.sin(3 * x[:, 0])), 1)
    return x, y, dy


def part_of(batch: tuple[torch.Tensor, ...], rank: int, world: int) -> Batch:
    """The samples of a rank; as many for each, so that a mean of means is the mean."""
    x, y, dy = (tensor.chunk(world)[rank] for tensor in batch)
    return x, sk.Targets(values=y, jacobian=dy)


def difference_from_one(student: DistributedDataParallel, directions: sk.Directions, samples: int) -> float:
    """The largest difference between gradients of all processes and of one, over the largest gradient."""
    student.zero_grad()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device, alone = next(student.parameters()).device, deepcopy(student.module)
    batch = batch_of(samples, 0, device)
    sk.sobolev_loss(student, *part_of(batch, rank, world), directions=directions).backward()
    sk.sobolev_loss(alone, *part_of(batch, 0, 1), directions=directions.numbered_from(0)).backward()
    ours, expected = (torch.cat([p.grad.flatten() for p in s.parameters()]) for s in (student, alone))
    student.zero_grad()
    return float((ours - expected).abs().max() / expected.abs().max())


def train(steps: int, samples: int) -> None:
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", rank) if distributed.get_backend() == "nccl" else torch.device("cpu")
    torch.manual_seed(0)  # the same first weights in each process, and the same seeds of directions
    student = DistributedDataParallel(sk.MLP(2, 1, width=64, depth=2).to(device))
    differences = [difference_from_one(student, sk.Directions.sphere(2, seed=1), samples)]
    loss_fn = sk.SobolevLoss(directions=sk.Directions.sphere(2))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(student, *part_of(batch_of(samples, step, device), rank, world))
        loss.backward()
        optimizer.step()
    differences.append(difference_from_one(student, sk.Directions.sphere(2, seed=1), samples))
    loss = loss.detach()
    distributed.all_reduce(loss)
    if rank == 0:
        print(f"{world} processes ({distributed.get_backend()}), {samples // world} samples of a batch in each")
        print(f"gradients: within {max(differences):.1e} of the largest from those of one process with the whole batch")
        print(f"loss after {steps} steps: {loss.item() / world:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--samples", type=int, default=256, help="of a whole batch, a multiple of the processes")
    options = parser.parse_args()
    world = int(os.environ.get("WORLD_SIZE", 0))
    if not world:
        parser.error("started by torchrun --nproc-per-node=2 examples/ddp.py")
    if options.samples % world or options.samples < world or options.steps < 1:
        parser.error(f"--samples is a multiple of the {world} processes, --steps at least 1")
    distributed.init_process_group("nccl" if torch.cuda.device_count() >= world else "gloo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    try:
        train(options.steps, options.samples)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()

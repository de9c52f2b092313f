"""Why: a few points of a wave, learnt from their values alone, and from values and slopes. Writes results/why.png.

The two students have the same first weights and as many steps of the same optimizer; five points of sin(3x) are all
they see.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import torch

import sobolev_kernels as sk
from examples.lab.pictures import COLOURS, bare, figure_of

POINTS, EPOCHS = 5, 1500


def f(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x)


def slope(x: torch.Tensor) -> torch.Tensor:
    return 3 * torch.cos(3 * x)


def trained() -> tuple[torch.Tensor, dict[str, torch.nn.Module]]:
    """The points [N, 1], and the students by method."""
    torch.manual_seed(0)
    x = torch.linspace(-1.8, 1.8, POINTS)[:, None]
    targets = sk.Targets(values=f(x), jacobian=slope(x))
    first, students = sk.MLP(1, 1, width=64, depth=2), {}
    losses = {"ordinary": sk.SobolevLoss(weights=(1.0, 0.0)), "sobolev": sk.SobolevLoss(derivatives="exact")}
    for name, loss in losses.items():
        how = {"epochs": EPOCHS, "batch_size": POINTS, "lr": 3e-3, "schedule": "cosine", "progress": False}
        students[name] = sk.fit(deepcopy(first), x, targets, loss=loss, **how).student
    return x, students


def draw(path: Path) -> None:
    x, students = trained()
    line = torch.linspace(-2, 2, 401)[:, None]
    figure = figure_of((9, 2.9))
    titles = {"ordinary": "values alone", "sobolev": "values and slopes"}
    for axes, (name, student) in zip(figure.subplots(1, 2, sharey=True), students.items(), strict=True):
        axes.plot(line, f(line), color="black", lw=1, label="the function")
        axes.plot(line, student(line).detach(), color=COLOURS[name], lw=2.5, label="the student")
        for point in x if name == "sobolev" else ():
            near = point + torch.tensor([-0.13, 0.13])
            axes.plot(near, f(point) + slope(point) * (near - point), color="black", lw=3)
        axes.plot(x, f(x), "o", color="black", label="what it was told")
        axes.set(title=titles[name], ylim=(-1.7, 1.7))
        bare(axes)
        axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the picture")
    draw(parser.parse_args().out / "why.png")

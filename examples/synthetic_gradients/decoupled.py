"""Three modules of one network that are trained apart, each by a synthetic gradient of what lies above it.

The network is f3(f2(f1(x))). What reaches f1 and f2 as the gradient of the loss with respect to their output h is not
the one of back-propagation, but what a small predictor, which sees h and the label, says it is (Jaderberg et al., 2017,
arXiv:1608.05343; Czarnecki et al., 2017, section 4.3):

    no-prop    f1 and f2 stay as they were drawn, and f3 alone is trained
    direct     the predictor gives the gradient, and is fitted to it
    critic     the predictor gives the loss, and is fitted to it; the gradient is its derivative with respect to h
    Sobolev    the same predictor, fitted to the loss and to its gradient
    backprop   no predictor: the true gradient

The predictor of f2 is fitted to the loss that f3 has and to its gradient. That of f1 is fitted to the same loss and to
the gradient that f2 passes down from the synthetic one above it: nothing waits for a backward pass through the whole
network. In every step every module and every predictor takes one step of its optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import sobolev_kernels as sk
from examples.lab import fused
from examples.synthetic_gradients.labelled import Data

PREDICTING = ("direct", "critic", "sobolev")
METHODS = ("no-prop", *PREDICTING, "backprop")
WIDTH, PREDICTOR_WIDTH, BATCH = 32, 64, 64
GAIN, WARM_UP = 1.5, 0.1
LOSSES = {
    "critic": {"weights": (1.0, 0.0)},
    # "exact" has the mean over the WIDTH entries of the gradient, and the paper their sum.
    "sobolev": {"derivatives": "exact", "wrt": range(WIDTH), "weights": (1.0, float(WIDTH))},
}


@dataclass(frozen=True)
class Rates:
    """Learning rates of the modules and of their predictors."""

    module: float
    predictor: float


def module(D: int, O: int, last: bool = False) -> nn.Sequential:
    layers = [nn.Linear(D, WIDTH), nn.Tanh(), nn.Linear(WIDTH, O), nn.Tanh()]
    return nn.Sequential(*layers[: -1 if last else None])


def network(D: int, classes: int) -> nn.ModuleList:
    """Three modules of two layers, with weights that keep the size of signals, so that untrained ones lose little."""
    modules = nn.ModuleList([module(D, WIDTH), module(WIDTH, WIDTH), module(WIDTH, classes, last=True)])
    for layer in modules.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=GAIN / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)
    return modules


def predictors_of(method: str, classes: int) -> nn.ModuleList:
    """Of f1 and of f2, from h and the label [N, WIDTH + classes]; at first they are 0, which is no gradient."""
    made = nn.ModuleList()
    for _ in range(2 if method in PREDICTING else 0):
        outputs = WIDTH if method == "direct" else 1
        made.append(sk.MLP(WIDTH + classes, outputs, width=PREDICTOR_WIDTH, depth=2, activation="softplus"))
        nn.init.zeros_(made[-1][-1].weight)
        nn.init.zeros_(made[-1][-1].bias)
    return made


def synthetic_gradients(
    method: str, predictors: Sequence[nn.Module], seen: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The gradients [N, WIDTH] of each sample's loss that predictors give where they see [N, WIDTH + classes]."""
    if method == "direct":
        with torch.no_grad():
            return [predictor(s) for predictor, s in zip(predictors, seen, strict=True)]
    places = [s.detach().requires_grad_() for s in seen]
    predicted = [predictor(place).sum() for predictor, place in zip(predictors, places, strict=True)]
    return [g[:, :WIDTH] for g in torch.autograd.grad(predicted, places)]


def fitting_loss(
    method: str, predictor: nn.Module, seen: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Of a predictor, where each sample has this loss [N, 1] and its gradient [N, WIDTH]."""
    if method == "direct":
        return (predictor(seen) - gradient).square().sum(1).mean()
    jacobian = gradient[:, None] if method == "sobolev" else None
    return sk.sobolev_loss(predictor, seen, sk.Targets(values=loss, jacobian=jacobian), **LOSSES[method])


def backward_apart(
    method: str, modules: nn.ModuleList, predictors: nn.ModuleList, x: torch.Tensor, label: torch.Tensor,
    one_hot: torch.Tensor,
) -> None:  # fmt: skip
    """Give all modules and predictors their gradients, each module from what is known at its own end."""
    N = len(x)
    first = modules[0](x)
    below = first.detach().requires_grad_()
    second = modules[1](below)
    above = second.detach().requires_grad_()
    losses = F.cross_entropy(modules[2](above), label, reduction="none")
    losses.mean().backward()
    if method not in PREDICTING:
        return
    seen = [torch.cat([h.detach(), one_hot], 1) for h in (first, second)]
    synthetic = synthetic_gradients(method, predictors, seen)
    torch.autograd.backward([first, second], [g / N for g in synthetic])
    loss, gradients = losses.detach()[:, None], (below.grad * N, above.grad * N)
    fits = zip(predictors, seen, gradients, strict=True)
    sum(fitting_loss(method, p, s, loss, gradient) for p, s, gradient in fits).backward()


def batches(N: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of `steps` shuffled batches of one size; what is left of an epoch is left out."""
    size = min(BATCH, N)
    while steps > 0:
        order = torch.randperm(N, generator=generator)
        for batch in order[: N // size * size].split(size)[:steps]:
            steps -= 1
            yield batch


def train(data: Data, method: str, rates: Rates, steps: int, seed: int) -> tuple[nn.ModuleList, nn.ModuleList, float]:
    """Modules, predictors, and the milliseconds of a step, of the processor's time."""
    torch.manual_seed(seed)
    modules, predictors = network(data.x.shape[1], data.classes), predictors_of(method, data.classes)
    one_hot = F.one_hot(data.label, data.classes).to(data.x.dtype)
    if method in LOSSES:
        fused(predictors[0], torch.zeros(BATCH, WIDTH + data.classes), **LOSSES[method])
    rate = {modules: rates.module, predictors: rates.predictor}
    groups = [{"params": list(part.parameters()), "lr": lr} for part, lr in rate.items() if len(part)]
    optimizer = torch.optim.Adam(groups, fused=True)
    start = time.process_time()
    for k, batch in enumerate(batches(len(data), steps, torch.Generator().manual_seed(seed))):
        down = 1 - k / steps
        for group, lr in zip(optimizer.param_groups, rate.values(), strict=False):
            group["lr"] = lr * down
        optimizer.param_groups[0]["lr"] *= min(1.0, (k + 1) / (steps * WARM_UP))
        optimizer.zero_grad()
        x, label = data.x[batch], data.label[batch]
        if method == "backprop":
            F.cross_entropy(modules[2](modules[1](modules[0](x))), label).backward()
        else:
            backward_apart(method, modules, predictors, x, label, one_hot[batch])
        optimizer.step()
    return modules, predictors, (time.process_time() - start) / steps * 1e3


def scores(modules: nn.ModuleList, data: Data) -> dict[str, float]:
    """Per cent of samples that are classified wrongly, and the mean cross-entropy."""
    with torch.no_grad():
        logits = modules[2](modules[1](modules[0](data.x)))
    wrong = (logits.argmax(1) != data.label).double().mean().item()
    return {"error": 100 * wrong, "cross_entropy": F.cross_entropy(logits, data.label).item()}


def alignment(method: str, modules: nn.ModuleList, predictors: nn.ModuleList, data: Data) -> float | None:
    """The mean cosine between the synthetic gradient at the end of f1 and the true one; None without predictors."""
    if method not in PREDICTING:
        return None
    h = modules[0](data.x).detach().requires_grad_()
    loss = F.cross_entropy(modules[2](modules[1](h)), data.label, reduction="sum")
    (truth,) = torch.autograd.grad(loss, h)
    seen = torch.cat([h.detach(), F.one_hot(data.label, data.classes).to(h.dtype)], 1)
    (synthetic,) = synthetic_gradients(method, predictors[:1], [seen])
    return F.cosine_similarity(synthetic, truth, dim=1).mean().item()

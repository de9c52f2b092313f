"""The tensors and modules of a case: what is called, and beside it the same for the oracle, in float64."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import nn

import sobolev_kernels as sk
from sobolev_kernels.modules import choose_activation, to_module

from . import oracle
from .cases import Case
from .oracle import Residual, exact, twin_of

VIEWS = ("permuted", "stepped", "padded", "offset", "negative", "plain")


@dataclass
class Built:
    """What a case is called with. A name that ends in `twin` is the oracle's, in float64."""

    case: Case
    student: Callable
    twin: nn.Module
    x: torch.Tensor
    parameters: list[nn.Parameter]
    targets: dict[str, object] = field(default_factory=dict)
    teacher_twin: nn.Module | None = None
    projections: sk.Directions | sk.Cotangents | None = None
    vectors: torch.Tensor | None = None  # [P, N, n], float64
    other: torch.Tensor | None = None  # of hvp: w [P, N, W]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    generator: int = 0

    @property
    def wanted(self) -> dict[str, torch.Tensor]:
        """The leaves that ask for their gradient, by name."""
        named = {"dx": self.x} | {f"dparameter {i}": p for i, p in enumerate(self.parameters)}
        return {name: leaf for name, leaf in named.items() if leaf.requires_grad}


class Numbers:
    """Random tensors by name, each a function of (seed, number, attempt, name) alone, so that shrinking one leaves the
    others."""

    def __init__(self, case: Case, attempt: int, dtype: torch.dtype | None):
        self.case, self.key = case, f"{case.seed}/{case.number}/{attempt}"
        self.held_by = getattr(torch, case.dtype)
        self.dtype = dtype or self.held_by

    def number(self, name: str) -> int:
        return zlib.crc32(f"{self.key}/{name}".encode())

    def normal(self, name: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.number(name))
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(self.held_by).to(self.dtype)

    def view(self, group: str, name: str, tensor: torch.Tensor, kinds: Sequence[str] = (*VIEWS, "expanded")):
        """The same numbers behind other strides; of an expanded one other numbers, too."""
        if group not in self.case.views or not tensor.numel():
            return tensor
        rng = random.Random(self.number(f"view of {name}"))
        return VIEW[rng.choice(kinds)](tensor, rng)

    def tensor(self, group: str, name: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return self.view(group, name, self.normal(name, *shape, scale=scale))


def permuted(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    order = rng.sample(range(tensor.dim()), tensor.dim())
    return tensor.permute(order).contiguous().permute([order.index(d) for d in range(tensor.dim())])


def stepped(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    room = tensor.new_full((*tensor.shape, 2), torch.nan)
    room[..., 1] = tensor
    return room[..., 1]


def padded(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Within a larger one."""
    room = tensor.new_full([n + 3 for n in tensor.shape], torch.nan)
    room = room[tuple(slice(1, -2) for _ in tensor.shape)]
    return room.copy_(tensor)


def offset(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Not at a multiple of a vector's size."""
    room = tensor.new_full((tensor.numel() + 3,), torch.nan)
    room[3:] = tensor.flatten()
    return room[3:].view(tensor.shape)


def expanded(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A stride of 0."""
    return tensor.narrow(rng.randrange(tensor.dim()), 0, 1).expand_as(tensor)


VIEW = {
    "plain": lambda tensor, rng: tensor, "permuted": permuted, "stepped": stepped, "padded": padded, "offset": offset,
    "expanded": expanded, "negative": lambda tensor, rng: torch._neg_view(-tensor),
}  # fmt: skip


def build(case: Case, attempt: int = 0, dtype: torch.dtype | None = None) -> Built:
    """The case, or the same numbers in another dtype."""
    numbers = Numbers(case, attempt, dtype)
    net = module_of(case, numbers)
    student = (lambda x: net(x)) if case.student == "lambda" else net
    x = numbers.tensor("x", "x", case.N, case.D).requires_grad_(case.mode != "parameters")
    built = Built(case, student, twin_of(net), x, list(net.parameters()))
    built.generator = numbers.number("generator")
    project(built, numbers)
    if case.call == "loss":
        aim(built, numbers)
        weigh(built, numbers)
        if case.missing:
            lose_labels(built, numbers)
    return built


def module_of(case: Case, numbers: Numbers) -> nn.Module:
    """The student, or the module that it calls."""
    widths, dtype = (case.D, *case.hidden, case.O), numbers.dtype
    if case.student == "mlp":
        activation = case.activations[0] if case.hidden else "tanh"
        more = {"width": case.hidden[0], "activation": activation} if case.hidden else {}
        net = sk.MLP(
            case.D, case.O, depth=len(case.hidden), last_activation=case.activations[-1], bias=case.biases[0],
            dtype=dtype, **more,
        )  # fmt: skip
    else:
        layers: list[list[nn.Module]] = []
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            again = case.student == "tied" and 2 <= i < len(case.hidden)
            linear = layers[1][0] if again else nn.Linear(n_in, n_out, bias=case.biases[i], dtype=dtype)
            norm = [nn.LayerNorm(n_out, dtype=dtype)] if case.student == "norm" and i == 0 else []
            layers.append([linear, *norm, to_module(choose_activation("activation", case.activations[i]))])
        flat = [module for layer in layers for module in layer]
        net = nn.Sequential(*(nn.Sequential(*layer) for layer in layers) if case.student == "nested" else flat)
    if case.student == "residual":
        net = Residual(net, nn.Linear(case.D, case.O, dtype=dtype))
    fill(case, net, numbers)
    return net


def fill(case: Case, net: nn.Module, numbers: Numbers) -> None:
    """Random parameters, behind random strides; some of them frozen where the case says so."""
    count = 0
    for path, module in list(net.named_modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            scale = parameter.shape[1] ** -0.5 if parameter.dim() == 2 else 0.4
            tensor = numbers.tensor("parameters", f"{path}.{name}", *parameter.shape, scale=scale)
            frozen = case.mode == "x" or (case.mode == "some" and count % 2 == 0)
            setattr(module, name, nn.Parameter(tensor, requires_grad=not frozen))
            count += 1


def project(built: Built, numbers: Numbers) -> None:
    """Directions or cotangents, and the vectors that a call draws of them."""
    case, cotangents = built.case, built.case.projection == "cotangents"
    kind, n = (sk.Cotangents, case.O) if cotangents else (sk.Directions, case.W)
    like = built.x.detach().new_zeros(case.N, n)
    if case.distribution == "given":
        shape = (case.P, n) if case.shared else (case.P, case.N, n)
        made = [numbers.tensor("vectors", name, *shape) for name in ("v", "w")]
        if numbers.dtype in (torch.bfloat16, torch.float16) and numbers.number("half") % 2:
            made = [vectors.float() for vectors in made]
        built.projections = kind.given(made[0])
        built.other = made[1]
    elif case.distribution == "basis":
        built.projections = kind.basis(unbiased=case.unbiased)
    else:
        seed = None if case.drawn == "generator" else numbers.number("seed") << 20
        make = getattr(kind, case.distribution)
        built.projections = make(case.P, shared=case.shared, unbiased=case.unbiased, seed=seed)
        if case.drawn == "offset":
            built.projections = built.projections.at(numbers.number("offset"))
    torch.manual_seed(built.generator)
    built.vectors = exact(built.projections.tensor(like))


def aim(built: Built, numbers: Numbers) -> None:
    """Targets."""
    case, targets = built.case, built.targets
    N, O, W, P = case.N, case.O, case.W, case.count
    shapes = {
        "[N]": ("values", (N,)), "[N, O]": ("values", (N, O)), "jacobian": ("jacobian", (N, O, W)),
        "tangents": ("tangents", (P, N, O)), "vjps": ("vjps", (P, N, W)),
        "hessian": ("hessian", (N, O, W, W)), "seconds": ("seconds", (P, N, O)),
    }  # fmt: skip
    for kind in (case.values, case.first, *[case.second] * (case.order == 2)):
        if kind in shapes:
            name, shape = shapes[kind]
            flat = name == "jacobian" and O == 1 and numbers.number("flat") % 2
            target = numbers.normal(name, *((N, W) if flat else shape))
            if name == "values":
                target = oracle.label(case, target)
            targets[name] = numbers.view("targets", name, target)
    if case.first in ("teacher", "function"):
        teacher = nn.Sequential(
            nn.Linear(case.D, 5, dtype=numbers.dtype), nn.Tanh(), nn.Linear(5, O, dtype=numbers.dtype)
        )
        for name, parameter in teacher.named_parameters():
            parameter.data = numbers.normal(f"teacher {name}", *parameter.shape)
        built.teacher_twin = twin_of(teacher)
        targets["teacher"] = teacher if case.first == "teacher" else lambda x: teacher(x)
    if case.in_targets:
        targets[case.projection] = built.projections


def weigh(built: Built, numbers: Numbers) -> None:
    """Weights of samples, outputs and derivatives, some of them zero, and the scale of the inputs."""
    case = built.case
    N, O, W = case.N, case.O, case.W
    shapes = {"[N]": (N,), "[N, O]": (N, O), "[N, O, W]": (N, O, W), "mask": (N, W)}
    wanted = {
        "sample_weight": (N,) if case.sample_weight else None,
        "output_weight": (O,) if case.output_weight else None,
        "input_scale": (W,) if case.input_scale else None,
        "derivative_weight": shapes.get(case.derivative_weight),
    }
    for name, shape in wanted.items():
        if shape is None:
            continue
        positive = numbers.normal(name, *shape).abs() + 0.25
        if name != "input_scale" and positive.numel() > 1:
            positive.view(-1)[:: 2 + numbers.number(f"zeros of {name}") % 5] = 0
        if name == "derivative_weight" and case.derivative_weight == "mask":
            # Booleans have no negative bit
            built.weights[name] = numbers.view("weights", name, positive > 0, ("permuted", "stepped", "padded"))
        else:
            built.weights[name] = numbers.view("weights", name, positive)


def lose_labels(built: Built, numbers: Numbers) -> None:
    """NaN for all targets whose residuals do not count."""
    for name, target in built.targets.items():
        if isinstance(target, torch.Tensor):
            counts = oracle.counting(built, name).reshape(target.shape)
            lost = torch.where(counts, target, torch.nan)
            built.targets[name] = numbers.view("targets", f"lost {name}", lost, VIEWS)

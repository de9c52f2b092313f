"""Random problems for the tests, and everything a step computes as a list of named tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import torch

import sobolev_kernels as sk
from sobolev_kernels.math.activations import derivatives
from sobolev_kernels.math.table import Formula
from sobolev_kernels.student import recognise

# Their first or second derivative jumps at 0: float32 and float64 must be on the same side of it.
KINKED = ("relu", "leaky_relu", "elu", "softsign")
MARGIN = 1e-6


@dataclass(frozen=True)
class Shape:
    N: int
    D: int
    H: int
    depth: int
    O: int
    P: int
    why: str

    def __str__(self) -> str:
        return f"N{self.N}-D{self.D}-H{self.H}x{self.depth}-O{self.O}-P{self.P}"


# Tiles are 64 samples in panels of 8 to 32, register blocks have 4 to 14 rows.
SHAPES = [
    Shape(0, 3, 5, 1, 2, 2, "empty batch"),
    Shape(1, 1, 1, 1, 1, 1, "the smallest there is"),
    Shape(13, 2, 20, 0, 3, 2, "one linear layer, no hidden one"),
    Shape(101, 5, 37, 3, 3, 3, "all primes"),
    Shape(63, 3, 16, 2, 1, 2, "tile - 1, and the scalar student"),
    Shape(64, 4, 14, 2, 2, 2, "one whole tile, one whole block of rows"),
    Shape(65, 7, 15, 2, 1, 4, "tile + 1, rows + 1"),
    Shape(129, 9, 33, 1, 17, 2, "two tiles a thread, panel + 1 features"),
    Shape(33, 20, 20, 4, 1, 2, "finance: 20 inputs, narrow and deep"),
    Shape(17, 190, 24, 1, 20, 2, "operators: many inputs and outputs"),
    Shape(7, 3, 190, 2, 190, 2, "wider than a tile is long, many outputs"),
    Shape(40, 1, 31, 2, 5, 1, "one input"),
]


@dataclass
class Data:
    student: torch.nn.Module
    x: torch.Tensor  # [N, D]
    y: torch.Tensor  # [N, O]
    jacobian: torch.Tensor  # [N, O, D]

    def to(self, dtype: torch.dtype) -> Data:
        import copy

        student = copy.deepcopy(self.student).to(dtype)
        return Data(student, self.x.to(dtype), self.y.to(dtype), self.jacobian.to(dtype))


def margin(student: torch.nn.Module, x: torch.Tensor) -> float:
    """The smallest |z| in front of an activation with a kink."""
    layers = recognise(student)
    tensors, h, least = iter(layers.parameters), x, float("inf")
    for bias, activation in zip(layers.biases, layers.activations, strict=True):
        z = h @ next(tensors).T
        z = z + next(tensors) if bias else z
        if activation.name in KINKED and z.numel():
            least = min(least, float(z.detach().abs().min()))
        h = derivatives(activation, z)[0]
    return least


def data(shape: Shape, activation: str | tuple | Formula = "tanh", bias: bool = True, last="identity") -> Data:
    """Numbers that float32 holds exactly, in float32, away from the activation's kinks."""
    for seed in count():
        torch.manual_seed(seed)
        student = sk.MLP(
            shape.D, shape.O, width=shape.H, depth=shape.depth, activation=activation, last_activation=last, bias=bias
        )
        x = torch.randn(shape.N, shape.D)
        if margin(student.double(), x.double()) > MARGIN:
            student.float()
            return Data(student, x, torch.randn(shape.N, shape.O), torch.randn(shape.N, shape.O, shape.D))


def directions_of(distribution: str, shape: Shape, seed: int = 11) -> sk.Directions:
    if distribution == "basis":
        return sk.Directions.basis()
    P = min(shape.P, shape.D) if distribution == "orthonormal" else shape.P
    if distribution == "given":
        generator = torch.Generator().manual_seed(seed)
        return sk.Directions.given(torch.randn(P, shape.N, shape.D, generator=generator))
    return getattr(sk.Directions, distribution)(P, seed=seed)


def step(data: Data, directions: sk.Directions, backend: str, **settings) -> dict[str, torch.Tensor]:
    """Loss, terms and all gradients of one call, by name."""
    x = data.x.detach().requires_grad_()
    data.student.zero_grad(set_to_none=True)
    targets = settings.pop("targets", None) or sk.Targets(values=data.y, jacobian=data.jacobian)
    result = sk.sobolev_loss(
        data.student, x, targets, directions=directions, backend=backend, return_terms=True, **settings
    )
    cotangent = torch.linspace(1, 2, result.loss.numel(), dtype=x.dtype).reshape(result.loss.shape)
    result.loss.backward(cotangent)
    named = {"loss": result.loss.detach(), "value": result.value, "derivative": result.derivative, "dx": x.grad}
    return named | {f"d{name}": g for name, g in gradients(data.student).items()}


def gradients(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Autograd leaves the last bias without a gradient where the values have no weight: that is a zero."""
    named = student.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}

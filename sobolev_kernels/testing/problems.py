"""Random problems: students, inputs, targets and projections whose numbers float32 holds exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch

import sobolev_kernels as sk

from ..directions import Projections
from ..math.activations import activation_jet, is_curved
from ..math.table import Formula, choose
from ..student import recognise

DTYPES = (torch.float32, torch.float64)
LOSS_NAMES = list(sk.LOSSES)
RANDOM = ["sphere", "normal", "rademacher", "coordinate", "orthonormal"]
CURVED = [name for name in sk.ACTIVATIONS if is_curved(choose(sk.ACTIVATIONS, "activation", name))]
# Around a jump of a first or second derivative, where float32 and float64 must be on the same side.
MARGIN = 1e-6


def jumps(activation: Formula) -> bool:
    """Whether σ' or σ'' jumps at 0, as those of ReLU and softsign."""
    beside = torch.tensor([-1e-12, 1e-12], dtype=torch.float64, device="cpu")
    orders = activation_jet(activation, beside, 2)[1:]
    return any(isinstance(d, torch.Tensor) and float((d[1] - d[0]).abs()) > 1e-6 for d in orders)


KINKED = [name for name in sk.ACTIVATIONS if jumps(choose(sk.ACTIVATIONS, "activation", name))]


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


# Tiles are 64 samples in panels of 2 to 16, register blocks have 4 to 14 rows.
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
SMALL = Shape(45, 3, 19, 2, 2, 3, "odd, more than a panel")
TINY = Shape(4, 3, 5, 2, 2, 2, "for what goes through every number")


# What torch makes otherwise depends on its default device and dtype.
MADE = {"dtype": torch.float32, "device": "cpu"}


def random(*shape: int) -> torch.Tensor:
    """Always the same standard normals of a shape, held by float32 exactly."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(7 + sum(shape)), **MADE)


@lru_cache(maxsize=1)
def random_hessian(N: int, O: int, D: int) -> torch.Tensor:
    return random(N, O, D, D)


@lru_cache
def teacher_of(D: int, O: int) -> torch.nn.Module:
    """One whose values and derivatives are of the size of 1, also along directions of unit length."""
    teacher = sk.MLP(D, O, width=7, depth=1, activation="sin", **MADE)
    for parameter in teacher.parameters():
        parameter.data = random(*parameter.shape)
    teacher[0].weight.data *= 2.0 ** -round(math.log2(D) / 4)
    return teacher


THREADS = max(2, torch.get_num_threads())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Threads that have little to do wait for each other, on a busy machine much longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(N: int, backend: str) -> int:
    """Several for a fused step of more than a tile."""
    return THREADS if N >= 64 and backend != "reference" else 1


@dataclass
class Data:
    student: torch.nn.Module
    x: torch.Tensor  # [N, D]
    y: torch.Tensor  # [N, O]
    jacobian: torch.Tensor  # [N, O, D]

    @property
    def hessian(self) -> torch.Tensor:
        """[N, O, D, D]"""
        return random_hessian(*self.jacobian.shape).to(self.x.dtype)

    @property
    def teacher(self) -> torch.nn.Module:
        _, O, D = self.jacobian.shape
        return copy.deepcopy(teacher_of(D, O)).to(self.x.dtype)

    @threads(1)
    def to(self, dtype: torch.dtype) -> Data:
        student = copy.deepcopy(self.student).to(dtype)
        return Data(student, self.x.to(dtype), self.y.to(dtype), self.jacobian.to(dtype))

    def on(self, device: str) -> Data:
        """These on the CPU, a copy elsewhere."""
        if device == "cpu":
            return self
        student = copy.deepcopy(self.student).to(device)
        return Data(student, self.x.to(device), self.y.to(device), self.jacobian.to(device))


def margin(student: torch.nn.Module, x: torch.Tensor) -> float:
    """The smallest |z| in front of an activation with a kink."""
    layers = recognise(student)
    tensors, h, least = iter(layers.parameters), x, float("inf")
    for bias, activation in zip(layers.biases, layers.activations, strict=True):
        z = h @ next(tensors).T
        z = z + next(tensors) if bias else z
        if activation.name in KINKED and z.numel():
            least = min(least, float(z.detach().abs().min()))
        (h,) = activation_jet(activation, z, 0)
    return least


@threads(1)
def data(shape: Shape, activation: str | tuple | Formula = "tanh", bias: bool = True, last="identity") -> Data:
    """Numbers that float32 holds exactly, in float32, away from the activation's kinks."""
    for seed in count():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats the stack, for a CUDA that may come
        student = sk.MLP(
            shape.D, shape.O, width=shape.H, depth=shape.depth, activation=activation, last_activation=last, bias=bias,
            **MADE,
        )  # fmt: skip
        x = torch.randn(shape.N, shape.D, **MADE)
        kinked = any(function.name in KINKED for function in recognise(student).activations)
        if not kinked or margin(copy.deepcopy(student).double(), x.double()) > MARGIN:
            y, jacobian = torch.randn(shape.N, shape.O, **MADE), torch.randn(shape.N, shape.O, shape.D, **MADE)
            return Data(student, x, y, jacobian)


def directions_of(distribution: str, shape: Shape, seed: int = 11, P: int | None = None) -> sk.Directions:
    return projections_of(sk.Directions, distribution, P or shape.P, shape.N, shape.D, seed)


def cotangents_of(distribution: str, shape: Shape, seed: int = 11, P: int | None = None) -> sk.Cotangents:
    return projections_of(sk.Cotangents, distribution, P or shape.P, shape.N, shape.O, seed)


def projections_of(kind: type[Projections], distribution: str, P: int, N: int, n: int, seed: int) -> Projections:
    if distribution == "basis":
        return kind.basis()
    P = min(P, n) if distribution == "orthonormal" else P
    if distribution == "given":
        return kind.given(torch.randn(P, N, n, generator=torch.Generator("cpu").manual_seed(seed), **MADE))
    return getattr(kind, distribution)(P, seed=seed)


def fixed(projections: Projections | None, data: Data, W: int | None = None) -> Projections | None:
    """The very ones that a call on `data` draws, as given ones; the basis is no draw, nor are those given already."""
    if projections is None or projections.distribution in ("basis", "given"):
        return projections
    like = data.y if isinstance(projections, sk.Cotangents) else data.x[:, :W]
    return type(projections).given(as_dtype(projections, data.x.dtype).tensor(like))


def as_dtype(value, dtype: torch.dtype, device: str = "cpu"):
    """Given projections, as leaves of their own, and tensors in another dtype, masks as they are, on a device; anything
    else as it is."""
    if isinstance(value, Projections) and value.values is not None:
        leaf = value.values.detach().to(device, dtype)
        return type(value).given(leaf.requires_grad_(value.values.requires_grad))
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device) if value.dtype == torch.bool else value.to(device, dtype)


def asking(projections: Projections) -> Projections:
    """Given ones that ask for their gradient."""
    return type(projections).given(projections.values.detach().requires_grad_())


def targets_of(data: Data, kinds: Sequence[str], P: int = 1, wrt: Sequence[int] | None = None) -> sk.Targets:
    """Targets by the names of their fields, for P projections; "function" is the teacher as autograd sees it."""
    N, O, D = data.jacobian.shape
    columns = list(range(D)) if wrt is None else list(wrt)
    teacher = data.teacher if {"teacher", "function"} & set(kinds) else None
    make = {
        "values": lambda: data.y,
        "jacobian": lambda: data.jacobian[..., columns],
        "tangents": lambda: random(P, N, O),
        "vjps": lambda: random(P, N, len(columns)),
        "hessian": lambda: data.hessian if wrt is None else data.hessian[..., columns, :][..., columns],
        "seconds": lambda: 2 * random(P, N, O),
        "teacher": lambda: teacher,
        "function": lambda: lambda x: teacher(x),
    }
    fields = {"teacher" if kind == "function" else kind: as_dtype(make[kind](), data.x.dtype) for kind in kinds}
    return sk.Targets(**fields)

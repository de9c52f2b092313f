"""Random problems for the tests, and everything a step computes as a list of named tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.backends import cpu
from sobolev_kernels.directions import Projections
from sobolev_kernels.math.activations import derivatives, is_curved
from sobolev_kernels.math.table import Formula, choose
from sobolev_kernels.student import recognise
from sobolev_kernels.testing import assert_within_rule

DTYPES = (torch.float32, torch.float64)
LOSS_NAMES = list(sk.LOSSES)
SIDES = (planner.TANGENTS, planner.GRADIENTS)
RANDOM = ["sphere", "normal", "rademacher", "coordinate", "orthonormal"]
CURVED = [name for name in sk.ACTIVATIONS if is_curved(choose(sk.ACTIVATIONS, "activation", name))]

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
SMALL = Shape(45, 3, 19, 2, 2, 3, "odd, more than a panel")
TINY = Shape(4, 3, 5, 2, 2, 2, "for what goes through every number")


def random(*shape: int) -> torch.Tensor:
    """Always the same standard normals of a shape, held by float32 exactly."""
    generator = torch.Generator().manual_seed(7 + sum(shape))
    return torch.randn(shape, generator=generator)


@lru_cache(maxsize=1)
def random_hessian(N: int, O: int, D: int) -> torch.Tensor:
    return random(N, O, D, D)


@lru_cache
def teacher_of(D: int, O: int) -> torch.nn.Module:
    """One whose values and derivatives are of the size of 1, also along directions of unit length."""
    teacher = sk.MLP(D, O, width=7, depth=1, activation="sin")
    for parameter in teacher.parameters():
        parameter.data = random(*parameter.shape)
    teacher[0].weight.data *= 2.0 ** -round(math.log2(D) / 4)
    return teacher


THREADS = torch.get_num_threads()


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
    """All of them for a fused step of more than a tile."""
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


@threads(1)
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


def directions_of(distribution: str, shape: Shape, seed: int = 11, P: int | None = None) -> sk.Directions:
    return projections_of(sk.Directions, distribution, P or shape.P, shape.N, shape.D, seed)


def cotangents_of(distribution: str, shape: Shape, seed: int = 11, P: int | None = None) -> sk.Cotangents:
    return projections_of(sk.Cotangents, distribution, P or shape.P, shape.N, shape.O, seed)


def projections_of(kind: type[Projections], distribution: str, P: int, N: int, n: int, seed: int) -> Projections:
    if distribution == "basis":
        return kind.basis()
    P = min(P, n) if distribution == "orthonormal" else P
    if distribution == "given":
        generator = torch.Generator().manual_seed(seed)
        return kind.given(torch.randn(P, N, n, generator=generator))
    return getattr(kind, distribution)(P, seed=seed)


def fixed(projections: Projections | None, data: Data, W: int | None = None) -> Projections | None:
    """The very ones that a call on `data` draws, as given ones; the basis is no draw."""
    if projections is None or projections.distribution == "basis":
        return projections
    like = data.y if isinstance(projections, sk.Cotangents) else data.x[:, :W]
    return type(projections).given(as_dtype(projections, data.x.dtype).tensor(like))


def as_dtype(value, dtype: torch.dtype):
    """Given projections and tensors in another dtype; anything else as it is."""
    if isinstance(value, Projections) and value.values is not None:
        values = value.values.to(dtype)
        return type(value).given(values)
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


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


TERMS = ("value", "derivative", "second")


def step(data: Data, projections: Projections | None, backend: str, **settings) -> dict[str, torch.Tensor]:
    """Loss, terms and all gradients of one call, by name."""
    x = data.x.detach().requires_grad_()
    data.student.zero_grad(set_to_none=True)
    targets = settings.pop("targets", None) or sk.Targets(values=data.y, jacobian=data.jacobian)
    settings["cotangents" if isinstance(projections, sk.Cotangents) else "directions"] = projections
    result = sk.sobolev_loss(data.student, x, targets, backend=backend, return_terms=True, **settings)
    result.loss.backward(ramp(result.loss))
    named = {"loss": result.loss.detach(), **dict(zip(TERMS, result[1:], strict=True))}
    if result.second is None:
        del named["second"]
    named["dx"] = gradient(x)
    return named | {f"d{name}": g for name, g in gradients(data.student).items()}


def ramp(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers from 1 to 2, a cotangent that tells them all apart."""
    return torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """Zero where autograd leaves none, as for the last bias of a loss without values."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def gradients(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: gradient(p) for name, p in student.named_parameters()}


@contextmanager
def computed_from(side: str) -> Iterator[None]:
    """One of the SIDES, where that is one, instead of the planner's choice."""
    own = planner.side
    cpu.side = planner.side = lambda problem: side if side in planner.chains(problem) else own(problem)
    try:
        yield
    finally:
        cpu.side = planner.side = own


@threads(1)
def compare(
    data: Data, projections: Projections | None = None, targets: Sequence[str] | Callable = ("values", "jacobian"),
    backend: str = "cpu", **settings,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Every output and gradient of a fused step, in the dtype of `data`, against the reference in float64.

    `targets` are their kinds, or a function of Data; tensors among the settings take the dtype. Returns the step.
    """
    dtype, wrt = data.x.dtype, settings.get("wrt")
    projections = as_dtype(projections, dtype)
    very = fixed(projections, data, None if wrt is None else len(wrt))
    # the basis has no P, and here no target that is projected already
    P = 1 if projections is None or projections.P is None else projections.P

    def run(dtype, projections, backend):
        own = data if dtype == data.x.dtype else data.to(dtype)
        wanted = targets(own) if callable(targets) else targets_of(own, targets, P, wrt)
        tensors = {name: as_dtype(value, dtype) for name, value in settings.items()}
        with threads(threads_for(len(own.x), backend)):
            return step(own, as_dtype(projections, dtype), backend, targets=wanted, **tensors)

    expected = run(torch.float64, very, "reference")
    baseline = run(dtype, very, "reference") if dtype != torch.float64 else {}
    got = run(dtype, projections, backend)
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        if name in TERMS and tensor.isnan().all():
            assert expected[name].isnan().all()  # a term without a target
        else:
            assert_within_rule(name, tensor, expected[name], baseline.get(name))
    return got

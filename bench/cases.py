"""What is measured: the table of cases, and the numbers of one case, the same for every variant."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.math.table import Formula
from sobolev_kernels.problem import DENSE, LOSS, Problem

# Of the directions, so that those that the fused step draws are those that the others are given.
SEED = 2017


@dataclass(frozen=True)
class Case:
    """N samples, a tanh student D -> H × hidden -> O, P directions, float32."""

    N: int
    D: int
    H: int
    hidden: int
    O: int
    P: int

    def __str__(self) -> str:
        return f"{self.N}, {self.D}→{self.H}×{self.hidden}→{self.O}, P={self.P}"

    @property
    def ascii(self) -> str:
        """For the id of a test, where pytest spells arrows as escapes."""
        return f"N{self.N}-D{self.D}-H{self.H}x{self.hidden}-O{self.O}-P{self.P}"

    @property
    def problem(self) -> Problem:
        """The fused step of this case: who counts its FLOPs and bytes."""
        layers = self.hidden + 1
        return Problem(
            LOSS, (self.D, *[self.H] * self.hidden, self.O), (True,) * layers, (Formula("tanh"),) * layers,
            "float32", "cpu", P=self.P, distribution="sphere", derivative_target=DENSE, gradients=True,
        )  # fmt: skip

    @property
    def flops(self) -> int:
        """6 (1 + min(P, O)) N Σ_l n_{l-1} n_l: the matrix products of values, derivatives, gradients."""
        return planner.flops(self.problem, self.N)

    @property
    def bytes(self) -> int:
        return self.problem.bytes(self.N)


# To add a benchmark case: one row.
CASES = [
    Case(100, 2, 256, 2, 1, 1),
    Case(4096, 8, 64, 4, 8, 4),
    Case(8192, 16, 128, 3, 1, 4),
    Case(8192, 16, 128, 3, 1, 16),
    Case(65536, 8, 64, 3, 1, 4),
    Case(1024, 32, 256, 4, 8, 4),
    Case(256, 64, 1024, 3, 16, 4),
]


class Data(NamedTuple):
    """Inputs and targets; the baselines are given directions and target tangents, the fused step makes its own."""

    x: torch.Tensor  # [N, D]
    y: torch.Tensor  # [N, O]
    jacobian: torch.Tensor  # [N, O, D]
    directions: torch.Tensor  # [P, N, D]
    tangents: torch.Tensor  # [P, N, O]

    def double(self) -> Data:
        """The same numbers, and the tangents without the rounding of their float32 projection."""
        x, y, jacobian, directions, _ = (tensor.double() for tensor in self)
        return Data(x, y, jacobian, directions, project(jacobian, directions))


def project(jacobian: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:  # [N, O, D], [P, N, D] -> [P, N, O]
    return torch.einsum("nod,pnd->pno", jacobian, directions)


def make_student(case: Case) -> sk.MLP:
    torch.manual_seed(0)
    return sk.MLP(case.D, case.O, width=case.H, depth=case.hidden)


def make_data(case: Case) -> Data:
    """Samples of f(x) = sin(Aᵀx) and its Jacobian."""
    torch.manual_seed(1)
    x, A = torch.randn(case.N, case.D), torch.randn(case.D, case.O)
    z = x @ A
    jacobian = torch.cos(z)[:, :, None] * A.T
    directions = sk.Directions.sphere(case.P, seed=SEED).tensor(x)
    return Data(x, torch.sin(z), jacobian, directions, project(jacobian, directions))


def in_double(student: torch.nn.Module, data: Data) -> tuple[torch.nn.Module, Data]:
    return copy.deepcopy(student).double(), data.double()

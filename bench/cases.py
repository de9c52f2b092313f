"""What is measured: the table of cases, and the numbers of one case, the same for every variant."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.enums import COTANGENTS, DENSE, PROJECTED
from sobolev_kernels.math.table import Formula
from sobolev_kernels.problem import DERIVATIVES, DERIVATIVES_GRADIENTS, LOSS, Problem

# Of the directions, so that those that the fused step draws are those that the others are given.
SEED = 2017

# What is computed: the loss on values and tangents along P directions; on values and the whole Jacobian; on values,
# first and second derivatives along P directions; and of a scalar student the mean square of value + Laplacian.
FIRST, EXACT, SECOND, LAPLACIAN = KINDS = ("first", "exact", "second", "laplacian")
TITLES = {FIRST: "", EXACT: "exact: ", SECOND: "order 2: ", LAPLACIAN: "Laplacian: "}


@dataclass(frozen=True)
class Case:
    """N samples, a student D -> H × hidden -> O, P directions (0 where the kind has none of its own), float32."""

    N: int
    D: int
    H: int
    hidden: int
    O: int
    P: int = 0
    kind: str = FIRST
    activation: str = "tanh"

    def __str__(self) -> str:
        directions = f", P={self.P}" if self.P else ""
        activation = "" if self.activation == "tanh" else f", {self.activation}"
        return f"{TITLES[self.kind]}{self.N}, {self.D}→{self.H}×{self.hidden}→{self.O}{directions}{activation}"

    @property
    def ascii(self) -> str:
        """For the id of a test, where pytest spells arrows as escapes."""
        return f"{self.kind}-N{self.N}-D{self.D}-H{self.H}x{self.hidden}-O{self.O}-P{self.P}"

    @property
    def problem(self) -> Problem:
        """The fused step of this case, of the Laplacian its forward: who counts the FLOPs."""
        layers = self.hidden + 1
        problem = Problem(
            LOSS, (self.D, *[self.H] * self.hidden, self.O), (True,) * layers, (Formula(self.activation),) * layers,
            "float32", "cpu", P=self.P, distribution="sphere", derivative_target=DENSE, gradients=True,
        )  # fmt: skip
        if self.kind == EXACT:
            projection = planner.exact_projection(self.D, self.O)
            P = self.O if projection == COTANGENTS else self.D
            return replace(problem, projection=projection, P=P, distribution="basis")
        if self.kind == SECOND:
            targets = {"derivative_target": PROJECTED, "second_target": PROJECTED}
            return replace(problem, distribution="given", order=2, **targets)
        if self.kind == LAPLACIAN:
            return Problem(
                DERIVATIVES, *(problem.widths, problem.biases, problem.activations), "float32", "cpu",
                P=self.D, distribution="basis", order=2, collapsed=True,
            )  # fmt: skip
        return problem

    @property
    def flops(self) -> int:
        """The matrix products of the fused step: 6 (1 + c) N Σ_l n_{l-1} n_l, with c of docs/math.md, section 6.

        Of the Laplacian 2 (8 + 5 D) N Σ_l n_{l-1} n_l, for it is two calls (`by_sum` of csrc/cpu/step.h): values, D
        tangents and their sum forward, 2 + D products; then all of it with its adjoints, 3 (2 + D), and each tangent
        once more, D, since only their squares were kept.
        """
        flops = planner.flops(self.problem, self.N)
        if self.kind == LAPLACIAN:
            backward = replace(self.problem, result=DERIVATIVES_GRADIENTS, gradients=True)
            flops += planner.flops(backward, self.N) + 2 * self.D * self.N * self.problem.multiplies
        return flops

    @property
    def bytes(self) -> int | None:
        """Of the Laplacian, two calls, the library has no count."""
        return None if self.kind == LAPLACIAN else self.problem.bytes(self.N)


# To add a benchmark case: one row.
CASES = [
    Case(100, 2, 256, 2, 1, 1),
    Case(4096, 8, 64, 4, 8, 4),
    Case(8192, 16, 128, 3, 1, 4),
    Case(8192, 16, 128, 3, 1, 16),
    Case(65536, 8, 64, 3, 1, 4),
    Case(1024, 32, 256, 4, 8, 4),
    Case(256, 64, 1024, 3, 16, 4),
    Case(8192, 16, 128, 3, 1, kind=EXACT),
    Case(65536, 8, 64, 3, 1, kind=EXACT),
    Case(4096, 20, 20, 4, 1, kind=EXACT, activation="softplus"),
    Case(8192, 16, 128, 3, 1, 4, kind=SECOND),
    Case(4096, 8, 64, 4, 8, 2, kind=SECOND),
    Case(65536, 8, 64, 3, 1, 1, kind=SECOND),
    Case(4096, 8, 64, 3, 1, kind=LAPLACIAN),
    Case(1024, 8, 256, 3, 1, kind=LAPLACIAN),
]


class Data(NamedTuple):
    """Inputs and targets, as far as the kind has them; of the first order the baselines are given directions and
    target tangents, and the fused step makes its own."""

    x: torch.Tensor  # [N, D]
    y: torch.Tensor  # [N, O]
    jacobian: torch.Tensor | None = None  # [N, O, D]
    directions: torch.Tensor | None = None  # [P, N, D]
    tangents: torch.Tensor | None = None  # [P, N, O]
    seconds: torch.Tensor | None = None  # [P, N, O]

    @property
    def derivatives(self) -> list[torch.Tensor]:
        """The targets of the terms after that of the values."""
        along = [t for t in (self.tangents, self.seconds) if t is not None]
        return along or [self.jacobian]

    def double(self) -> Data:
        """The same numbers, and the tangents without the rounding of their float32 projection."""
        data = Data(*(None if tensor is None else tensor.double() for tensor in self))
        if data.jacobian is None or data.directions is None:
            return data
        return data._replace(tangents=project(data.jacobian, data.directions))


def project(jacobian: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:  # [N, O, D], [P, N, D] -> [P, N, O]
    return torch.einsum("nod,pnd->pno", jacobian, directions)


def make_student(case: Case) -> sk.MLP:
    torch.manual_seed(0)
    return sk.MLP(case.D, case.O, width=case.H, depth=case.hidden, activation=case.activation)


def make_data(case: Case) -> Data:
    """Samples of f(x) = sin(Aᵀx) and its derivatives."""
    torch.manual_seed(1)
    x, A = torch.randn(case.N, case.D), torch.randn(case.D, case.O)
    z = x @ A
    y, jacobian = torch.sin(z), torch.cos(z)[:, :, None] * A.T
    if case.kind == LAPLACIAN:
        return Data(x, y)
    if case.kind == EXACT:
        return Data(x, y, jacobian)
    directions = sk.Directions.sphere(case.P, seed=SEED).tensor(x)
    tangents = project(jacobian, directions)
    if case.kind == FIRST:
        return Data(x, y, jacobian, directions, tangents)
    return Data(x, y, None, directions, tangents, -y * (directions @ A).square())


def in_double(student: torch.nn.Module, data: Data) -> tuple[torch.nn.Module, Data]:
    return copy.deepcopy(student).double(), data.double()

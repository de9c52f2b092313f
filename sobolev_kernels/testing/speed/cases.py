"""What is measured: the table of cases, and the numbers of one case, the same for every variant."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

import sobolev_kernels as sk
from sobolev_kernels import planner
from sobolev_kernels.enums import COTANGENTS, DENSE, PROJECTED
from sobolev_kernels.math.table import Formula, choose
from sobolev_kernels.problem import DERIVATIVES, DERIVATIVES_GRADIENTS, LOSS, Problem

# Of the directions, so that those that the fused step draws are those that the others are given.
SEED = 2017

# What is computed: the loss on values and tangents along P directions; on values and the whole Jacobian; on values,
# first and second derivatives along P directions; of a scalar student the mean square of value + Laplacian; and beside
# a teacher, on values and their gradients along P cotangents, the loss of `sobolev_loss` or one that stands on `vjp`.
FIRST, EXACT, SECOND, LAPLACIAN, TEACHER, VJP = KINDS = ("first", "exact", "second", "laplacian", "teacher", "vjp")
TITLES = {FIRST: "", EXACT: "exact: ", SECOND: "order 2: ", LAPLACIAN: "Laplacian: "}
TITLES |= {TEACHER: "teacher: ", VJP: "vjp: "}
TAUGHT = (TEACHER, VJP)
TEACHER_WIDTH = 256
# A group is a kind of the large cases, or all of the small ones.
SMALL = "small"
GROUPS = (FIRST, SMALL, EXACT, SECOND, LAPLACIAN)


@dataclass(frozen=True)
class Case:
    """N samples, a student D -> H × hidden -> O, P directions (0 where the kind has none of its own), float32.

    A small case has a name.
    """

    N: int
    D: int
    H: int
    hidden: int
    O: int
    P: int = 0
    kind: str = FIRST
    activation: str = "tanh"
    name: str = ""

    def __str__(self) -> str:
        directions = f", P={self.P}" if self.P else ""
        activation = "" if self.activation == "tanh" else f", {self.activation}"
        name = f"{self.name}: " if self.name else ""
        return f"{name}{TITLES[self.kind]}{self.N}, {self.D}→{self.H}×{self.hidden}→{self.O}{directions}{activation}"

    @property
    def group(self) -> str:
        return SMALL if self.name else self.kind

    @property
    def few_columns(self) -> bool:
        """Whether tangents are few: along given directions, or the columns of a small Jacobian."""
        return self.kind == FIRST or (self.kind == EXACT and self.D <= 10 and self.N <= 4096)

    @property
    def ascii(self) -> str:
        """For the id of a test, where pytest spells arrows as escapes."""
        return f"{self.kind}-N{self.N}-D{self.D}-H{self.H}x{self.hidden}-O{self.O}-P{self.P}"

    @property
    def problem(self) -> Problem:
        """The fused step of this case, of the Laplacian its forward: who counts the FLOPs."""
        hidden = (choose(sk.ACTIVATIONS, "activation", self.activation),) * self.hidden
        problem = Problem(
            LOSS, (self.D, *[self.H] * self.hidden, self.O), (True,) * (self.hidden + 1),
            (*hidden, Formula("identity")), "float32", "cpu", P=self.P, distribution="sphere", derivative_target=DENSE,
            gradients=True,
        )  # fmt: skip
        if self.kind == EXACT:
            projection = planner.exact_projection(self.D, self.O)
            P = self.O if projection == COTANGENTS else self.D
            return replace(problem, projection=projection, P=P, distribution="basis")
        if self.kind in TAUGHT:
            return replace(problem, projection=COTANGENTS, distribution="given", derivative_target=PROJECTED)
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
        once more, D, since only their squares were kept. A teacher's are those of its forward.
        """
        flops = planner.flops(self.problem, self.N)
        if self.kind == LAPLACIAN:
            backward = replace(self.problem, result=DERIVATIVES_GRADIENTS, gradients=True)
            flops += planner.flops(backward, self.N) + 2 * self.D * self.N * self.problem.multiplies
        if self.kind in TAUGHT:
            widths = (self.D, TEACHER_WIDTH, TEACHER_WIDTH, self.O)
            flops += planner.flops(replace(self.problem, widths=widths, gradients=False), self.N)
        return flops

    @property
    def bytes(self) -> int | None:
        """Of two calls, as of the Laplacian and beside a teacher, the library has no count."""
        return None if self.kind in (LAPLACIAN, *TAUGHT) else self.problem.bytes(self.N)


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

# The sizes of the papers and programs that train on derivatives.
SMALL_CASES = [
    Case(20, 2, 256, 2, 1, 1, name="paper, 20 points"),
    Case(100, 2, 256, 2, 1, 1, name="paper, 100 points"),
    Case(256, 20, 20, 4, 1, kind=EXACT, activation="softplus", name="differential ML"),
    Case(32, 8, 128, 5, 1, kind=EXACT, activation="softplus", name="option surrogate"),
    Case(1000, 2, 64, 4, 1, kind=EXACT, name="PINN-like"),
    Case(32, 100, 256, 3, 50, 10, activation="softplus", name="DINO"),
    Case(32, 64, 128, 4, 32, 4, activation="gelu", name="dinox"),
    Case(1024, 4, 128, 5, 10, kind=EXACT, activation="silu", name="fields"),
    Case(128, 15, 64, 2, 1, kind=EXACT, activation="silu", name="forces"),
    Case(128, 42, 128, 2, 1, kind=EXACT, activation="softplus", name="critic"),
    Case(128, 128, 32, 2, 6, 1, kind=VJP, name="distillation"),
    Case(128, 128, 32, 2, 6, 1, kind=TEACHER, name="distillation"),
]
EVERY = [*CASES, *SMALL_CASES]

# A drawn case is drawn again until it is small: FLOPs of its matrix products.
MOST_FLOPS = 2e9
DRAWN = {"N": (8, 512), "D": (1, 128), "H": (8, 256), "hidden": (1, 5), "O": (1, 32)}
ACTIVATIONS = ("tanh", "softplus", "silu", "gelu", "sigmoid")


def draw_cases(count: int, seed: int) -> list[Case]:
    """Small cases between those of the table; sizes are drawn evenly on a scale of logarithms, half are scalar."""
    draws, cases = random.Random(seed), []
    while len(cases) < count:
        sizes = {name: int(low * ((high + 1) / low) ** draws.random()) for name, (low, high) in DRAWN.items()}
        sizes["O"] = draws.choice((1, sizes["O"]))
        how = draws.choice(({"kind": EXACT}, {"P": draws.choice((1, 2, 4, 8))}))
        case = Case(**sizes, **how, activation=draws.choice(ACTIVATIONS), name=f"drawn {seed}.{len(cases)}")
        if case.flops <= MOST_FLOPS:
            cases.append(case)
    return cases


class Data(NamedTuple):
    """Inputs and targets, as far as the kind has them; of the first order the baselines are given directions and
    target tangents, and the fused step makes its own."""

    x: torch.Tensor  # [N, D]
    y: torch.Tensor  # [N, O]
    jacobian: torch.Tensor | None = None  # [N, O, D]
    directions: torch.Tensor | None = None  # [P, N, D]
    tangents: torch.Tensor | None = None  # [P, N, O]
    seconds: torch.Tensor | None = None  # [P, N, O]
    cotangents: torch.Tensor | None = None  # [P, N, O]

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


def make_teacher(case: Case) -> sk.MLP:
    torch.manual_seed(2)
    return sk.MLP(case.D, case.O, width=TEACHER_WIDTH, depth=2).requires_grad_(False)


def make_data(case: Case) -> Data:
    """Samples of f(x) = sin(Aᵀx) and its derivatives."""
    torch.manual_seed(1)
    x, A = torch.randn(case.N, case.D), torch.randn(case.D, case.O)
    z = x @ A
    y, jacobian = torch.sin(z), torch.cos(z)[:, :, None] * A.T
    if case.kind == LAPLACIAN:
        return Data(x, y)
    if case.kind in TAUGHT:
        # centred, so that those of logits are those of log-probabilities
        u = torch.randn(case.P, case.N, case.O)
        u = u - u.mean(-1, keepdim=True)
        return Data(x, y, cotangents=u / u.norm(dim=-1, keepdim=True))
    if case.kind == EXACT:
        return Data(x, y, jacobian)
    directions = sk.Directions.sphere(case.P, seed=SEED).tensor(x)
    tangents = project(jacobian, directions)
    if case.kind == FIRST:
        return Data(x, y, jacobian, directions, tangents)
    return Data(x, y, None, directions, tangents, -y * (directions @ A).square())


def in_double(student: torch.nn.Module, data: Data) -> tuple[torch.nn.Module, Data]:
    return copy.deepcopy(student).double(), data.double()

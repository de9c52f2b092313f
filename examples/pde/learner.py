"""A network that is to solve an equation, and a step of it by other ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import sobolev_kernels as sk
from bench.partial_ways import derivatives_by_jets
from examples.lab import fused
from examples.lab.clock import since
from examples.pde.equations import Equation
from sobolev_kernels.partials.residual import Read, named_columns

WIDTH, DEPTH, RATE, AT_BORDERS, OF_BORDERS = 24, 3, 1e-2, 128, 10.0
SHARE = 40  # of so many steps of Adam there is one epoch of L-BFGS, of up to 25 evaluations


@dataclass(frozen=True)
class Solved:
    student: nn.Module
    evaluations: int
    ms: float


class Counted:
    """A function of derivatives that counts how often it is evaluated."""

    def __init__(self, function: Callable):
        self.function, self.count = function, 0

    def __call__(self, p):
        self.count += 1
        return self.function(p)


class Learner:
    """One equation, the points of one seed, and a method: the residual alone, or its derivatives too."""

    def __init__(self, equation: Equation, method: str, N: int, seed: int):
        self.equation, self.seed = equation, seed
        generator = torch.Generator().manual_seed(seed)
        self.x = equation.draw(N, generator)
        residual = sk.Residual(equation.inside, equation.fields)
        self.residuals = [residual, *(residual.diff(by) for by in equation.enhanced if method == "with derivatives")]
        weights = {name: equation.weight for one in self.residuals[1:] for name in one.names}
        scales = {name: equation.size for one in self.residuals for name in one.names}
        self.inside = sk.Points(self.residuals, self.x, weights=weights, scales=scales)
        self.sets = [self.inside]
        for name, border in equation.borders.items():
            function = border.function if self.sets[1:] else Counted(border.function)
            at = sk.Residual(function, equation.fields, name=name)
            weights = dict.fromkeys(at.names, OF_BORDERS)
            self.sets.append(sk.Points(at, border.at(AT_BORDERS, generator), target=border.target, weights=weights))
        self.counted: Counted = self.sets[1].residuals[0].function

    def first(self) -> nn.Module:
        torch.manual_seed(self.seed)
        fields = self.residuals[0].fields
        return sk.MLP(
            len(fields.inputs), len(fields.outputs), width=WIDTH, depth=DEPTH, activation=self.equation.activation
        )

    def solve(self, steps: int) -> Solved:
        """So many steps of Adam and then L-BFGS, on all points."""
        student, before = self.first(), self.counted.count
        need_fused(student, self.sets)
        start = time.process_time()
        sk.fit(
            student, residuals=self.sets, epochs=steps, batch_size=None, lr=RATE, schedule="cosine", progress=False,
            finish=max(steps // SHARE, 1),
        )  # fmt: skip
        evaluations = self.counted.count - before
        return Solved(student, evaluations, since(start) / evaluations * 1e3)

    def loss(self, student: Callable) -> torch.Tensor:
        """The loss inside, by `sk.residual_loss`."""
        return self.inside(student, self.inside.sample(), {}).loss

    def by_hand(self, student: nn.Module) -> torch.Tensor:
        """The same loss as DeepXDE's PyTorch backend has it: one gradient for each row of a Jacobian, which is kept, of
        gradients of gradients."""
        equation = self.equation
        x = self.x.detach().requires_grad_()
        rows = Rows(student(x), x, self.residuals[0].fields)
        found = equation.inside(rows)
        found = list(found.values()) if isinstance(found, dict) else [found]
        total = sum((value / equation.size).square().mean() for value in found)
        for value in found if len(self.residuals) > 1 else ():
            slopes = torch.autograd.grad(value.sum(), x, create_graph=True)[0] / equation.size
            total = total + equation.weight * slopes.square().mean(0).sum()
        return total

    def by_jets(self, student: nn.Module) -> Callable[[], torch.Tensor]:
        """The same loss of derivatives by jet-for-pytorch, compiled."""
        from jet import capture_graph

        fields, weights = self.residuals[0].fields, self.inside.weights or {}
        names = tuple(dict.fromkeys(name for residual in self.residuals for name in residual.reads))
        derivatives = derivatives_by_jets(student, self.x, fields.terms(names), names)
        traced = capture_graph(lambda x: [*derivatives(x).values()], (self.x,))[0]
        torch.compiler.reset()
        compiled = torch.compile(traced, fullgraph=True, dynamic=False)

        def loss() -> torch.Tensor:
            p = Read(named_columns(fields, self.x) | dict(zip(names, compiled(self.x), strict=True)))
            total = 0.0
            for residual in self.residuals:
                for name, value in residual.values(p).items():
                    total = total + weights.get(name, 1.0) * (value / self.equation.size).square().mean()
            return total

        return loss


def need_fused(student: nn.Module, sets: list[sk.Points]) -> None:
    """That each set of points takes one pass of the kernel for its derivatives.

    Raises:
        RuntimeError: one does not, as where the compiled core is missing or of another version.
    """
    for points in sets:
        taken = fused(student, points.sample().x, of="residual_loss", residual=points.residuals)
        if taken != "cpu":
            raise RuntimeError(
                f"the residuals {', '.join(points.names)} are not of one pass of the kernel but by {taken}"
            )


class Rows:
    """Derivatives by name, each a column of a gradient that is computed once."""

    def __init__(self, y: torch.Tensor, x: torch.Tensor, fields: sk.Fields):
        self.points, self.fields = x, fields
        self.columns = dict(zip(fields.outputs, y.split(1, dim=1), strict=True))
        self.gradients: dict[str, torch.Tensor] = {}

    def column(self, name: str) -> torch.Tensor:
        if name not in self.columns:
            before = name[:-1].removesuffix("_")
            if before not in self.gradients:
                (self.gradients[before],) = torch.autograd.grad(
                    self.column(before).sum(), self.points, create_graph=True
                )
            i = self.fields.inputs.index(name[-1])
            self.columns[name] = self.gradients[before][:, i : i + 1]
        return self.columns[name]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.fields.inputs:
            i = self.fields.inputs.index(name)
            return self.points[:, i : i + 1]
        terms = [term.split("*") for term in name.split(" + ")]
        each = [self.column(term[-1]) * (float(term[0]) if term[1:] else 1) for term in terms]
        return sum(each[1:], each[0])

    __getattr__ = __getitem__

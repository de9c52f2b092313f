"""`Problem`, what is to be computed, and `Plan`, how: frozen, hashable, tensor-free; and `Operands`, the tensors."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from .changed import fields_of
from .enums import (
    COTANGENTS,
    DENSE,
    DIRECTIONS,
    DTYPES,
    NO_RESIDUALS,
    NONE,
    PROJECTED,
    RESIDUALS_GIVEN,
    RESIDUALS_OF_LOSS,
)  # fmt: skip
from .math.table import Formula, specialised

# What one call of the op is asked for.
LOSS = "loss"  # loss, terms [1 + order], and all gradients if wanted
PER_SAMPLE = "per_sample"  # loss [N], terms [1 + order, N], no gradients
PER_SAMPLE_GRADIENTS = "per_sample_gradients"  # all gradients, given a cotangent for each sample
DERIVATIVES = "derivatives"  # y [N, O], its projected derivatives and second derivatives, no gradients
DERIVATIVES_GRADIENTS = "derivatives_gradients"  # all gradients, given cotangents of these
DIFFERENTIABLE = (DERIVATIVES, DERIVATIVES_GRADIENTS)  # of which all outputs can be differentiated

# Why an MLP is no MLP to who forces streams on him.
AS_HE_IS = "he is taken as he is"
# Why nobody knows how pairs of value and tangents flow through a student, or not yet.
UNSEEN, LAZY = "its forward was not looked at", "a part of it has no parameters yet"
# Why they do not, where it has no part that could be another.
NESTED = "a call of sobolev_kernels in it has no rule"
CONSTANT = "what it gives is no tensor that depends on its inputs by operations with rules"

RESIDUALS_OF = {
    DERIVATIVES: NO_RESIDUALS, LOSS: RESIDUALS_OF_LOSS, PER_SAMPLE: RESIDUALS_OF_LOSS,
    PER_SAMPLE_GRADIENTS: RESIDUALS_OF_LOSS, DERIVATIVES_GRADIENTS: RESIDUALS_GIVEN,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """How P vectors of n numbers are drawn for each sample, or once for all if they are `shared`."""

    distribution: str
    P: int
    n: int
    shared: bool
    magnitude: float
    dtype: str
    device: str

    def to_string(self) -> str:
        """For an op's schema, which has no place for a dataclass."""
        return repr(specialised(fields_of(self)))

    @classmethod
    @lru_cache(maxsize=256)
    def from_string(cls, text: str) -> Drawing:
        return cls(*ast.literal_eval(text))


@dataclass(frozen=True)
class Problem:
    """Everything about a Sobolev step but the numbers in it and N, so that one Problem serves every batch.

    `widths` are (D, n_1, …, n_L = O); the first `wrt` of the D inputs are differentiated (0: all of them).
    `backend` is the one that was chosen, so that the backward of a call runs where its forward did.
    `precision` is the least that its multiplies may have; a backend without it takes a better one.
    Of a student that is not an MLP only D is known, and O if his forward was looked at; `unrecognised` says what it is
    instead.
    """

    result: str
    widths: tuple[int, ...]
    biases: tuple[bool, ...]
    activations: tuple[Formula, ...]
    dtype: str
    device: str
    projection: str = DIRECTIONS
    P: int = 0
    distribution: str = "given"
    shared: bool = False
    magnitude: float = 1.0
    wrt: int = 0
    order: int = 1
    collapsed: bool = False  # of order 2 only the sum over directions
    derivative_target: str = NONE
    second_target: str = NONE
    value_loss: Formula | None = None
    derivative_loss: Formula | None = None
    head: Formula | None = None  # what values and derivatives are compared behind
    reduction: str = "mean"
    gradients: bool = False
    terms: bool = False  # each is asked for, and can be differentiated
    input_gradient: bool = False
    given_gradient: bool = False  # that of given directions or cotangents is asked for
    precision: str = "ieee"
    backend: str = "cpu"
    unrecognised: str = ""
    unfollowed: str | None = UNSEEN  # why pairs do not flow through it
    mixed: bool = False  # whether its samples were seen to see each other
    light: bool = False  # whether its operations are of few numbers
    heavy: bool = False  # or of many samples
    sharded: bool = False  # whether its parameters are there in its forward and one backward only
    ends: tuple[int, ...] | None = None  # where chains of layers within it end (streams/segments.py), if any is fused
    looked: bool = False  # whether the outputs are given beside a loss, whose gradient somebody looks at

    def __hash__(self) -> int:
        """Made once: a backward is found by it."""
        known = self.__dict__.get("hash")
        if known is None:
            known = hash(tuple(self.__dict__.values()))
            object.__setattr__(self, "hash", known)
        return known

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "hash"}  # another process has others

    @property
    def D(self) -> int:
        return self.widths[0]

    @property
    def O(self) -> int:  # noqa: E743
        return self.widths[-1]

    @property
    def outputs(self) -> int | None:
        """O, where it is known."""
        return self.widths[-1] if len(self.widths) > 1 else None

    @property
    def W(self) -> int:
        """Inputs that are differentiated."""
        return self.wrt or self.D

    @property
    def drawn(self) -> int:
        """Numbers of one direction or cotangent."""
        return self.O if self.projection == COTANGENTS else self.W

    @property
    def derived(self) -> int:
        """Numbers of one sample's derivative along one direction or cotangent."""
        return self.W if self.projection == COTANGENTS else self.O

    @property
    def drawing(self) -> Drawing:
        """How its directions or cotangents are drawn."""
        dtype = self.dtype if self.dtype in DTYPES else "float32"
        return Drawing(self.distribution, self.P, self.drawn, self.shared, self.magnitude, dtype, self.device)

    @property
    def residuals(self) -> str:
        return RESIDUALS_OF[self.result]

    @property
    def multiplies(self) -> int:
        """Σ_l n_{l-1} n_l: multiply-adds of one sample through the layers."""
        return sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def bytes(self, N: int) -> int:
        """Bytes that must move at the least: each input read once, each output written once."""
        size = 8 if self.dtype == "float64" else 4
        parameters = self.multiplies + sum(n for n, b in zip(self.widths[1:], self.biases, strict=False) if b)
        numbers = N * (self.D * (1 + self.input_gradient) + self.O) + parameters * (1 + self.gradients)
        if self.distribution == "given":
            numbers += self.P * self.drawn * (1 if self.shared else N)
        if self.gradients and self.given_gradient:
            numbers += self.P * self.drawn * N
        dense, projected = N * self.O * self.W, self.P * N * self.derived
        numbers += {NONE: 0, DENSE: dense, PROJECTED: projected}[self.derivative_target]
        seconds = N * self.O if self.collapsed else projected
        numbers += {NONE: 0, DENSE: dense * self.W, PROJECTED: seconds}[self.second_target]
        if self.result == DERIVATIVES:
            numbers += seconds if self.collapsed else projected * self.order
        return numbers * size

    def to_string(self) -> str:
        """For an op's schema, which has no place for a dataclass."""
        return repr(specialised(fields_of(self)))

    @classmethod
    @lru_cache(maxsize=256)
    def from_string(cls, text: str) -> Problem:
        fields = list(ast.literal_eval(text))
        formula = lambda pair: pair and Formula(*pair)  # noqa: E731
        problem = dict(zip(cls.__dataclass_fields__, fields, strict=True))
        problem["activations"] = tuple(map(formula, problem["activations"]))
        problem["value_loss"] = formula(problem["value_loss"])
        for name in ("derivative_loss", "head"):
            problem[name] = formula(problem[name])
        return cls(**problem)


NO_COTANGENTS = (None,) * 3  # of values, derivatives and second derivatives, where they are not inputs


class Operands(NamedTuple):
    """The tensors of one call, in the dtype and on the device of its Problem, of any strides; None where absent."""

    x: torch.Tensor  # [N, D]
    parameters: list[torch.Tensor]
    given: torch.Tensor | None = None  # [P, N, W] or [P, W]: directions; of O numbers if they are cotangents
    seed: torch.Tensor | None = None  # [2] int64 on the CPU, key and place: or what they are drawn from
    values: torch.Tensor | None = None  # [N, O]: targets, or cotangents of y
    derivative: torch.Tensor | None = None  # the same, dense [N, O, W], or projected [P, N, O] ([P, N, W])
    second: torch.Tensor | None = None  # the same, dense [N, O, W, W], or projected [P, N, O], or collapsed [N, O]
    sample_weight: torch.Tensor | None = None  # [2, N], in values and in derivatives
    output_weight: torch.Tensor | None = None  # [O]
    derivative_weight: torch.Tensor | None = None  # of each number of a derivative, [P, N, O] ([P, N, W])
    weights: tuple[float, ...] = (1.0, 1.0)


@dataclass(frozen=True)
class Plan:
    """How a backend goes about a Problem: the path it takes and the choices made on the way."""

    backend: str
    path: str
    choices: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        choices = ", ".join(f"{key} {value}" for key, value in self.choices)
        return f"{self.path} ({choices})" if choices else self.path

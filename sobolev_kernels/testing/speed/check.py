"""Check, then time: every variant against float64 by the package's one rule, before any clock is started.

The rule allows twice the error of plain PyTorch in the same dtype. For the fused step that is the error of `PLAIN`.
A baseline is plain PyTorch, and some round more than others: in float32, `stacked` sums (1 + P) N rows in one product
and exceeded twice the error of vmap(jvp) at N = 8192, P = 16. So a baseline's formula is held to the rule in float64,
rounded at the end, with nothing allowed; and a compiled one also in float32, with the error of its formula uncompiled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sobolev_kernels.testing.compare import Comparison

from .baselines import BASELINES, DOUBLE_BACKWARD, VALUES_ONLY, Result, Step, Variant
from .cases import FIRST, TAUGHT, Case, Data, in_double, make_data, make_student
from .higher import HIGHER
from .taught import TAUGHT_BASELINES, TAUGHT_VALUES
from .variants import PLAIN

PEERS = BASELINES | HIGHER | TAUGHT_BASELINES
# By kind: whose float64 result is right
EXPECTED = PLAIN | {FIRST: DOUBLE_BACKWARD}


class RedCheck(Exception):
    """A variant computes something else: nothing is timed then."""


@dataclass
class Ready:
    """The steps that passed the check, and the first line of the error of those that could not run."""

    steps: dict[str, Step] = field(default_factory=dict)
    crashes: dict[str, str] = field(default_factory=dict)


@dataclass
class Checker:
    """The numbers of one case in float32 and float64, and what a step must return."""

    case: Case
    student: torch.nn.Module
    data: Data

    def __post_init__(self):
        self.plain = (self.case, self.student, self.data)
        self.exact = (self.case, *in_double(self.student, self.data))
        # by whether derivatives are computed
        values = TAUGHT_VALUES if self.case.kind in TAUGHT else VALUES_ONLY
        peers = {True: PEERS[EXPECTED[self.case.kind]], False: PEERS[values]}
        self.expected = {what: peer.build(*self.exact)() for what, peer in peers.items() if peer.applies(self.case)}

    def ours(self, name: str, got: Result) -> None:
        baseline = PEERS[PLAIN[self.case.kind]].build(*self.plain)()
        self.compare(name, got, self.expected[True], baseline)

    def baseline(self, name: str, variant: Variant, got: Result) -> None:
        expected, formula = self.expected[variant.derivatives], variant.uncompiled or variant.build
        loss, gradients = formula(*self.exact)()
        rounded = loss.float(), tuple(gradient.float() for gradient in gradients)
        self.compare(f"{name} (formula in float64)", rounded, expected, expected)
        if variant.uncompiled:
            self.compare(name, got, expected, formula(*self.plain)())

    def compare(self, name: str, got: Result, expected64: Result, baseline: Result) -> None:
        three = (named(self.student, result) for result in (got, expected64, baseline))
        try:
            Comparison(*three).check(f"{self.case}, {name}, ")
        except AssertionError as error:
            raise RedCheck(str(error)) from None


def named(student: torch.nn.Module, result: Result) -> dict[str, torch.Tensor]:
    """Loss and all gradients."""
    loss, gradients = result
    return {"loss": loss, **{f"d{name}": g for (name, _), g in zip(student.named_parameters(), gradients, strict=True)}}


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def prepare(case: Case, variants: dict[str, Variant]) -> Ready:
    """Build and check every variant; a baseline may crash, the library may not.

    Raises:
        RedCheck: a variant is further from the float64 result than the rule allows.
    """
    student, data = make_student(case), make_data(case)
    checker, ready = Checker(case, student, data), Ready()
    for name, variant in variants.items():
        try:
            step = variant.build(case, student, data)
            result = step()
        except Exception as error:
            if variant.ours:
                raise
            ready.crashes[name] = first_line(error)
            continue
        if variant.ours:
            checker.ours(name, result)
        else:
            checker.baseline(name, variant, result)
        ready.steps[name] = step
    return ready

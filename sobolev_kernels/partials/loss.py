"""What a loss of residuals is of, whichever backend makes it: docs/math.md, section 15."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..math.table import Formula
from .along import evaluated
from .known import Found
from .one_pass import Terms
from .tape import Recording


class Comparison(NamedTuple):
    """What a loss is beside its formula: of each term a target [N, 1], a scale and a weight, or None of each; weights
    of samples [N]; and whether it is their mean."""

    rho: Formula
    targets: list[torch.Tensor | None]
    scales: list[Any]
    weights: list[Any]
    sample_weight: torch.Tensor | None
    mean: bool


Compared = Callable[[Comparison, Sequence[torch.Tensor]], tuple[torch.Tensor, list[torch.Tensor]]]


class Loss:
    """A loss of which tensors may be given: x, inputs if columns of them are read, parameters, coefficients and
    weights."""

    def __init__(
        self, found: Found, recording: Recording, columns: tuple[int, ...], of: Comparison, compared: Compared
    ):  # fmt: skip
        self.frame, self.addresses, self.held = found.frame, found.addresses, found.held
        self.recording, self.columns, self.of, self.compared = recording, columns, of, compared
        self.count = len(found.parameters)

    def parts(self, tensors: Sequence) -> tuple[Any, Any, Sequence, Sequence, Sequence]:
        x, inputs, *rest = tensors
        end = self.count + self.recording.coefficients
        return x, inputs, rest[: self.count], rest[self.count : end], rest[end:]

    def again(self, tensors: Sequence[torch.Tensor | None]) -> Terms:
        """The same by PyTorch's operations, but for the student's streams, which have derivatives of their own."""
        (x, inputs, parameters, coefficients, weights), call = self.parts(tensors), self.frame.call
        results = evaluated(call.streams, call.student(tuple(parameters)), x, self.frame.directions, self.frame.way)
        given = [*results.unbind(), *(inputs[:, i] for i in self.columns)]
        values = self.recording.values(given, coefficients)
        learnt = iter(weights)
        by = [next(learnt) if isinstance(weight, torch.Tensor) else weight for weight in self.of.weights]
        total, terms = self.compared(self.of._replace(weights=by), [value[:, None] for value in values])
        return total, torch.stack(terms)

"""`Request`: what a public function was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .changed import replace
from .columns import Columns
from .directions import Cotangents, Directions, Projections
from .enums import COTANGENTS, NONE
from .planner import exact_projection
from .problem import DERIVATIVES
from .settings import DIFFERENTIAL_ML, EXACT, Settings
from .student import Student, Unrecognised
from .targets import Targets
from .weights import Weights


@dataclass(frozen=True, eq=False)
class Request:
    """What a public function was asked for, as it came: the settings are checked, the tensors are not."""

    result: str
    student: object
    inputs: torch.Tensor  # [N, D]
    settings: Settings
    given: torch.Tensor | None = None  # of the settings' directions or cotangents
    targets: Targets | None = None
    kinds: tuple[str, str] = (NONE, NONE)  # what a target holds of first and of second derivatives
    input_scale: torch.Tensor | None = None  # [W]
    sample_weight: torch.Tensor | None = None  # [N]
    output_weight: torch.Tensor | None = None  # [O]
    derivative_weight: torch.Tensor | None = None  # [N], [N, O], [N, O, W], or a mask
    collapsed: bool = False
    offset: int | None = None  # of the settings' directions or cotangents, where it is another than theirs
    # Whether derivatives are computed: they are the result, or a loss has targets for them and a use.
    projects: bool = field(init=False)

    def __post_init__(self):
        settings, kinds = self.settings, self.kinds[: self.settings.order]
        used = settings.return_terms or settings.weights == DIFFERENTIAL_ML or any(settings.weights[1:])
        projects = self.result == DERIVATIVES or (used and any(kind != NONE for kind in kinds))
        object.__setattr__(self, "projects", projects)

    @property
    def columns(self) -> Columns:
        return Columns(self.settings.wrt, self.input_scale)

    @property
    def residual_weights(self) -> Weights:
        return Weights(self.sample_weight, self.output_weight, self.derivative_weight)

    @property
    def order(self) -> int:
        return self.settings.order if self.projects else 1

    def asked(self) -> dict[str, Projections | str]:
        """All that says what to project derivatives on, by the argument that says it."""
        return self.settings.asked() | ({} if self.targets is None else self.targets.asked())

    def tensors(self) -> dict[str, torch.Tensor | None]:
        """Inputs, targets and weights by the argument that gave them."""
        named = {"inputs": self.inputs, **({} if self.targets is None else self.targets.tensors())}
        weights = ("input_scale", "sample_weight", "output_weight", "derivative_weight")
        return named | {name: getattr(self, name) for name in weights}

    def projections(self, student: Student | Unrecognised) -> tuple[Projections | None, torch.Tensor | None]:
        """What derivatives are projected on, and its tensor if it was given; "exact" from the cheaper side."""
        chosen = next(iter(self.asked().values()), None) or Directions.sphere(1)
        if chosen == EXACT:
            cotangents = exact_projection(self.columns.count(self.inputs.shape[1]), student.O) == COTANGENTS
            return (Cotangents if cotangents else Directions).basis(), None
        if chosen.values is not None:
            return chosen.without_values(), chosen.values
        if self.offset not in (None, chosen.offset):
            chosen = replace(chosen, offset=self.offset)
        return chosen, self.given

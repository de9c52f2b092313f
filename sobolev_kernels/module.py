"""`SobolevLoss`, the module form of `sobolev_loss`."""

from __future__ import annotations

import torch

from . import dispatch
from .directions import Directions
from .errors import need
from .functional import REDUCTIONS, LossName, SobolevTerms, sobolev_loss
from .math.losses import choose_loss
from .targets import Targets
from .validate import check_weights


class SobolevLoss(torch.nn.Module):
    """A Sobolev loss with its settings, called as `loss_fn(student, inputs, targets)`.

    The arguments and errors are those of `sobolev_loss`; they are checked here already. It has no parameters.

    Example:
        >>> from sobolev_kernels import MLP
        >>> loss_fn = SobolevLoss(directions=Directions.sphere(4))
        >>> x = torch.rand(8, 2)
        >>> targets = Targets(values=x.sum(1, keepdim=True), jacobian=torch.ones(8, 1, 2))
        >>> loss_fn(MLP(2, 1, width=16), x, targets).backward()
    """

    def __init__(
        self, *, directions: Directions | None = None, value_loss: LossName = "mse",
        derivative_loss: LossName = "mse", weights: tuple[float, float] = (1.0, 1.0), reduction: str = "mean",
        backend: str | None = None, return_terms: bool = False, check_finite: bool = False,
    ):  # fmt: skip
        super().__init__()
        need(reduction in REDUCTIONS, "reduction", f"one of {', '.join(REDUCTIONS)}", reduction)
        fits = directions is None or isinstance(directions, Directions)
        need(fits, "directions", "a sobolev_kernels.Directions", directions, TypeError)
        dispatch.requested(backend)
        self.settings = {
            "directions": directions,
            "value_loss": choose_loss("value_loss", value_loss),
            "derivative_loss": choose_loss("derivative_loss", derivative_loss),
            "weights": check_weights(weights),
            "reduction": reduction,
            "backend": backend,
            "return_terms": return_terms,
            "check_finite": check_finite,
        }

    def forward(self, student: torch.nn.Module, inputs: torch.Tensor, targets: Targets) -> torch.Tensor | SobolevTerms:
        return sobolev_loss(student, inputs, targets, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())

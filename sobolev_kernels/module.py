"""`SobolevLoss`, the module form of `sobolev_loss`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import dispatch
from .columns import Columns
from .directions import Cotangents, Directions
from .errors import need
from .functional import REDUCTIONS, LossName, SobolevTerms, choose_weights, pick_one, sobolev_loss
from .math.losses import choose_loss
from .targets import Targets
from .validate import check_known_order, check_precision


class SobolevLoss(torch.nn.Module):
    """A Sobolev loss with its settings, called as `loss_fn(student, inputs, targets, sample_weight=None)`.

    The arguments and errors are those of `sobolev_loss`; they are checked here already. It has no
    parameters; `input_scale` and `output_weight` are buffers, which move with `.to(device)`.

    Example:
        >>> from sobolev_kernels import MLP
        >>> loss_fn = SobolevLoss(directions=Directions.sphere(4))
        >>> x = torch.rand(8, 2)
        >>> targets = Targets(values=x.sum(1, keepdim=True), jacobian=torch.ones(8, 1, 2))
        >>> loss_fn(MLP(2, 1, width=16), x, targets).backward()
    """

    def __init__(
        self, *, directions: Directions | None = None, cotangents: Cotangents | None = None,
        derivatives: str | None = None, order: int = 1, wrt: Sequence[int] | None = None,
        value_loss: LossName = "mse", derivative_loss: LossName = "mse",
        weights: Sequence[float] | str | None = None, input_scale: torch.Tensor | None = None,
        output_weight: torch.Tensor | None = None, reduction: str = "mean", precision: str | None = None,
        backend: str | None = None, return_terms: bool = False, check_finite: bool = False,
    ):  # fmt: skip
        super().__init__()
        need(reduction in REDUCTIONS, "reduction", f"one of {', '.join(REDUCTIONS)}", reduction)
        check_known_order(order)
        pick_one(directions, cotangents, derivatives, order)
        check_precision(precision)
        dispatch.requested(backend)
        self.settings = {
            "directions": directions,
            "cotangents": cotangents,
            "derivatives": derivatives,
            "order": order,
            "wrt": Columns.of(wrt).wrt,
            "value_loss": choose_loss("value_loss", value_loss),
            "derivative_loss": choose_loss("derivative_loss", derivative_loss),
            "weights": choose_weights(weights, order, input_scale),
            "reduction": reduction,
            "precision": precision,
            "backend": backend,
            "return_terms": return_terms,
            "check_finite": check_finite,
        }
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("output_weight", output_weight)

    def forward(
        self, student: torch.nn.Module, inputs: torch.Tensor, targets: Targets,
        sample_weight: torch.Tensor | None = None,
    ) -> torch.Tensor | SobolevTerms:  # fmt: skip
        tensors = {
            "input_scale": self.input_scale,
            "output_weight": self.output_weight,
            "sample_weight": sample_weight,
        }
        return sobolev_loss(student, inputs, targets, **self.settings, **tensors)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())

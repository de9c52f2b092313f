"""`Targets`: what the student is to match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .directions import Directions
from .errors import need


@dataclass(frozen=True, eq=False)
class Targets:
    """Target values and one kind of target derivative, all constants of the loss.

    Args:
        values: f(x) [N, O] ([N] if O is 1). May be left out with a teacher, or if their weight is zero.
        jacobian: ∂f/∂x [N, O, D] ([N, D] if O is 1); the kernel projects it on the directions.
        tangents: D f(x)[v_p] [P, N, O], along `directions`.
        directions: those of `tangents`, a `Directions` or a tensor [P, N, D] or [P, D]; the call must not name
            others.
        teacher: a module or any callable from [N, D] to [N, O] ([N] if O is 1): values and directional derivatives
            are computed along the very directions of the student, and no gradient goes to its parameters.

    Raises:
        ValueError: more than one kind of derivative, or a tensor with requires_grad.
        TypeError: not a tensor, or a teacher that cannot be called.
    """

    values: torch.Tensor | None = None
    jacobian: torch.Tensor | None = None
    tangents: torch.Tensor | None = None
    directions: Directions | torch.Tensor | None = None
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self):
        for name in ("values", "jacobian", "tangents"):
            tensor = getattr(self, name)
            need(tensor is None or isinstance(tensor, torch.Tensor), name, "a tensor", tensor, TypeError)
            constant = tensor is None or not tensor.requires_grad
            need(constant, name, "a tensor without requires_grad (no gradient to targets is provided)", tensor)
        need(self.teacher is None or callable(self.teacher), "teacher", "a callable", self.teacher, TypeError)
        kinds = [k for k in ("jacobian", "tangents", "teacher") if getattr(self, k) is not None]
        need(len(kinds) <= 1, "targets", "one of jacobian, tangents and teacher", " and ".join(kinds))
        if isinstance(self.directions, torch.Tensor):
            object.__setattr__(self, "directions", Directions.given(self.directions))
        known = self.directions is None or isinstance(self.directions, Directions)
        need(known, "directions", "a sobolev_kernels.Directions or a tensor", self.directions, TypeError)

    @property
    def kind(self) -> str:
        """A Problem's derivative_target."""
        if self.jacobian is not None:
            return "jacobian"
        return "none" if self.tangents is None and self.teacher is None else "tangents"

    @property
    def derivative(self) -> torch.Tensor | None:
        return self.jacobian if self.jacobian is not None else self.tangents

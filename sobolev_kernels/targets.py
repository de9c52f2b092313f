"""`Targets`: what the student is to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .directions import Cotangents, Directions, Projections
from .enums import DENSE, NONE, PROJECTED
from .errors import Fault, as_tensor, in_words, refuse

TENSORS = ("values", "jacobian", "tangents", "vjps", "hessian", "seconds")
KINDS = {"jacobian": DENSE, "tangents": PROJECTED, "vjps": PROJECTED, "teacher": PROJECTED}
CONSTANT = "a tensor without requires_grad (no gradient to targets is provided)"
SECOND_KINDS = {"hessian": DENSE, "seconds": PROJECTED, "teacher": PROJECTED}


@dataclass(frozen=True, eq=False)
class Targets:
    """Target values, one kind of target derivative, and for order 2 one of second derivatives: constants of the loss.

    Args:
        values: f(x) [N, O] ([N] if O is 1). May be left out with a teacher, or if their weight is zero. Behind a head,
            they and all derivatives are those of its output; of the value loss "cross_entropy" they are probabilities
            [N, O] or classes, int64 [N], of "bce" probabilities.
        jacobian: ∂f/∂x [N, O, D] ([N, D] if O is 1); the kernel projects it. With `wrt`, its W columns. Where inputs
            are of another shape [N, …], it stands for D in all of this.
        tangents: D f(x)[v_p] [P, N, O], along `directions`.
        directions: those of `tangents` and `seconds`, a `Directions` or a tensor [P, N, D]; the call must not name
            others.
        vjps: D f(x)ᵀu_r [R, N, D], of `cotangents`.
        cotangents: those of `vjps`, a `Cotangents` or a tensor [R, N, O]; the call must not name others.
        teacher: a module or any callable from [N, D] to [N, O] ([N] if O is 1): values and derivatives are computed
            along the very directions or cotangents of the student, and no gradient goes to its parameters.
        hessian: ∂²f/∂x² [N, O, D, D], of order 2.
        seconds: D²f(x)[v_p, v_p] [P, N, O], of order 2, along `directions`.

    Raises:
        ValueError: more than one kind of derivative, a tensor with requires_grad, or directions [P, D] that may be the
            batch's (`Directions.given(v)`) or the samples' (`v[None]`).
        TypeError: not a tensor, or a teacher that cannot be called.
    """

    values: torch.Tensor | None = None
    jacobian: torch.Tensor | None = None
    tangents: torch.Tensor | None = None
    directions: Directions | torch.Tensor | None = None
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None
    vjps: torch.Tensor | None = None
    cotangents: Cotangents | torch.Tensor | None = None
    hessian: torch.Tensor | None = None
    seconds: torch.Tensor | None = None

    def __post_init__(self):
        refuse(self._faults())
        if self.directions is not None:
            object.__setattr__(self, "directions", Directions.of(self.directions, "directions"))
        if self.cotangents is not None:
            object.__setattr__(self, "cotangents", Cotangents.of(self.cotangents, "cotangents"))

    def _faults(self) -> Iterator[Fault]:
        for name, tensor in self.tensors().items():
            if not isinstance(tensor, torch.Tensor):
                yield Fault(name, "a tensor", tensor, TypeError, as_tensor(tensor))
            if tensor.requires_grad:
                yield Fault(name, CONSTANT, tensor)
        if not (self.teacher is None or callable(self.teacher)):
            yield Fault("teacher", "a callable", self.teacher, TypeError)
        for kinds in (KINDS, SECOND_KINDS):
            given = [name for name in kinds if getattr(self, name) is not None]
            if len(given) > 1:
                expected = f"one of {', '.join(list(kinds)[:-1])} and {list(kinds)[-1]}"
                yield Fault("targets", expected, " and ".join(given))

    @property
    def has_classes(self) -> bool:
        """Whether its values are whole numbers."""
        return self.values is not None and not (self.values.is_floating_point() or self.values.is_complex())

    @property
    def kind(self) -> str:
        """A Problem's derivative_target."""
        return next((kind for name, kind in KINDS.items() if getattr(self, name) is not None), NONE)

    @property
    def second_kind(self) -> str:
        """A Problem's second_target."""
        return next((kind for name, kind in SECOND_KINDS.items() if getattr(self, name) is not None), NONE)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that there are, by name."""
        return {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}

    def asked(self) -> dict[str, Projections]:
        """What their derivatives are projected on, by the argument that says it."""
        named = {f"{name} in targets": getattr(self, name) for name in ("directions", "cotangents")}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def derivative(self) -> torch.Tensor | None:
        return next((t for t in (self.jacobian, self.tangents, self.vjps) if t is not None), None)

    @property
    def second(self) -> torch.Tensor | None:
        return self.hessian if self.hessian is not None else self.seconds


Targets.__init__ = in_words(Targets.__init__)

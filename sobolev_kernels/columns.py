"""Which input columns are differentiated, and in which unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .errors import need


@dataclass(frozen=True, eq=False)
class Columns:
    """The W columns `wrt` of the inputs, in this order (None: all D), each derivative multiplied by `scale` [W].

    Kernels differentiate the leading columns in the unit they come in, so `arrange` moves and scales the first layer
    instead: m(x) = m'(x') with x' = x / scale and W' = W · scale.
    """

    wrt: tuple[int, ...] | None = None
    scale: torch.Tensor | None = None

    @classmethod
    def of(cls, wrt: object, scale: torch.Tensor | None = None) -> Columns:
        """From what a user wrote."""
        several = wrt is None or (isinstance(wrt, Iterable) and not isinstance(wrt, (str, torch.Tensor)))
        need(several, "wrt", "columns of the inputs, a sequence of whole numbers", wrt)
        return cls(None if wrt is None else tuple(wrt), scale)

    def check(self, inputs: torch.Tensor) -> None:
        D = inputs.shape[1]
        if self.wrt is not None:
            known = len(self.wrt) > 0 and all(type(d) is int and 0 <= d < D for d in self.wrt)
            need(known, "wrt", f"columns of the inputs, whole numbers from 0 to {D - 1}", self.wrt)
            need(len(set(self.wrt)) == len(self.wrt), "wrt", "each column once", self.wrt)
        if self.scale is not None:
            W, s = self.count(D), self.scale
            half = inputs.dtype in (torch.bfloat16, torch.float16)
            fits = isinstance(s, torch.Tensor) and s.shape == (W,)
            fits = fits and (s.dtype == inputs.dtype or (half and s.dtype == torch.float32))
            fits = fits and s.device == inputs.device and not s.requires_grad
            expected = f"{inputs.dtype} [{W}] on {inputs.device} without requires_grad"
            need(fits, "input_scale", expected, s)
            compiling = torch.compiler.is_compiling()
            looked_at = s.device.type == "cpu" and not compiling and not torch._C._are_functorch_transforms_active()
            positive = not looked_at or bool(((s > 0) & torch.isfinite(s)).all())
            need(positive, "input_scale", "finite numbers > 0", s.tolist() if not positive else s)

    def count(self, D: int) -> int:
        return D if self.wrt is None else len(self.wrt)

    def arrange(self, x: torch.Tensor, parameters: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The same student on inputs whose leading columns are the differentiated ones, in their unit."""
        weight, *rest = parameters
        if self.wrt is not None and self.wrt != tuple(range(len(self.wrt))):
            order = [*self.wrt, *(d for d in range(x.shape[1]) if d not in self.wrt)]
            x, weight = x[:, order], weight[:, order]
        if self.scale is not None:
            unit = torch.cat([self.scale, self.scale.new_ones(x.shape[1] - len(self.scale))])
            x, weight = x / unit, weight * unit
        return x, [weight, *rest]

    def embed(self, v: torch.Tensor, D: int) -> torch.Tensor:
        """Directions [P, N, W] of these columns as directions [P, N, D] of all inputs."""
        v = v if self.scale is None else v * self.scale
        if self.wrt is None:
            return v
        whole = v.new_zeros((*v.shape[:-1], D))
        whole[..., list(self.wrt)] = v
        return whole

    def restrict(self, gradients: torch.Tensor) -> torch.Tensor:
        """Derivatives [..., W] with respect to these columns from [..., D] with respect to all."""
        return self.rescale(gradients if self.wrt is None else gradients[..., list(self.wrt)])

    def rescale(self, derivatives: torch.Tensor) -> torch.Tensor:
        """Derivatives [..., W] in the columns' unit."""
        return derivatives if self.scale is None else derivatives * self.scale

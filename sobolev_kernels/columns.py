"""Which input columns are differentiated, and in which unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .errors import Fault, as_tensor, converted, refuse


def can_be_read(tensor: torch.Tensor) -> bool:
    """Whether looking at its numbers waits for no device, breaks no graph, and asks nothing of a batch of tensors."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    watched = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0
    return not watched and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def rms_of(numbers: torch.Tensor) -> torch.Tensor:
    """The root mean square along the first axis, where squares may be too large or too small for their dtype."""
    largest = numbers.abs().amax(0) if len(numbers) else numbers.new_zeros(numbers.shape[1:])
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    return unit * (numbers / unit).square().mean(0).sqrt()


@dataclass(frozen=True, eq=False)
class Columns:
    """The W columns `wrt` of the inputs, in this order (None: all D), each derivative multiplied by `scale` [W].

    Kernels differentiate the leading columns in the unit they come in, so `arrange` moves and scales the first layer
    instead: m(x) = m'(x') with x' = x / scale and W' = W · scale.
    """

    wrt: tuple[int, ...] | None = None
    scale: torch.Tensor | None = None

    def faults(self, inputs: torch.Tensor) -> Iterator[Fault]:
        """Why these are not columns of inputs [N, D], or not units of them."""
        D = inputs.shape[1]
        if self.wrt is not None:
            if not (self.wrt and all(type(d) is int and 0 <= d < D for d in self.wrt)):
                yield Fault("wrt", f"columns of the inputs, whole numbers from 0 to {D - 1}", self.wrt)
            if len(set(self.wrt)) < len(self.wrt):
                yield Fault("wrt", "each column once", self.wrt)
        if self.scale is not None:
            W, s = self.count(D), self.scale
            half = inputs.dtype in (torch.bfloat16, torch.float16)
            fits = isinstance(s, torch.Tensor) and s.shape == (W,)
            fits = fits and (s.dtype == inputs.dtype or (half and s.dtype == torch.float32))
            if not (fits and s.device == inputs.device and not s.requires_grad):
                hint = converted(s, inputs, "input_scale") if isinstance(s, torch.Tensor) else as_tensor(s)
                yield Fault(
                    "input_scale", f"{inputs.dtype} [{W}] on {inputs.device} without requires_grad", s, hint=hint
                )
            if can_be_read(s) and not bool(((s > 0) & torch.isfinite(s)).all()):
                yield Fault("input_scale", "finite numbers > 0", s.tolist())

    def balanced(self, jacobian: torch.Tensor) -> Columns:
        """The same columns in units of their own size, rms(∂f/∂x_j) over the batch (Huge & Savine, 2020)."""
        rms = rms_of(jacobian.flatten(0, -2))
        # a column that never changes f has no size of its own: it takes that of the others
        usual = rms_of(rms)
        size = torch.where(rms > 0, rms, torch.where(usual > 0, usual, torch.ones_like(usual)))
        scale = 1 / size
        if can_be_read(scale) and bool((scale * scale).isinf().any()):
            expected = f"columns of zeros, or large enough that {jacobian.dtype} holds the square of 1 / rms"
            hint = 'weights="differential-ml" divides by rms; take larger units, or an input_scale of your own'
            refuse([Fault("jacobian", expected, f"rms {size.min().item():.3g}", hint=hint)])
        return replace(self, scale=scale if jacobian.numel() else torch.ones_like(scale))

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
        v = v if self.scale is None else (v * self.scale).to(v.dtype)
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

"""Which input columns are differentiated, and in which unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .changed import replace
from .errors import Fault, as_tensor, converted, range_of


class Mask(NamedTuple):
    """Which numbers of an input are differentiated, said by a Boolean tensor of its shape: `columns` of its row."""

    shape: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, mask: torch.Tensor) -> Mask:
        return cls(tuple(mask.shape), tuple(mask.flatten().nonzero()[:, 0].tolist()))


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
                expected = f"{inputs.dtype} [{W}] on {inputs.device} without requires_grad"
                yield Fault("input_scale", expected, s, hint=hint)
            if (known := range_of(s)) and not 0 < known[0] <= known[1] < math.inf:
                yield Fault("input_scale", "finite numbers > 0", s.tolist())

    def balanced(self, jacobian: torch.Tensor, counting: torch.Tensor | None = None) -> Columns:
        """The same columns in units of their own size, rms(∂f/∂x_j) over the batch (Huge & Savine, 2020).

        It is that of the entries that count, where this is told; one of them that is not finite leaves no finite unit.
        """
        count = None
        if counting is not None:
            jacobian = torch.where(counting, jacobian, 0.0)
            count = counting.expand_as(jacobian).flatten(0, -2).sum(0).clamp(min=1)
        rms = root_mean_square(jacobian.flatten(0, -2), count)
        # a column that never changes f has no size of its own: it takes that of the others
        usual = root_mean_square(rms[:, None])
        return replace(self, scale=1 / torch.where(rms == 0, torch.where(usual == 0, 1.0, usual), rms))

    def faults_of_balance(self) -> Iterator[Fault]:
        """Columns so small that residuals in units of their size have no squares in their dtype."""
        known = range_of(self.scale)
        if known and known[1] ** 2 > torch.finfo(self.scale.dtype).max:
            expected = f"columns of zeros, or large enough that {self.scale.dtype} holds the square of 1 / rms"
            hint = 'weights="differential-ml" divides by rms; take larger units, or an input_scale of your own'
            yield Fault("jacobian", expected, f"1 / rms of {known[1]:.3g}", hint=hint)

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


def root_mean_square(entries: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Of each column [n, W], of `count` entries (None: all); 0 of none.

    Squares are of the size of 1, by a power of two that leaves all digits: those of the entries may have no number.
    """
    if not len(entries):
        return entries.new_zeros(entries.shape[1])
    largest = entries.abs().amax(0)
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return unit * ((entries / unit).square().sum(0) / (len(entries) if count is None else count)).sqrt()

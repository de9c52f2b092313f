"""`Directions`: what a user says about the input directions along which derivatives are compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from .errors import need
from .math.directions import DISTRIBUTIONS, unbiased_scale


@dataclass(frozen=True, eq=False)
class Directions:
    """Input directions v of the derivative term; made by the class methods below.

    For directions of unit length (`sphere`, `coordinate`, `orthonormal`, `basis`) E[(g·v)²] = |g|² / D; for `normal`
    and `rademacher` it is |g|². With `unbiased=True` the former are multiplied by √D, and the mean squared residual
    estimates the full squared Jacobian norm Σ_d (∂m/∂x_d - ∂f/∂x_d)² in every case.

    Args:
        P: number of directions of one call.
        shared: one draw for all samples of the batch, instead of one for each.
        seed: an integer in [0, 2^63) fixes the directions, the same ones at every call; `at(step)` moves on. Without
            it each call takes a fresh seed from torch's default CPU generator, so `torch.manual_seed` reproduces a
            run.
        unbiased: see above.

    Example:
        >>> Directions.sphere(4).tensor(torch.zeros(10, 3)).shape
        torch.Size([4, 10, 3])
    """

    distribution: str
    P: int | None
    shared: bool = False
    seed: int | None = None
    offset: int = 0
    unbiased: bool = False
    values: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def sphere(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False):
        """P independent directions, uniform on the unit sphere (the paper's)."""
        return cls._random("sphere", P, shared, seed, unbiased)

    @classmethod
    def normal(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False):
        """P independent standard normal directions."""
        return cls._random("normal", P, shared, seed, unbiased)

    @classmethod
    def rademacher(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False):
        """P independent directions of random signs ±1."""
        return cls._random("rademacher", P, shared, seed, unbiased)

    @classmethod
    def coordinate(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False):
        """P independent random unit vectors e_d."""
        return cls._random("coordinate", P, shared, seed, unbiased)

    @classmethod
    def orthonormal(cls, P: int = 1, *, shared: bool = False, seed: int | None = None, unbiased: bool = False):
        """P <= D mutually orthogonal unit directions, a uniformly random frame."""
        return cls._random("orthonormal", P, shared, seed, unbiased)

    @classmethod
    def basis(cls, *, unbiased: bool = False):
        """All D unit vectors: the exact loss, the mean over the D columns of the Jacobian."""
        return cls("basis", None, seed=0, unbiased=unbiased)

    @classmethod
    def given(cls, values: torch.Tensor):
        """Your own directions: [P, N, D], or [P, D] shared by the batch."""
        need(isinstance(values, torch.Tensor), "directions", "a tensor [P, N, D] or [P, D]", values, TypeError)
        need(values.dim() in (2, 3), "directions", "a tensor [P, N, D] or [P, D]", values)
        need(values.shape[0] > 0, "directions", "at least one direction (P >= 1)", values)
        need(not values.requires_grad, "directions", "a tensor without requires_grad (no gradient is provided)", values)
        return cls("given", values.shape[0], shared=values.dim() == 2, values=values)

    @classmethod
    def _random(cls, distribution, P, shared, seed, unbiased):
        need(type(P) is int and P >= 1, "P", "a whole number of directions, at least 1", P)
        inside = seed is None or (type(seed) is int and 0 <= seed < 2**63)
        need(inside, "seed", "None or an integer in [0, 2^63)", seed)
        return cls(distribution, P, bool(shared), seed, 0, bool(unbiased))

    def at(self, offset: int) -> Directions:
        """The same seed at another place of its stream, for example `directions.at(step)`; offset in [0, 2^32)."""
        need(type(offset) is int and 0 <= offset < 2**32, "offset", "an integer in [0, 2^32)", offset)
        need(self.seed is not None, "offset", "directions with a seed", self)
        return replace(self, offset=offset)

    @property
    def fixed(self) -> bool:
        """Whether two calls use the same directions."""
        return self.seed is not None or self.values is not None

    def count(self, D: int) -> int:
        """P for inputs of D features."""
        P = D if self.distribution == "basis" else self.P
        fits = self.distribution != "orthonormal" or P <= D
        need(fits, "directions", f"at most D = {D} orthonormal directions", f"P = {P}")
        return P

    def check(self, inputs: torch.Tensor) -> None:
        """Raise unless these directions suit `inputs` [N, D]: D, and given ones also N, dtype and device."""
        self.count(inputs.shape[1])
        if self.values is not None:
            v, shape = self.values, tuple(inputs.shape[1:] if self.shared else inputs.shape)
            half = inputs.dtype in (torch.bfloat16, torch.float16)
            same = v.dtype == inputs.dtype or (half and v.dtype == torch.float32)
            fits = v.shape[1:] == shape and v.device == inputs.device and same
            expected = f"{inputs.dtype} [P, {', '.join(map(str, shape))}] on {inputs.device}, as the inputs are"
            need(fits, "directions", expected, v)

    def scale(self, D: int) -> float:
        return unbiased_scale(self.distribution, D) if self.unbiased else 1.0

    def draw_seed(self) -> torch.Tensor | None:
        """(seed, offset) of one call, int64 [2] on the CPU; None for given directions."""
        if self.values is not None:
            return None
        if self.seed is not None:
            return torch.tensor((self.seed, self.offset), dtype=torch.int64)
        return torch.randint(2**62, (2,), dtype=torch.int64)

    def tensor(self, inputs: torch.Tensor) -> torch.Tensor:
        """The directions [P, N, D] that a call with these `inputs` [N, D] uses, on their device.

        They are of the dtype that the call computes in: that of the inputs, or float32 for half precision.
        Without a seed this takes the next draw of torch's default generator, exactly as a call does.
        """
        from .ops import materialise  # ops knows Directions

        need(isinstance(inputs, torch.Tensor), "inputs", "a tensor [N, D]", inputs, TypeError)
        floating = inputs.dim() == 2 and inputs.is_floating_point()
        need(floating, "inputs", "a floating tensor [N, D]", inputs)
        self.check(inputs)
        return materialise(self, self.draw_seed(), inputs)


assert set(DISTRIBUTIONS) <= set(vars(Directions)), "every distribution has its class method"

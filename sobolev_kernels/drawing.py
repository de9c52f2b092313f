"""Directions and cotangents as a tensor: how they are drawn, and the op that draws them."""

from __future__ import annotations

from dataclasses import replace

import torch

from .backends import core
from .math.directions import CENTRED, centred_of, draw, in_memory_of_device
from .problem import Drawing

IN_VMAP = (
    "directions and cotangents: within torch.func.vmap they are drawn if it has randomness='different', for each member"
    " its own, or 'same'; or give a seed, or tensors"
)

# An op of its own, because a compiler that looks into ten rounds of Philox inlines them into each other without end
library = torch.library.Library("sobolev_kernels", "FRAGMENT")
library.define("draw_directions(Tensor seed, SymInt N, str drawing) -> Tensor")
library.define("draw_for_samples(Tensor seed, Tensor samples, str drawing) -> Tensor")


def over_samples(given: torch.Tensor, N: int) -> torch.Tensor:
    """Given ones, [P, N, n] or [P, n] for all samples, as [P, N, n]."""
    return given if given.dim() == 3 else given[:, None, :].expand(-1, N, -1)


def drawn(drawing: Drawing, seed: torch.Tensor, N: int) -> torch.Tensor:
    """Vectors [P, N, n] of one call, by the core where it computes the step: bit for bit its own."""
    if torch.compiler.is_compiling():
        return torch.ops.sobolev_kernels.draw_directions(seed, N, drawing.to_string())
    if drawing.distribution == CENTRED:  # no kernel draws them, but normals
        normals = replace(drawing, distribution="normal", magnitude=1.0)
        return centred_of(drawn(normals, seed, N)) * drawing.magnitude
    # in a transform of torch.func a new tensor has no memory of its own to fill
    if core.draws(drawing) and not torch._C._are_functorch_transforms_active():
        out = torch.empty((drawing.P, N, drawing.n), dtype=getattr(torch, drawing.dtype), device=drawing.device)
        core.draw(drawing, seed, out)
        return out
    return drawn_by_torch(seed, N, drawing)


def drawn_by_torch(seed: torch.Tensor, N: int, drawing: Drawing, samples: torch.Tensor | None = None) -> torch.Tensor:
    # of a transform it is no number, or one for each member of an ensemble
    tensors = in_memory_of_device(seed) or torch._C._functorch.is_functorch_wrapped_tensor(seed)
    key, place = seed.unbind() if tensors else seed.tolist()
    shape = drawing.P, N, drawing.n
    where = getattr(torch, drawing.dtype), torch.device(drawing.device)
    return draw(drawing.distribution, key, place, *shape, drawing.shared, drawing.magnitude, *where, samples)


def drawn_for_samples(drawing: Drawing, seed: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Those of samples with these numbers, int64 [N], whatever else is in their batch."""
    return torch.ops.sobolev_kernels.draw_for_samples(seed, samples, drawing.to_string())


def draw_samples_eager(seed: torch.Tensor, samples: torch.Tensor, drawing: str) -> torch.Tensor:
    return drawn_by_torch(seed, len(samples), Drawing.from_string(drawing), samples)


def draw_samples_fake(seed: torch.Tensor, samples: torch.Tensor, drawing: str) -> torch.Tensor:
    return draw_fake(seed, samples.shape[0], drawing)


def draw_eager(seed: torch.Tensor, N: int, drawing: str) -> torch.Tensor:
    return drawn(Drawing.from_string(drawing), seed, N)


def draw_fake(seed: torch.Tensor, N: int, drawing: str) -> torch.Tensor:
    d = Drawing.from_string(drawing)
    return torch.empty((d.P, N, d.n), dtype=getattr(torch, d.dtype), device=d.device)


for device in ("CPU", "CUDA"):
    library.impl("draw_directions", draw_eager, device)
    library.impl("draw_for_samples", draw_samples_eager, device)
torch.library.register_fake("sobolev_kernels::draw_directions", draw_fake, lib=library)
torch.library.register_fake("sobolev_kernels::draw_for_samples", draw_samples_fake, lib=library)

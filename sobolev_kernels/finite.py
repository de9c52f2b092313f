"""NaN and infinity are looked for: while a call is checked, or, of a call that is compiled, by an op when it runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .errors import Fault, describe, refuse

library = torch.library.Library("sobolev_kernels", "FRAGMENT")
library.define("need_finite(Tensor[] tensors, str[] names, Tensor like) -> Tensor")


def faults_of_finite(name: str, tensor: torch.Tensor) -> Iterator[Fault]:
    if tensor.is_meta:
        yield Fault(name, "numbers, which check_finite could look at", tensor)
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        yield Fault(name, "finite numbers", f"{bad} that are not, in {describe(tensor)}")


def one_if_finite(named: dict[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The number 1 that a compiled result is multiplied by, so that no compiler drops the look at its operands."""
    tensors = [tensor.detach() for tensor in named.values()]
    return torch.ops.sobolev_kernels.need_finite(tensors, list(named), like.detach())


def need_finite(tensors: list[torch.Tensor], names: list[str], like: torch.Tensor) -> torch.Tensor:
    for name, tensor in zip(names, tensors, strict=True):
        refuse(faults_of_finite(name, tensor))
    return like.new_ones(())


def need_finite_fake(tensors: list[torch.Tensor], names: list[str], like: torch.Tensor) -> torch.Tensor:
    return like.new_ones(())


for device in ("CPU", "CUDA"):
    library.impl("need_finite", need_finite, device)
torch.library.register_fake("sobolev_kernels::need_finite", need_finite_fake, lib=library)

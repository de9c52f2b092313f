"""Whether numbers that a function takes out of tensors have a part in what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.overrides import TorchFunctionMode

from .differences import NotProbed
from .exact import exactly, graphs, tracked
from .reads import read_by, takes_numbers


class Replayed(TorchFunctionMode):
    """Notes what is taken out of tensors; or gives back what was taken in another run, in its order."""

    def __init__(self, given: Sequence[object] = ()):
        super().__init__()
        self.noted: list[object] = []
        self.kept: list[object] = []
        self.given: Iterator[object] = iter(given)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if not takes_numbers(function, made) or not any(True for _ in read_by(function, args, kwargs)):
            return made
        self.kept.append((args, made))  # whose memory may be what is read
        self.noted.append(apart(made))
        return apart(next(self.given, made))


def apart(made: object) -> object:
    """It, or of a tensor a copy, which somebody may write to."""
    return made.clone() if isinstance(made, torch.Tensor) else made


def numbers_matter(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool | None:
    """Whether, a step beside its inputs, a function gives something else with the numbers that it took at them than
    with those that it takes there; None, if it takes none.

    Raises:
        NotProbed: it does not run beside its inputs.
    """
    here = tracked(x).detach()
    with torch.no_grad():
        unit = here.square().mean(0).sqrt()
        k = torch.arange(1, here.numel() + 1, dtype=torch.float64, device="cpu").view(here.shape)
        each = (1 + (k * 0.6180339887).frac()) * torch.where((k * 0.7548776662).frac() < 0.5, -1.0, 1.0)
        size = min(torch.finfo(x.dtype).eps ** 0.25, 1 / 8)
        beside = here + size * torch.where(unit > 0, unit, 1.0) * each.to(here)

    def run(inputs: torch.Tensor, given: Sequence[object] = ()) -> tuple[torch.Tensor, Replayed]:
        with graphs():
            leaf = inputs.clone().requires_grad_()
        try:
            with torch.random.fork_rng([x.device] if x.is_cuda else []), exactly(), Replayed(given) as mode:
                return function(leaf).detach(), mode
        except Exception as error:
            raise NotProbed from error

    _, first = run(here)  # which keeps what its addresses are of
    if not first.noted:
        return None
    (live, _), (again, _) = run(beside), run(beside, first.noted)
    return not bool(((live == again) | (live.isnan() & again.isnan())).all())

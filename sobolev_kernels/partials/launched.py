"""Streams through an MLP by the Triton backend (backends/triton/jets.py): one pass for the results, which leaves what
the one for all gradients reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..backends import triton
from ..boundary import PLAIN
from ..student import Student
from .fused import Call, as_read
from .plan import MOST, Streams
from .programs import Asked

WIDEST = 8192  # inputs: a program reads all of a sample at a time


def why_not(student: Student, x: torch.Tensor) -> str | None:
    """Why Triton does not compute it: where somebody follows each operation, that is asked before."""
    if (reason := triton.refusal(x.device.type, str(x.dtype).removeprefix("torch."))) is not None:
        return reason
    if not all(student.widths) or student.widths[0] > WIDEST:
        return f"a layer of no features, or of more than {WIDEST} inputs"
    if not all(type(tensor) in PLAIN for tensor in (x, *student.parameters)):
        return "a tensor is of a class of its own"
    return None


def unfit(streams: Streams) -> str | None:
    """Why no kernels are written for such streams."""
    if not streams.wanted:
        return "nothing is asked for"
    return f"{streams.count} streams are more than {MOST}" if streams.count > MOST else None


def products_of_torch() -> str:
    """The precision that PyTorch's own products of float32 have on a GPU."""
    try:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    except RuntimeError:  # it was set by names that this one does not know
        return "ieee"


class Launched(Call):
    """As a `Call`, in products of a precision of `sobolev_loss`; those of fp16, which has no room for what derivatives
    of high order are multiplied with, are of as many digits in TF32."""

    def __init__(
        self, streams: Streams, student: Student, again: Callable[..., torch.Tensor], precision: str, keeping: bool
    ):  # fmt: skip
        super().__init__(streams, student, again)
        self.precision, self.keeping = "tf32" if precision == "fp16" else precision, keeping
        self.asked = Asked(streams, self.widths, self.biases, self.activations, self.precision)

    def run(
        self, x: torch.Tensor, v: torch.Tensor, parameters: tuple[torch.Tensor, ...],
        cotangents: torch.Tensor | None = None, of_x: bool = False, of_v: bool = False,
        kept: Sequence[torch.Tensor] = (),
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """The results [R, N] and what is kept of the pass, or of that and their cotangents the gradients of x, v and
        each parameter."""
        from ..backends.triton import jets

        x, v, *parameters = as_read([x, v, *parameters])
        if not x.shape[0]:
            return nothing(x, v, parameters, len(self.streams.outputs), cotangents is not None, of_x, of_v)
        if cotangents is None:
            return jets.results(self.asked, x, v, parameters, self.keeping)
        return jets.gradients(self.asked, x, v, parameters, kept, cotangents, of_x, of_v)


def nothing(
    x: torch.Tensor, v: torch.Tensor, parameters: Sequence[torch.Tensor], R: int, back: bool, of_x: bool, of_v: bool
) -> list[torch.Tensor | None]:  # fmt: skip
    """What is made of no samples."""
    if not back:
        return [x.new_zeros(R, 0)]
    along = [torch.zeros_like(t) if of else None for t, of in ((x, of_x), (v, of_v))]
    return [*along, *map(torch.zeros_like, parameters)]

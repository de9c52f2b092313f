"""Streams through an MLP by the C++ core (csrc/cpu/jets.h): one pass for the results, one for all gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import empty

from ..backends import core, cpu, jets
from ..backends.core import strided
from ..boundary import PLAIN, all_ready
from ..enums import DTYPES
from ..math.table import Formula
from ..student import Student
from ..transforms import several
from .plan import Streams
from .programs import layers_of


def why_not(student: Student, x: torch.Tensor) -> str | None:
    """Why the core does not compute it: where somebody follows each operation, that is asked before."""
    if core.MISSING:
        return core.MISSING
    if not hasattr(core._C, "mlp_jets_loss"):
        return "the compiled core is of another version (it has no mlp_jets_loss); build it again"
    if x.device.type != "cpu":
        return f"tensors are on {x.device}"
    if str(x.dtype).removeprefix("torch.") not in DTYPES:
        return f"dtype {x.dtype} is not one of {', '.join(DTYPES)}"
    if len(student.activations) > cpu.MOST_LAYERS:
        return f"{len(student.activations)} linear layers are more than {cpu.MOST_LAYERS}"
    if not all(student.widths):
        return "a layer has no features"
    if not all(type(tensor) in PLAIN for tensor in (x, *student.parameters)):
        return "a tensor is of a class of its own"
    return None


@lru_cache(maxsize=256)
def planned(
    streams: Streams, widths: tuple[int, ...], activations: tuple[Formula, ...], dtype: str
) -> tuple[object, float]:
    """What the core is told of it but tensors, once; and the FLOPs of a sample, forward and back."""
    layers = layers_of(streams, activations)
    of_layers = zip(layers, widths, widths[1:], strict=False)
    work = sum(len(layer.given) * (8 * n_in * n_out + cpu.ACTIVATED * n_out) for layer, n_in, n_out in of_layers)
    return jets.jets_of(streams, layers, widths, activations, dtype), float(work)


class Call:
    """Streams of a student of which tensors may be given: `again` makes the same results by PyTorch's operations."""

    def __init__(self, streams: Streams, student: Student, again: Callable[..., torch.Tensor]):
        self.widths, self.biases, self.activations = student.widths, student.biases, student.activations
        self.streams, self.again = streams, again

    def student(self, parameters: tuple[torch.Tensor, ...]) -> Student:
        return Student(self.widths, self.biases, self.activations, parameters)

    def run(
        self, x: torch.Tensor, v: torch.Tensor, parameters: tuple[torch.Tensor, ...],
        cotangents: torch.Tensor | None = None, of_x: bool = False, of_v: bool = False,
        kept: Sequence[torch.Tensor] = (),
    ) -> list[torch.Tensor | None]:  # fmt: skip
        """The results [R, N], or from their cotangents the gradients of x, v and each parameter; nothing is kept."""
        N, R, back = x.shape[0], len(self.streams.outputs), cotangents is not None
        x, v, *parameters = as_read([x, v, *parameters])
        new = empty if N else torch.zeros
        like = {"dtype": x.dtype, "device": x.device}
        out = None if back else new((R, N), **like)
        dx = new(x.shape, **like) if of_x else None
        dv = new(v.shape, **like) if of_v else None
        gradients = [new(p.shape, **like) for p in parameters] if back else []
        if N:
            places = [None if t is None else t.data_ptr() for t in (dx, dv, out, cotangents)]
            pairs = self.with_gaps(map(strided, parameters)), self.with_gaps(g.data_ptr() for g in gradients)
            given = v.stride() if v.dim() == 3 else (v.stride(0), 0, v.stride(1))
            inputs = strided(x), (v.data_ptr(), *given) if len(v) else None
            core._C.mlp_jets(*self.shared_out(N, x.dtype), *inputs, *pairs, *places)
        return [dx, dv, *gradients] if back else [out]

    def shared_out(self, N: int, dtype: torch.dtype) -> tuple:
        """As the core is told: plan, instruction set, N, samples of a tile, threads, whether weights are in place."""
        plan, work = planned(self.streams, self.widths, self.activations, str(dtype).removeprefix("torch."))
        threads = torch.get_num_threads() if N * work > cpu.ALONE else 1
        tile = cpu.even(-(-N // threads), cpu.TILE)
        return plan, core.instruction_set(), N, tile, threads, cpu.in_place(max(self.widths), -(-N // tile), threads)

    def with_gaps(self, entries) -> list:
        """Of weight and bias of each layer, None for a bias that is not there."""
        entries = list(entries)
        if not entries:
            return []
        of = iter(entries)
        return [next(of) if there else None for bias in self.biases for there in (True, bias)]


def as_read(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Such that the core may read them where they are."""
    ready = all_ready(tensors, [t.shape for t in tensors], tensors[0].dtype, tensors[0].device)
    if isinstance(ready, int):
        raise ValueError(f"student: expected tensors in their memory, got {tuple(tensors[ready].shape)}")
    return ready


class Results(torch.autograd.Function):
    """The results [R, N] of x [N, D], directions v [F, D] or [F, N, D] and parameters."""

    @staticmethod
    def forward(ctx, call: Call, x: torch.Tensor, v: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        results, *kept = call.run(x, v, parameters)
        ctx.call, ctx.count = call, len(parameters)
        ctx.save_for_backward(x, v, *parameters, *kept)
        return results

    @staticmethod
    def backward(ctx, cotangents: torch.Tensor):
        call, (x, v, *saved) = ctx.call, ctx.saved_tensors
        parameters, kept = saved[: ctx.count], saved[ctx.count :]
        asked = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or several(
            cotangents
        ):  # it will be differentiated again, or is of several at a time
            return None, *again(call, [x, v, *parameters], cotangents, asked)
        found = call.run(x, v, tuple(parameters), cotangents.contiguous(), asked[0], asked[1], kept)
        return None, *(gradient if wanted else None for gradient, wanted in zip(found, asked, strict=True))


# without what torch.func would be told of it: nobody follows who comes here
apply = super(torch.autograd.Function, Results).apply


def again(
    call: Call, tensors: list[torch.Tensor], cotangents: torch.Tensor, asked: tuple[bool, ...]
) -> list[torch.Tensor | None]:  # fmt: skip
    """The gradients by PyTorch's operations, with their own graph."""
    kept = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [t.view_as(t) if wanted else t for t, wanted in zip(tensors, asked, strict=True)]
        x, v, *parameters = aliases
        results = call.again(call.streams, call.student(tuple(parameters)), x, v)
        wanted = [alias for alias, here in zip(aliases, asked, strict=True) if here]
        found = iter(torch.autograd.grad(results, wanted, cotangents, create_graph=kept, materialize_grads=True))
    return [next(found) if here else None for here in asked]

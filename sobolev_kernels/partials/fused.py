"""Streams through an MLP by the C++ core (csrc/cpu/jets.h): one pass for the results, one for all gradients, which
reads what the first one left where that is little, and else computes it again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import empty, empty_like

from ..backends import core, cpu, jets
from ..backends.core import strided
from ..boundary import PLAIN, all_ready
from ..enums import DTYPES
from ..math.table import Formula
from ..student import Student
from ..transforms import several
from .plan import Streams
from .programs import layers_of

# Bytes of h and g of all samples that results leave for their cotangents. ms of both calls, float32, one thread of a
# CPU with 1 MiB of second-level cache and 32 MiB of third, computed again and left in memory that is at hand:
#
#     u, u_t, u_x, u_xx      20×5,  256    0.8 MB   0.245  0.228       64×4,  256   2.1 MB   0.679   0.571
#     the same               20×5, 1024    3.3 MB   0.618  0.539       64×4, 1024   8.4 MB   2.427   2.423
#     and u_xxxx             20×5, 1024    4.9 MB   0.945  0.808       64×4, 4096    50 MB   14.04   14.75
#
# In fresh memory it never pays: its pages take longer than what they save (0.260 and 0.403 ms of the first).
MOST_LEFT = 5 << 20
SPARE: deque[torch.Tensor] = deque(maxlen=4)  # such memory, of calls that are done


class Lent:
    """Memory that goes back to the spare when nobody holds it."""

    __slots__ = ("spare", "tensor")

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.spare = tensor, SPARE

    def __del__(self):
        self.spare.append(self.tensor)


def lent(numbers: int, dtype: torch.dtype) -> Lent:
    for _ in range(len(SPARE)):
        try:
            tensor = SPARE.popleft()
        except IndexError:  # another thread took it
            break
        if tensor.numel() == numbers and tensor.dtype is dtype:
            return Lent(tensor)
        SPARE.append(tensor)
    return Lent(empty((numbers,), dtype=dtype))


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
) -> tuple[object, float, int]:
    """What the core is told of it but tensors, once; of a sample the FLOPs, forward and back, and the numbers that may
    be left between the two."""
    layers = layers_of(streams, activations)
    left = sum((len(layer.made) + len(layer.kept)) * n for layer, n in zip(layers, widths[1:], strict=True))
    of_layers = zip(layers, widths, widths[1:], strict=False)
    work = sum(len(layer.given) * (8 * n_in * n_out + cpu.ACTIVATED * n_out) for layer, n_in, n_out in of_layers)
    return jets.jets_of(streams, layers, widths, activations, dtype), float(work), left


class Call:
    """Streams of a student of which tensors may be given: `again` makes the same results by PyTorch's operations.
    `keeping`: whether gradients may be asked for, so that something is kept for them."""

    def __init__(
        self, streams: Streams, student: Student, again: Callable[..., torch.Tensor], keeping: bool = False
    ):  # fmt: skip
        self.keeping = keeping
        self.widths, self.biases, self.activations = student.widths, student.biases, student.activations
        self.streams, self.again = streams, again

    def student(self, parameters: tuple[torch.Tensor, ...]) -> Student:
        return Student(self.widths, self.biases, self.activations, parameters)

    def run(
        self, x: torch.Tensor, v: torch.Tensor, parameters: tuple[torch.Tensor, ...],
        cotangents: torch.Tensor | None = None, of_x: bool = False, of_v: bool = False,
        kept: Sequence[Lent] = (),
    ) -> list:  # fmt: skip
        """The results [R, N] and what is kept, or from their cotangents the gradients of x, v and each parameter."""
        N, R, back = x.shape[0], len(self.streams.outputs), cotangents is not None
        x, v, *parameters = as_read([x, v, *parameters])
        new = empty if N else torch.zeros
        like = {"dtype": x.dtype, "device": x.device}
        out = None if back else new((R, N), **like)
        dx = new(x.shape, **like) if of_x else None
        dv = new(v.shape, **like) if of_v else None
        new_like = partial(empty_like if N else torch.zeros_like, memory_format=torch.contiguous_format)
        gradients = [*map(new_like, parameters)] if back else []
        if N:
            plan, isa, _, tile, *more = self.shared_out(N, x.dtype)
            kept = self.memory_between(N, x, isa) if not back else kept
            tile = cpu.whole_panels(tile, isa) if kept else tile
            places = [None if t is None else t.data_ptr() for t in (dx, dv, out, cotangents)]
            pairs = self.with_gaps(map(strided, parameters)), self.with_gaps(g.data_ptr() for g in gradients)
            given = v.stride() if v.dim() == 3 else (v.stride(0), 0, v.stride(1))
            inputs = strided(x), (v.data_ptr(), *given) if len(v) else None
            places += [lent.tensor.data_ptr() for lent in kept]
            core._C.mlp_jets(plan, isa, N, tile, *more, *inputs, *pairs, *places)
        return [dx, dv, *gradients] if back else [out, *kept]

    def memory_between(self, N: int, x: torch.Tensor, isa: str) -> list[Lent]:
        """For what the results leave for their cotangents, where that pays."""
        if not self.keeping:
            return []
        *_, left = planned(self.streams, self.widths, self.activations, str(x.dtype).removeprefix("torch."))
        numbers = left * cpu.whole_panels(N, isa)
        return [lent(numbers, x.dtype)] if 0 < numbers * x.element_size() <= MOST_LEFT else []

    def shared_out(self, N: int, dtype: torch.dtype) -> tuple:
        """As the core is told: plan, instruction set, N, samples of a tile, threads, whether weights are in place."""
        plan, work, _ = planned(self.streams, self.widths, self.activations, str(dtype).removeprefix("torch."))
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
        ctx.lent = kept.pop() if kept and type(kept[-1]) is Lent else None
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
        kept = kept if ctx.lent is None else [ctx.lent]
        found = call.run(x, v, tuple(parameters), cotangents.contiguous(), asked[0], asked[1], kept)
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.lent = None
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

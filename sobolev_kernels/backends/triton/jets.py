"""Streams of any derivatives through the layers of an MLP: one pass for the results, one for all gradients.

Each product of all streams has the layer's program behind it (`jet_source.py`); of narrow layers all are one launch, of
others a launch each, and where products are torch's the program is a launch of its own. The forward may leave h and g
of each layer to the backward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, count
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...enums import DIRECTIONS
from ...math.table import Formula
from ...partials import constants
from ...partials.plan import Streams
from ...partials.programs import Asked, Layer, layers_of
from ...problem import DERIVATIVES_GRADIENTS, Operands, Problem
from .. import on_device_of
from . import layerwise
from .finishing import Terms, finish
from .formulas import activation_of
from .jet_source import GENERATED, Kernel, adjoint_slots, chain_of, code_of, forward_slots, kernel_of
from .launches import (
    JET_BLOCKS,
    JET_CHAINS,
    JETS,
    JETS_FUSED_UP_TO,
    LONGEST_CHAIN,
    MOST_CHAINED,
    Jet,
    fuses,
    padded,
)
from .layers import Layers
from .layerwise import near
from .parameters import OPERANDS
from .script import At, Script
from .written import SCRIPTS, keep

here = sys.modules[__name__]
RESULTS = 256  # samples of a program


def problem_of(asked: Asked, device: str, shared: bool) -> Problem:
    """As the layers of a step know it."""
    P = len(asked.streams.first)  # of none, any distribution that is drawn: there is nothing to read
    directions = {"P": P, "shared": shared, "distribution": "given" if P else "sphere", "projection": DIRECTIONS}
    return Problem(
        DERIVATIVES_GRADIENTS, asked.widths, asked.biases, asked.activations, "float32", device, **directions,
        order=asked.streams.order, gradients=True, precision=asked.precision, backend="triton",
    )  # fmt: skip


class Table(NamedTuple):
    """Sums of rows: of each how it begins among the numbers of rows and the coefficients."""

    begin: torch.Tensor
    at: torch.Tensor
    c: torch.Tensor


@lru_cache(maxsize=256)
def tables_of(
    streams: Streams, activations: tuple[Formula, ...], O: int, device: torch.device
) -> tuple[Table, Table]:  # fmt: skip
    """Results of the outputs' streams, whose rows are (stream, output); and the other way round."""
    made = {k: n for n, k in enumerate(layers_of(streams, activations)[-1].made)}
    terms = [(r, made[k] * O + o, c) for r, row in enumerate(streams.outputs) for k, o, c in row if k in made]
    back = sorted((at, r, c) for r, at, c in terms)
    return table(terms, len(streams.outputs), device), table(back, len(made) * O, device)


def table(terms: list[tuple[int, int, float]], rows: int, device: torch.device) -> Table:
    counts = [0] * (rows + 1)
    for row, _, _ in terms:
        counts[row + 1] += 1
    _, at, c = zip(*terms or [(0, 0, 0.0)], strict=True)
    begin, at = (constants.kept(numbers, torch.int32, device) for numbers in (tuple(accumulate(counts)), at))
    return Table(begin, at, constants.kept(c, torch.float32, device))


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["IN", "OUT"])
def sums_kernel(IN, OUT, BEGIN, AT, C, N, rows, n_in, n_out, BLOCK: tl.constexpr):
    """The rows of OUT [rows / n_out, N, n_out] as sums of rows of IN [.., N, n_in] by a Table. Of a program's number
    the remainder is its row."""
    row, sample = tl.program_id(0) % rows, (tl.program_id(0) // rows).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total, valid = tl.zeros((BLOCK,), tl.float32), sample < N
    for t in range(tl.load(BEGIN + row), tl.load(BEGIN + row + 1)):
        at = tl.load(AT + t)
        place = ((at // n_in) * N.to(tl.int64) + sample) * n_in + at % n_in
        total += tl.load(C + t) * tl.load(IN + place, mask=valid, other=0.0)
    tl.store(OUT + ((row // n_out) * N.to(tl.int64) + sample) * n_out + row % n_out, total, mask=valid)


def few(widths: Sequence[int], N: int) -> bool:
    """Whether so few samples go through the layers that one launch for all of them is faster than their own."""
    return N * max(widths[1:]) <= MOST_CHAINED


@lru_cache(maxsize=256)
def is_fused(asked: Asked) -> bool:
    """Whether programs stand behind products of our own: up to a width, and where all that lives fits in registers."""
    layers = layers_of(asked.streams, asked.activations)
    most = max(code_of(slots)[1] for of in layers for slots in (forward_slots(of, True), adjoint_slots(of)))
    return fuses(problem_of(asked, "cpu", True), JETS_FUSED_UP_TO) and most <= JETS[-1].alive


@lru_cache(maxsize=256)
def kernels_of(asked: Asked, fused: bool, keeping: bool) -> tuple[list[Layer], list[Kernel], list[Kernel]]:
    """The programs of each layer, and its kernels, forward and adjoint."""
    layers = layers_of(asked.streams, asked.activations)
    forward = [kernel_of(forward_slots(of, keeping), True, fused, 0 in of.given) for of in layers]
    adjoint = [kernel_of(adjoint_slots(of), False, fused and of is not layers[-1]) for of in layers]
    return layers, forward, adjoint


class Step(NamedTuple):
    """A product with a kernel behind it, of n features: its matrix with its strides, what else it reads and makes, of
    which `out` is what the next one multiplies, and the activation."""

    kernel: Kernel
    n: int
    tensors: tuple[At | None, ...]
    strides: tuple[int, ...]
    out: At
    end: tuple = ()


class JetLayers(Layers):
    """The layers of a script. `kept`: where h of the inputs and of each layer but the last, and then g of each curved
    layer, come from or go to; without, the forward keeps nothing."""

    def __init__(self, script: Script, asked: Asked, problem: Problem, operands: Operands, at: Operands, kept: list):
        super().__init__(layerwise, is_fused(asked), script, problem, operands, at, streams=asked.streams.count)
        self.jets, self.forwards, self.adjoints = kernels_of(asked, self.fusing, bool(kept))
        made = self.jets[-1].made
        self.made, self.along = len(made), len([k for k, _ in asked.streams.first if k in made])
        self.chained = few(problem.widths, self.N)
        h, g = kept[: self.last + 1], iter(kept[self.last + 1 :])
        self.h = h or [None] * (self.last + 1)
        self.g = [next(g) if kept and of.kept else None for of in self.jets]

    def elementwise_of(self, kernel: Kernel, n: int, *tensors, end: tuple = ()) -> None:
        """A program by itself, of streams of n features."""
        block, warps = next(row[1:] for row in JET_BLOCKS if kernel.alive <= row[0])
        grid = (triton.cdiv(self.N * n, block),)
        self.script.launch(GENERATED, kernel.name, grid, *tensors, self.N, n, *end, BLOCK=block, num_warps=warps)

    def chain(self, IN: At, K: int, steps: list[Step], forward: bool) -> None:
        """Products with programs behind them, one after the other: in one launch where a program can have all columns,
        else a launch each."""
        width, alive = padded(max(step.n for step in steps)), max(step.kernel.alive for step in steps)
        rows = [row for row in JET_CHAINS if width <= row.columns and alive <= row.alive]
        if rows and self.chained and 1 < len(steps) <= LONGEST_CHAIN:
            whole = chain_of(tuple(step.kernel for step in steps), tuple(padded(step.n) for step in steps), forward)
            of_layers = [value for step in steps for value in (*step.tensors, step.n, *step.strides, *step.end)]
            self.product_of(whole, rows[0], 1, IN, self.N, K, *of_layers)
            return
        for step in steps:
            tile = next(row for row in JETS if step.kernel.alive <= row.alive)
            columns = min(tile.columns, padded(step.n))
            W, *others = step.tensors
            values = IN, W, *others, self.N, K, step.n, *step.strides, *step.end
            self.product_of(step.kernel, tile, triton.cdiv(step.n, columns), *values, BN=columns)
            IN, K = step.out, step.n

    def product_of(self, kernel: Kernel, tile: Jet, across: int, *values, **more) -> None:
        self.script.launch(
            GENERATED, kernel.name, (triton.cdiv(self.N, tile.rows), across), *values,
            PRECISION=self.problem.precision, BM=tile.rows, BK=tile.depth, **tile.options,
            **more,
        )  # fmt: skip

    def results(self, out: At, tables: Table, R: int) -> None:
        self.sums(self.forward(), out, tables, R, self.problem.O, 1)

    def forward(self) -> At:
        """The streams of the outputs [made, N, O]."""
        D, first, steps = self.problem.D, len(self.jets[0].given), []
        h = start = self.start(self.at.x, first, D, self.problem.W if first > 1 else 0, self.h[0])
        for l, ((_, n), layer, kernel) in enumerate(zip(self.sizes, self.jets, self.forwards, strict=True)):
            below, end = h, (activation_of(self.problem.activations[l]),)
            kept = l < self.last and self.h[l + 1]
            h = kept or self.room(len(layer.made), n, operand=l < self.last)
            if self.fusing:
                tensors = self.weights[l], self.biases[l], h, self.g[l]
                steps.append(Step(kernel, n, tensors, self.strides[l], h, end))
            else:
                z = self.script.room(len(layer.given), self.N, n)
                self.multiply(below, l, z)
                self.elementwise_of(kernel, n, z, self.biases[l], h, self.g[l], end=end)
        if steps:
            self.chain(start, D, steps, True)
        return h

    def sums(self, source: At, out: At, tables: Table, rows: int, n_in: int, n_out: int) -> None:
        programs = rows * triton.cdiv(self.N, RESULTS)
        if programs:
            self.script.launch(here, "sums_kernel", (programs,), source, out, *tables, self.N, rows, n_in, n_out,
                               BLOCK=RESULTS)  # fmt: skip

    def gradients_of(
        self, cotangents: At, tables: Table, dx: At | None, dv: At | None, gradients: list[At], shared: bool
    ) -> None:  # fmt: skip
        """From the cotangents [R, N] of the results."""
        adjoints = self.room_of_adjoints()
        self.sums(cotangents, adjoints, tables, self.made * self.problem.O, 1, self.problem.O)
        self.all_gradients(adjoints, dx, dv, gradients, shared)

    def room_of_adjoints(self) -> At:
        """A stack [made, N, O] for the cotangents of the outputs' streams."""
        return self.script.room(self.made, self.N, self.problem.O)

    def all_gradients(self, adjoints: At, dx: At | None, dv: At | None, gradients: list[At], shared: bool) -> None:
        """From the cotangents of the outputs' streams."""
        alone = dv is not None and shared
        each = self.script.room(len(self.jets[0].given) - 1, self.N, self.problem.D) if alone else dv
        self.backward(adjoints, [], dx, each, 1.0)
        if each is not dv:
            self.script.do(lambda each, dv: torch.sum(each, 1, out=dv), each, dv)
        finish(self.script, self.problem, (1.0,), {}, gradients, Terms(self.script.room(1), 0), self.slots(), 1.0)

    def backward(self, adjoints: At, q_of_layer: list, dx: At | None, dgiven: At | None, common: float) -> None:
        """All gradients from the adjoints of what `forward` gave, also that of the directions of each sample."""
        problem, z_bar, Z = self.problem, [None] * (self.last + 1), [None] * (self.last + 1)
        h_bar, steps = adjoints, []
        for l in range(self.last, -1, -1):
            layer, n, kernel = self.jets[l], self.sizes[l][1], self.adjoints[l]
            half, alone = self.dtype != torch.float32, not self.fusing or l == self.last
            if alone and layer.adjoint is None and not half:
                z_bar[l] = Z[l] = h_bar
            else:
                z_bar[l] = Z[l] = self.room(len(layer.given), n, operand=True)
                if alone:
                    Z[l] = self.script.room(1, self.N, n) if half else z_bar[l]
                    self.elementwise_of(kernel, n, h_bar, z_bar[l], self.g[l], Z[l] if half else None)
                else:
                    tensors = self.weights[l + 1], z_bar[l], self.g[l]
                    steps.append(Step(kernel, n, tensors, self.strides[l + 1][::-1], z_bar[l]))
            if l and not self.fusing:
                h_bar = self.script.room(len(layer.given), self.N, self.sizes[l][0])
                self.multiply(z_bar[l], l, h_bar, transposed=True)
        if steps:
            self.chain(z_bar[-1], problem.O, steps, False)
        streams = [(len(layer.given), int(0 in layer.given)) for layer in self.jets]
        if dx is not None:
            self.product(z_bar[0], 0, dx, 1, common)
        if dgiven is not None:
            self.product(z_bar[0], 0, dgiven, streams[0][0] - 1, common, first=1, columns=problem.W)
        self.outer_of(z_bar, self.h, streams, Z)


@lru_cache(maxsize=256)
def kept_by(asked: Asked) -> tuple[tuple[int, int, torch.dtype], ...]:
    """Streams and features of h of the inputs and of each layer but the last, and of g of each curved layer."""
    layers = layers_of(asked.streams, asked.activations)
    half = None if is_fused(asked) else OPERANDS.get(asked.precision)
    h = [(len(of.given), n, half or torch.float32) for of, n in zip(layers, asked.widths, strict=False)]
    return (*h, *((len(of.kept), n, torch.float32) for of, n in zip(layers, asked.widths[1:], strict=True) if of.kept))


def script_of(key: tuple, device: torch.device, came: int, write: Callable[[Script], None]) -> Script:
    """Written once for what is alike (`script.py`)."""
    script = SCRIPTS.get(key)
    if script is None:
        script = Script(device, came)
        write(script)
        keep(key, script)
    return script


def results(
    asked: Asked, x: torch.Tensor, v: torch.Tensor, parameters: Sequence[torch.Tensor], keeping: bool
) -> list[torch.Tensor]:
    """The results [R, N] of x [N, D] along v, [F, D] or [F, N, D], and what the backward reads if it is kept."""
    N, R, given = x.shape[0], len(asked.streams.outputs), [v] * bool(len(v))
    new = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=x.device)  # noqa: E731
    parameters = read(parameters)
    to, _ = tables_of(asked.streams, asked.activations, asked.widths[-1], x.device)
    kept = [new(S, N, n, dtype=dtype) for S, n, dtype in kept_by(asked)] if keeping else []
    reads, made = [x, *parameters, *given, *to], [new(R, N), *kept]

    def write(script: Script) -> None:
        at = iter(map(At, count()))
        places = lambda tensors: [next(at) for _ in tensors]  # noqa: E731
        operands = Operands(x, parameters, v if given else None)
        x_at, of_parameters, of_given, of_table, (out, *of_kept) = map(places, ([x], parameters, given, to, made))
        there = Operands(x_at[0], of_parameters, *of_given)
        layers = JetLayers(script, asked, problem_of(asked, x.device.type, v.dim() == 2), operands, there, of_kept)
        layers.results(out, Table(*of_table), R)

    key = asked, "results", keeping, x.device, tuple(tensor.shape for tensor in (x, v)), strides(reads)
    with on_device_of(x):
        script_of(key, x.device, len(reads) + len(made), write).run(reads, made, None)
    return made


def gradients(
    asked: Asked, x: torch.Tensor, v: torch.Tensor, parameters: Sequence[torch.Tensor], kept: Sequence[torch.Tensor],
    cotangents: torch.Tensor, of_x: bool, of_v: bool,
) -> list[torch.Tensor | None]:  # fmt: skip
    """Those of x, v and each parameter, from the cotangents [R, N] of the results."""
    parameters, cotangents = read(parameters), cotangents.contiguous()
    _, back = tables_of(asked.streams, asked.activations, asked.widths[-1], x.device)
    along = [torch.empty(t.shape, dtype=t.dtype, device=t.device) if of else None for t, of in ((x, of_x), (v, of_v))]
    made = [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in parameters]
    reads, filled = [x, *parameters, cotangents, *back, *kept], [*(t for t in along if t is not None), *made]

    def write(script: Script) -> None:
        at = iter(map(At, count()))
        places = lambda tensors: [next(at) for _ in tensors]  # noqa: E731
        x_at, of_parameters, of_cotangents, of_table, of_kept = map(places, ([x], parameters, [0], back, kept))
        dx, dv = (next(at) if t is not None else None for t in along)
        there = Operands(x_at[0], of_parameters)
        problem = problem_of(asked, x.device.type, v.dim() == 2)
        layers = JetLayers(script, asked, problem, Operands(x, parameters), there, of_kept)
        layers.gradients_of(of_cotangents[0], Table(*of_table), dx, dv, places(made), v.dim() == 2)

    key = asked, "gradients", of_x, of_v, x.device, tuple(tensor.shape for tensor in (x, v)), strides(reads)
    with on_device_of(x):
        script_of(key, x.device, len(reads) + len(filled), write).run(reads, filled, None)
    return [*along, *made]


def read(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Such that kernels may read them."""
    return [near(p) if p.dim() == 2 else p.contiguous() for p in parameters]


def strides(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple([tensor.stride() for tensor in tensors])

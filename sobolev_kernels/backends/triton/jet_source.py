"""Kernels of general streams at a layer, written for the programs of `partials/programs.py`: docs/math.md, section 15.

A program becomes straight-line code, in the epilogue of the product with all of its streams, or by itself. Loads and
stores stand where a number is first read and made, so that few numbers live at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import triton
import triton.language as tl

from ...enums import FUNCTIONS
from ...partials.programs import Layer, Program
from . import finishing, formulas, fused_multiply, primitives

GENERATED = ModuleType(f"{__name__}.generated")  # where launches find the kernels, by name
NAMES = {
    "tl": tl, "tile_product": fused_multiply.tile_product, "whole_jet": formulas.whole_jet,
    "residual": formulas.residual, "row_sum": finishing.row_sum,
    **{f"function_{name}": getattr(primitives, name) for name in FUNCTIONS},
}  # fmt: skip
finished: Callable = lambda kernel: kernel  # noqa: E731 -- the machines of ptx/ put themselves in a kernel's place

TILE = """
    first = tl.program_id(0).to(tl.int64) * BM
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    many, here, below = N - first, N.to(tl.int64) * n, N.to(tl.int64) * K
    valid = (rows < many)[:, None] & (columns < n)[None, :]
    at = first * n + rows[:, None] * n + columns[None, :]
    IN += first * K"""
PRODUCT = """
    v{s} = tile_product(IN + {s} * below, W, rows, columns, many, K, sw_n, sw_k, n, PRECISION, BM, BN, BK)"""
NUMBERS = """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = N.to(tl.int64) * n
    valid, columns = at < here, at % n"""
OF_TILE = "PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr"
BIAS = """
    if B is not None:
        v0 += tl.load(B + columns, mask=columns < n, other=0.0){row}"""
BETWEEN = """
    tl.debug_barrier()
    """
OF_VALUE = """
    if VALUE is not None:
        tl.store(VALUE + at, v{slot}, mask=valid)"""


class Slots(NamedTuple):
    """Of a program: what it is given, and what is read from memory and made there, by slot (array, stream)."""

    program: Program
    given: range
    read: dict[int, tuple[str, int]]
    made: dict[int, tuple[str, int]]


def forward_slots(layer: Layer, keeping: bool) -> Slots:
    """From z to h, and to g."""
    given, made = len(layer.given), len(layer.made)
    places = {given + k: ("H", k) for k in range(made)}
    if keeping:
        places |= {given + made + k: ("G", k) for k in range(len(layer.kept))}
    return Slots((layer.forward if keeping else layer.values) or identity(given), range(given), {}, places)


def adjoint_slots(layer: Layer) -> Slots:
    """From h̄ and g to z̄."""
    made, kept = len(layer.made), len(layer.kept)
    read = {made + k: ("G", k) for k in range(kept)}
    places = {made + kept + k: ("H", k) for k in range(len(layer.given))}
    return Slots(layer.adjoint or identity(made), range(made), read, places)


def identity(streams: int) -> Program:
    return Program(2 * streams, [None] * 6, [(streams + k, [(None, k, 1.0)]) for k in range(streams)])


def code_of(slots: Slots) -> tuple[list[str], int]:
    """Lines of a program, and how many numbers live at most."""
    sums, sigma = dict(slots.program.sums), {slot: m for m, slot in enumerate(slots.program.sigma) if slot is not None}
    lines, there, steps = [], set(slots.given), []  # a step: what it makes and what it reads
    if sigma:
        lines.append("d = whole_jet(activation, v0)")
        steps.append((set(sigma), {0}))

    def need(slot: int) -> None:
        if slot in there:
            return
        there.add(slot)
        if slot in sigma:
            lines.append(f"v{slot} = d[{sigma[slot]}]")
        elif slot in slots.read:
            lines.append(f"v{slot} = tl.load({stream(*slots.read[slot])}, mask=valid, other=0.0)")
            steps.append(({slot}, set()))
        else:
            factors = {factor for a, b, _ in sums[slot] for factor in (a, b) if factor is not None}
            for factor in sorted(factors):
                need(factor)
            lines.append(f"v{slot} = {' + '.join(map(product, sums[slot])) or 'tl.zeros_like(v0)'}")
            steps.append(({slot}, factors))

    for slot in sorted(slots.made, key=lambda slot: slots.made[slot][::-1]):
        need(slot)
        lines.append(f"tl.store({stream(*slots.made[slot])}, v{slot}, mask=valid)")
        steps.append((set(), {slot}))
    return lines, most_alive(set(slots.given), steps)


def stream(array: str, k: int) -> str:
    return f"{array} + ({k} * here + at)"


def product(term: tuple[int | None, int, float]) -> str:
    a, b, c = term
    return " * ".join([repr(float(c))] * (c != 1) + [f"v{a}"] * (a is not None) + [f"v{b}"])


def most_alive(alive: set[int], steps: list[tuple[set[int], set[int]]]) -> int:
    last = {slot: i for i, (_, read) in enumerate(steps) for slot in read}
    most = len(alive)
    for i, (made, _) in enumerate(steps):
        alive |= made
        most = max(most, len(alive))
        alive = {slot for slot in alive if last.get(slot, -1) > i}
    return most


class Kernel(NamedTuple):
    """Its name in GENERATED, how many numbers live at most at each place of a tile, and what other kernels call."""

    name: str
    alive: int
    function: triton.JITFunction


def kernel_of(slots: Slots, forward: bool, fused: bool, value: bool = False) -> Kernel:
    """The kernel of a layer's program, forward or adjoint, from IN [streams, N, n], or, `fused`, from the product of IN
    [streams, N, K] with a matrix; H and G are stacks [streams, N, n] as IN. `value`: the first stream given is the
    value, which has a bias."""
    lines, alive = code_of(slots)
    if fused:
        more = ("B, ", "activation, ") if forward else ("", "")
        head = f"IN, W, {more[0]}H, G, N, K, n, sw_n, sw_k, {more[1]}{OF_TILE}"
        text = TILE + "".join(PRODUCT.format(s=s) for s in slots.given)
    else:
        head = f"IN, {'B, H, G, N, n, activation' if forward else 'H, G, VALUE, N, n'}, BLOCK: tl.constexpr"
        text = NUMBERS + "".join(f"\n    v{s} = tl.load({stream('IN', s)}, mask=valid, other=0.0)" for s in slots.given)
    if value and forward:
        text += BIAS.format(row="[None, :]" if fused else "")
    text += "".join(f"\n    {line}" for line in lines)
    if not fused and not forward:
        text += OF_VALUE.format(slot=min(slots.made))
    return jitted(f"({head}):{text}\n", "forward" if forward else "adjoint", alive)


@lru_cache(maxsize=256)
def chain_of(kernels: tuple[Kernel, ...], columns: tuple[int, ...], forward: bool) -> Kernel:
    """The `fused` kernels of layers one after the other, each from what the one before made of the same samples: a
    program has all columns of a layer. Its arguments are IN and K of the first one, and of each the others."""
    B, end = ("B{l}, ", "activation{l}, ") if forward else ("", "")
    of_layer = f"W{{l}}, {B}H{{l}}, G{{l}}, n{{l}}, sw_n{{l}}, sw_k{{l}}, {end}"
    call = (
        f"({{IN}}, W{{l}}, {B}H{{l}}, G{{l}}, N, {{K}}, n{{l}}, sw_n{{l}}, sw_k{{l}}, {end}PRECISION, BM, {{BN}}, BK)"
    )
    calls, IN, K = [], "IN", "K"
    for l, (kernel, BN) in enumerate(zip(kernels, columns, strict=True)):
        calls.append(kernel.name + call.format(l=l, IN=IN, K=K, BN=BN))
        IN, K = f"H{l}", f"n{l}"
    head = "IN, N, K, " + "".join(of_layer.format(l=l) for l in range(len(kernels)))
    text = f"({head}{OF_TILE.replace('BN: tl.constexpr, ', '')}):\n    " + BETWEEN.join(calls)
    return jitted(f"{text}\n", "layers", max(kernel.alive for kernel in kernels), kernels)


@lru_cache(maxsize=1024)
def jitted(
    text: str, kind: str, alive: int, called: tuple[Kernel, ...] = (), anywhere: tuple[str, ...] = ()
) -> Kernel:  # fmt: skip
    """`anywhere`: arguments that are parts of a batch, whose addresses must not make another variant."""
    name = f"jets_{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    names = NAMES | {"__name__": __name__, **{kernel.name: kernel.function for kernel in called}}
    function = formulas.function_of(name, f"def {name}{text}", names)
    function = triton.jit(function, do_not_specialize=["N"], do_not_specialize_on_alignment=list(anywhere))
    setattr(GENERATED, name, finished(function))
    return Kernel(name, alive, function)


def forget() -> None:
    """All that was written."""
    jitted.cache_clear()
    chain_of.cache_clear()
    for name in [name for name in vars(GENERATED) if name.startswith("jets_")]:
        delattr(GENERATED, name)

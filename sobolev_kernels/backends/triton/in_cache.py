"""The chains through the layers of a tile of BLOCK samples that registers cannot hold (docs/math.md, sections 2 to 4).

`on_chip.py` has the same functions for students that fit. Here a program keeps what the way back needs of each layer in
its own scratch, small enough for the second-level cache; depth is a run-time loop. This is the one place where a kernel
reads global memory that its own launch wrote: a scratch belongs to one program, and a barrier separates a phase that
writes from the next that reads (the PTX run shows that there is no race). Weight gradients are added to the program's
own slot, in a fixed order.

Weights lie one after the other: [H, DB], hidden_layers - 1 times [H, H], [OB, H].
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .formulas import activation_jet
from .launches import Tile
from .primitives import dot, operand


class Chains(NamedTuple):
    """The functions of this file, or those of on_chip.py, for a kernel."""

    begin: triton.JITFunction
    values_forward: triton.JITFunction
    tangent_forward: triton.JITFunction
    gradient_chain: triton.JITFunction
    backward: triton.JITFunction
    finish: triton.JITFunction


class Room(NamedTuple):
    """What the programs write: their scratches, of which on chip there are none, their slots of gradients, the terms
    of samples or of blocks (`store_term`), and the gradients [N, D] of the inputs and [P, N, columns] of given
    directions or cotangents, if they are wanted."""

    scratch: torch.Tensor | None
    slots: torch.Tensor
    bias_slots: torch.Tensor
    terms: torch.Tensor
    dx: torch.Tensor | None
    dgiven: torch.Tensor | None


# The arrays of a hidden layer in a program's scratch, each [BLOCK, H]. Q is q of docs/math.md; OF_Z is σ'' ż of a
# direction, and of a cotangent the adjoint of h. Then SOURCE [BLOCK, DB], what comes in: x, v, or the adjoint of a
# gradient; and END [BLOCK, OB], the adjoint of the last layer's z.
VALUE_, D1, D2, Q, TANGENT, OF_Z, ADJOINT, ARRAYS = (tl.constexpr(i) for i in range(8))


def scratch_size(hidden_layers: int, tile: Tile) -> int:
    """How many floats a program's scratch has."""
    _, DB, H, OB, BLOCK, *_ = (size.value for size in tile)
    return (ARRAYS.value * hidden_layers * H + DB + OB) * BLOCK


@triton.jit
def grid(base, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The places of a matrix [BLOCK, COLUMNS] that begins at `base`."""
    return base + tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def of_layer(scratch, l, array: tl.constexpr, TILE):
    """Where an array of hidden layer l begins."""
    return scratch + (ARRAYS * l + array) * (TILE.BLOCK * TILE.H)


@triton.jit
def area(scratch, l, array: tl.constexpr, TILE):
    return grid(of_layer(scratch, l, array, TILE), TILE.BLOCK, TILE.H)


@triton.jit
def source(scratch, hidden_layers, TILE):
    """Where SOURCE begins."""
    return of_layer(scratch, hidden_layers, 0, TILE)


@triton.jit
def end(scratch, hidden_layers, TILE):
    """Where END begins."""
    return source(scratch, hidden_layers, TILE) + TILE.BLOCK * TILE.DB


@triton.jit
def weights_of(l, TILE):
    """Where the weights of a linear layer above the first one begin."""
    return (l - 1) * (TILE.H * TILE.H) + TILE.H * TILE.DB


@triton.jit
def all_weights(hidden_layers, TILE):
    """How many weights there are."""
    return weights_of(hidden_layers, TILE) + TILE.OB * TILE.H


# The products. What they read lies in memory: Triton gives every warp the whole of a product whose result, or operand,
# enters another one. They go through their longer side in chunks, because a warp holds its whole operand. Their count
# is not a constant (hidden_layers >> 30 is 0), or the compiler would unroll them and load all of them first; nor may it
# hoist addresses.


@triton.jit
def forward_product(A, TRANSPOSED, hidden_layers, K: tl.constexpr, ROWS: tl.constexpr, TILE):
    """[BLOCK, ROWS] of A [BLOCK, K] times the transposed weights [K, ROWS]."""
    SOME: tl.constexpr = min(K, TILE.CHUNK)
    i, r, c = tl.arange(0, TILE.BLOCK), tl.arange(0, ROWS), tl.arange(0, SOME)
    total = tl.zeros((TILE.BLOCK, ROWS), tl.float32)
    for k in tl.range(0, (hidden_layers >> 30) + K, SOME, disable_licm=True):
        a = tl.load(A + i[:, None] * K + (k + c)[None, :])
        w = tl.load(TRANSPOSED + (k + c)[:, None] * ROWS + r[None, :])
        total += dot(operand(a, TILE.PRECISION), w, TILE.PRECISION)
    return total


@triton.jit
def backward_product(
    A, WEIGHTS, SLOTS, H_BELOW, hidden_layers, ONWARD: tl.constexpr, OUTER: tl.constexpr, K: tl.constexpr,
    COLUMNS: tl.constexpr, TILE,
):  # fmt: skip
    """If ONWARD, [BLOCK, COLUMNS] of an adjoint A [BLOCK, K] times the weights [K, COLUMNS].

    If OUTER, their gradient is added to SLOTS; H_BELOW [BLOCK, COLUMNS] is what came into the layer.
    """
    SOME: tl.constexpr = min(K, TILE.CHUNK)
    i, c, n = tl.arange(0, TILE.BLOCK), tl.arange(0, SOME), tl.arange(0, COLUMNS)
    total = tl.zeros((TILE.BLOCK, COLUMNS), tl.float32)
    for k in tl.range(0, (hidden_layers >> 30) + K, SOME, disable_licm=True):
        a = operand(tl.load(A + i[:, None] * K + (k + c)[None, :]), TILE.PRECISION)
        at = (k + c)[:, None] * COLUMNS + n[None, :]
        if OUTER:
            h = operand(tl.load(grid(H_BELOW, TILE.BLOCK, COLUMNS)), TILE.PRECISION)
            tl.atomic_add(SLOTS + at, dot(tl.trans(a), h, TILE.PRECISION), sem="relaxed")
        if ONWARD:
            total += dot(a, tl.load(WEIGHTS + at), TILE.PRECISION)
    return total


@triton.jit
def store_values(z, scratch, l, activation, TILE):
    """h = σ(z), σ' and σ'' into the scratch of layer l, and q = 0."""
    value, d1, d2, _ = activation_jet(activation, z)
    nothing = tl.zeros_like(z)
    tl.store(area(scratch, l, VALUE_, TILE), value)
    tl.store(area(scratch, l, D1, TILE), d1 + nothing)
    tl.store(area(scratch, l, D2, TILE), d2 + nothing)
    tl.store(area(scratch, l, Q, TILE), nothing)
    tl.debug_barrier()


@triton.jit
def values_forward(x, state, t, packed, hidden_layers, activation, TILE):
    """z of the last layer [BLOCK, OB]."""
    scratch, _, _ = state
    TRANSPOSED, BIASES = packed.transposed, packed.biases
    h, o = tl.arange(0, TILE.H), tl.arange(0, TILE.OB)
    below = source(scratch, hidden_layers, TILE)
    tl.store(grid(below, TILE.BLOCK, TILE.DB), x)
    tl.debug_barrier()
    z = forward_product(below, TRANSPOSED, hidden_layers, TILE.DB, TILE.H, TILE)
    store_values(z + tl.load(BIASES + h)[None, :], scratch, 0, activation, TILE)
    for l in tl.range(1, hidden_layers, disable_licm=True):
        below = of_layer(scratch, l - 1, VALUE_, TILE)
        z = forward_product(below, TRANSPOSED + weights_of(l, TILE), hidden_layers, TILE.H, TILE.H, TILE)
        store_values(z + tl.load(BIASES + l * TILE.H + h)[None, :], scratch, l, activation, TILE)
    below, at = of_layer(scratch, hidden_layers - 1, VALUE_, TILE), weights_of(hidden_layers, TILE)
    z = forward_product(below, TRANSPOSED + at, hidden_layers, TILE.H, TILE.OB, TILE)
    tl.debug_barrier()
    return z + tl.load(BIASES + hidden_layers * TILE.H + o)[None, :], state


@triton.jit
def store_tangent(z, scratch, l, CURVATURE: tl.constexpr, ALONG_G_BAR: tl.constexpr, TILE):
    """ḣ = σ' ż into the scratch of layer l, and σ'' ż if CURVATURE; if ALONG_G_BAR, σ'' ż a is added to q."""
    tl.store(area(scratch, l, TANGENT, TILE), tl.load(area(scratch, l, D1, TILE)) * z)
    if CURVATURE:
        tl.store(area(scratch, l, OF_Z, TILE), tl.load(area(scratch, l, D2, TILE)) * z)
    if ALONG_G_BAR:
        q = area(scratch, l, Q, TILE)
        a = tl.load(area(scratch, l, OF_Z, TILE))
        tl.store(q, tl.load(q) + tl.load(area(scratch, l, D2, TILE)) * z * a)
    tl.debug_barrier()


@triton.jit
def tangent_forward(
    v, state, p, packed, hidden_layers, activation, CURVATURE: tl.constexpr, ALONG_G_BAR: tl.constexpr, TILE
):
    """ż of the last layer [BLOCK, OB] along v; with σ'' ż of the hidden layers in the scratch if CURVATURE.

    If ALONG_G_BAR, v is ḡ, the adjoint of a gradient whose own chain is in the scratch: the outer products of both are
    the gradients of the weights.
    """
    scratch, slots, _ = state
    TRANSPOSED = packed.transposed
    below = source(scratch, hidden_layers, TILE)
    tl.store(grid(below, TILE.BLOCK, TILE.DB), v)
    tl.debug_barrier()
    z = forward_product(below, TRANSPOSED, hidden_layers, TILE.DB, TILE.H, TILE)
    if ALONG_G_BAR:
        delta = of_layer(scratch, 0, ADJOINT, TILE)
        backward_product(delta, TRANSPOSED, slots, below, hidden_layers, False, True, TILE.H, TILE.DB, TILE)
    store_tangent(z, scratch, 0, CURVATURE, ALONG_G_BAR, TILE)
    for l in tl.range(1, hidden_layers, disable_licm=True):
        below, at = of_layer(scratch, l - 1, TANGENT, TILE), weights_of(l, TILE)
        z = forward_product(below, TRANSPOSED + at, hidden_layers, TILE.H, TILE.H, TILE)
        if ALONG_G_BAR:
            delta = of_layer(scratch, l, ADJOINT, TILE)
            backward_product(delta, TRANSPOSED, slots + at, below, hidden_layers, False, True, TILE.H, TILE.H, TILE)
        store_tangent(z, scratch, l, CURVATURE, ALONG_G_BAR, TILE)
    below, at = of_layer(scratch, hidden_layers - 1, TANGENT, TILE), weights_of(hidden_layers, TILE)
    if ALONG_G_BAR:
        delta = end(scratch, hidden_layers, TILE)
        backward_product(delta, TRANSPOSED, slots + at, below, hidden_layers, False, True, TILE.OB, TILE.H, TILE)
    z = forward_product(below, TRANSPOSED + at, hidden_layers, TILE.H, TILE.OB, TILE)
    tl.debug_barrier()
    return z, state


@triton.jit
def store_gradient(a, scratch, l, TILE):
    """The adjoint a of h of layer l, and δ = σ' a, into the scratch."""
    tl.store(area(scratch, l, OF_Z, TILE), a)
    tl.store(area(scratch, l, ADJOINT, TILE), tl.load(area(scratch, l, D1, TILE)) * a)
    tl.debug_barrier()


@triton.jit
def gradient_chain(out, state, p, packed, hidden_layers, activation, TILE):
    """Jᵀu [BLOCK, DB] of a cotangent, from that of the last layer's z."""
    scratch, slots, _ = state
    WEIGHTS = packed.weights
    above = end(scratch, hidden_layers, TILE)
    tl.store(grid(above, TILE.BLOCK, TILE.OB), out)
    tl.debug_barrier()
    at = WEIGHTS + weights_of(hidden_layers, TILE)
    a = backward_product(above, at, slots, above, hidden_layers, True, False, TILE.OB, TILE.H, TILE)
    for m in tl.range(1, hidden_layers, disable_licm=True):
        l = hidden_layers - m
        store_gradient(a, scratch, l, TILE)
        above, at = of_layer(scratch, l, ADJOINT, TILE), WEIGHTS + weights_of(l, TILE)
        a = backward_product(above, at, slots, above, hidden_layers, True, False, TILE.H, TILE.H, TILE)
    store_gradient(a, scratch, 0, TILE)
    above = of_layer(scratch, 0, ADJOINT, TILE)
    g = backward_product(above, WEIGHTS, slots, above, hidden_layers, True, False, TILE.H, TILE.DB, TILE)
    return g, state


@triton.jit
def through(a, scratch, bias_slots, l, TANGENTS: tl.constexpr, TILE):
    """The adjoint of z or ż of hidden layer l, from that of what comes out of it, into the scratch."""
    q = area(scratch, l, Q, TILE)
    z_bar = tl.load(area(scratch, l, D1, TILE)) * a
    if TANGENTS:
        tl.store(q, tl.load(q) + tl.load(area(scratch, l, OF_Z, TILE)) * a)
    else:
        z_bar += tl.load(q)
        tl.atomic_add(bias_slots + l * TILE.H + tl.arange(0, TILE.H), tl.sum(z_bar, 0), sem="relaxed")
    tl.store(area(scratch, l, ADJOINT, TILE), z_bar)
    tl.debug_barrier()


@triton.jit
def backward(
    out_bar, below_all, state, p, packed, hidden_layers, activation, TANGENTS: tl.constexpr, INPUTS: tl.constexpr, TILE
):
    """From the adjoint of the last layer's z: gradients into the slots; if INPUTS, the adjoint [BLOCK, DB] of v or x.

    Of a tangent, which is in the scratch and adds to q; or of the values from x, `below_all`, which q is added to.
    """
    scratch, slots, bias_slots = state
    WEIGHTS = packed.weights
    array: tl.constexpr = TANGENT if TANGENTS else VALUE_
    above, lowest = end(scratch, hidden_layers, TILE), source(scratch, hidden_layers, TILE)
    tl.store(grid(above, TILE.BLOCK, TILE.OB), out_bar)
    if not TANGENTS:
        tl.store(grid(lowest, TILE.BLOCK, TILE.DB), below_all)
        o = tl.arange(0, TILE.OB)
        tl.atomic_add(bias_slots + hidden_layers * TILE.H + o, tl.sum(out_bar, 0), sem="relaxed")
    tl.debug_barrier()
    below, at = of_layer(scratch, hidden_layers - 1, array, TILE), weights_of(hidden_layers, TILE)
    a = backward_product(above, WEIGHTS + at, slots + at, below, hidden_layers, True, True, TILE.OB, TILE.H, TILE)
    for m in tl.range(1, hidden_layers, disable_licm=True):
        l = hidden_layers - m
        through(a, scratch, bias_slots, l, TANGENTS, TILE)
        above, at = of_layer(scratch, l, ADJOINT, TILE), weights_of(l, TILE)
        below = of_layer(scratch, l - 1, array, TILE)
        a = backward_product(above, WEIGHTS + at, slots + at, below, hidden_layers, True, True, TILE.H, TILE.H, TILE)
    through(a, scratch, bias_slots, 0, TANGENTS, TILE)
    above = of_layer(scratch, 0, ADJOINT, TILE)
    x_bar = backward_product(above, WEIGHTS, slots, lowest, hidden_layers, INPUTS, True, TILE.H, TILE.DB, TILE)
    tl.debug_barrier()
    return x_bar, state


@triton.jit
def emptied(slot, count):
    some = tl.arange(0, 1024)
    for i in tl.range(0, count, 1024):
        tl.store(slot + (some + i), tl.zeros((1024,), tl.float32), mask=some + i < count)


@triton.jit
def begin(room, hidden_layers, GRADIENTS: tl.constexpr, TILE):
    """The state of a program: where its scratch, and its slots of weights and of biases begin, these full of 0."""
    program = tl.program_id(0).to(tl.int64)
    scratch = room.scratch + program * ((ARRAYS * hidden_layers * TILE.H + TILE.DB + TILE.OB) * TILE.BLOCK)
    weights, biases = all_weights(hidden_layers, TILE), hidden_layers * TILE.H + TILE.OB
    slots, bias_slots = room.slots + program * weights, room.bias_slots + program * biases
    if GRADIENTS:
        emptied(slots, weights)
        emptied(bias_slots, biases)
        tl.debug_barrier()
    return scratch, slots, bias_slots


@triton.jit
def finish(state, room, TILE):
    """The gradients are in the slot."""


CHAINS = Chains(begin, values_forward, tangent_forward, gradient_chain, backward, finish)

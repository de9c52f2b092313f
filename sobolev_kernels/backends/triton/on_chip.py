"""The chains through the layers of a tile of BLOCK samples that stays in registers (docs/math.md, sections 2 to 4).

A program holds of each hidden layer z, or σ(z) where σ' and σ'' are functions of it, one stream (ż of a direction, or
the adjoint of h of a gradient) and q, what the derivatives owe the values, and the sums of all its gradients, which it
writes once, when it is through. σ and its derivatives are computed again from what is held. The number of hidden layers
is a constant, DEPTH: registers have no addresses. `launches.py` says which students fit.

`in_cache.py` has the same functions for those that do not. `state` is what a tile has there or here.

What keeps ptxas from spilling, found in the live registers of the PTX: each product is in a loop of its own, whose
count is not a constant, or Triton gives every warp the whole of a chain of products; σ' of a direction is computed from
what is held plus a zero that the compiler does not know, or it is kept from before for all layers; and what is added to
q is added in such a loop too, or it is put off to the end together with all its terms. The zeros are the high bits of
run-time numbers: of hidden_layers, of a tile's number t, and of a direction's number p.
"""

# ruff: noqa: RUF005 -- Triton knows no starred element
import triton
import triton.language as tl

from .formulas import activation_jet, jet_of_kept, kept
from .in_cache import Chains, all_weights, weights_of
from .primitives import dot, operand

# A power of 2 not below the layers of any row of launches.py
MOST_LAYERS = tl.constexpr(8)


@triton.jit
def chunk_of(a, columns, K: tl.constexpr, SOME: tl.constexpr, TILE):
    """SOME columns of a [BLOCK, K]; through shared memory, so that few of them are operands at a time."""
    if SOME == K:
        return a
    else:
        return tl.gather(a, columns[None, :] + tl.zeros((TILE.BLOCK, SOME), tl.int32), 1)


@triton.jit
def product(a, WEIGHTS, zero, K: tl.constexpr, COLUMNS: tl.constexpr, TILE):
    """[BLOCK, COLUMNS] of a [BLOCK, K] times weights [K, COLUMNS]."""
    SOME: tl.constexpr = min(K, TILE.CHUNK)
    c, n = tl.arange(0, SOME), tl.arange(0, COLUMNS)
    total = tl.zeros((TILE.BLOCK, COLUMNS), tl.float32)
    for k in tl.range(0, zero + K, SOME, disable_licm=True):
        w = tl.load(WEIGHTS + (k + c)[:, None] * COLUMNS + n[None, :])
        total += dot(operand(chunk_of(a, k + c, K, SOME, TILE), TILE.PRECISION), w, TILE.PRECISION)
    return total


@triton.jit
def halves(a, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.split(tl.reshape(a, (ROWS, COLUMNS // 2, 2)))


@triton.jit
def slices(a, PARTS: tl.constexpr):
    """Slice i of a has its columns i, i + PARTS, ...: a thread's neighbours, so that nothing moves."""
    parts = (a,)
    for _ in tl.static_range(PARTS.bit_length() - 1):
        evens, odds = (), ()
        for i in tl.static_range(len(parts)):
            even, odd = halves(parts[i], parts[i].shape[0], parts[i].shape[1])
            evens, odds = evens + (even,), odds + (odd,)
        parts = evens + odds
    return parts


@triton.jit
def outer_added(totals, a, b, zero, TILE):
    """The slices of a sum, and aᵀb [ROWS, COLUMNS] of a [BLOCK, ROWS] and b [BLOCK, COLUMNS].

    Fewer rows at a time are fewer operands, and too few for the instructions of Hopper, which want more registers.
    """
    a, b, results = slices(operand(a, TILE.PRECISION), len(totals)), operand(b, TILE.PRECISION), ()
    for i in tl.static_range(len(totals)):
        total = totals[i]
        for _ in tl.range(0, 1 + zero, disable_licm=True):
            total += dot(tl.trans(a[i]), b, TILE.PRECISION)
        results = results + (total,)
    return results


@triton.jit
def sliced_zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE):
    totals = ()
    for _ in tl.static_range(max(1, ROWS // TILE.SLICE)):
        totals = totals + (tl.zeros((min(ROWS, TILE.SLICE), COLUMNS), tl.float32),)
    return totals


@triton.jit
def store_sliced(at, totals, stride_row, stride_column):
    ROWS: tl.constexpr = totals[0].shape[0]
    COLUMNS: tl.constexpr = totals[0].shape[1]
    r, c = tl.arange(0, ROWS) * len(totals), tl.arange(0, COLUMNS)
    for i in tl.static_range(len(totals)):
        tl.store(at + (r + i)[:, None] * stride_row + c[None, :] * stride_column, totals[i])


@triton.jit
def now_added(total, a, b, zero):
    for _ in tl.range(0, 1 + zero, disable_licm=True):
        total += a * b
    return total


@triton.jit
def replaced(these, l: tl.constexpr, one):
    """A tuple with another element l."""
    result = ()
    for i in tl.static_range(len(these)):
        if i == l:
            result = result + (one,)
        else:
            result = result + (these[i],)
    return result


@triton.jit
def bias_added(bias_sums, l: tl.constexpr, z_bar):
    """The biases' sums, those of hidden layers in one array: as vectors each thread would hold many copies."""
    row = tl.arange(0, MOST_LAYERS)[:, None]
    return bias_sums + tl.where(row == l, tl.sum(z_bar, 0)[None, :], 0.0)


@triton.jit
def begin(room, hidden_layers, GRADIENTS: tl.constexpr, TILE):
    """The state of a program without a tile: sums of 0."""
    sums, hidden = (), ()
    for _ in tl.static_range(TILE.DEPTH):
        hidden = hidden + (tl.zeros((TILE.BLOCK, TILE.H), tl.float32),)
    if GRADIENTS:
        sums = sums + (sliced_zeros(TILE.DB, TILE.H, TILE),)  # of the first layer, transposed
        for _ in tl.static_range(1, TILE.DEPTH):
            sums = sums + (sliced_zeros(TILE.H, TILE.H, TILE),)
        sums = sums + (sliced_zeros(TILE.OB, TILE.H, TILE),)
    bias_sums = tl.zeros((MOST_LAYERS, TILE.H), tl.float32), tl.zeros((TILE.OB,), tl.float32)
    return hidden, hidden, hidden, tl.zeros((TILE.BLOCK, TILE.OB), tl.float32), sums, bias_sums


@triton.jit
def values_forward(x, state, t, packed, hidden_layers, activation, TILE):
    """z of the last layer [BLOCK, OB]."""
    _, streams, q_of_layer, out, sums, bias_sums = state
    h, o, zero = tl.arange(0, TILE.H), tl.arange(0, TILE.OB), hidden_layers >> 30
    same, none = t >> 30, tl.zeros((TILE.BLOCK, TILE.H), tl.float32)
    z = product(x, packed.transposed, zero, TILE.DB, TILE.H, TILE) + tl.load(packed.biases + same * TILE.H + h)[None, :]
    value, _, _, _ = activation_jet(activation, z)
    held, q_of_layer = (kept(activation, z, value),), (none,)
    for l in tl.static_range(1, TILE.DEPTH):
        z = product(value + none, packed.transposed + weights_of(l, TILE), zero, TILE.H, TILE.H, TILE)
        z += tl.load(packed.biases + (same + l) * TILE.H + h)[None, :]
        value, _, _, _ = activation_jet(activation, z)
        held, q_of_layer = held + (kept(activation, z, value),), q_of_layer + (none,)
    z = product(value + none, packed.transposed + weights_of(TILE.DEPTH, TILE), zero, TILE.H, TILE.OB, TILE)
    z += tl.load(packed.biases + (same + TILE.DEPTH) * TILE.H + o)[None, :]
    return z, (held, streams, q_of_layer, out, sums, bias_sums)


@triton.jit
def tangent_forward(
    v, state, p, packed, hidden_layers, activation, CURVATURE: tl.constexpr, ALONG_G_BAR: tl.constexpr, TILE
):
    """ż of the last layer [BLOCK, OB] along v.

    If ALONG_G_BAR, v is ḡ, the adjoint of a gradient whose own chain is in the state: the outer products of both are
    the gradients of the weights, and hidden layers add to q.
    """
    held, streams, q_of_layer, out, sums, bias_sums = state
    zero, unknown = p >> 30, 1.0 * (p >> 30)
    below = v
    for l in tl.static_range(TILE.DEPTH):
        if l == 0:
            z1 = product(below, packed.transposed, zero, TILE.DB, TILE.H, TILE)
        else:
            z1 = product(below, packed.transposed + weights_of(l, TILE), zero, TILE.H, TILE.H, TILE)
        _, d1, d2 = jet_of_kept(activation, held[l] + unknown)
        if ALONG_G_BAR:
            a = streams[l]
            q_of_layer = replaced(q_of_layer, l, now_added(q_of_layer[l], d2 * z1, a, zero))
            if l == 0:
                sums = replaced(sums, 0, outer_added(sums[0], below, d1 * a, zero, TILE))
            else:
                sums = replaced(sums, l, outer_added(sums[l], d1 * a, below, zero, TILE))
        else:
            streams = replaced(streams, l, z1)
        below = d1 * z1
    if ALONG_G_BAR:
        sums = replaced(sums, TILE.DEPTH, outer_added(sums[TILE.DEPTH], out, below, zero, TILE))
    z1 = product(below, packed.transposed + weights_of(TILE.DEPTH, TILE), zero, TILE.H, TILE.OB, TILE)
    return z1, (held, streams, q_of_layer, out, sums, bias_sums)


@triton.jit
def gradient_chain(out, state, p, packed, hidden_layers, activation, TILE):
    """Jᵀu [BLOCK, DB] of a cotangent, from that of the last layer's z."""
    held, streams, q_of_layer, _, sums, bias_sums = state
    zero, unknown = p >> 29, 1.0 * (p >> 29)
    delta = out
    for l in tl.static_range(TILE.DEPTH, 0, -1):
        at = packed.weights + weights_of(l, TILE)
        if l == TILE.DEPTH:
            a = product(delta, at, zero, TILE.OB, TILE.H, TILE)
        else:
            a = product(delta, at, zero, TILE.H, TILE.H, TILE)
        streams = replaced(streams, l - 1, a)
        _, d1, _ = jet_of_kept(activation, held[l - 1] + unknown)
        delta = d1 * a
    g = product(delta, packed.weights, zero, TILE.H, TILE.DB, TILE)
    return g, (held, streams, q_of_layer, out, sums, bias_sums)


@triton.jit
def backward(
    out_bar, below_all, state, p, packed, hidden_layers, activation, TANGENTS: tl.constexpr, INPUTS: tl.constexpr, TILE
):
    """From the adjoint of the last layer's z: gradients into the sums; if INPUTS, the adjoint [BLOCK, DB] of what came
    into the first layer, `below_all`, which is v or x.

    Of a tangent, whose chain is in the state and adds to q; or of the values, which q is added to.
    """
    held, streams, q_of_layer, out, sums, bias_sums = state
    zero, unknown = p >> 29, 1.0 * (p >> 29)
    hidden_bias_sums, last_bias_sum = bias_sums
    z_bar = out_bar
    for l in tl.static_range(TILE.DEPTH, 0, -1):
        value, d1, d2 = jet_of_kept(activation, held[l - 1] + unknown)
        if TANGENTS:
            below, curvature = d1 * streams[l - 1], d2 * streams[l - 1]
        else:
            below = value + tl.zeros((TILE.BLOCK, TILE.H), tl.float32)
            if l == TILE.DEPTH:
                last_bias_sum += tl.sum(z_bar, 0)
            else:
                hidden_bias_sums = bias_added(hidden_bias_sums, l, z_bar)
        sums = replaced(sums, l, outer_added(sums[l], z_bar, below, zero, TILE))
        at = packed.weights + weights_of(l, TILE)
        if l == TILE.DEPTH:
            a = product(z_bar, at, zero, TILE.OB, TILE.H, TILE)
        else:
            a = product(z_bar, at, zero, TILE.H, TILE.H, TILE)
        if TANGENTS:
            q_of_layer = replaced(q_of_layer, l - 1, now_added(q_of_layer[l - 1], curvature, a, zero))
            z_bar = d1 * a
        else:
            z_bar = d1 * a + q_of_layer[l - 1]
    sums = replaced(sums, 0, outer_added(sums[0], below_all, z_bar, zero, TILE))
    x_bar = 0.0 * below_all
    if not TANGENTS:
        hidden_bias_sums = bias_added(hidden_bias_sums, 0, z_bar)
    if INPUTS:
        x_bar = product(z_bar, packed.weights, zero, TILE.H, TILE.DB, TILE)
    return x_bar, (held, streams, q_of_layer, out, sums, (hidden_bias_sums, last_bias_sum))


@triton.jit
def finish(state, room, TILE):
    """The sums into the program's slot."""
    program = tl.program_id(0).to(tl.int64)
    slots = room.slots + program * all_weights(TILE.DEPTH, TILE)
    bias_slots = room.bias_slots + program * (TILE.DEPTH * TILE.H + TILE.OB)
    _, _, _, _, sums, bias_sums = state
    h, o = tl.arange(0, TILE.H), tl.arange(0, TILE.OB)
    store_sliced(slots, sums[0], 1, TILE.DB)
    for l in tl.static_range(1, TILE.DEPTH):
        store_sliced(slots + weights_of(l, TILE), sums[l], TILE.H, 1)
    store_sliced(slots + weights_of(TILE.DEPTH, TILE), sums[TILE.DEPTH], TILE.H, 1)
    l = tl.arange(0, MOST_LAYERS)[:, None]
    tl.store(bias_slots + l * TILE.H + h[None, :], bias_sums[0], mask=l < TILE.DEPTH)
    tl.store(bias_slots + TILE.DEPTH * TILE.H + o, bias_sums[1])


CHAINS = Chains(begin, values_forward, tangent_forward, gradient_chain, backward, finish)

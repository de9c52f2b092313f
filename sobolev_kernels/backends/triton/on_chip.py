"""The chains through the layers of a tile of BLOCK samples that stays in registers (docs/math.md, sections 2 to 4).

A program holds of each of L hidden layers z, one stream (ż of a direction, or the adjoint of h of a gradient) and what
the values are owed, and the sums of all its gradients, which it writes once, when it is through. σ and its derivatives
are computed again from z. L is a constant: registers have no addresses. `launches.py` says which students fit.

`in_cache.py` has the same functions for those that do not. `state` is what a tile has there or here.

What keeps ptxas from spilling, found in the live registers of the PTX: each product is in a loop of its own, whose
count is not a constant, or Triton gives every warp the whole of a chain of products; σ' of a direction is computed from
z plus a zero that the compiler does not know, or it is kept from before for all layers; and the sum of what is owed is
in such a loop too, or it is put off to the end together with all its terms.
"""

# ruff: noqa: RUF005 -- Triton knows no starred element
import triton
import triton.language as tl

from .formulas import derivatives
from .in_cache import weights_of
from .primitives import dot, operand

# A power of 2 not below the layers of any row of launches.py
MOST_LAYERS = tl.constexpr(8)


@triton.jit
def chunk_of(a, columns, K: tl.constexpr, BLOCK: tl.constexpr, SOME: tl.constexpr):
    """SOME columns of a [BLOCK, K]; through shared memory, so that few of them are operands at a time."""
    if SOME == K:
        return a
    else:
        return tl.gather(a, columns[None, :] + tl.zeros((BLOCK, SOME), tl.int32), 1)


@triton.jit
def product(
    a, WEIGHTS, zero, PRECISION: tl.constexpr,
    K: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """[BLOCK, COLUMNS] of a [BLOCK, K] times weights [K, COLUMNS]."""
    SOME: tl.constexpr = min(K, CHUNK)
    c, n = tl.arange(0, SOME), tl.arange(0, COLUMNS)
    total, a = tl.zeros((BLOCK, COLUMNS), tl.float32), operand(a, PRECISION)
    for k in tl.range(0, K + zero, SOME, disable_licm=True):
        w = tl.load(WEIGHTS + (k + c)[:, None] * COLUMNS + n[None, :])
        total += dot(chunk_of(a, k + c, K, BLOCK, SOME), w, PRECISION)
    return total


@triton.jit
def outer_added(total, a, h, zero, PRECISION: tl.constexpr):
    """total plus the gradient [ROWS, COLUMNS] of weights, from the adjoint a [BLOCK, ROWS] and h [BLOCK, COLUMNS]."""
    for _ in tl.range(0, 1 + zero, disable_licm=True):
        total += dot(tl.trans(operand(a, PRECISION)), operand(h, PRECISION), PRECISION)
    return total


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
    own = tl.arange(0, MOST_LAYERS)[:, None] == l
    return bias_sums + tl.where(own, tl.sum(z_bar, 0)[None, :], 0.0)


@triton.jit
def begin(
    SCRATCH, SLOTS, BIAS_SLOTS, L, GRADIENTS: tl.constexpr, DEPTH: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state of a program without a tile: sums of 0."""
    sums, hidden = (), ()
    for _ in tl.static_range(DEPTH):
        hidden = hidden + (tl.zeros((BLOCK, H), tl.float32),)
    if GRADIENTS:
        sums = sums + (tl.zeros((H, DB), tl.float32),)
        for _ in tl.static_range(1, DEPTH):
            sums = sums + (tl.zeros((H, H), tl.float32),)
        sums = sums + (tl.zeros((OB, H), tl.float32),)
    bias_sums = tl.zeros((MOST_LAYERS, H), tl.float32), tl.zeros((OB,), tl.float32)
    return hidden, hidden, hidden, tl.zeros((BLOCK, OB), tl.float32), sums, bias_sums


@triton.jit
def values_forward(
    x, TRANSPOSED, BIASES, state, tile, act_a, act_b, L,
    ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """z of the last layer [BLOCK, OB]."""
    _, streams, owed, out, sums, bias_sums = state
    h, o, zero, none = tl.arange(0, H), tl.arange(0, OB), L >> 30, tl.zeros((BLOCK, H), tl.float32)
    same = tile >> 30
    z = product(x, TRANSPOSED, zero, PRECISION, DB, H, BLOCK, CHUNK) + tl.load(BIASES + same * H + h)[None, :]
    zs, owed = (z,), (none,)
    for l in tl.static_range(1, DEPTH):
        value, _, _, _ = derivatives(ACT, COUNT, z, act_a, act_b)
        z = product(value + none, TRANSPOSED + weights_of(l, H, DB), zero, PRECISION, H, H, BLOCK, CHUNK)
        z += tl.load(BIASES + (l + same) * H + h)[None, :]
        zs, owed = zs + (z,), owed + (none,)
    value, _, _, _ = derivatives(ACT, COUNT, z, act_a, act_b)
    z = product(value + none, TRANSPOSED + weights_of(DEPTH, H, DB), zero, PRECISION, H, OB, BLOCK, CHUNK)
    return z + tl.load(BIASES + (DEPTH + same) * H + o)[None, :], (zs, streams, owed, out, sums, bias_sums)


@triton.jit
def tangent_forward(
    v, TRANSPOSED, state, p, act_a, act_b, L, KEEP: tl.constexpr, PULLED: tl.constexpr,
    ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ż of the last layer [BLOCK, OB] along v.

    If PULLED, v is the adjoint of a gradient, whose own chain is in the state: the outer products of both are the
    gradients of the weights, and their hidden layers pay what they owe the values.
    """
    zs, streams, owed, out, sums, bias_sums = state
    zero, unknown = L >> 30, 1.0 * (p >> 30)
    below = v
    for l in tl.static_range(DEPTH):
        if l == 0:
            z1 = product(below, TRANSPOSED, zero, PRECISION, DB, H, BLOCK, CHUNK)
        else:
            z1 = product(below, TRANSPOSED + weights_of(l, H, DB), zero, PRECISION, H, H, BLOCK, CHUNK)
        _, d1, d2, _ = derivatives(ACT, COUNT, zs[l] + unknown, act_a, act_b)
        if PULLED:
            a = streams[l]
            owed = replaced(owed, l, now_added(owed[l], d2 * z1, a, zero))
            sums = replaced(sums, l, outer_added(sums[l], d1 * a, below, zero, PRECISION))
        else:
            streams = replaced(streams, l, z1)
        below = d1 * z1
    if PULLED:
        sums = replaced(sums, DEPTH, outer_added(sums[DEPTH], out, below, zero, PRECISION))
    z1 = product(below, TRANSPOSED + weights_of(DEPTH, H, DB), zero, PRECISION, H, OB, BLOCK, CHUNK)
    return z1, (zs, streams, owed, out, sums, bias_sums)


@triton.jit
def gradient_chain(
    out, WEIGHTS, state, p, act_a, act_b, L, ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Jᵀu [BLOCK, DB] of a cotangent, from that of the last layer's z."""
    zs, streams, owed, _, sums, bias_sums = state
    zero, unknown = L >> 30, 1.0 * (p >> 29)
    delta = out
    for l in tl.static_range(DEPTH, 0, -1):
        at = WEIGHTS + weights_of(l, H, DB)
        if l == DEPTH:
            a = product(delta, at, zero, PRECISION, OB, H, BLOCK, CHUNK)
        else:
            a = product(delta, at, zero, PRECISION, H, H, BLOCK, CHUNK)
        streams = replaced(streams, l - 1, a)
        _, d1, _, _ = derivatives(ACT, COUNT, zs[l - 1] + unknown, act_a, act_b)
        delta = d1 * a
    g = product(delta, WEIGHTS, zero, PRECISION, H, DB, BLOCK, CHUNK)
    return g, (zs, streams, owed, out, sums, bias_sums)


@triton.jit
def backward(
    out_bar, below_all, WEIGHTS, state, p, act_a, act_b, L, TANGENTS: tl.constexpr, INPUTS: tl.constexpr,
    ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """From the adjoint of the last layer's z: gradients into the sums; if INPUTS, the adjoint [BLOCK, DB] of x.

    Of a tangent, whose chain is in the state and also notes what it owes the values; or of the values, which pay.
    What came into the first layer, v or x, is `below_all`.
    """
    zs, streams, owed, out, sums, bias_sums = state
    zero, unknown = L >> 30, 1.0 * (p >> 29)
    hidden_bias_sums, last_bias_sum = bias_sums
    z_bar = out_bar
    for l in tl.static_range(DEPTH, 0, -1):
        value, d1, d2, _ = derivatives(ACT, COUNT, zs[l - 1] + unknown, act_a, act_b)
        if TANGENTS:
            below, curvature = d1 * streams[l - 1], d2 * streams[l - 1]
        else:
            below = value + tl.zeros((BLOCK, H), tl.float32)
            if l == DEPTH:
                last_bias_sum += tl.sum(z_bar, 0)
            else:
                hidden_bias_sums = bias_added(hidden_bias_sums, l, z_bar)
        sums = replaced(sums, l, outer_added(sums[l], z_bar, below, zero, PRECISION))
        at = WEIGHTS + weights_of(l, H, DB)
        if l == DEPTH:
            a = product(z_bar, at, zero, PRECISION, OB, H, BLOCK, CHUNK)
        else:
            a = product(z_bar, at, zero, PRECISION, H, H, BLOCK, CHUNK)
        if TANGENTS:
            owed = replaced(owed, l - 1, now_added(owed[l - 1], curvature, a, zero))
            z_bar = d1 * a
        else:
            z_bar = d1 * a + owed[l - 1]
    sums = replaced(sums, 0, outer_added(sums[0], z_bar, below_all, zero, PRECISION))
    x_bar = 0.0 * below_all
    if not TANGENTS:
        hidden_bias_sums = bias_added(hidden_bias_sums, 0, z_bar)
        if INPUTS:
            x_bar = product(z_bar, WEIGHTS, zero, PRECISION, H, DB, BLOCK, CHUNK)
    return x_bar, (zs, streams, owed, out, sums, (hidden_bias_sums, last_bias_sum))


@triton.jit
def finish(state, SLOTS, BIAS_SLOTS, DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr):
    """The sums into the program's slot."""
    program = tl.program_id(0).to(tl.int64)
    slots = SLOTS + program * weights_of(DEPTH, H, DB, OB)
    bias_slots = BIAS_SLOTS + program * (DEPTH * H + OB)
    _, _, _, _, sums, bias_sums = state
    d, h, o = tl.arange(0, DB), tl.arange(0, H), tl.arange(0, OB)
    tl.store(slots + h[:, None] * DB + d[None, :], sums[0])
    for l in tl.static_range(1, DEPTH):
        tl.store(slots + weights_of(l, H, DB) + h[:, None] * H + h[None, :], sums[l])
    tl.store(slots + weights_of(DEPTH, H, DB) + o[:, None] * H + h[None, :], sums[DEPTH])
    l = tl.arange(0, MOST_LAYERS)[:, None]
    tl.store(bias_slots + l * H + h[None, :], bias_sums[0], mask=l < DEPTH)
    tl.store(bias_slots + DEPTH * H + o, bias_sums[1])


CHAINS = {
    "BEGIN": begin, "VALUES_FORWARD": values_forward, "TANGENT_FORWARD": tangent_forward,
    "GRADIENT_CHAIN": gradient_chain, "BACKWARD": backward, "FINISH": finish,
}  # fmt: skip

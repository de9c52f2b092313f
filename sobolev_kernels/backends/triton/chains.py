"""The chains through the layers of a tile of BLOCK samples, for the one launch (docs/math.md, sections 2 to 4).

A program keeps what the way back needs of each hidden layer in its own scratch. This is the one place where a kernel
reads global memory that its own launch wrote: a scratch belongs to one program, and a barrier separates a phase that
writes from the next that reads (the PTX run shows that there is no race). Weight gradients are added to the program's
own slot, in a fixed order.

Of L hidden layers of H features, weights lie one after the other: [H, DB], L - 1 times [H, H], [OB, H].
"""

import triton
import triton.language as tl

from .formulas import derivatives
from .primitives import dot

# The arrays of a hidden layer in a program's scratch, each [BLOCK, H]. OF_Z is σ'' ż of a direction; of a cotangent the
# adjoint of h.
VALUE_, D1, D2, OWED, TANGENT, OF_Z, ADJOINT, ARRAYS = (tl.constexpr(i) for i in range(8))


@triton.jit
def area(scratch, l, array: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """Where an array of hidden layer l is kept."""
    tile = tl.arange(0, BLOCK)[:, None] * H + tl.arange(0, H)[None, :]
    return scratch + (ARRAYS * l + array) * (BLOCK * H) + tile


@triton.jit
def matrix(base, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the weights of a linear layer lie, or their gradients: [ROWS, COLUMNS] from `start` on."""
    return base + start + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


# A warp holds its whole operand of a multiply, so a wide one comes in chunks of its columns, through the scratch.


@triton.jit
def forward_product(
    scratch, l, array: tl.constexpr, WEIGHTS, start, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """[BLOCK, ROWS] of an array of layer l times the weights [ROWS, H] from `start` on, transposed."""
    i, r, c = tl.arange(0, BLOCK), tl.arange(0, ROWS), tl.arange(0, CHUNK)
    total = tl.zeros((BLOCK, ROWS), tl.float32)
    for k in range(0, H, CHUNK):
        h = tl.load(scratch + (ARRAYS * l + array) * (BLOCK * H) + i[:, None] * H + (k + c)[None, :])
        w = tl.load(WEIGHTS + start + r[:, None] * H + (k + c)[None, :])
        total += dot(h, tl.trans(w), PRECISION)
    return total


@triton.jit
def backward_product(
    scratch, l, WEIGHTS, slots, h, start, FORWARD: tl.constexpr, OUTER: tl.constexpr, PRECISION: tl.constexpr,
    H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """With FORWARD, [BLOCK, H] of the adjoint of layer l times the weights [H, H] from `start` on.

    With OUTER, their gradient goes into the slots; h [BLOCK, H] is what came into the layer.
    """
    i, c, n = tl.arange(0, BLOCK), tl.arange(0, CHUNK), tl.arange(0, H)
    total = tl.zeros((BLOCK, H), tl.float32)
    for k in range(0, H, CHUNK):
        z_bar = tl.load(scratch + (ARRAYS * l + ADJOINT) * (BLOCK * H) + i[:, None] * H + (k + c)[None, :])
        rows = start + (k + c)[:, None] * H + n[None, :]
        if OUTER:
            tl.atomic_add(slots + rows, dot(tl.trans(z_bar), h, PRECISION), sem="relaxed")
        if FORWARD:
            total += dot(z_bar, tl.load(WEIGHTS + rows), PRECISION)
    return total


@triton.jit
def keep_values(z, scratch, l, a, b, ACT: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """h = σ(z), σ' and σ'' into the scratch of layer l, and nothing owed yet."""
    value, d1, d2, _ = derivatives(ACT, COUNT, z, a, b)
    tl.store(area(scratch, l, VALUE_, BLOCK, H), value + 0.0 * z)
    tl.store(area(scratch, l, D1, BLOCK, H), d1 + 0.0 * z)
    tl.store(area(scratch, l, D2, BLOCK, H), d2 + 0.0 * z)
    tl.store(area(scratch, l, OWED, BLOCK, H), 0.0 * z)
    tl.debug_barrier()


@triton.jit
def values_forward(
    x, WEIGHTS, BIASES, scratch, a, b, L, ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """z of the last layer [BLOCK, OB]."""
    h, o = tl.arange(0, H), tl.arange(0, OB)
    z = dot(x, tl.trans(tl.load(matrix(WEIGHTS, 0, H, DB))), PRECISION) + tl.load(BIASES + h)[None, :]
    keep_values(z, scratch, 0, a, b, ACT, COUNT, BLOCK, H)
    for l in range(1, L):
        at = H * DB + (l - 1) * (H * H)
        z = forward_product(scratch, l - 1, VALUE_, WEIGHTS, at, PRECISION, H, H, BLOCK, CHUNK)
        keep_values(z + tl.load(BIASES + l * H + h)[None, :], scratch, l, a, b, ACT, COUNT, BLOCK, H)
    end = H * DB + (L - 1) * (H * H)
    out = forward_product(scratch, L - 1, VALUE_, WEIGHTS, end, PRECISION, OB, H, BLOCK, CHUNK)
    return out + tl.load(BIASES + L * H + o)[None, :]


@triton.jit
def keep_tangent(z, scratch, l, KEEP: tl.constexpr, PULLED: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """ḣ = σ' ż into the scratch of layer l, and σ'' ż if KEEP; if PULLED, it pays the values what it owes them."""
    tl.store(area(scratch, l, TANGENT, BLOCK, H), tl.load(area(scratch, l, D1, BLOCK, H)) * z)
    if KEEP:
        tl.store(area(scratch, l, OF_Z, BLOCK, H), tl.load(area(scratch, l, D2, BLOCK, H)) * z)
    if PULLED:
        owed = area(scratch, l, OWED, BLOCK, H)
        a = tl.load(area(scratch, l, OF_Z, BLOCK, H))
        tl.store(owed, tl.load(owed) + tl.load(area(scratch, l, D2, BLOCK, H)) * z * a)
    tl.debug_barrier()


@triton.jit
def tangent_forward(
    v, out, WEIGHTS, scratch, slots, L, KEEP: tl.constexpr, PULLED: tl.constexpr, PRECISION: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ż of the last layer [BLOCK, OB] along v.

    If PULLED, v is the adjoint of a gradient, whose own chain from `out` is in the scratch: the outer products of both
    are the gradients of the weights.
    """
    z = dot(v, tl.trans(tl.load(matrix(WEIGHTS, 0, H, DB))), PRECISION)
    if PULLED:
        delta = tl.load(area(scratch, 0, ADJOINT, BLOCK, H))
        tl.atomic_add(matrix(slots, 0, H, DB), dot(tl.trans(delta), v, PRECISION), sem="relaxed")
    keep_tangent(z, scratch, 0, KEEP, PULLED, BLOCK, H)
    for l in range(1, L):
        at = H * DB + (l - 1) * (H * H)
        if PULLED:
            h = tl.load(area(scratch, l - 1, TANGENT, BLOCK, H))
            backward_product(scratch, l, WEIGHTS, slots, h, at, False, True, PRECISION, H, BLOCK, CHUNK)
        z = forward_product(scratch, l - 1, TANGENT, WEIGHTS, at, PRECISION, H, H, BLOCK, CHUNK)
        keep_tangent(z, scratch, l, KEEP, PULLED, BLOCK, H)
    end = H * DB + (L - 1) * (H * H)
    if PULLED:
        h = tl.load(area(scratch, L - 1, TANGENT, BLOCK, H))
        tl.atomic_add(matrix(slots, end, OB, H), dot(tl.trans(out), h, PRECISION), sem="relaxed")
    return forward_product(scratch, L - 1, TANGENT, WEIGHTS, end, PRECISION, OB, H, BLOCK, CHUNK)


@triton.jit
def keep_gradient(a, scratch, l, BLOCK: tl.constexpr, H: tl.constexpr):
    """The adjoint a of h of layer l, and δ = σ' a, into the scratch; returns δ."""
    delta = tl.load(area(scratch, l, D1, BLOCK, H)) * a
    tl.store(area(scratch, l, OF_Z, BLOCK, H), a)
    tl.store(area(scratch, l, ADJOINT, BLOCK, H), delta)
    tl.debug_barrier()
    return delta


@triton.jit
def gradient_chain(
    out, WEIGHTS, scratch, slots, L, PRECISION: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Jᵀu [BLOCK, DB] of a cotangent, from that of the last layer's z."""
    a = dot(out, tl.load(matrix(WEIGHTS, H * DB + (L - 1) * (H * H), OB, H)), PRECISION)
    for m in range(1, L):
        keep_gradient(a, scratch, L - m, BLOCK, H)
        at = H * DB + (L - m - 1) * (H * H)
        a = backward_product(scratch, L - m, WEIGHTS, slots, a, at, True, False, PRECISION, H, BLOCK, CHUNK)
    return dot(keep_gradient(a, scratch, 0, BLOCK, H), tl.load(matrix(WEIGHTS, 0, H, DB)), PRECISION)


@triton.jit
def through(a, scratch, bias_slots, l, TANGENTS: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """The adjoint of z or ż of hidden layer l, from that of what comes out of it; also into the scratch."""
    owed = area(scratch, l, OWED, BLOCK, H)
    z_bar = tl.load(area(scratch, l, D1, BLOCK, H)) * a
    if TANGENTS:
        tl.store(owed, tl.load(owed) + tl.load(area(scratch, l, OF_Z, BLOCK, H)) * a)
    else:
        z_bar += tl.load(owed)
        tl.atomic_add(bias_slots + l * H + tl.arange(0, H), tl.sum(z_bar, 0), sem="relaxed")
    tl.store(area(scratch, l, ADJOINT, BLOCK, H), z_bar)
    tl.debug_barrier()
    return z_bar


@triton.jit
def backward(
    out_bar, source, WEIGHTS, scratch, slots, bias_slots, L, TANGENTS: tl.constexpr, PRECISION: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The adjoint of the first layer's z [BLOCK, H], from that of the last one's; gradients into the slots.

    Of a tangent, from v = `source`, which also notes what it owes the values; or of the values, from x, which pay.
    """
    array: tl.constexpr = TANGENT if TANGENTS else VALUE_
    end = H * DB + (L - 1) * (H * H)
    h = tl.load(area(scratch, L - 1, array, BLOCK, H))
    tl.atomic_add(matrix(slots, end, OB, H), dot(tl.trans(out_bar), h, PRECISION), sem="relaxed")
    if not TANGENTS:
        tl.atomic_add(bias_slots + L * H + tl.arange(0, OB), tl.sum(out_bar, 0), sem="relaxed")
    a = dot(out_bar, tl.load(matrix(WEIGHTS, end, OB, H)), PRECISION)
    for m in range(1, L):
        l = L - m
        through(a, scratch, bias_slots, l, TANGENTS, BLOCK, H)
        h = tl.load(area(scratch, l - 1, array, BLOCK, H))
        at = H * DB + (l - 1) * (H * H)
        a = backward_product(scratch, l, WEIGHTS, slots, h, at, True, True, PRECISION, H, BLOCK, CHUNK)
    first = through(a, scratch, bias_slots, 0, TANGENTS, BLOCK, H)
    tl.atomic_add(matrix(slots, 0, H, DB), dot(tl.trans(first), source, PRECISION), sem="relaxed")
    return first

"""The chains through the layers of a tile of BLOCK samples that registers cannot hold (docs/math.md, sections 2 to 4).

`on_chip.py` has the same functions for students that fit. Here a program keeps what the way back needs of each layer in
its own scratch, small enough for the second-level cache; depth is a run-time loop. This is the one place where a kernel
reads global memory that its own launch wrote: a scratch belongs to one program, and a barrier separates a phase that
writes from the next that reads (the PTX run shows that there is no race). Weight gradients are added to the program's
own slot, in a fixed order.

Of L hidden layers of H features, weights lie one after the other: [H, DB], L - 1 times [H, H], [OB, H].
"""

import triton
import triton.language as tl

from .formulas import derivatives
from .primitives import dot, operand

# The arrays of a hidden layer in a program's scratch, each [BLOCK, H]. OF_Z is σ'' ż of a direction; of a cotangent the
# adjoint of h. Then SOURCE [BLOCK, DB], what comes in: x, v, or the adjoint of a gradient; and END [BLOCK, OB], the
# adjoint of the last layer's z.
VALUE_, D1, D2, OWED, TANGENT, OF_Z, ADJOINT, ARRAYS = (tl.constexpr(i) for i in range(8))


@triton.jit
def grid(base, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """The places of a matrix [BLOCK, COLUMNS] that begins at `base`."""
    return base + tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def of_layer(scratch, l, array: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """Where an array of hidden layer l begins."""
    return scratch + (ARRAYS * l + array) * (BLOCK * H)


@triton.jit
def area(scratch, l, array: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    return grid(of_layer(scratch, l, array, BLOCK, H), BLOCK, H)


@triton.jit
def source(scratch, L, BLOCK: tl.constexpr, H: tl.constexpr):
    """Where SOURCE begins."""
    return scratch + ARRAYS * L * (BLOCK * H)


@triton.jit
def end(scratch, L, BLOCK: tl.constexpr, H: tl.constexpr, DB: tl.constexpr):
    """Where END begins."""
    return source(scratch, L, BLOCK, H) + BLOCK * DB


@triton.jit
def weights_of(l, H: tl.constexpr, DB: tl.constexpr, OB: tl.constexpr = 0):
    """Where the weights of a linear layer above the first one begin; with OB where those of the last one end."""
    return H * DB + (l - 1) * (H * H) + OB * H


# The products. What they read lies in memory: Triton gives every warp the whole of a product whose result, or operand,
# enters another one. They go through their longer side in chunks, because a warp holds its whole operand. Their count
# is not a constant (L >> 30 is 0), or the compiler would unroll them and load all of them first; nor may it hoist
# addresses.


@triton.jit
def forward_product(
    A, TRANSPOSED, L, PRECISION: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """[BLOCK, ROWS] of A [BLOCK, K] times the transposed weights [K, ROWS]."""
    SOME: tl.constexpr = min(K, CHUNK)
    i, r, c = tl.arange(0, BLOCK), tl.arange(0, ROWS), tl.arange(0, SOME)
    total = tl.zeros((BLOCK, ROWS), tl.float32)
    for k in tl.range(0, K + (L >> 30), SOME, disable_licm=True):
        a = tl.load(A + i[:, None] * K + (k + c)[None, :])
        w = tl.load(TRANSPOSED + (k + c)[:, None] * ROWS + r[None, :])
        total += dot(operand(a, PRECISION), w, PRECISION)
    return total


@triton.jit
def backward_product(
    A, WEIGHTS, SLOTS, H_BELOW, L, ONWARD: tl.constexpr, OUTER: tl.constexpr, PRECISION: tl.constexpr,
    K: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """If ONWARD, [BLOCK, COLUMNS] of an adjoint A [BLOCK, K] times the weights [K, COLUMNS].

    If OUTER, their gradient is added to SLOTS; H_BELOW [BLOCK, COLUMNS] is what came into the layer.
    """
    SOME: tl.constexpr = min(K, CHUNK)
    i, c, n = tl.arange(0, BLOCK), tl.arange(0, SOME), tl.arange(0, COLUMNS)
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for k in tl.range(0, K + (L >> 30), SOME, disable_licm=True):
        a = operand(tl.load(A + i[:, None] * K + (k + c)[None, :]), PRECISION)
        at = (k + c)[:, None] * COLUMNS + n[None, :]
        if OUTER:
            h = operand(tl.load(grid(H_BELOW, BLOCK, COLUMNS)), PRECISION)
            tl.atomic_add(SLOTS + at, dot(tl.trans(a), h, PRECISION), sem="relaxed")
        if ONWARD:
            total += dot(a, tl.load(WEIGHTS + at), PRECISION)
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
    x, TRANSPOSED, BIASES, state, tile, a, b, L, ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """z of the last layer [BLOCK, OB]."""
    scratch, _, _ = state
    h, o = tl.arange(0, H), tl.arange(0, OB)
    below = source(scratch, L, BLOCK, H)
    tl.store(grid(below, BLOCK, DB), x)
    tl.debug_barrier()
    z = forward_product(below, TRANSPOSED, L, PRECISION, DB, H, BLOCK, CHUNK)
    keep_values(z + tl.load(BIASES + h)[None, :], scratch, 0, a, b, ACT, COUNT, BLOCK, H)
    for l in tl.range(1, L, disable_licm=True):
        below = of_layer(scratch, l - 1, VALUE_, BLOCK, H)
        z = forward_product(below, TRANSPOSED + weights_of(l, H, DB), L, PRECISION, H, H, BLOCK, CHUNK)
        keep_values(z + tl.load(BIASES + l * H + h)[None, :], scratch, l, a, b, ACT, COUNT, BLOCK, H)
    below = of_layer(scratch, L - 1, VALUE_, BLOCK, H)
    z = forward_product(below, TRANSPOSED + weights_of(L, H, DB), L, PRECISION, H, OB, BLOCK, CHUNK)
    tl.debug_barrier()
    return z + tl.load(BIASES + L * H + o)[None, :], state


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
    v, TRANSPOSED, state, p, act_a, act_b, L, KEEP: tl.constexpr, PULLED: tl.constexpr,
    ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ż of the last layer [BLOCK, OB] along v.

    If PULLED, v is the adjoint of a gradient, whose own chain is in the scratch: the outer products of both are the
    gradients of the weights.
    """
    scratch, slots, _ = state
    below = source(scratch, L, BLOCK, H)
    tl.store(grid(below, BLOCK, DB), v)
    tl.debug_barrier()
    z = forward_product(below, TRANSPOSED, L, PRECISION, DB, H, BLOCK, CHUNK)
    if PULLED:
        delta = of_layer(scratch, 0, ADJOINT, BLOCK, H)
        backward_product(delta, TRANSPOSED, slots, below, L, False, True, PRECISION, H, DB, BLOCK, CHUNK)
    keep_tangent(z, scratch, 0, KEEP, PULLED, BLOCK, H)
    for l in tl.range(1, L, disable_licm=True):
        below, at = of_layer(scratch, l - 1, TANGENT, BLOCK, H), weights_of(l, H, DB)
        z = forward_product(below, TRANSPOSED + at, L, PRECISION, H, H, BLOCK, CHUNK)
        if PULLED:
            delta = of_layer(scratch, l, ADJOINT, BLOCK, H)
            backward_product(delta, TRANSPOSED, slots + at, below, L, False, True, PRECISION, H, H, BLOCK, CHUNK)
        keep_tangent(z, scratch, l, KEEP, PULLED, BLOCK, H)
    below, at = of_layer(scratch, L - 1, TANGENT, BLOCK, H), weights_of(L, H, DB)
    if PULLED:
        delta = end(scratch, L, BLOCK, H, DB)
        backward_product(delta, TRANSPOSED, slots + at, below, L, False, True, PRECISION, OB, H, BLOCK, CHUNK)
    z = forward_product(below, TRANSPOSED + at, L, PRECISION, H, OB, BLOCK, CHUNK)
    tl.debug_barrier()
    return z, state


@triton.jit
def keep_gradient(a, scratch, l, BLOCK: tl.constexpr, H: tl.constexpr):
    """The adjoint a of h of layer l, and δ = σ' a, into the scratch."""
    tl.store(area(scratch, l, OF_Z, BLOCK, H), a)
    tl.store(area(scratch, l, ADJOINT, BLOCK, H), tl.load(area(scratch, l, D1, BLOCK, H)) * a)
    tl.debug_barrier()


@triton.jit
def gradient_chain(
    out, WEIGHTS, state, p, act_a, act_b, L, ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Jᵀu [BLOCK, DB] of a cotangent, from that of the last layer's z."""
    scratch, slots, _ = state
    above = end(scratch, L, BLOCK, H, DB)
    tl.store(grid(above, BLOCK, OB), out)
    tl.debug_barrier()
    at = WEIGHTS + weights_of(L, H, DB)
    a = backward_product(above, at, slots, above, L, True, False, PRECISION, OB, H, BLOCK, CHUNK)
    for m in tl.range(1, L, disable_licm=True):
        l = L - m
        keep_gradient(a, scratch, l, BLOCK, H)
        above, at = of_layer(scratch, l, ADJOINT, BLOCK, H), WEIGHTS + weights_of(l, H, DB)
        a = backward_product(above, at, slots, above, L, True, False, PRECISION, H, H, BLOCK, CHUNK)
    keep_gradient(a, scratch, 0, BLOCK, H)
    above = of_layer(scratch, 0, ADJOINT, BLOCK, H)
    return backward_product(above, WEIGHTS, slots, above, L, True, False, PRECISION, H, DB, BLOCK, CHUNK), state


@triton.jit
def through(a, scratch, bias_slots, l, TANGENTS: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """The adjoint of z or ż of hidden layer l, from that of what comes out of it, into the scratch."""
    owed = area(scratch, l, OWED, BLOCK, H)
    z_bar = tl.load(area(scratch, l, D1, BLOCK, H)) * a
    if TANGENTS:
        tl.store(owed, tl.load(owed) + tl.load(area(scratch, l, OF_Z, BLOCK, H)) * a)
    else:
        z_bar += tl.load(owed)
        tl.atomic_add(bias_slots + l * H + tl.arange(0, H), tl.sum(z_bar, 0), sem="relaxed")
    tl.store(area(scratch, l, ADJOINT, BLOCK, H), z_bar)
    tl.debug_barrier()


@triton.jit
def backward(
    out_bar, below_all, WEIGHTS, state, p, act_a, act_b, L, TANGENTS: tl.constexpr, INPUTS: tl.constexpr,
    ACT: tl.constexpr, COUNT: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """From the adjoint of the last layer's z: gradients into the slots; if INPUTS, the adjoint [BLOCK, DB] of x.

    Of a tangent, which is in the scratch and also notes what it owes the values; or of the values from x, `below_all`,
    which pay.
    """
    scratch, slots, bias_slots = state
    array: tl.constexpr = TANGENT if TANGENTS else VALUE_
    above, lowest = end(scratch, L, BLOCK, H, DB), source(scratch, L, BLOCK, H)
    tl.store(grid(above, BLOCK, OB), out_bar)
    if not TANGENTS:
        tl.store(grid(lowest, BLOCK, DB), below_all)
        tl.atomic_add(bias_slots + L * H + tl.arange(0, OB), tl.sum(out_bar, 0), sem="relaxed")
    tl.debug_barrier()
    below, at = of_layer(scratch, L - 1, array, BLOCK, H), weights_of(L, H, DB)
    a = backward_product(above, WEIGHTS + at, slots + at, below, L, True, True, PRECISION, OB, H, BLOCK, CHUNK)
    for m in tl.range(1, L, disable_licm=True):
        l = L - m
        through(a, scratch, bias_slots, l, TANGENTS, BLOCK, H)
        above, at = of_layer(scratch, l, ADJOINT, BLOCK, H), weights_of(l, H, DB)
        below = of_layer(scratch, l - 1, array, BLOCK, H)
        a = backward_product(above, WEIGHTS + at, slots + at, below, L, True, True, PRECISION, H, H, BLOCK, CHUNK)
    through(a, scratch, bias_slots, 0, TANGENTS, BLOCK, H)
    above = of_layer(scratch, 0, ADJOINT, BLOCK, H)
    x_bar = backward_product(above, WEIGHTS, slots, lowest, L, INPUTS, True, PRECISION, H, DB, BLOCK, CHUNK)
    tl.debug_barrier()
    return x_bar, state


@triton.jit
def begin(
    SCRATCH, SLOTS, BIAS_SLOTS, L, GRADIENTS: tl.constexpr, DEPTH: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state of a program: where its scratch, and its slot of weights and of biases begin, the latter full of 0."""
    program = tl.program_id(0).to(tl.int64)
    scratch = SCRATCH + program * ((ARRAYS * L * H + DB + OB) * BLOCK)
    return scratch, SLOTS + program * weights_of(L, H, DB, OB), BIAS_SLOTS + program * (L * H + OB)


@triton.jit
def finish(state, SLOTS, BIAS_SLOTS, DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr):
    """The gradients are in the slot."""


CHAINS = {
    "BEGIN": begin, "VALUES_FORWARD": values_forward, "TANGENT_FORWARD": tangent_forward,
    "GRADIENT_CHAIN": gradient_chain, "BACKWARD": backward, "FINISH": finish,
}  # fmt: skip

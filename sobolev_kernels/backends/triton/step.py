"""The kernel of the whole step of order 1 in one launch (docs/math.md, sections 3 and 4); `one_launch.py` launches it.

A program takes tiles of BLOCK samples in turn and draws its directions or cotangents itself (`draws.py`). What a tile
needs of each layer stays in registers (`on_chip.py`) where it fits, else in the second-level cache (`in_cache.py`).
Gradients go to the program's own slot, and are summed over the slots afterwards.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .draws import Target, Vectors, direction, target_along
from .finishing import store_term
from .formulas import activation_jet, residual


@triton.jit
def adjoint(slope, weight, factor, within):
    """Of a prediction; a term of weight 0 may have any target, also NaN."""
    return tl.where(within & (factor != 0.0), factor * slope * weight, 0.0)


@triton.jit
def counted(r, weight):
    """A residual, 0 where its weight is, whatever its target."""
    return tl.where(weight != 0.0, r, 0.0)


class Each(NamedTuple):
    """In a kernel, weights of the numbers of derivatives [P, N, columns] with their strides; without E, ones."""

    E: tl.tensor
    by_vector: tl.tensor
    by_sample: tl.tensor
    by_column: tl.tensor


@triton.jit
def of_each(weight, each, p, sample, column, within):
    """`weight` by those of derivative p."""
    if each.E is not None:
        at = p * each.by_vector + sample * each.by_sample + column * each.by_column
        weight *= tl.load(each.E + at, mask=within, other=0.0)
    return weight


@triton.jit
def inner(a, b, within):
    """Σ_d a b, the same bits on all threads that hold a sum: the selection keeps a product out of a fused addition."""
    return tl.sum(tl.where(within, a * b, 0.0), 1)


@triton.jit
def along_directions(
    g, distribution, vectors, target, each, first, sample, valid, weight, row, P, d, W, DENSE: tl.constexpr
):  # fmt: skip
    """The term [BLOCK] of an output's gradient g [BLOCK, DB] projected on all P directions, and the adjoint of g."""
    term, a = 0.0 * weight, 0.0 * g
    within = valid[:, None] & (d < W)[None, :]
    at = sample * target.by_sample + row * target.by_column
    if DENSE:
        known = tl.load(target.T + at[:, None] + d[None, :] * target.by_term, mask=within, other=0.0)
    for p in tl.range(P, disable_licm=True):
        v = direction(distribution, vectors, sample, valid, p, d, W)
        if DENSE:
            along = inner(known, v, within)
        else:
            along = tl.load(target.T + p * target.by_vector + at, mask=valid, other=0.0)
        w = of_each(weight, each, p, sample, row, valid)
        rho, slope = residual(first, counted(inner(g, v, within) - along, w))
        term += tl.where(valid, rho * w, 0.0)
        a += adjoint(slope, w, first.factor, valid)[:, None] * v
    return term, a


@triton.jit
def by_output(sample_weight, WEIGHT_OF_OUTPUT, o, O, TILE):
    """Weights [BLOCK, OB] of samples, by those of outputs."""
    weight = sample_weight[:, None] + tl.zeros((TILE.BLOCK, TILE.OB), tl.float32)
    if WEIGHT_OF_OUTPUT is not None:
        weight *= tl.load(WEIGHT_OF_OUTPUT + o, mask=o < O, other=0.0)[None, :]
    return weight


@triton.jit
def store_given(dgiven, gradient, p, sample, valid, d, columns, N):
    """The gradient [BLOCK, …] of direction or cotangent p [N, columns]."""
    at = (p * N.to(tl.int64) + sample)[:, None] * columns + d[None, :]
    tl.store(dgiven + at, gradient, mask=valid[:, None] & (d < columns)[None, :])


@triton.jit
def samples_of(t, unknown, N, TILE):
    """The samples of a tile, and which of them there are. With another zero that the compiler does not know they are
    computed again, where registers would keep them, and all that follows from them, over a loop."""
    sample = (t + unknown) * TILE.BLOCK + tl.arange(0, TILE.BLOCK).to(tl.int64)
    return sample, sample < N


# What changes from one step of a training loop to the next must not make another variant of the kernel. Triton compiles
# one for whether an integer is 1, or a multiple of 16, and for whether a pointer is; and for integers of 32 or 64 bits.
# It can be kept from that for a parameter, but not for a member of a tuple (triton 3.6.0 and 3.7.1). So sizes, strides
# and the users' tensors are parameters, of which the kernel makes its tuples, and the key has types of its own. Tuples
# have constants, floats, and tensors that are allocated here.
@triton.jit(
    do_not_specialize=[
        "N", "P", "D", "W", "O", "hidden_layers", "sx_n", "sx_d", "sv_p", "sv_n", "sv_k", "sy_n", "sy_o",
        "st_p", "st_n", "st_k", "st_column", "sw_p", "sw_n", "sw_k", "seed", "place", "seed_in_memory",
    ],
    do_not_specialize_on_alignment=[
        "X", "V", "Y", "T", "WEIGHT_OF_SAMPLE", "WEIGHT_OF_OUTPUT", "WEIGHT_OF_EACH", "SEED",
    ],
)  # fmt: skip
def step_kernel(
    X, V, Y, T, WEIGHT_OF_SAMPLE, WEIGHT_OF_OUTPUT, WEIGHT_OF_EACH, SEED, packed, room,
    N, P, D, W, O, hidden_layers, sx_n, sx_d, sv_p, sv_n, sv_k, sy_n, sy_o, st_p, st_n, st_k, st_column,
    sw_p, sw_n, sw_k, seed: tl.uint64, place: tl.uint64, seed_in_memory, common, distribution, activation, last, value,
    first, chains, FROM: tl.constexpr, DENSE: tl.constexpr, GRADIENTS: tl.constexpr,
    OF_EACH: tl.constexpr, TILE,
):  # fmt: skip
    """hidden_layers of H features; D and O are padded to DB and OB. Gradients are those of the loss by `common`.

    packed: Packed. room: Room. distribution: Distribution. activation, last: Activation. value, first: Loss, of the
    values and of the derivatives. chains: Chains, of on_chip.py or of in_cache.py. TILE: Tile.

    FROM "tangents" along P directions, or "cotangents", P of them; or from the "gradients" of the O outputs, each
    projected on all P directions: the same numbers as from tangents.
    """
    vectors = Vectors(
        V, sv_p.to(tl.int64), sv_n, sv_k, seed.to(tl.uint64), place.to(tl.uint64), SEED, seed_in_memory != 0
    )
    target = Target(T, st_p.to(tl.int64), st_n, st_k, st_column)
    each = Each(WEIGHT_OF_EACH, sw_p.to(tl.int64), sw_n, sw_k)
    d, o = tl.arange(0, TILE.DB), tl.arange(0, TILE.OB)
    state = chains.begin(room, hidden_layers, GRADIENTS, TILE)
    rounds = O if FROM == "gradients" else P
    for t in tl.range(tl.program_id(0), (N - 1) // TILE.BLOCK + 1, tl.num_programs(0), disable_licm=True):
        sample, valid = samples_of(t, 0, N, TILE)
        within_x = valid[:, None] & (d < D)[None, :]
        within_y = valid[:, None] & (o < O)[None, :]
        sample_weight = tl.where(valid, 1.0, 0.0)
        if WEIGHT_OF_SAMPLE is not None:
            sample_weight = tl.load(WEIGHT_OF_SAMPLE + sample, mask=valid, other=0.0)
        weight = by_output(sample_weight, WEIGHT_OF_OUTPUT, o, O, TILE)
        x = tl.load(X + sample[:, None] * sx_n + d[None, :] * sx_d, mask=within_x, other=0.0)
        z, state = chains.values_forward(x, state, t, packed, hidden_layers, activation, TILE)
        y, y1, y2, _ = activation_jet(last, z)
        known = y + 0.0 * z
        if Y is not None:
            known = tl.load(Y + sample[:, None] * sy_n + o[None, :] * sy_o, mask=within_y, other=0.0)
        of_values, slope_of_values = residual(value, counted(y - known, weight))
        term = value.share * tl.sum(tl.where(within_y, of_values * weight, 0.0), 1)
        store_term(room.terms, 0, term, sample, valid, t, N, OF_EACH, TILE.BLOCK)
        out_bar = y1 * adjoint(slope_of_values, weight, value.factor, within_y)
        if WEIGHT_OF_SAMPLE is not None:  # [2, N], of the values and of the derivatives
            sample_weight = tl.load(WEIGHT_OF_SAMPLE + N + sample, mask=valid, other=0.0)
            weight = by_output(sample_weight, WEIGHT_OF_OUTPUT, o, O, TILE)
        first_term = tl.zeros((TILE.BLOCK,), tl.float32)
        for p in tl.range(rounds, disable_licm=True):
            sample, valid = samples_of(t, p >> 30, N, TILE)
            within_y = valid[:, None] & (o < O)[None, :]
            if WEIGHT_OF_SAMPLE is None:
                sample_weight = tl.where(valid, 1.0, 0.0)
            if WEIGHT_OF_OUTPUT is None:
                weight = sample_weight[:, None] + tl.zeros((TILE.BLOCK, TILE.OB), tl.float32)
            if FROM == "gradients":
                u = tl.where(valid[:, None] & (o == p)[None, :], 1.0, 0.0)
                g, state = chains.gradient_chain(y1 * u, state, p, packed, hidden_layers, activation, TILE)
                row_weight = sample_weight
                if WEIGHT_OF_OUTPUT is not None:
                    row_weight = sample_weight * tl.load(WEIGHT_OF_OUTPUT + p)
                term, a = along_directions(
                    g, distribution, vectors, target, each, first, sample, valid, row_weight, p, P, d, W, DENSE
                )  # fmt: skip
            elif FROM == "cotangents":
                u = direction(distribution, vectors, sample, valid, p, o, O)
                within = valid[:, None] & (d < W)[None, :]
                g, state = chains.gradient_chain(y1 * u, state, p, packed, hidden_layers, activation, TILE)
                along = target_along(target, sample, valid, u, p, o, O, d, W, DENSE)
                row_weight = sample_weight[:, None]
                if WEIGHT_OF_OUTPUT is not None:
                    row_weight = sample_weight[:, None] * tl.load(WEIGHT_OF_OUTPUT + p)
                row_weight = of_each(row_weight, each, p, sample[:, None], d[None, :], within)
                rho, slope = residual(first, counted(g - along, row_weight))
                term = tl.sum(tl.where(within, rho * row_weight, 0.0), 1)
                a = adjoint(slope, row_weight, first.factor, within)
            else:
                v = direction(distribution, vectors, sample, valid, p, d, W)
                z1, state = chains.tangent_forward(
                    v, state, p, packed, hidden_layers, activation, GRADIENTS, False, TILE
                )  # fmt: skip
                along = target_along(target, sample, valid, v, p, d, W, o, O, DENSE)
                w = of_each(weight, each, p, sample[:, None], o[None, :], within_y)
                rho, slope = residual(first, counted(y1 * z1 - along, w))
                term = tl.sum(tl.where(within_y, rho * w, 0.0), 1)
                a = adjoint(slope, w, first.factor, within_y)
            first_term += term
            if GRADIENTS:
                if FROM != "tangents":
                    z1, state = chains.tangent_forward(
                        a, state, p, packed, hidden_layers, activation, False, True, TILE
                    )  # fmt: skip
                    if FROM == "gradients":
                        u = tl.where(valid[:, None] & (o == p + (rounds >> 30))[None, :], 1.0, 0.0)
                    out_bar += y2 * z1 * u
                    if FROM == "cotangents" and room.dgiven is not None:
                        store_given(room.dgiven, common * y1 * z1, p, sample, valid, o, O, N)
                else:
                    out_bar += y2 * z1 * a
                    dv, state = chains.backward(
                        y1 * a, v, state, p, packed, hidden_layers, activation, True, room.dgiven is not None, TILE
                    )  # fmt: skip
                    if room.dgiven is not None:
                        store_given(room.dgiven, common * dv, p, sample, valid, d, W, N)
        sample, valid = samples_of(t, rounds >> 30, N, TILE)
        within_x = valid[:, None] & (d < D)[None, :]
        store_term(room.terms, 1, first.share * first_term, sample, valid, t, N, OF_EACH, TILE.BLOCK)
        if GRADIENTS:
            dx, state = chains.backward(
                out_bar, x, state, t, packed, hidden_layers, activation, False, room.dx is not None, TILE
            )  # fmt: skip
            if room.dx is not None:
                tl.store(room.dx + sample[:, None] * D + d[None, :], common * dx, mask=within_x)
    if GRADIENTS:
        chains.finish(state, room, TILE)

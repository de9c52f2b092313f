"""The whole step of order 1 in one launch, for narrow students (docs/math.md, sections 3 and 4).

A program takes tiles of BLOCK samples in turn and draws its directions or cotangents itself (`draws.py`). What a tile
needs of each layer stays in registers (`on_chip.py`) where it fits, else in the second-level cache (`in_cache.py`).
Gradients go to the program's own slot, and are summed over the slots afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ... import planner
from ...drawing import over_samples
from ...enums import COTANGENTS, DENSE
from ...math.directions import is_dependent
from ...math.losses import is_coupled
from ...problem import LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Problem
from ..finish import finish
from . import in_cache, on_chip
from .draws import DISTRIBUTION, Distribution, Target, Vectors, direction, target_along
from .formulas import activation_jet, activation_of, loss_of, residual
from .launches import launch_of, tile_of
from .parameters import pack, unpack

WIDEST, MOST_INPUTS = 128, 32


def refusal(problem: Problem) -> str | None:
    """Why a problem takes the layer-wise path instead."""
    hidden = problem.widths[1:-1]
    losses = [loss for loss in (problem.value_loss, problem.derivative_loss) if loss is not None]
    reasons = {
        "only the loss is computed in one launch": problem.result not in (LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS),
        "order 2": problem.order == 2,
        "no derivative": problem.P == 0,
        "the directions of a sample depend on each other": is_dependent(problem.distribution),
        "a loss that couples directions": any(map(is_coupled, losses)),
        "no hidden layer": not hidden,
        "hidden layers of different widths": len(set(hidden)) > 1,
        "different activations between the layers": len(set(problem.activations[:-1])) > 1,
        f"wider than {WIDEST}": bool(hidden) and hidden[0] > WIDEST,
        f"more than {MOST_INPUTS} inputs or outputs": max(problem.D, problem.O) > MOST_INPUTS,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


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
        "st_p", "st_n", "st_k", "st_column", "sw_p", "sw_n", "sw_k", "seed", "offset",
    ],
    do_not_specialize_on_alignment=["X", "V", "Y", "T", "WEIGHT_OF_SAMPLE", "WEIGHT_OF_OUTPUT", "WEIGHT_OF_EACH"],
)  # fmt: skip
def step_kernel(
    X, V, Y, T, WEIGHT_OF_SAMPLE, WEIGHT_OF_OUTPUT, WEIGHT_OF_EACH, packed, room,
    N, P, D, W, O, hidden_layers, sx_n, sx_d, sv_p, sv_n, sv_k, sy_n, sy_o, st_p, st_n, st_k, st_column,
    sw_p, sw_n, sw_k, seed: tl.uint64, offset: tl.uint32, common, distribution, activation, last, value, first, chains,
    FROM: tl.constexpr, DENSE: tl.constexpr, GRADIENTS: tl.constexpr, TILE,
):  # fmt: skip
    """hidden_layers of H features; D and O are padded to DB and OB. Gradients are those of the loss by `common`.

    packed: Packed. room: Room. distribution: Distribution. activation, last: Activation. value, first: Loss, of the
    values and of the derivatives. chains: Chains, of on_chip.py or of in_cache.py. TILE: Tile.

    FROM "tangents" along P directions, or "cotangents", P of them; or from the "gradients" of the O outputs, each
    projected on all P directions: the same numbers as from tangents.
    """
    seed, offset = seed.to(tl.uint64), offset.to(tl.uint32)
    vectors = Vectors(V, sv_p.to(tl.int64), sv_n, sv_k, seed, offset)
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
        tl.store(room.terms + sample, value.share * tl.sum(tl.where(within_y, of_values * weight, 0.0), 1), mask=valid)
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
                else:
                    out_bar += y2 * z1 * a
                    _no_dx, state = chains.backward(
                        y1 * a, v, state, p, packed, hidden_layers, activation, True, False, TILE
                    )  # fmt: skip
        sample, valid = samples_of(t, rounds >> 30, N, TILE)
        within_x = valid[:, None] & (d < D)[None, :]
        tl.store(room.terms + N + sample, first.share * first_term, mask=valid)
        if GRADIENTS:
            dx, state = chains.backward(
                out_bar, x, state, t, packed, hidden_layers, activation, False, room.dx is not None, TILE
            )  # fmt: skip
            if room.dx is not None:
                tl.store(room.dx + sample[:, None] * D + d[None, :], common * dx, mask=within_x)
    if GRADIENTS:
        chains.finish(state, room, TILE)


def near(tensor: torch.Tensor | None, features: int = 1) -> torch.Tensor | None:
    """The tensor, or a copy of one whose last dimensions lie further apart than the kernel's 32-bit integers reach.

    Such is the transpose of inputs of 10^8 samples. The 64-bit ones would be registers that the kernel has not got.
    """
    if tensor is None:
        return None
    last = zip(tensor.shape[-features:], tensor.stride()[-features:], strict=True)
    return tensor.contiguous() if any((n - 1) * stride >= 2**31 for n, stride in last) else tensor


@torch.no_grad()
def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    x, parameters, given, seed, values, derivative, _, sample_weight, output_weight, each, weights = operands
    N, hidden_layers = x.shape[0], len(problem.widths) - 2
    launch, packed = launch_of(problem), pack(problem, parameters)
    tile = tile_of(problem, launch)
    programs = count_programs(triton.cdiv(N, launch.block), launch.warps, x.device)
    chains, scratch, slot = on_chip.CHAINS, None, x.new_empty  # slots are written once
    if launch.layers is None:
        chains, slot = in_cache.CHAINS, x.new_zeros  # slots are added to
        scratch = x.new_empty(programs, in_cache.scratch_size(hidden_layers, tile))
    slots, bias_slots = (slot(programs, tensor.numel()) for tensor in (packed.weights, packed.biases))
    room = in_cache.Room(scratch, slots, bias_slots, x.new_empty(2, N), outputs.get("dx"))
    samples = max(1, N) if problem.reduction == "mean" else 1
    shares = 1 / (samples * problem.O), 1 / (samples * problem.derived * problem.P)
    factors = weights[0] * shares[0], weights[1] * shares[1]
    # adjoints of the size of residuals, whatever N is: float16 has no room for smaller ones
    common = max(factors) or 1.0
    losses = zip((problem.value_loss, problem.derivative_loss), factors, shares, strict=True)
    value, first = (loss_of(loss, factor / common, share) for loss, factor, share in losses)
    key, offset = (0, 0) if seed is None else seed.tolist()
    cotangents, dense = problem.projection == COTANGENTS, problem.derivative_target == DENSE
    v = None if given is None else near(over_samples(given, N))
    x, values, derivative, each = near(x), near(values), near(derivative, 2 if dense else 1), near(each)
    kind, shared = map(tl.constexpr, (DISTRIBUTION[problem.distribution], problem.shared))
    st = (0, 0, 0) if derivative is None else derivative.stride()
    if dense:  # [N, O, W], summed over W for directions, over O for cotangents
        st = (0, st[0], st[1], st[2]) if cotangents else (0, st[0], st[2], st[1])
    else:
        st = (st[0], st[1], 0, st[2])
    strides = [
        *x.stride(), *((0, 0, 0) if v is None else v.stride()), *((0, 0) if values is None else values.stride()), *st,
        *((0, 0, 0) if each is None else each.stride()),
    ]  # fmt: skip
    if N:
        step_kernel[(programs,)](
            x, v, values, derivative, sample_weight, output_weight, each, packed, room,
            N, problem.P, problem.D, problem.W, problem.O, hidden_layers, *strides, key, offset & 0xFFFFFFFF, common,
            Distribution(kind, shared, problem.magnitude), activation_of(problem.activations[0]),
            activation_of(problem.activations[-1]), value, first, chains,
            FROM="cotangents" if cotangents else planner.side(problem), DENSE=dense, GRADIENTS=problem.gradients,
            TILE=tile, **launch.options,
        )  # fmt: skip
    if problem.result != PER_SAMPLE_GRADIENTS:
        for name, result in zip(("loss", "terms"), finish(problem, weights, room.terms), strict=True):
            outputs[name].copy_(result)
    if problem.gradients:
        unpack(problem, common * slots.sum(0), common * bias_slots.sum(0), gradients)


def count_programs(tiles: int, warps: int, device: torch.device) -> int:
    """A persistent grid: as many programs as fit registers; three in the interpreter, to see them side by side."""
    if device.type != "cuda":
        return min(tiles, 3)
    return min(tiles, torch.cuda.get_device_properties(device).multi_processor_count * max(1, 8 // warps))

"""The whole step of order 1 in one launch, for narrow students (docs/math.md, sections 3 and 4).

A program takes tiles of BLOCK samples in turn and draws its directions or cotangents itself (`draws.py`). What a tile
needs of each layer stays in registers (`on_chip.py`) where it fits, else in the second-level cache (`in_cache.py`).
Gradients go to the program's own slot, and are summed over the slots afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import planner
from ...enums import COTANGENTS, DENSE
from ...math.directions import is_dependent
from ...math.losses import is_coupled
from ...problem import LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Problem
from ..finish import finish
from . import in_cache, on_chip
from .draws import DISTRIBUTION, direction, target_along
from .formulas import arguments, derivatives, residual
from .launches import one_launch, padded
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
def inner(a, b, within):
    """Σ_d a b, the same bits on all threads that hold a sum: the selection keeps a product out of a fused addition."""
    return tl.sum(tl.where(within, a * b, 0.0), 1)


@triton.jit
def along_directions(
    g, T, V, sv_p, sv_n, sv_k, st_p, st_n, st_k, st_column, sample, there, own, row, P, d, W, seed, offset, scale,
    factor, loss_a, LOSS: tl.constexpr, COUNT: tl.constexpr, KIND: tl.constexpr, SHARED: tl.constexpr,
    JACOBIAN: tl.constexpr,
):  # fmt: skip
    """The term [BLOCK] of an output's gradient g [BLOCK, DB] projected on all P directions, and the adjoint of g."""
    term, a = 0.0 * own, 0.0 * g
    within = there[:, None] & (d < W)[None, :]
    at = sample * st_n + row * st_column
    if JACOBIAN:
        known = tl.load(T + at[:, None] + d[None, :] * st_k, mask=within, other=0.0)
    for p in tl.range(P, disable_licm=True):
        v = direction(V, sv_p, sv_n, sv_k, sample, there, p, d, W, seed, offset, scale, SHARED, KIND)
        if JACOBIAN:
            target = inner(known, v, within)
        else:
            target = tl.load(T + p * st_p + at, mask=there, other=0.0)
        rho, slope = residual(LOSS, COUNT, inner(g, v, within) - target, loss_a)
        term += tl.where(there, rho * own, 0.0)
        a += adjoint(slope, own, factor, there)[:, None] * v
    return term, a


@triton.jit(do_not_specialize=["N", "P", "D", "W", "O", "L", "rounds", "tiles", "seed", "offset"])
def step_kernel(
    X, V, Y, T, WEIGHT_OF_SAMPLE, WEIGHT_OF_OUTPUT, WEIGHTS, TRANSPOSED, BIASES, SCRATCH, SLOTS, BIAS_SLOTS, TERMS, DX,
    N, P, D, W, O, L, rounds, tiles, sx_n, sx_d, sv_p, sv_n, sv_k, sy_n, sy_o, st_p, st_n, st_k, st_column,
    seed, offset, scale, value_factor, first_factor, common, value_scale, first_scale, act_a, act_b, last_a, last_b,
    value_a, first_a,
    ACT: tl.constexpr, ACT_COUNT: tl.constexpr, LAST: tl.constexpr, LAST_COUNT: tl.constexpr,
    VALUE: tl.constexpr, VALUE_COUNT: tl.constexpr, FIRST: tl.constexpr, FIRST_COUNT: tl.constexpr,
    KIND: tl.constexpr, SHARED: tl.constexpr, FROM: tl.constexpr, JACOBIAN: tl.constexpr,
    GRADIENTS: tl.constexpr, PRECISION: tl.constexpr,
    BEGIN: tl.constexpr, VALUES_FORWARD: tl.constexpr, TANGENT_FORWARD: tl.constexpr, GRADIENT_CHAIN: tl.constexpr,
    BACKWARD: tl.constexpr, FINISH: tl.constexpr,
    DEPTH: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """L hidden layers of H features; D and O are padded to DB and OB. Gradients are those of the loss by `common`.

    The chains are those of on_chip.py, for DEPTH hidden layers, or of in_cache.py.

    FROM "tangents" along P directions, or "cotangents", P of them; or from the "gradients" of the O outputs, each
    projected on all P directions: the same numbers as from tangents.
    """
    program = tl.program_id(0)
    seed, offset = tl.full((), seed, tl.uint64), tl.full((), offset, tl.uint32)
    sv_p, st_p = tl.full((), sv_p, tl.int64), tl.full((), st_p, tl.int64)
    i, d, o = tl.arange(0, BLOCK), tl.arange(0, DB), tl.arange(0, OB)
    state = BEGIN(SCRATCH, SLOTS, BIAS_SLOTS, L, GRADIENTS, DEPTH, DB, H, OB, BLOCK)
    output_weight = tl.where(o < O, 1.0, 0.0)
    if WEIGHT_OF_OUTPUT is not None:
        output_weight = tl.load(WEIGHT_OF_OUTPUT + o, mask=o < O, other=0.0)
    for tile in tl.range(program, tiles, tl.num_programs(0), disable_licm=True):
        sample = tile * BLOCK + i.to(tl.int64)
        there = sample < N
        within_x = there[:, None] & (d < D)[None, :]
        within_y = there[:, None] & (o < O)[None, :]
        own = tl.where(there, 1.0, 0.0)
        if WEIGHT_OF_SAMPLE is not None:
            own = tl.load(WEIGHT_OF_SAMPLE + sample, mask=there, other=0.0)
        weight = own[:, None] * output_weight[None, :]
        x = tl.load(X + sample[:, None] * sx_n + d[None, :] * sx_d, mask=within_x, other=0.0)
        z, state = VALUES_FORWARD(
            x, TRANSPOSED, BIASES, state, tile, act_a, act_b, L, ACT, ACT_COUNT, PRECISION,
            DEPTH, DB, H, OB, BLOCK, CHUNK,
        )  # fmt: skip
        y, y1, y2, _ = derivatives(LAST, LAST_COUNT, z, last_a, last_b)
        owed = tl.zeros((BLOCK, OB), tl.float32)
        first_term = tl.zeros((BLOCK,), tl.float32)
        for p in tl.range(rounds, disable_licm=True):
            if FROM == "gradients":
                u = tl.where(there[:, None] & (o == p)[None, :], 1.0, 0.0)
                g, state = GRADIENT_CHAIN(
                    y1 * u, WEIGHTS, state, p, act_a, act_b, L, ACT, ACT_COUNT, PRECISION,
                    DEPTH, DB, H, OB, BLOCK, CHUNK,
                )  # fmt: skip
                of_row = own
                if WEIGHT_OF_OUTPUT is not None:
                    of_row = own * tl.load(WEIGHT_OF_OUTPUT + p)
                term, a = along_directions(
                    g, T, V, sv_p, sv_n, sv_k, st_p, st_n, st_k, st_column, sample, there, of_row, p, P, d, W,
                    seed, offset, scale, first_factor, first_a, FIRST, FIRST_COUNT, KIND, SHARED, JACOBIAN,
                )  # fmt: skip
            elif FROM == "cotangents":
                u = direction(V, sv_p, sv_n, sv_k, sample, there, p, o, O, seed, offset, scale, SHARED, KIND)
                within = there[:, None] & (d < W)[None, :]
                g, state = GRADIENT_CHAIN(
                    y1 * u, WEIGHTS, state, p, act_a, act_b, L, ACT, ACT_COUNT, PRECISION,
                    DEPTH, DB, H, OB, BLOCK, CHUNK,
                )  # fmt: skip
                target = target_along(T, st_p, st_n, st_k, st_column, sample, there, u, p, o, O, d, W, JACOBIAN)
                rho, slope = residual(FIRST, FIRST_COUNT, g - target, first_a)
                of_row = own[:, None]
                if WEIGHT_OF_OUTPUT is not None:
                    of_row = own[:, None] * tl.load(WEIGHT_OF_OUTPUT + p)
                term = tl.sum(tl.where(within, rho * of_row, 0.0), 1)
                a = adjoint(slope, of_row, first_factor, within)
            else:
                v = direction(V, sv_p, sv_n, sv_k, sample, there, p, d, W, seed, offset, scale, SHARED, KIND)
                z1, state = TANGENT_FORWARD(
                    v, TRANSPOSED, state, p, act_a, act_b, L, GRADIENTS, False, ACT, ACT_COUNT, PRECISION,
                    DEPTH, DB, H, OB, BLOCK, CHUNK,
                )  # fmt: skip
                target = target_along(T, st_p, st_n, st_k, st_column, sample, there, v, p, d, W, o, O, JACOBIAN)
                rho, slope = residual(FIRST, FIRST_COUNT, y1 * z1 - target, first_a)
                term = tl.sum(tl.where(within_y, rho * weight, 0.0), 1)
                a = adjoint(slope, weight, first_factor, within_y)
            first_term += term
            if GRADIENTS:
                if FROM != "tangents":
                    z1, state = TANGENT_FORWARD(
                        a, TRANSPOSED, state, p, act_a, act_b, L, False, True, ACT, ACT_COUNT, PRECISION,
                        DEPTH, DB, H, OB, BLOCK, CHUNK,
                    )  # fmt: skip
                    owed += y2 * z1 * u
                else:
                    owed += y2 * z1 * a
                    _no_dx, state = BACKWARD(
                        y1 * a, v, WEIGHTS, state, p, act_a, act_b, L, True, False, ACT, ACT_COUNT, PRECISION,
                        DEPTH, DB, H, OB, BLOCK, CHUNK,
                    )  # fmt: skip
        known = y + 0.0 * z
        if Y is not None:
            known = tl.load(Y + sample[:, None] * sy_n + o[None, :] * sy_o, mask=within_y, other=0.0)
        value_rho, value_slope = residual(VALUE, VALUE_COUNT, y - known, value_a)
        tl.store(TERMS + sample, value_scale * tl.sum(tl.where(within_y, value_rho * weight, 0.0), 1), mask=there)
        tl.store(TERMS + N + sample, first_scale * first_term, mask=there)
        if GRADIENTS:
            a = adjoint(value_slope, weight, value_factor, within_y)
            dx, state = BACKWARD(
                y1 * a + owed, x, WEIGHTS, state, tile, act_a, act_b, L, False, DX is not None,
                ACT, ACT_COUNT, PRECISION, DEPTH, DB, H, OB, BLOCK, CHUNK,
            )  # fmt: skip
            if DX is not None:
                tl.store(DX + sample[:, None] * D + d[None, :], common * dx, mask=within_x)
    if GRADIENTS:
        FINISH(state, SLOTS, BIAS_SLOTS, DEPTH, DB, H, OB)


@torch.no_grad()
def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    x, parameters, given, seed, values, derivative, _, sample_weight, output_weight, weights = operands
    N, D, O, L = x.shape[0], problem.D, problem.O, len(problem.widths) - 2
    DB, H, OB = map(padded, (D, problem.widths[1], O))
    launch, packed = one_launch(problem), pack(problem, parameters)
    chains = in_cache.CHAINS if launch.layers is None else on_chip.CHAINS
    BLOCK, tiles = launch.block, triton.cdiv(N, launch.block)
    programs, scratch = count_programs(tiles, launch.warps, x.device), None
    if launch.layers is None:
        scratch = x.new_empty(programs, (in_cache.ARRAYS.value * L * H + DB + OB) * BLOCK)
    slot = x.new_zeros if launch.layers is None else x.new_empty  # added to, or written once
    slots, bias_slots = (slot(programs, n) for n in (packed.weights.numel(), packed.biases.numel()))
    terms = x.new_empty(2, N)
    samples = max(1, N) if problem.reduction == "mean" else 1
    scales = 1 / (samples * O), 1 / (samples * problem.derived * problem.P)
    factors = weights[0] * scales[0], weights[1] * scales[1]
    # adjoints of the size of residuals, whatever N is: float16 has no room for smaller ones
    common = max(factors) or 1.0
    key, offset = (0, 0) if seed is None else seed.tolist()
    v = None if given is None else given if given.dim() == 3 else given[:, None].expand(-1, N, -1)
    cotangents, dense = problem.projection == COTANGENTS, problem.derivative_target == DENSE
    side = "cotangents" if cotangents else planner.side(problem)
    rounds = O if side == "gradients" else problem.P
    st = (0, 0, 0) if derivative is None else derivative.stride()
    if dense:  # [N, O, W], summed over W for directions, over O for cotangents
        st = (0, st[0], st[1], st[2]) if cotangents else (0, st[0], st[2], st[1])
    else:
        st = (st[0], st[1], 0, st[2])
    strides = [
        *x.stride(), *((0, 0, 0) if v is None else v.stride()), *((0, 0) if values is None else values.stride()), *st
    ]  # fmt: skip
    act, act_count, act_a, act_b = arguments(problem.activations[0], 0)
    last, last_count, last_a, last_b = arguments(problem.activations[-1], 0)
    value, value_count, value_a, _ = arguments(problem.value_loss, 1)
    first, first_count, first_a, _ = arguments(problem.derivative_loss, 1)
    if N:
        step_kernel[(programs,)](
            x, v, values, derivative, sample_weight, output_weight, *packed, scratch, slots, bias_slots, terms,
            outputs.get("dx"), N, problem.P, D, problem.W, O, L, rounds, tiles, *strides,
            key, offset & 0xFFFFFFFF, problem.scale, *(f / common for f in factors), common, *scales,
            act_a, act_b, last_a, last_b, value_a, first_a,
            ACT=act, ACT_COUNT=act_count, LAST=last, LAST_COUNT=last_count, VALUE=value, VALUE_COUNT=value_count,
            FIRST=first, FIRST_COUNT=first_count, KIND=DISTRIBUTION[problem.distribution], SHARED=problem.shared,
            FROM=side, JACOBIAN=dense, GRADIENTS=problem.gradients, PRECISION=problem.precision,
            DEPTH=0 if launch.layers is None else L, DB=DB, H=H, OB=OB, BLOCK=BLOCK, CHUNK=launch.chunk,
            **chains, **launch.options,
        )  # fmt: skip
    if problem.result != PER_SAMPLE_GRADIENTS:
        for name, result in zip(("loss", "terms"), finish(problem, weights, terms), strict=True):
            outputs[name].copy_(result)
    if problem.gradients:
        unpack(problem, common * slots.sum(0), common * bias_slots.sum(0), gradients)


def count_programs(tiles: int, warps: int, device: torch.device) -> int:
    """A persistent grid: as many programs as fit registers; three in the interpreter, to see them side by side."""
    if device.type != "cuda":
        return min(tiles, 3)
    return min(tiles, torch.cuda.get_device_properties(device).multi_processor_count * max(1, 8 // warps))

"""The whole step of order 1 along directions in one launch (docs/math.md, section 3): for narrow students.

A program takes tiles of BLOCK samples in turn. Values, one direction's tangents and what they owe pass from layer to
layer in registers; what the way back needs lies in the program's own scratch, a few hundred kilobytes that stay in the
second-level cache. This is the one place where a kernel reads global memory that its own launch wrote: a scratch
belongs to one program, and a barrier separates a phase that writes from the next that reads (the PTX run shows that
there is no race). Weight gradients are added to the program's own slot, in a fixed order, and summed over the slots
afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...math.directions import DISTRIBUTIONS
from ...math.losses import is_coupled
from ...problem import COTANGENTS, DENSE, LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Problem
from .formulas import arguments, derivatives, residual
from .launches import one_launch

WIDEST, MOST_INPUTS = 128, 32
DISTRIBUTION = {name: i for i, name in enumerate(DISTRIBUTIONS)} | {"given": len(DISTRIBUTIONS)}


def refusal(problem: Problem) -> str | None:
    """Why a problem takes the layer-wise path instead."""
    hidden = problem.widths[1:-1]
    losses = [loss for loss in (problem.value_loss, problem.derivative_loss) if loss is not None]
    reasons = {
        "only the loss is computed in one launch": problem.result not in (LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS),
        "order 2": problem.order == 2,
        "cotangents": problem.projection == COTANGENTS,
        "no derivative": problem.P == 0,
        "orthonormal directions depend on each other": problem.distribution == "orthonormal",
        "a loss that couples directions": any(map(is_coupled, losses)),
        "no hidden layer": not hidden,
        "hidden layers of different widths": len(set(hidden)) > 1,
        "different activations between the layers": len(set(problem.activations[:-1])) > 1,
        f"wider than {WIDEST}": bool(hidden) and hidden[0] > WIDEST,
        f"more than {MOST_INPUTS} inputs or outputs": max(problem.D, problem.O) > MOST_INPUTS,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def padded(n: int) -> int:
    """A size that tl.dot takes."""
    return max(16, triton.next_power_of_2(n))


@triton.jit
def multiply(a, b, PRECISION: tl.constexpr):
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "fp16":
        return tl.dot(a.to(tl.float16), b.to(tl.float16))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def normal(sample, p, d, seed, offset):
    """A standard normal for each (sample, column): the pairs of docs/math.md's generator, by Box and Muller."""
    w0, w1, w2, w3 = tl.philox(seed, sample, p + 0 * d, d // 4 + 0 * sample, offset + 0 * d)
    second = (d % 4) >= 2
    a, b = tl.where(second, w2, w0), tl.where(second, w3, w1)
    u = ((a >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    angle = 6.283185307179586 * (((b >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0) - 0.5)
    return tl.sqrt(-2.0 * tl.log(u)) * tl.where(d % 2 == 0, tl.cos(angle), tl.sin(angle))


@triton.jit
def direction(
    V, sv_p, sv_n, sv_d, sample, there, p, d, W, seed, offset, scale, SHARED: tl.constexpr, KIND: tl.constexpr
):
    """Direction p of a tile [BLOCK, columns], 0 beyond W and N. KIND is the row of the distribution."""
    within = (d < W)[None, :] & there[:, None]
    if KIND == 6:
        at = p * sv_p + sample[:, None] * sv_n + d[None, :] * sv_d
        return tl.load(V + at, mask=within, other=0.0)
    rows = (0 * sample if SHARED else sample)[:, None].to(tl.uint32)
    columns = d[None, :].to(tl.uint32)
    if KIND == 0 or KIND == 1:
        v = tl.where(within, normal(rows, p, columns, seed, offset), 0.0)
        if KIND == 0:
            v = v / tl.sqrt_rn(tl.maximum(tl.sum(v * v, 1), 1e-30))[:, None]
    elif KIND == 2:
        w0, w1, w2, w3 = tl.philox(seed, rows, p + 0 * columns, columns // 4 + 0 * rows, offset + 0 * columns)
        k = columns % 4
        w = tl.where(k == 0, w0, tl.where(k == 1, w1, tl.where(k == 2, w2, w3)))
        v = tl.where((w >> 31) == 1, 1.0, -1.0)
    elif KIND == 3:
        w0, w1, w2, w3 = tl.philox(seed, rows, p + 0 * columns, 0 * columns + 0 * rows, offset + 0 * columns)
        column = ((w0.to(tl.uint64) * W) >> 32).to(tl.uint32)
        v = tl.where(column == columns, 1.0, 0.0)
    else:
        v = tl.where(columns + 0 * rows == p, 1.0, 0.0)
    return tl.where(within, v * scale, 0.0)


# The arrays of a hidden layer in a program's scratch, each [BLOCK, H]
VALUE_, D1, D2, OWED, TANGENT, CURVATURE, ADJOINT, ARRAYS = (tl.constexpr(i) for i in range(8))


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
        total += multiply(h, tl.trans(w), PRECISION)
    return total


@triton.jit
def backward_product(
    scratch, l, WEIGHTS, slots, h, start, PRECISION: tl.constexpr,
    H: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """[BLOCK, H] of the adjoint of layer l times the weights [H, H] from `start` on; their gradient into the slots.

    h [BLOCK, H] is what came into the layer.
    """
    i, c, n = tl.arange(0, BLOCK), tl.arange(0, CHUNK), tl.arange(0, H)
    total = tl.zeros((BLOCK, H), tl.float32)
    for k in range(0, H, CHUNK):
        z_bar = tl.load(scratch + (ARRAYS * l + ADJOINT) * (BLOCK * H) + i[:, None] * H + (k + c)[None, :])
        rows = start + (k + c)[:, None] * H + n[None, :]
        tl.atomic_add(slots + rows, multiply(tl.trans(z_bar), h, PRECISION), sem="relaxed")
        total += multiply(z_bar, tl.load(WEIGHTS + rows), PRECISION)
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
    z = multiply(x, tl.trans(tl.load(matrix(WEIGHTS, 0, H, DB))), PRECISION) + tl.load(BIASES + h)[None, :]
    keep_values(z, scratch, 0, a, b, ACT, COUNT, BLOCK, H)
    for l in range(1, L):
        at = H * DB + (l - 1) * (H * H)
        z = forward_product(scratch, l - 1, VALUE_, WEIGHTS, at, PRECISION, H, H, BLOCK, CHUNK)
        keep_values(z + tl.load(BIASES + l * H + h)[None, :], scratch, l, a, b, ACT, COUNT, BLOCK, H)
    end = H * DB + (L - 1) * (H * H)
    out = forward_product(scratch, L - 1, VALUE_, WEIGHTS, end, PRECISION, OB, H, BLOCK, CHUNK)
    return out + tl.load(BIASES + L * H + o)[None, :]


@triton.jit
def keep_tangent(z, scratch, l, KEEP: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """ḣ = σ' ż and σ'' ż into the scratch of layer l."""
    tl.store(area(scratch, l, TANGENT, BLOCK, H), tl.load(area(scratch, l, D1, BLOCK, H)) * z)
    if KEEP:
        tl.store(area(scratch, l, CURVATURE, BLOCK, H), tl.load(area(scratch, l, D2, BLOCK, H)) * z)
    tl.debug_barrier()


@triton.jit
def tangent_forward(
    v, WEIGHTS, scratch, L, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ż of the last layer [BLOCK, OB]."""
    z = multiply(v, tl.trans(tl.load(matrix(WEIGHTS, 0, H, DB))), PRECISION)
    keep_tangent(z, scratch, 0, KEEP, BLOCK, H)
    for l in range(1, L):
        at = H * DB + (l - 1) * (H * H)
        z = forward_product(scratch, l - 1, TANGENT, WEIGHTS, at, PRECISION, H, H, BLOCK, CHUNK)
        keep_tangent(z, scratch, l, KEEP, BLOCK, H)
    end = H * DB + (L - 1) * (H * H)
    return forward_product(scratch, L - 1, TANGENT, WEIGHTS, end, PRECISION, OB, H, BLOCK, CHUNK)


@triton.jit
def through(a, scratch, bias_slots, l, TANGENTS: tl.constexpr, BLOCK: tl.constexpr, H: tl.constexpr):
    """The adjoint of z or ż of hidden layer l, from that of what comes out of it; also into the scratch."""
    owed = area(scratch, l, OWED, BLOCK, H)
    z_bar = tl.load(area(scratch, l, D1, BLOCK, H)) * a
    if TANGENTS:
        tl.store(owed, tl.load(owed) + tl.load(area(scratch, l, CURVATURE, BLOCK, H)) * a)
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
    tl.atomic_add(matrix(slots, end, OB, H), multiply(tl.trans(out_bar), h, PRECISION), sem="relaxed")
    if not TANGENTS:
        tl.atomic_add(bias_slots + L * H + tl.arange(0, OB), tl.sum(out_bar, 0), sem="relaxed")
    a = multiply(out_bar, tl.load(matrix(WEIGHTS, end, OB, H)), PRECISION)
    for m in range(1, L):
        l = L - m
        through(a, scratch, bias_slots, l, TANGENTS, BLOCK, H)
        h = tl.load(area(scratch, l - 1, array, BLOCK, H))
        at = H * DB + (l - 1) * (H * H)
        a = backward_product(scratch, l, WEIGHTS, slots, h, at, PRECISION, H, BLOCK, CHUNK)
    first = through(a, scratch, bias_slots, 0, TANGENTS, BLOCK, H)
    tl.atomic_add(matrix(slots, 0, H, DB), multiply(tl.trans(first), source, PRECISION), sem="relaxed")
    return first


@triton.jit
def tangent_target(
    T, st_0, st_1, st_2, sample, within_y, v, p, d, o, W, JACOBIAN: tl.constexpr
):  # fmt: skip
    """D f(x)[v_p] of a tile [BLOCK, OB], as it was given, or from the dense Jacobian."""
    if not JACOBIAN:
        at = p * st_0 + sample[:, None] * st_1 + o[None, :] * st_2
        return tl.load(T + at, mask=within_y, other=0.0)
    target = tl.where(within_y, 0.0, 0.0)
    for k in range(W):
        column = tl.sum(tl.where(d[None, :] == k, v, 0.0), 1)
        at = sample[:, None] * st_0 + o[None, :] * st_1 + k * st_2
        target += tl.load(T + at, mask=within_y, other=0.0) * column[:, None]
    return target


@triton.jit(do_not_specialize=["N", "P", "D", "W", "O", "L", "tiles", "seed", "offset"])
def step_kernel(
    X, V, Y, T, WEIGHT_OF_SAMPLE, WEIGHT_OF_OUTPUT, WEIGHTS, BIASES, SCRATCH, SLOTS, BIAS_SLOTS, TERMS, DX,
    N, P, D, W, O, L, tiles, sx_n, sx_d, sv_p, sv_n, sv_d, sy_n, sy_o, st_0, st_1, st_2,
    seed, offset, scale, value_factor, first_factor, value_scale, first_scale, act_a, act_b, last_a, last_b, value_a,
    first_a,
    ACT: tl.constexpr, ACT_COUNT: tl.constexpr, LAST: tl.constexpr, LAST_COUNT: tl.constexpr,
    VALUE: tl.constexpr, VALUE_COUNT: tl.constexpr, FIRST: tl.constexpr, FIRST_COUNT: tl.constexpr,
    KIND: tl.constexpr, SHARED: tl.constexpr, JACOBIAN: tl.constexpr, GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr, DB: tl.constexpr, H: tl.constexpr, OB: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """L hidden layers of H features; D and O are padded to DB and OB."""
    program = tl.program_id(0)
    seed, offset = tl.to_tensor(seed).to(tl.uint64), tl.to_tensor(offset).to(tl.uint32)
    i, d, o = tl.arange(0, BLOCK), tl.arange(0, DB), tl.arange(0, OB)
    scratch = SCRATCH + program.to(tl.int64) * ARRAYS * L * BLOCK * H
    slots = SLOTS + program.to(tl.int64) * (H * DB + (L - 1) * H * H + OB * H)
    bias_slots = BIAS_SLOTS + program.to(tl.int64) * (L * H + OB)
    output_weight = tl.where(o < O, 1.0, 0.0)
    if WEIGHT_OF_OUTPUT is not None:
        output_weight = tl.load(WEIGHT_OF_OUTPUT + o, mask=o < O, other=0.0)
    for tile in range(program, tiles, tl.num_programs(0)):
        sample = tile * BLOCK + i.to(tl.int64)
        there = sample < N
        within_x = there[:, None] & (d < D)[None, :]
        within_y = there[:, None] & (o < O)[None, :]
        own = tl.where(there, 1.0, 0.0)
        if WEIGHT_OF_SAMPLE is not None:
            own = tl.load(WEIGHT_OF_SAMPLE + sample, mask=there, other=0.0)
        weight = own[:, None] * output_weight[None, :]
        x = tl.load(X + sample[:, None] * sx_n + d[None, :] * sx_d, mask=within_x, other=0.0)
        z = values_forward(
            x, WEIGHTS, BIASES, scratch, act_a, act_b, L, ACT, ACT_COUNT, PRECISION, DB, H, OB, BLOCK, CHUNK
        )
        y, y1, y2, _ = derivatives(LAST, LAST_COUNT, z, last_a, last_b)
        owed = 0.0 * z
        first_term = 0.0 * own
        tl.debug_barrier()
        for p in range(P):
            v = direction(V, sv_p, sv_n, sv_d, sample, there, p, d, W, seed, offset, scale, SHARED, KIND)
            z_dot = tangent_forward(v, WEIGHTS, scratch, L, GRADIENTS, PRECISION, DB, H, OB, BLOCK, CHUNK)
            target = tangent_target(T, st_0, st_1, st_2, sample, within_y, v, p, d, o, W, JACOBIAN)
            rho, slope = residual(FIRST, FIRST_COUNT, y1 * z_dot - target, first_a)
            first_term += tl.sum(tl.where(within_y, rho * weight, 0.0), 1)
            if GRADIENTS:
                a = tl.where(within_y, first_factor * slope * weight, 0.0)
                owed += y2 * z_dot * a
                tl.debug_barrier()
                backward(y1 * a, v, WEIGHTS, scratch, slots, bias_slots, L, True, PRECISION, DB, H, OB, BLOCK, CHUNK)
                tl.debug_barrier()
        known = y + 0.0 * z
        if Y is not None:
            known = tl.load(Y + sample[:, None] * sy_n + o[None, :] * sy_o, mask=within_y, other=0.0)
        value_rho, value_slope = residual(VALUE, VALUE_COUNT, y - known, value_a)
        tl.store(TERMS + sample, value_scale * tl.sum(tl.where(within_y, value_rho * weight, 0.0), 1), mask=there)
        tl.store(TERMS + N + sample, first_scale * first_term, mask=there)
        if GRADIENTS:
            out_bar = y1 * tl.where(within_y, value_factor * value_slope * weight, 0.0) + owed
            z_bar = backward(
                out_bar, x, WEIGHTS, scratch, slots, bias_slots, L, False, PRECISION, DB, H, OB, BLOCK, CHUNK
            )
            if DX is not None:
                dx = multiply(z_bar, tl.load(matrix(WEIGHTS, 0, H, DB)), PRECISION)
                tl.store(DX + sample[:, None] * D + d[None, :], dx, mask=within_x)
        tl.debug_barrier()


@torch.no_grad()
def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    x, parameters, given, seed, values, derivative, _, sample_weight, output_weight, weights = operands
    N, L = x.shape[0], len(problem.widths) - 2
    D, width, O = problem.D, problem.widths[1], problem.O
    DB, H, OB = padded(D), padded(width), padded(O)
    sizes = [(H, DB), *[(H, H)] * (L - 1), (OB, H)]
    launch = one_launch(H)
    BLOCK, tiles = launch.block, max(1, triton.cdiv(N, launch.block))
    programs = count_programs(tiles, x.device)
    packed, biases, cursor = x.new_zeros(sum(a * b for a, b in sizes)), x.new_zeros(L * H + OB), iter(parameters)
    layout, at, at_bias = [], 0, 0
    for (rows, columns), has_bias in zip(sizes, problem.biases, strict=True):
        weight = next(cursor)
        n_out, n_in = weight.shape
        packed[at : at + rows * columns].view(rows, columns)[:n_out, :n_in] = weight
        if has_bias:
            biases[at_bias : at_bias + n_out] = next(cursor)
        layout.append((at, rows, columns, n_out, n_in, at_bias, has_bias))
        at, at_bias = at + rows * columns, at_bias + rows
    scratch = x.new_empty(programs, ARRAYS.value * L * BLOCK * H)
    slots, bias_slots = x.new_zeros(programs, at), x.new_zeros(programs, at_bias)
    terms = x.new_empty(2, N)
    samples = max(1, N) if problem.reduction == "mean" else 1
    scales = (1 / (samples * O), 1 / (samples * O * problem.P))
    key, offset = (0, 0) if seed is None else seed.tolist()
    v = None if given is None else given if given.dim() == 3 else given[:, None].expand(-1, N, -1)
    strides = [
        *x.stride(), *((0, 0, 0) if v is None else v.stride()), *((0, 0) if values is None else values.stride()),
        *((0, 0, 0) if derivative is None else derivative.stride()),
    ]  # fmt: skip
    act, act_count, act_a, act_b = arguments(problem.activations[0], 0)
    last, last_count, last_a, last_b = arguments(problem.activations[-1], 0)
    value, value_count, value_a, _ = arguments(problem.value_loss, 1)
    first, first_count, first_a, _ = arguments(problem.derivative_loss, 1)
    if N:
        step_kernel[(programs,)](
            x, v, values, derivative, sample_weight, output_weight, packed, biases, scratch, slots, bias_slots, terms,
            outputs.get("dx"), N, problem.P, D, problem.W, O, L, tiles, *strides,
            key, offset & 0xFFFFFFFF, problem.scale, weights[0] * scales[0], weights[1] * scales[1], *scales,
            act_a, act_b, last_a, last_b, value_a, first_a,
            ACT=act, ACT_COUNT=act_count, LAST=last, LAST_COUNT=last_count, VALUE=value, VALUE_COUNT=value_count,
            FIRST=first, FIRST_COUNT=first_count, KIND=DISTRIBUTION[problem.distribution], SHARED=problem.shared,
            JACOBIAN=problem.derivative_target == DENSE, GRADIENTS=problem.gradients, PRECISION="ieee",
            DB=DB, H=H, OB=OB, BLOCK=BLOCK, CHUNK=min(launch.chunk, H), num_warps=launch.warps, num_stages=1,
        )  # fmt: skip
    if problem.result != PER_SAMPLE_GRADIENTS:
        loss = weights[0] * terms[0] + weights[1] * terms[1]
        per_sample = problem.result == PER_SAMPLE
        outputs["loss"].copy_(loss if per_sample else loss.sum())
        outputs["terms"].copy_(terms if per_sample else terms.sum(1))
    if not problem.gradients:
        return
    total, bias_total, cursor = slots.sum(0), bias_slots.sum(0), iter(gradients)
    for at, rows, columns, n_out, n_in, at_bias, has_bias in layout:
        next(cursor).copy_(total[at : at + rows * columns].view(rows, columns)[:n_out, :n_in])
        if has_bias:
            next(cursor).copy_(bias_total[at_bias : at_bias + n_out])


def count_programs(tiles: int, device: torch.device) -> int:
    """A persistent grid: two programs for each multiprocessor; three in the interpreter, to see them side by side."""
    most = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
    return min(tiles, most)

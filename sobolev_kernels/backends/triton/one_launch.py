"""The whole step of order 1 for narrow students: parameters are packed, the step is one launch, and one finishes it."""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from ... import planner
from ...drawing import over_samples
from ...enums import COTANGENTS, DENSE
from ...math.directions import is_dependent
from ...math.losses import is_coupled
from ...problem import LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Problem
from . import in_cache, on_chip, parameters
from .draws import DISTRIBUTION, Distribution
from .finishing import AT_ONCE, Slots, finish, terms_of
from .formulas import activation_of, loss_of
from .launches import launch_of, tile_of
from .parameters import OPERANDS, SOME, Packed, Sizes, places_of
from .script import IN_MEMORY, KEY, PLACE, SEED, Script, by_layer
from .step import step_kernel  # noqa: F401 -- launched by its name

one_launch = sys.modules[__name__]
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


def near(tensor: torch.Tensor | None, features: int = 1) -> torch.Tensor | None:
    """The tensor, or a copy of one whose last dimensions lie further apart than the kernel's 32-bit integers reach.

    Such is the transpose of inputs of 10^8 samples. The 64-bit ones would be registers that the kernel has not got.
    """
    if tensor is None:
        return None
    last = zip(tensor.shape[-features:], tensor.stride()[-features:], strict=True)
    return tensor.contiguous() if any((n - 1) * stride >= 2**31 for n, stride in last) else tensor


def readable(problem: Problem, operands: Operands) -> Operands:
    """The operands as the kernels read them, some of them copies."""
    x, _, given, _, values, derivative, _, sample_weight, output_weight, each, _ = operands
    features = 2 if problem.derivative_target == DENSE else 1
    return operands._replace(
        x=near(x), given=near(given), values=near(values), derivative=near(derivative, features),
        sample_weight=None if sample_weight is None else sample_weight.contiguous(),
        output_weight=None if output_weight is None else output_weight.contiguous(), derivative_weight=near(each),
    )  # fmt: skip


def write(script: Script, problem: Problem, operands: Operands, at: Operands, outputs: dict, gradients: list) -> None:
    """The launches of a step: packing, the step itself, and what finishes it.

    operands: tensors that lie as those that will come; at, outputs, gradients: where those will be.
    """
    launch, N, hidden_layers = launch_of(problem), operands.x.shape[0], len(problem.widths) - 2
    tile = tile_of(problem, launch)
    sizes = Sizes(problem.D, problem.widths[1], problem.O, tl.constexpr(hidden_layers + 1))
    programs = count_programs(triton.cdiv(N, launch.block), launch.warps, operands.x.device) if N else 0
    places, weights, biases = places_of(problem)
    dtype = OPERANDS.get(problem.precision, torch.float32)
    packed = Packed(script.room(weights, dtype=dtype), script.room(weights, dtype=dtype), script.room(biases))
    chains, scratch = on_chip.CHAINS, None
    if launch.layers is None:
        chains, scratch = in_cache.CHAINS, script.room(programs, in_cache.scratch_size(hidden_layers, tile))
    terms = terms_of(script, problem, N, launch.block, outputs)
    each = programs if problem.gradients else 0
    slots, bias_slots = script.room(each, weights), script.room(each, biases)
    room = in_cache.Room(scratch, slots, bias_slots, terms.at, outputs.get("dx"), outputs.get("dgiven"))
    samples = max(1, N) if problem.reduction == "mean" else 1
    shares = 1 / (samples * problem.O), 1 / (samples * problem.derived * problem.P)
    factors = operands.weights[0] * shares[0], operands.weights[1] * shares[1]
    # adjoints of the size of residuals, whatever N is: float16 has no room for smaller ones
    common = max(factors) or 1.0
    if N:
        pack(script, problem, operands, at, packed, sizes, tile)
        step(script, problem, operands, at, packed, room, programs, launch, chains, (factors, shares, common))
    sums = Slots(slots, bias_slots, programs, programs, weights, biases, places)
    finish(script, problem, operands.weights, outputs, gradients, terms, sums, common)


def pack(script: Script, problem: Problem, operands: Operands, at: Operands, packed: Packed, sizes, tile) -> None:
    tensors, places = by_layer(problem, operands.parameters), by_layer(problem, at.parameters)
    blocks = triton.cdiv(max(tile.DB.value, tile.H.value, tile.OB.value) * tile.H.value, SOME)
    for first in range(0, len(places), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        strides = [s for w, b in tensors[some] for s in (*w.stride(), 0 if b is None else b.stride(0))]
        script.launch(
            parameters, "pack_kernel", (blocks, len(places[some])), *map(tuple, zip(*places[some], strict=True)),
            tuple(strides), packed, sizes, FIRST=first, TILE=tile, SOME=SOME,
        )  # fmt: skip


def step(script: Script, problem: Problem, operands: Operands, at: Operands, packed: Packed, room, programs: int,
         launch, chains, scales) -> None:  # fmt: skip
    x, _, given, _, values, derivative, _, _, _, each, _ = operands
    factors, shares, common = scales
    N = x.shape[0]
    losses = zip((problem.value_loss, problem.derivative_loss), factors, shares, strict=True)
    value, first = (loss_of(loss, factor / common, share) for loss, factor, share in losses)
    cotangents, dense = problem.projection == COTANGENTS, problem.derivative_target == DENSE
    kind, shared = map(tl.constexpr, (DISTRIBUTION[problem.distribution], problem.shared))
    st = (0, 0, 0) if derivative is None else derivative.stride()
    if dense:  # [N, O, W], summed over W for directions, over O for cotangents
        st = (0, st[0], st[1], st[2]) if cotangents else (0, st[0], st[2], st[1])
    else:
        st = (st[0], st[1], 0, st[2])
    strides = [
        *x.stride(), *((0, 0, 0) if given is None else over_samples(given, N).stride()),
        *((0, 0) if values is None else values.stride()), *st, *((0, 0, 0) if each is None else each.stride()),
    ]  # fmt: skip
    script.launch(
        one_launch, "step_kernel", (programs,),
        at.x, at.given, at.values, at.derivative, at.sample_weight, at.output_weight, at.derivative_weight,
        SEED, packed, room, N, problem.P, problem.D, problem.W, problem.O, len(problem.widths) - 2, *strides, KEY,
        PLACE, IN_MEMORY, common, Distribution(kind, shared, problem.magnitude),
        activation_of(problem.activations[0], problem.precision), activation_of(problem.activations[-1]), value, first,
        chains,
        FROM="cotangents" if cotangents else planner.side(problem), DENSE=dense, GRADIENTS=problem.gradients,
        OF_EACH=problem.result == PER_SAMPLE, TILE=tile_of(problem, launch), **launch.options,
    )  # fmt: skip


def count_programs(tiles: int, warps: int, device: torch.device) -> int:
    """A persistent grid: as many programs as fit registers; three in the interpreter, to see them side by side."""
    if device.type != "cuda":
        return min(tiles, 3)
    return min(tiles, torch.cuda.get_device_properties(device).multi_processor_count * max(1, 8 // warps))

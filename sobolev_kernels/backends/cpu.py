"""The fused CPU kernels of the C++ core (csrc/cpu), tile by tile, one call for the whole step."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from ..math.activations import ACTIVATIONS
from ..math.directions import DISTRIBUTIONS
from ..math.losses import COUPLED, LOSSES, is_coupled
from ..math.table import Formula, Row
from ..planner import GRADIENTS, TANGENTS, side
from ..problem import (
    COTANGENTS,
    DENSE,
    DERIVATIVES,
    DERIVATIVES_GRADIENTS,
    DIRECTIONS,
    LOSS,
    NONE,
    PER_SAMPLE,
    PER_SAMPLE_GRADIENTS,
    PROJECTED,
    Operands,
    Plan,
    Problem,
)  # fmt: skip

try:
    from .. import _C

    MISSING = None
except ImportError as error:
    _C = None
    MISSING = f"the compiled core is missing ({error}); install with a C++ compiler and without SOBOLEV_PURE"

DTYPES = ("float32", "float64")
TARGETS = (NONE, DENSE, PROJECTED)
PROJECTIONS = (DIRECTIONS, COTANGENTS)
SIDES = (TANGENTS, GRADIENTS)
RESIDUALS = {DERIVATIVES: 0, LOSS: 1, PER_SAMPLE: 1, PER_SAMPLE_GRADIENTS: 1, DERIVATIVES_GRADIENTS: 2}
MOST_LAYERS = 64

# Samples of a tile by the widest layer, from a sweep of 32 to 256 on two cores with 1 MiB of second-level cache each:
# a tile's arrays should stay there, but above 256 the weights leave it anyway and want more samples for each read.
TILES = ((256, 64), (float("inf"), 128))


def supports(problem: Problem) -> str | None:
    if _C is None:
        return MISSING
    if problem.unrecognised:
        return problem.unrecognised
    if problem.device != "cpu":
        return f"tensors are on {problem.device}"
    if problem.dtype not in DTYPES:
        return f"dtype {problem.dtype} is not one of {', '.join(DTYPES)}"
    if len(problem.widths) - 1 > MOST_LAYERS:
        return f"{len(problem.widths) - 1} linear layers are more than {MOST_LAYERS}"
    return None


def instruction_set() -> str:
    """The best one of this machine, or the one that SOBOLEV_ISA names."""
    return os.environ.get("SOBOLEV_ISA") or _C.instruction_sets()[0][0]


def plan(problem: Problem, N: int) -> Plan:
    return _plan(max(problem.widths), side(problem), N, torch.get_num_threads(), instruction_set())


@lru_cache(maxsize=256)
def _plan(width: int, side: str, N: int, threads: int, isa: str) -> Plan:
    most = next(tile for limit, tile in TILES if width <= limit)
    each = max(1, -(-N // threads))
    tile = -(-each // -(-each // most))
    lanes = dict(_C.instruction_sets()).get(isa, 16) // 4
    tile = min(most, -(-tile // lanes) * lanes)
    return Plan("cpu", "fused, tile-local", (("side", side), ("isa", isa), ("tile", tile), ("threads", threads)))


def strided(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else (tensor.data_ptr(), *tensor.stride())


@lru_cache(maxsize=1024)
def row(table_name: str, formula: Formula | None) -> tuple:
    if formula is None:
        return (0,)
    table: dict[str, Row] = {"activation": ACTIVATIONS, "loss": LOSSES | COUPLED}[table_name]
    return (list(table).index(formula.name), *formula.parameters)


def step_of(problem: Problem, N: int):
    shape = (problem.D, problem.O, problem.P, problem.W)
    return _C.Step(DTYPES.index(problem.dtype), N, *shape, problem.order, problem.collapsed)


def set_directions(step, problem: Problem, given: torch.Tensor | None, seed: torch.Tensor | None) -> None:
    projection = PROJECTIONS.index(problem.projection)
    if given is not None:
        P, N, D = given.stride() if given.dim() == 3 else (given.stride(0), 0, given.stride(1))
        step.directions(projection, len(DISTRIBUTIONS), (given.data_ptr(), P, N, D), 0, 0, False, 1.0)
    elif seed is not None:
        key, offset = seed.tolist()
        kind = list(DISTRIBUTIONS).index(problem.distribution)
        step.directions(projection, kind, None, key, offset & 0xFFFFFFFF, problem.shared, problem.scale)


def set_layers(step, problem: Problem, parameters: list, gradients: list) -> None:
    """`parameters` in the step's form, address and strides; `gradients` by address, or none."""
    rows, tensors, into = [], iter(parameters), iter(gradients)
    for l, bias in enumerate(problem.biases):
        w, b = next(tensors), next(tensors) if bias else None
        dw = next(into) if gradients else None
        db = next(into) if gradients and bias else None
        activation = row("activation", problem.activations[l])
        rows.append((problem.widths[l], problem.widths[l + 1], activation, w, b, dw, db))
    step.layers(rows)


@lru_cache(maxsize=256)
def terms_of(problem: Problem, N: int, weights: tuple[float, ...]) -> list[tuple]:
    """(loss, weight, what makes a sum of residuals the term) of values, derivatives and second derivatives."""
    samples = max(1, N) if problem.reduction == "mean" else 1
    terms = []
    for order, weight in enumerate(weights):
        loss = problem.derivative_loss if order else problem.value_loss
        numbers = problem.P * problem.derived if order else problem.O
        count = 1 if loss is not None and is_coupled(loss) else max(1, numbers)
        terms.append((row("loss", loss), weight, 1 / (samples * count)))
    return terms


def set_plan(step, problem: Problem, N: int) -> str:
    """The instruction set to run on."""
    choices = dict(plan(problem, N).choices)
    step.plan(SIDES.index(choices["side"]), choices["tile"], choices["threads"])
    return choices["isa"]


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Fill `outputs` (those of `ops.outputs_of`) and `gradients`, one for each parameter."""
    x, parameters, given, seed, values, derivative, second, sample_weight, output_weight, weights = operands
    N = x.shape[0]
    step = step_of(problem, N)
    set_layers(step, problem, [strided(p) for p in parameters], [g.data_ptr() for g in gradients])
    step.input(strided(x))
    set_directions(step, problem, given, seed)
    first = TARGETS.index(problem.derivative_target)
    targets = [(1, strided(values)), (first, strided(derivative))]
    if problem.order == 2:
        targets.append((TARGETS.index(problem.second_target), strided(second)))
    step.residuals(RESIDUALS[problem.result], targets, strided(sample_weight), strided(output_weight))
    step.loss(terms_of(problem, N, tuple(weights)), problem.result == PER_SAMPLE)
    names = ("y", "derivatives", "second", "loss", "terms", "dx")
    step.outputs(problem.gradients, *(outputs[name].data_ptr() if name in outputs else None for name in names))
    _C.mlp_sobolev(step, set_plan(step, problem, N))


def working_memory(problem: Problem, N: int) -> int:
    """Bytes that one call takes besides its inputs and outputs, and its thread keeps for the next."""
    some = (1, 0, 0)
    parameters = [some] * (len(problem.biases) + sum(problem.biases))
    step = step_of(problem, N)
    set_layers(step, problem, parameters, [1] * len(parameters) if problem.gradients else [])
    drawn = problem.distribution != "given"
    set_directions(step, problem, None, torch.zeros(2, dtype=torch.int64) if drawn else None)
    step.outputs(problem.gradients, None, None, None, None, None, 1 if problem.input_gradient else None)
    return _C.working_memory(step, set_plan(step, problem, N))


def draw(problem: Problem, seed: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` [P, N, W] with the directions that `run` draws for the same problem and seed, bit for bit."""
    step = step_of(problem, out.shape[1])
    set_directions(step, problem, None, seed)
    _C.draw_directions(step, out.data_ptr(), instruction_set())

"""The fused CPU kernels of the C++ core (csrc/cpu), tile by tile, one call for the whole step."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from ..math.activations import ACTIVATIONS
from ..math.directions import DISTRIBUTIONS
from ..math.losses import LOSSES
from ..math.table import Formula, Row
from ..problem import JVP, JVP_GRADIENTS, LOSS, PER_SAMPLE, PER_SAMPLE_GRADIENTS, Operands, Plan, Problem

try:
    from .. import _C

    MISSING = None
except ImportError as error:
    _C = None
    MISSING = f"the compiled core is missing ({error}); install with a C++ compiler and without SOBOLEV_PURE"

DTYPES = ("float32", "float64")
DERIVATIVE_TARGETS = ("none", "jacobian", "tangents")
SIDES = ("tangents", "gradients")
RESIDUALS = {JVP: 0, LOSS: 1, PER_SAMPLE: 1, PER_SAMPLE_GRADIENTS: 1, JVP_GRADIENTS: 2}
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
    return _plan(max(problem.widths), problem.side, N, torch.get_num_threads(), instruction_set())


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
    table: dict[str, Row] = {"activation": ACTIVATIONS, "loss": LOSSES}[table_name]
    return (list(table).index(formula.name), *formula.parameters)


def step_of(problem: Problem, N: int):
    return _C.Step(DTYPES.index(problem.dtype), N, problem.D, problem.O, problem.P)


def set_directions(step, problem: Problem, given: torch.Tensor | None, seed: torch.Tensor | None) -> None:
    if given is not None:
        P, N, D = given.stride() if given.dim() == 3 else (given.stride(0), 0, given.stride(1))
        step.directions(len(DISTRIBUTIONS), (given.data_ptr(), P, N, D), 0, 0, False, 1.0)
    elif seed is not None:
        key, offset = seed.tolist()
        kind = list(DISTRIBUTIONS).index(problem.distribution)
        step.directions(kind, None, key, offset & 0xFFFFFFFF, problem.shared, problem.scale)


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


def run(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Fill `outputs` (y, tangents, loss, terms, dx: those there are) and `gradients`, one for each parameter."""
    x, parameters, given, seed, values, derivative, sample_weight, weights = operands
    N = x.shape[0]
    step = step_of(problem, N)
    set_layers(step, problem, [strided(p) for p in parameters], [g.data_ptr() for g in gradients])
    step.input(strided(x))
    set_directions(step, problem, given, seed)
    kind = DERIVATIVE_TARGETS.index(problem.derivative_target)
    step.residuals(RESIDUALS[problem.result], strided(values), kind, strided(derivative), strided(sample_weight))
    samples = N if problem.reduction == "mean" else 1
    scales = (1 / max(1, samples * problem.O), 1 / max(1, samples * problem.O * problem.P))
    losses = (row("loss", problem.value_loss), row("loss", problem.derivative_loss))
    step.loss(*losses, *weights, *scales, problem.result == PER_SAMPLE)
    names = ("y", "tangents", "loss", "terms", "dx")
    step.outputs(problem.gradients, *(outputs[name].data_ptr() if name in outputs else None for name in names))
    choices = dict(plan(problem, N).choices)
    step.plan(SIDES.index(choices["side"]), choices["tile"], choices["threads"])
    _C.mlp_sobolev(step, choices["isa"])


def working_memory(problem: Problem, N: int) -> int:
    """Bytes that one call takes besides its inputs and outputs, and gives back."""
    some = (1, 0, 0)
    parameters = [some] * (len(problem.biases) + sum(problem.biases))
    step = step_of(problem, N)
    set_layers(step, problem, parameters, [1] * len(parameters) if problem.gradients else [])
    drawn = problem.distribution != "given"
    set_directions(step, problem, None, torch.zeros(2, dtype=torch.int64) if drawn else None)
    step.outputs(problem.gradients, None, None, None, None, 1 if problem.input_gradient else None)
    choices = dict(plan(problem, N).choices)
    step.plan(SIDES.index(choices["side"]), choices["tile"], choices["threads"])
    return _C.working_memory(step, choices["isa"])


def draw(problem: Problem, seed: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` [P, N, D] with the directions that `run` draws for the same problem and seed, bit for bit."""
    step = step_of(problem, out.shape[1])
    set_directions(step, problem, None, seed)
    _C.draw_directions(step, out.data_ptr(), instruction_set())

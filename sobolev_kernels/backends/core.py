"""The compiled core (csrc): whether it is there, and how a step is told to it, for the CPU and for CUDA alike."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module

import torch

from ..enums import DENSE, DIRECTIONS, ENUMS
from ..math.activations import ACTIVATIONS
from ..math.directions import GIVEN, IN_KERNELS, told
from ..math.heads import HEADS
from ..math.losses import COUPLED, LIKELIHOODS, LOSSES, is_summed
from ..math.table import Formula
from ..problem import PER_SAMPLE, Drawing, Operands, Problem

TABLES = {
    "Activation": tuple(ACTIVATIONS), "Loss": tuple(LOSSES), "Coupled": tuple(COUPLED),
    "Likelihood": tuple(LIKELIHOODS), "Head": tuple(HEADS),
    "Distribution": IN_KERNELS, **ENUMS,
}  # fmt: skip
CODES = {table: {name: code for code, name in enumerate(names)} for table, names in TABLES.items()}
CODES["Loss"] = {name: code for code, name in enumerate(TABLES["Loss"] + TABLES["Coupled"] + TABLES["Likelihood"])}
# What a call that is like one before asks of it.
AT_EVERY_STEP = (
    "read",
    "modules",
    "nodes",
    "addresses",
    "mlp_sobolev_at",
    "mean_loss",
    "activated",
    "normed",
    "run_chain",
)
# An address, and strides, in the place of every tensor, where only shapes are asked for.
SOMEWHERE = (1, 1, 1, 1)


def why_missing(core: object) -> str | None:
    """Why a core that was imported is not the one of this package."""
    theirs = core.tables() if hasattr(core, "tables") else {}
    different = [name for name, names in TABLES.items() if tuple(theirs.get(name, ())) != names]
    if different:
        return f"the compiled core is of another version (its tables differ: {', '.join(different)}); build it again"
    lacking = [name for name in AT_EVERY_STEP if not hasattr(core, name)]
    if lacking:
        return f"the compiled core is of another version (it has no {', '.join(lacking)}); build it again"
    return None


BUILD = "install with a C++ compiler and without SOBOLEV_PURE"
try:
    # (`from .. import _C` would say of a missing one that imports go in a circle)
    _C = import_module(".._C", __package__)
    MISSING = why_missing(_C)
except ModuleNotFoundError:
    _C, MISSING = None, f"the compiled core is missing, as in an install with SOBOLEV_PURE; {BUILD}"
except ImportError as error:
    _C, MISSING = None, f"the compiled core cannot be loaded ({error}); {BUILD}"


def instruction_set() -> str:
    """The best one of this machine, or the one that SOBOLEV_ISA names."""
    return os.environ.get("SOBOLEV_ISA") or _C.instruction_sets()[0][0]


def strided(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else (tensor.data_ptr(), *tensor.stride())


@lru_cache(maxsize=1024)
def formula(table: str, choice: Formula | None) -> tuple:
    return (0,) if choice is None else (CODES[table][choice.name], *choice.parameters)


def new_step(problem: Problem, N: int):
    shape = (problem.D, problem.O, problem.P, problem.W)
    step = _C.Step(CODES["Dtype"][problem.dtype], N, *shape, problem.order)
    if problem.head is not None:
        step.head(formula("Head", problem.head))
    return step


def set_directions(step, projection: str, drawing: Drawing, given: torch.Tensor | None, seed) -> None:
    kind = CODES["Projection"][projection]
    if given is not None:
        P, N, n = given.stride() if given.dim() == 3 else (given.stride(0), 0, given.stride(1))
        step.directions(kind, CODES["Distribution"][GIVEN], (given.data_ptr(), P, N, n), 0, 0, False, 1.0)
    elif seed is not None:
        key, place, *_ = told(seed)
        distribution = CODES["Distribution"][drawing.distribution]
        step.directions(kind, distribution, None, key, place, drawing.shared, drawing.magnitude)


def set_layers(step, problem: Problem, parameters: list, gradients: list) -> None:
    """`parameters` in the step's form, address and strides; `gradients` by address, or none."""
    rows, tensors, into = [], iter(parameters), iter(gradients)
    for l, bias in enumerate(problem.biases):
        w, b = next(tensors), next(tensors) if bias else None
        dw = next(into) if gradients else None
        db = next(into) if gradients and bias else None
        activation = formula("Activation", problem.activations[l])
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
        count = 1 if is_summed(loss) else max(1, numbers)
        terms.append((formula("Loss", loss), weight, 1 / (samples * count)))
    return terms


def step_of(problem: Problem, operands: Operands, outputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]):
    """A step with all that goes into it and comes out of it; its plan is still to be told."""
    N = operands.x.shape[0]
    step = new_step(problem, N)
    set_layers(step, problem, [strided(p) for p in operands.parameters], [g.data_ptr() for g in gradients])
    step.input(strided(operands.x))
    set_directions(step, problem.projection, problem.drawing, operands.given, operands.seed)
    kinds = (DENSE, problem.derivative_target, problem.second_target)
    targets = zip(kinds, (operands.values, operands.derivative, operands.second), strict=True)
    targets = [(CODES["TargetKind"][kind], strided(tensor)) for kind, tensor in targets][: 1 + problem.order]
    weights = operands.sample_weight, operands.output_weight, operands.derivative_weight
    step.residuals(CODES["Residuals"][problem.residuals], targets, *map(strided, weights))
    step.loss(terms_of(problem, N, tuple(operands.weights)), problem.result == PER_SAMPLE)
    names = ("y", "derivatives", "second", "loss", "terms", "dx", "dgiven")
    step.outputs(problem.gradients, *(outputs[name].data_ptr() if name in outputs else None for name in names))
    return step


def step_of_shapes(problem: Problem, N: int):
    """A step that is asked for its sizes, and never run."""
    step = new_step(problem, N)
    parameters = [SOMEWHERE] * (len(problem.biases) + sum(problem.biases))
    set_layers(step, problem, parameters, [1] * len(parameters) if problem.gradients else [])
    seed = None if problem.distribution == "given" else torch.zeros(2, dtype=torch.int64, device="cpu")
    set_directions(step, problem.projection, problem.drawing, None, seed)
    kinds = (DENSE, problem.derivative_target, problem.second_target)[: 1 + problem.order]
    targets = [(CODES["TargetKind"][kind], SOMEWHERE) for kind in kinds]
    step.residuals(CODES["Residuals"][problem.residuals], targets, None, None, None)
    step.loss(terms_of(problem, N, (1.0,) * (1 + problem.order)), problem.result == PER_SAMPLE)
    asked = (problem.input_gradient, problem.given_gradient)
    step.outputs(problem.gradients, None, None, None, None, None, *(1 if wanted else None for wanted in asked))
    return step


def set_plan(
    step, side: str, tile: int = 1, group: int = 1, gather: bool = False, in_place: bool = False,
    lockstep: bool = False, threads: int = 1,
) -> None:  # fmt: skip
    step.plan(CODES["Side"][side], tile, group, gather, in_place, lockstep, threads)


def draws(drawing: Drawing) -> bool:
    """Whether the core draws such vectors."""
    known = drawing.distribution in IN_KERNELS and drawing.dtype in CODES["Dtype"]
    return MISSING is None and drawing.device == "cpu" and known


def draw(drawing: Drawing, seed: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` [P, N, n] with the vectors that a step draws from the same seed, bit for bit."""
    P, N, n = out.shape
    step = _C.Step(CODES["Dtype"][drawing.dtype], N, n, 1, P, n, 1)
    set_directions(step, DIRECTIONS, drawing, None, seed)
    _C.draw_directions(step, out.data_ptr(), instruction_set())

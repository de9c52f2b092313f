"""Steps along directions by the kernels of general streams (`jets.py`): all layers in one launch each way where they
fit, and a Laplacian with one stream for its whole sum, in one launch or layer by layer."""

from __future__ import annotations

from ...enums import COTANGENTS
from ...modules import IDENTITY
from ...partials.plan import MOST
from ...partials.towers import laplacians, towers
from ...problem import Operands, Problem
from . import jets, layerwise
from .jets import Asked, JetLayers
from .launches import JET_CHAINS, JETS_FUSED_UP_TO, LONGEST_CHAIN, fuses, padded
from .layerwise import readable  # noqa: F401 -- of each way its own
from .script import At, Script


def asked_of(problem: Problem) -> Asked | None:
    """Its streams through its layers; None of a problem whose streams go in the loops of `layerwise.py` alone."""
    count = 2 + problem.P if problem.collapsed else 1 + problem.order * problem.P
    if problem.projection == COTANGENTS or count > MOST or set(problem.activations) == {IDENTITY}:
        return None
    streams = laplacians(problem.P) if problem.collapsed else towers(problem.P, 1, problem.order)
    asked = Asked(streams, problem.widths, problem.biases, problem.activations, problem.precision)
    return asked if jets.is_fused(asked) == fuses(problem, JETS_FUSED_UP_TO) else None


def takes(problem: Problem, N: int) -> bool:
    """Whether it saves launches or streams."""
    return bool(N) and asked_of(problem) is not None and (problem.collapsed or fits(problem, N))


def fits(problem: Problem, N: int) -> bool:
    """Whether all layers of such streams go in one launch."""
    narrow = padded(max(problem.widths[1:])) <= JET_CHAINS[-1].columns and 1 < len(problem.biases) <= LONGEST_CHAIN
    return narrow and jets.few(problem.widths, N) and jets.is_fused(asked_of(problem))


def write(script: Script, problem: Problem, operands: Operands, at: Operands, outputs: dict, gradients: list) -> None:
    """The launches of a step, as `layerwise.write` is told."""
    asked, N = asked_of(problem), operands.x.shape[0]
    kept: list[At] = []
    if problem.gradients:
        kept = [script.room(S, N, n, dtype=dtype) for S, n, dtype in jets.kept_by(asked)]
    layers = JetLayers(script, asked, problem, operands, at, kept)
    layerwise.write(script, problem, operands, at, outputs, gradients, layers)

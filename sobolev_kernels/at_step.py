"""`SobolevLoss.at(step)`: one loss function for all evaluations of a step, as a line search needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from .directions import Directions, Projections
from .errors import NotProvided, need, whole
from .settings import Settings
from .targets import Targets

SEEDS = 2**62
CERTAIN = "given", "basis"
UNSEEDED = (
    "step: a loss whose directions have no seed draws one for all its steps, which torch.compile cannot do; "
    "call loss_fn.at(0) once before it, or give seed= to the directions"
)


class Steps(NamedTuple):
    """What all steps of a loss have in common.

    `along` is one object at all of them, by which what is kept of calls is found: a step is a number of a call.
    """

    settings: Settings  # those of the loss, of which this is made
    seed: int | None  # of all steps, where directions have none
    along: Settings  # the same with a seed
    varies: bool  # whether there are others at another step


def checked(step: object) -> int:
    """A step as a number."""
    step = step if type(step) is int else whole(step)
    if not (type(step) is int and 0 <= step < 2**32):
        need(False, "step", "an integer in [0, 2^32), the same for all evaluations of a step", step)
    return step


def varies(chosen: Projections | str) -> bool:
    """What is given, and a basis, are what they are."""
    return isinstance(chosen, Projections) and chosen.distribution not in CERTAIN


def steps_of(settings: Settings, seed: int | None) -> Steps:
    """Those of a loss; a seed that it needs and has not is drawn by torch's generator."""
    name, chosen = next(iter(settings.asked().items()), ("directions", Directions.sphere(1)))
    if not varies(chosen) or chosen.seed is not None:
        return Steps(settings, seed, settings, varies(chosen))
    seed = seed_of_all() if seed is None else seed
    return Steps(settings, seed, replace(settings, **{name: replace(chosen, seed=seed)}), True)


def seed_of_all() -> int:
    if torch.compiler.is_compiling():
        raise NotProvided(UNSEEDED)
    return int(torch.randint(SEEDS, (), dtype=torch.int64, device="cpu"))


def with_steps(loss_fn: torch.nn.Module) -> Steps:
    """What is known of a loss, or what is found and kept of it now."""
    known = loss_fn.steps
    if known is None or known.settings is not loss_fn.settings:
        known = steps_of(loss_fn.settings, known and known.seed)
        if not torch.compiler.is_compiling():
            loss_fn.steps = known
    return known


def at_step(loss_fn: torch.nn.Module, targets: Targets, step: int) -> tuple[Settings, Targets, int | None]:
    """Settings and targets of a call, and the place in the stream of the seed."""
    step = checked(step)
    if type(targets) is Targets and not (targets.directions is None and targets.cotangents is None):
        return loss_fn.settings, targets_at(targets, loss_fn, step), None
    _, _, along, varying = with_steps(loss_fn)
    return along, targets, step if varying else None


def targets_at(targets: Targets, loss_fn: torch.nn.Module, step: int) -> Targets:
    """Of targets that say what is projected on."""
    name = "cotangents" if targets.directions is None else "directions"
    chosen = getattr(targets, name)
    # of both a call says no; and projected targets belong to the directions that they name, at every step
    if loss_fn.settings.asked() or not varies(chosen) or targets.is_projected:
        return targets
    seed = with_steps(loss_fn).seed if chosen.seed is None else chosen.seed
    return targets.replace(**{name: replace(chosen, seed=seed, offset=step)})


@dataclass(frozen=True, eq=False)
class LossAtStep:
    """What `SobolevLoss.at(step)` gives: called as the loss, which it holds, buffers and all."""

    loss_fn: torch.nn.Module
    step: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.loss_fn(*args, **kwargs, step=self.step)

    def at(self, step: int) -> LossAtStep:
        return self.loss_fn.at(step)

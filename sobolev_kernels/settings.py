"""`Settings`: the keywords of a Sobolev loss, checked when made."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .boundary import faults_of_memory
from .columns import Mask
from .directions import Cotangents, Directions, Projections
from .dispatch import requested
from .enums import PRECISIONS
from .errors import Fault, as_tensor, by_shape, nearest, need_known, one_of, refuse, whole
from .math.activations import ORDERS
from .math.heads import APART, choose_head
from .math.losses import HEADS_OF, choose_loss
from .math.table import Formula, is_number, specialised
from .typed import HeadName, LossName, Wrt

REDUCTIONS = ("mean", "sum", "none")
EXACT = "exact"
SEQUENCES, PLAIN = (tuple, str, type(None)), (int, float, str)
DIFFERENTIAL_ML = "differential-ml"
WEIGHTS = ("two numbers (value, derivative)", "three numbers (value, derivative, second derivative)")


@dataclass(frozen=True)
class Settings:
    """What a Sobolev loss is, but for the numbers it is of: one value without tensors, hashable, equal by value.

    The fields are the keywords of `sobolev_loss`, and are explained there. They are checked when a Settings is made;
    then losses and head are formulas, `weights` are numbers or a name, `wrt` is a tuple, and directions or cotangents
    that were given have lost their tensor, which goes beside the Settings, as does a head that is a callable.

    Raises:
        TypeError, ValueError: as `sobolev_loss`.
    """

    directions: Directions | None = None
    cotangents: Cotangents | None = None
    derivatives: str | None = None
    order: int = 1
    wrt: Wrt = None
    value_loss: LossName = "mse"
    derivative_loss: LossName = "mse"
    weights: Sequence[float] | str | None = None
    reduction: str = "mean"
    precision: str | None = None
    backend: str | None = None
    return_terms: bool = False
    check_finite: bool = False
    head: HeadName = None

    def __post_init__(self):
        object.__setattr__(self, "order", whole(self.order))
        weights, learned = numbers_of(self.weights, self.order)
        refuse(self._faults(weights, learned))
        requested(self.backend)
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        for name in ("directions", "cotangents"):
            put(name, bare(getattr(self, name)))
        for name in ("value_loss", "derivative_loss"):
            put(name, choose_loss(name, getattr(self, name)))
        put("head", choose_head(self.head))
        refuse(faults_of_head(self.value_loss, self.head))
        put("weights", weights)
        put("wrt", as_columns(self.wrt))

    def asked(self) -> dict[str, Projections | str]:
        """What it says to project derivatives on, by the argument that says it."""
        named = {name: getattr(self, name) for name in ("directions", "cotangents", "derivatives")}
        return {name: value for name, value in named.items() if value is not None}

    def numbers(self, W: int) -> tuple[float, ...]:
        """The weights, in numbers, of a loss with W differentiated columns."""
        return (1 / (1 + W), W / (1 + W)) if isinstance(self.weights, str) else self.weights

    def _faults(self, weights: object, learned: object) -> Iterator[Fault]:
        if not one_of(self.reduction, REDUCTIONS):
            hint = nearest(self.reduction, REDUCTIONS)
            yield Fault("reduction", f"one of {', '.join(REDUCTIONS)}", self.reduction, hint=hint)
        if type(self.order) is not int or not 1 <= self.order <= ORDERS:
            yield Fault("order", f"a whole number from 1 to {ORDERS}", self.order)
        if type(self.order) is int and self.order > 2 and self.head not in (None, APART):
            yield Fault("order", "1 or 2 behind a head (one that is a callable may be of any)", self.order)
        for name in ("return_terms", "check_finite"):
            if type(getattr(self, name)) is not bool:
                yield Fault(name, "True or False", getattr(self, name))
        yield from faults_of_columns(self.wrt)
        if learned is not None:
            yield Fault("weights", "plain numbers (no gradient to weights is provided)", learned)
        if isinstance(weights, str):
            if weights != DIFFERENTIAL_ML:
                yield Fault(
                    "weights", f"numbers or {DIFFERENTIAL_ML!r}", weights, hint=nearest(weights, [DIFFERENTIAL_ML])
                )
            if self.order != 1:
                yield Fault("weights", f"numbers, since {weights!r} is of order 1", f"order = {self.order}")
        elif len(weights) != 1 + self.order:
            expected = WEIGHTS[self.order - 1] if self.order < 3 else f"{1 + self.order} numbers, one for each order"
            yield Fault("weights", expected, self.weights)
        elif not all(math.isfinite(w) and w >= 0 for w in weights):
            yield Fault("weights", "finite numbers >= 0", self.weights)
        for name, kind in (("directions", Directions), ("cotangents", Cotangents)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                expected = f"a sobolev_kernels.{kind.__name__} (given(tensor) makes one of a tensor)"
                yield Fault(name, expected, value, TypeError, kind.hint(value))
        if self.derivatives is not None and not one_of(self.derivatives, (EXACT,)):
            yield Fault("derivatives", f"None or {EXACT!r}", self.derivatives, hint=nearest(self.derivatives, [EXACT]))
        yield from faults_of_projections(self.order, self.asked())
        if self.precision is not None and not one_of(self.precision, PRECISIONS):
            expected, hint = f"None or one of {', '.join(PRECISIONS)}", nearest(self.precision, PRECISIONS)
            yield Fault("precision", expected, self.precision, hint=hint)


def faults_of_columns(wrt: object) -> Iterator[Fault]:
    if isinstance(wrt, torch.Tensor):
        yield from faults_of_memory("wrt", wrt)
        if wrt.dtype is not torch.bool or wrt.dim() == 0 or not wrt.any():
            yield Fault("wrt", "a Boolean mask of one input's shape, or columns as whole numbers", wrt)
    elif wrt is not None and not is_sequence(wrt):
        yield Fault("wrt", "columns of the inputs, a sequence of whole numbers, or a mask", wrt, hint=as_tensor(wrt))


def is_sequence(wrt: object) -> bool:
    """Whether they are numbers one after the other, in an array of whole numbers too."""
    if by_shape(wrt):
        return getattr(wrt, "ndim", 0) == 1 and getattr(getattr(wrt, "dtype", None), "kind", "") in ("i", "u")
    return isinstance(wrt, Iterable) and not isinstance(wrt, (str, bytes))


def as_columns(wrt: object) -> tuple[int, ...] | Mask | None:
    if isinstance(wrt, torch.Tensor):
        return Mask.of(wrt)
    return wrt if wrt is None or type(wrt) is Mask else tuple(map(whole, wrt))


def faults_of_projections(order: int, asked: dict[str, Projections | str]) -> Iterator[Fault]:
    """Of all that is projected on, by the argument that says so: more than one, or not what order 2 goes along."""
    if list(asked) == ["directions", "directions in targets"]:
        yield Fault("directions", "either in targets or in the call", "both")
    if len(asked) > 1:
        yield Fault("directions", "one of directions, cotangents and derivatives", " and ".join(asked))
    if order > 1 and not all(isinstance(value, Directions) for value in asked.values()):
        yield Fault("order", f"1 with cotangents or exact derivatives (order {order} is along directions)", order)


def faults_of_head(value_loss: Formula, head: Formula | None) -> Iterator[Fault]:
    """Of a likelihood without a head that gives what it compares."""
    heads = HEADS_OF.get(value_loss.name)
    if heads is not None and (head is None or head.name not in heads):
        expected = f"head={heads[0]!r} or {heads[1]!r} with {value_loss.name!r}, computed from what comes before it"
        yield Fault("value_loss", expected, "no head" if head is None else f"head={head}")


def numbers_of(weights: object, order: object) -> tuple[tuple[float, ...] | str, torch.Tensor | None]:
    """Weights as numbers (none of what are none), or a name; and a tensor among them that asks for gradients."""
    if isinstance(weights, str):
        return weights, None
    if weights is None:
        return (1.0,) * (1 + order if type(order) is int and 1 <= order <= ORDERS else 2), None
    try:
        parts = tuple(weights)
    except TypeError:
        return (), None
    learned = [w for w in parts if isinstance(w, torch.Tensor) and w.requires_grad]
    numbers = not learned and all(map(is_number, parts))
    return specialised(tuple(map(float, parts))) if numbers else (), learned[0] if learned else None


def bare(projections: object) -> object:
    """Without a tensor, where there was one."""
    given = isinstance(projections, Projections) and projections.values is not None
    return projections.without_values() if given else projections


known = lru_cache(maxsize=256, typed=True)(Settings)


def settings_of(*values: object) -> Settings:
    """A Settings of the values of its fields in order; an equal one is made and checked once. An offset goes beside it.

    Only of plain numbers and names: others may be equal and not the same, or change.
    """
    if torch.compiler.is_compiling():
        return Settings(*values)
    directions, cotangents, derivatives, order, wrt, value_loss, derivative_loss, weights, *others = values
    head = others[-1]
    if not (wrt is weights is head is None and type(value_loss) is type(derivative_loss) is str):
        wrt, weights = (tuple(v) if type(v) in (list, range) else v for v in (wrt, weights))
        wrt = as_columns(wrt) if type(wrt) is tuple or (by_shape(wrt) and is_sequence(wrt)) else wrt
        if isinstance(wrt, torch.Tensor):
            refuse(faults_of_columns(wrt))
            wrt = Mask.of(wrt)
        if not are_plain(wrt, weights, value_loss, derivative_loss, head):
            return Settings(*values)
    try:
        directions = directions.bare() if isinstance(directions, Projections) else directions
        cotangents = cotangents.bare() if isinstance(cotangents, Projections) else cotangents
        return known(directions, cotangents, derivatives, order, wrt, value_loss, derivative_loss, weights, *others)
    except TypeError:  # of what is refused, or what cannot be hashed
        return Settings(*values)


def are_plain(wrt: object, weights: object, *formulas: object) -> bool:
    """Whether all numbers and names in them are ones that are the same if they are equal."""
    if not (type(wrt) in (*SEQUENCES, Mask) and type(weights) in SEQUENCES):
        return False
    wrt = wrt.columns if type(wrt) is Mask else wrt
    parts = [*(wrt or ()), *(weights or ())]
    for formula in formulas:
        parts += formula if type(formula) is tuple else ()
    return all([type(part) in PLAIN for part in parts]) and not (wrt and set(map(type, wrt)) - {int})


NAMED = {field: i for i, field in enumerate(Settings.__dataclass_fields__)}
DEFAULTS = tuple(field.default for field in Settings.__dataclass_fields__.values())


def settings_with(**settings: object) -> Settings:
    """The same of the fields that are not as they are by default."""
    values = list(DEFAULTS)
    for name, value in settings.items():
        values[NAMED[name]] = value
    return settings_of(*values)


def settings_named(function: str, settings: dict[str, object], also: Sequence[str]) -> Settings:
    """A Settings of the keywords of a function that takes its fields, and `also` others."""
    need_known(settings, (*Settings.__dataclass_fields__, *also), function)
    return Settings(**settings)


def keywords(function) -> list[inspect.Parameter]:
    """The parameters of a function whose `**settings` are those of Settings."""
    named = list(inspect.signature(function).parameters.values())[:-1]
    fields = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(Settings).parameters.values()]
    return named + [p for p in fields if p.name not in {q.name for q in named}]

"""Derivatives by autograd beside what values change by: where a path from inputs to outputs is cut, if only in part.

Values are taken at five points of a line through each sample. Where they change in proportion to the step, and by a
small part of it as well, they tell the derivative; at a kink or on a staircase they do not, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

import torch

from .coupling import may_be_coupled
from .exact import HALF, exactly, graphs, tracked
from .graph import nodes_of

ROWS = 64  # samples that are looked at
ROOMY = 8  # outputs whose gradients are all looked at; of more, those that give cause for it
NAMED = 32  # columns that are tried one by one
FINE = 0.2  # of a step: at most this part of it shows the same again
SHARE = 1 / 4  # of the samples, before a derivative other than 0 is called wrong
LONGER, SHORTER = 8, (1 / 16, 1 / 256)  # than the first step, for what stands still, and for what is uneven
FLOAT32 = torch.finfo(torch.float32).eps
# In half precision: steps, in units of the first; the part of them that moves what is no staircase; by how many units.
LADDER, BUSY, FEW = (1, 2, 4, 8, 16, 32), 0.6, 3


class NotProbed(Exception):
    """A function cannot be run beside its inputs, or not be differentiated there."""


class Found(NamedTuple):
    """What was seen: outputs that change with a column where all derivatives are 0; or that change otherwise."""

    cut: torch.Tensor  # [O, D]
    other: tuple[int, float, float] | None = None  # an output, its derivative along a step, what it changed by
    draws: bool = False  # other values each time
    settled: bool = True  # no output without a derivative stood still
    told: bool = True  # it could be looked at
    own: bool = False  # each sample's outputs are its own, as those of batch statistics are not


class Line(NamedTuple):
    """What a step tells, [N, O]."""

    missing: torch.Tensor  # the change by the step, without what derivatives say of it
    suspect: torch.Tensor  # where that is in proportion to the step, and no rounding
    change: torch.Tensor  # the most by which an output changes, [O]


def look(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Found:
    """What a function from [N, D] to [N, O] does around some rows of x, by about six runs; more, if there is cause.

    Raises:
        NotProbed: that cannot be told.
    """
    x = x.detach()
    finite = x.isfinite().all(1).nonzero()[:, 0]
    few = finite[:: max(1, -(-len(finite) // ROWS))]
    if not len(few):
        raise NotProbed
    try:
        return found_by(Probe(function, x[few]))
    except NotProbed:
        # it may know its number of samples
        if len(few) == len(x) or len(finite) < len(x):
            raise
        return found_by(Probe(function, x))


def found_by(probe: Probe) -> Found:
    """What a probe finds; in float64 also where what has no derivative is rounded to float32 on its way."""
    cut, settled = torch.zeros(probe.O, probe.D, dtype=torch.bool, device="cpu"), True
    draws = probe.draws()
    if probe.unsteady:
        return Found(cut, draws=True, settled=False, told=False)
    own = probe.own()
    step = probe.first_step()
    slope = probe.tangent(step)
    missing, suspect, _ = probe.compare(step, slope)
    for columns, outputs in probe.without_derivative(suspect, slope):
        found, moved = probe.changing(columns, outputs)
        settled = settled and bool((found | moved | (slope != 0).any(0))[outputs].all())
        if found.any():
            for column in columns if 1 < len(columns) <= NAMED else ():
                cut[:, column] |= probe.changing([column], outputs)[0]
            if not cut[:, columns].any():
                cut[:, columns] |= found[:, None]
    if cut.any():
        return Found(cut, draws=draws, own=own)
    if probe.stirred and probe.eps < FLOAT32:
        coarse = found_by(Probe(probe.function, probe.x, FLOAT32))
        if coarse.cut.any():
            return coarse
    often = suspect & (suspect.double().mean(0) >= SHARE) & (slope != 0).any(0)
    wrong = probe.confirmed(step, missing, often, sloping=True)
    still = usual((missing + slope).abs(), often) == 0
    if (wrong & still).any():
        wrong &= ~(still & probe.faithful(often))
    if not wrong.any():
        return Found(cut, draws=draws, settled=settled, own=own)
    o = int(wrong.double().argmax())
    n = int(torch.where(often[:, o], missing[:, o].abs(), -1.0).argmax())
    other = o, float(slope[n, o]), float(slope[n, o] + missing[n, o])
    return Found(cut, other, draws, settled, own=own)


def coarsest(y: torch.Tensor) -> torch.dtype:
    """The dtype that y was rounded to, perhaps on its way only, as in a region of autocast."""
    met = {about.dtype for node in nodes_of(y) for about in getattr(node, "_input_metadata", ())} | {y.dtype}
    return max(filter(attrgetter("is_floating_point"), met), key=lambda dtype: torch.finfo(dtype).eps)


class Probe:
    """A function at rows of its inputs. What is compared is [N, O] of float64 on the CPU."""

    def __init__(self, function: Callable, x: torch.Tensor, eps: float = 0.0):
        with graphs():
            self.x = tracked(x)
        self.here, self.function, (self.N, self.D) = self.x.cpu(), function, x.shape
        self.inputs, self.y, self.drew = self.run()
        self.O, self.values = self.y.shape[1], numbers(self.y)
        dtype = coarsest(self.y)
        self.half = dtype in HALF or x.dtype in HALF
        self.eps, self.stirred = max(eps, torch.finfo(x.dtype).eps), False
        self.of_values = max(torch.finfo(dtype).eps, self.eps)
        self.unit = self.of_values * typical(self.values.abs().amax(0))  # [O]
        self.rounding = (8 if self.half else 32) * self.unit
        self.longest = min(self.eps**0.25, 1 / 8)
        self.pull: tuple[torch.Tensor, torch.Tensor] | None = None

    def run(self, step: torch.Tensor | float = 0.0, anew: bool = False) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """The inputs at a step, what the function makes of them, and whether it drew numbers, the same or others."""
        with graphs():
            x = (self.x + step).detach().requires_grad_()
        devices = [x.device] if x.is_cuda else []
        try:
            with torch.random.fork_rng(devices), exactly():
                if anew:
                    torch.rand(7, device="cpu"), torch.rand(7, device=x.device)
                before = states(devices)
                y = self.function(x)
                drew = any(not torch.equal(a, b) for a, b in zip(before, states(devices), strict=True))
        except Exception as error:
            # it may well refuse other inputs than its own
            raise NotProbed from error
        return x, y, drew

    def at(self, step: torch.Tensor | float, anew: bool = False) -> torch.Tensor:
        return numbers(self.run(step if isinstance(step, float) else step.to(self.x.device), anew)[1])

    def draws(self) -> bool:
        """Whether values are others each time; `unsteady`, if they are with the same random numbers."""
        different = lambda y: bool(((y - self.values).abs() > 4 * self.unit).any())  # noqa: E731
        self.unsteady = different(self.at(0.0))
        return self.unsteady or (self.drew and different(self.at(0.0, anew=True)))

    def own(self) -> bool:
        """Whether each sample's outputs stand still where others move: twice about half of them, of no pattern; and
        would, were other numbers in its graph."""
        step, k = self.step(), torch.arange(1, self.N + 1, dtype=torch.float64, device="cpu")
        for factor in (0.6180339887, 0.7548776662):
            moves = (k * factor).frac() < 0.5
            change = (self.at(torch.where(moves[:, None], step, 0.0)) - self.values).abs()
            if (change[~moves] > 4 * self.unit).any():
                return False
        return self.N > 1 and not may_be_coupled(self.function, self.x)

    def step(self, columns: list[int] | None = None, size: float = 1.0) -> torch.Tensor:
        """Different ones for all inputs [N, D], to both sides, in the units of their columns; others stand still.

        Half of each is no rounding but a number of the inputs' dtype.
        """
        x = self.here.double()
        rms, deviation = x.square().mean(0).sqrt(), x.std(0, correction=0)
        unit = torch.where(deviation > 0, deviation.maximum(1e-3 * rms), rms) if self.N > 4 else rms
        unit = torch.where(unit > 0, unit, 1.0)
        k = torch.arange(1, self.N * self.D + 1, dtype=torch.float64, device="cpu").view(self.N, self.D)
        each = (1 + (k * 0.6180339887).frac()) * torch.where((k * 0.7548776662).frac() < 0.5, -1.0, 1.0)
        step = size * self.longest * unit * each
        if columns is not None:
            still = torch.ones(self.D, dtype=torch.bool, device="cpu")
            still[columns] = False
            step = torch.where(still, 0.0, step)
        return self.rounded(step)

    def rounded(self, step: torch.Tensor) -> torch.Tensor:
        return 2 * ((self.here + (step / 2).to(self.x.dtype)) - self.here)

    def first_step(self) -> torch.Tensor:
        """Such that no derivative says that outputs change by much more than themselves, or as small as can be."""
        step = self.step()
        change, size = typical(self.tangent(step).abs().median(0).values), typical(self.values.square().mean(0).sqrt())
        told = (change > 0) & (size > 0)
        if not told.any():
            return step
        factor = float((0.1 * size / change)[told].min().clamp(self.least(step), 1))
        return step if factor == 1 else self.step(size=factor)

    def least(self, step: torch.Tensor) -> float:
        """The part of a step that is still some units of the inputs' rounding, mostly."""
        x, step = self.here.double().abs(), step.double().abs()
        parts = (4 if self.half else 16) * self.eps * x / step
        return float(parts[step > 0].median()) if bool((step > 0).any()) else 1.0

    def tangent(self, step: torch.Tensor) -> torch.Tensor:
        """The derivative along a step, by autograd: the VJP of its VJP, or where that has none, by gradients."""
        v = step.to(self.x.device)
        if not self.y.requires_grad:
            return torch.zeros_like(self.values)
        with graphs():
            try:
                if self.pull is None:
                    u = torch.zeros_like(self.y, requires_grad=True)
                    self.pull = u, gradient(self.y, self.inputs, u, create_graph=True)
                u, g = self.pull
                if g is None:
                    return torch.zeros_like(self.values)
                tangent = gradient(g, u, v, retain_graph=True) if g.requires_grad else None
            except RuntimeError:
                tangent = None
            if tangent is None and self.O > ROOMY:
                raise NotProbed
            if tangent is None:
                tangent = torch.stack([(self.row(o, 1.0) * v).sum(1) for o in range(self.O)], 1)
        return numbers(tangent)

    def row(self, o: int, weights: torch.Tensor | float) -> torch.Tensor:
        """The gradient [N, D] of an output, summed over samples with weights [N]."""
        return row(self.y, self.inputs, o, weights)

    def without_derivative(
        self, suspect: torch.Tensor, slope: torch.Tensor
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Columns, and the outputs [O] whose derivatives with respect to them are 0 in all samples."""
        flat, cause = (slope == 0).all(0), suspect.double().sum(0)
        cause = torch.where(flat, self.N + 1.0, cause)
        chosen = range(self.O) if self.O <= ROOMY else cause.topk(ROOMY).indices[cause.topk(ROOMY).values > 0].tolist()
        zero = torch.zeros(self.O, self.D, dtype=torch.bool, device="cpu")
        for o in chosen:
            zero[o] = still(self.y, self.inputs, o)
        patterns, which = zero.unique(dim=1, return_inverse=True)
        several = patterns.any(0).sum() > ROOMY / 2
        for i, outputs in enumerate(patterns.T):
            outputs = outputs & (cause > 0) if several else outputs
            if outputs.any():
                yield (which == i).nonzero()[:, 0].tolist(), outputs

    def changing(self, columns: list[int], outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the outputs [O] change in proportion to columns that no derivative leads to; and which move."""
        found, moved, stirred = torch.zeros_like(outputs), torch.zeros_like(outputs), outputs
        for size in (1, LONGER, *SHORTER):
            # beside rounding what stirs may be in proportion in a longer step, and what moves in a shorter one
            left = outputs & ~found & (moved if size < 1 else stirred)
            if not left.any() or (size > 1 and self.half):
                continue
            step = self.step(columns, size)
            missing, suspect, change = self.compare(step, torch.zeros_like(self.values))
            found = found | self.confirmed(step, missing, suspect & left)
            moved, stirred = moved | (left & (change > self.rounding)), change > 0
            self.stirred = self.stirred or bool((stirred & left & ~found).any())
        if self.half and (outputs & ~found).any():
            found = found | (outputs & self.graded(columns))
        return found, moved

    def graded(self, columns: list[int]) -> torch.Tensor:
        """In half precision: which outputs [O] move by single units, and with nearly every step, as these columns do.

        There a step that shows a change in proportion is so long that few functions are straight; but a staircase
        stands still until it moves by many units.
        """
        step = self.step(columns).double()
        step *= self.least(step) / 4
        found = torch.zeros(self.O, dtype=torch.bool, device="cpu")
        for size in LADDER:
            line = torch.stack([self.at(self.rounded(k * size * step)) for k in range(-4, 5)])
            units = line.diff(dim=0).abs() / (self.of_values * self.values.square().mean(0).sqrt())
            moves = (units > 0) & units.isfinite()
            fine = usual(units, moves) <= FEW  # [N, O]
            busy = (moves.double().mean(0) >= BUSY) & fine
            found |= busy.double().mean(0) >= 2 * SHARE
        return found

    def compare(self, step: torch.Tensor, slope: torch.Tensor) -> Line:
        """The values at five points of a line beside the derivative along it."""
        back, half_back, half_on, on = (self.at(t * step) for t in (-1, -0.5, 0.5, 1))
        whole, half, twice = (on - back) / 2, half_on - half_back, 2 * self.values
        bent = 4 * (whole - half).abs() + (on + back - twice).abs() + 2 * (half_on + half_back - twice).abs()
        missing = half - slope
        suspect = missing.abs() > bent + self.rounding + (0.03 if self.half else 0.003) * (slope.abs() + half.abs())
        change = torch.stack([(y - self.values).abs() for y in (back, half_back, half_on, on)])
        return Line(missing, suspect, change.nan_to_num(0, 0, 0).amax((0, 1)))

    def confirmed(
        self, step: torch.Tensor, missing: torch.Tensor, suspect: torch.Tensor, sloping: bool = False
    ) -> torch.Tensor:
        """Of which outputs [O] small parts of the step miss as much, in most of the suspects.

        As small as rounding allows: only there a fine staircase is one.
        """
        if self.half:  # in which many a staircase seems even
            suspect = suspect & (suspect.double().mean(0) >= SHARE) & (suspect.sum(0) > 1)
        least, found, left = self.least(step), torch.zeros(self.O, dtype=torch.bool, device="cpu"), suspect.any(0)
        if least > FINE:
            return found if sloping or self.half else left
        parts = (4 if self.half else 8) * self.unit / usual(missing.abs(), suspect)
        while left.any():
            part = float(parts[left].min().clamp(least, FINE))
            now = left & (parts <= (1 if part == FINE else 4 * part))
            same = now
            for size in (part, 2.3 * part):
                small = self.rounded(size * step.double())
                change = (self.at(small) - self.at(-small)) / 2
                again = change - self.tangent(small) if sloping else change
                ratio = usual(again / (size * missing), suspect)
                same = same & (ratio > 0.6) & (ratio < 1.6)
                if size == part and not sloping:  # on a staircase many stand still
                    same = same & ((suspect & (change == 0)).sum(0) <= 0.1 * suspect.sum(0))
            found, left = found | same, left & ~now
        return found

    def faithful(self, suspect: torch.Tensor) -> torch.Tensor:
        """Which outputs [O] stand still in small steps, but in long ones go where their derivatives say.

        So does what is rounded within the function, to half precision or to levels that are trained through.
        """
        step = self.step(size=1 / 8 / self.longest)
        slope = self.tangent(step)
        return (usual((self.at(step) - self.at(-step)) / (2 * slope), suspect) - 1).abs() < 1 / 4


def row(y: torch.Tensor, x: torch.Tensor, o: int, weights: torch.Tensor | float) -> torch.Tensor:
    """The gradient [N, D] of an output, summed over samples with weights [N]."""
    try:
        with graphs():
            y = y[:, o]
            u = torch.ones_like(y) * weights
            g = gradient(y, x, u, retain_graph=True) if y.requires_grad else None
    except RuntimeError as error:
        raise NotProbed from error
    return torch.zeros_like(x) if g is None else g


def still(y: torch.Tensor, x: torch.Tensor, o: int) -> torch.Tensor:
    """The columns [D] by which the derivative of an output is 0 in all samples."""
    k = torch.arange(1, len(x) + 1, dtype=torch.float64, device="cpu")
    uneven = (1 + (k * 0.6180339887).frac()).to(y)  # for the sum of what is centred is 0
    return (row(y, x, o, uneven) == 0).all(0).cpu()


def gradient(y: torch.Tensor, x: torch.Tensor, u: torch.Tensor | None, **graph: bool) -> torch.Tensor | None:
    return torch.autograd.grad(y, x, u, allow_unused=True, **graph)[0]


def usual(sizes: torch.Tensor, counting: torch.Tensor) -> torch.Tensor:
    """The medians [O] of those that count; NaN, where none does."""
    return torch.where(counting, sizes, torch.nan).nanmedian(0).values


def numbers(y: torch.Tensor) -> torch.Tensor:
    return y.detach().cpu().double()


def typical(sizes: torch.Tensor) -> torch.Tensor:
    """Without those that are none."""
    return sizes.nan_to_num(0, 0, 0)


def states(devices: list[torch.device]) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]

"""`check_targets`: whether target derivatives are those of the target values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..arrays import tensor_of
from ..errors import in_words, need
from ..targets import Targets
from .differences import Differences, of_function, of_neighbours, predictable
from .slopes import BETTER, CERTAIN, EXPLAINED, SOME, Fault, Sums, faults_in, sums_of
from .tables import COLOURS, axes_of, plain, table

MOST = 64  # columns, whose W² products are summed
NOTHING = 1e-2  # the least part of the differences of derivatives in another unit
SMALL = 1e-4  # what may be rounding
ENOUGH = 0.2  # of the differences, to be told by some of them
OTHERS = 1.5  # the most that derivatives of other rows make of the squares of the differences
FITS, NOT_TOLD = "fits", "not told"


class ColumnRow(NamedTuple):
    """Of a column: the slope of measured against given differences, the part of the differences that its derivatives
    make, and what it is found to be."""

    column: int
    slope: float
    part: float
    verdict: str


@dataclass(frozen=True)
class TargetCheck:
    """What `check_targets` gives: `ok` is True, False, or None where the data do not tell; `faults` are sentences."""

    ok: bool | None
    faults: tuple[str, ...]
    columns: tuple[ColumnRow, ...]
    unexplained: float
    by: str

    @property
    def verdict(self) -> str:
        if self.ok is None and self.unexplained >= 1:
            return (
                "not told: the derivatives explain none of the differences of values between neighbours, which are "
                "noisy, or too far apart for derivatives that change so fast; then they teach a student little of "
                "what is between: choose their weight on validation data. More samples tell, or a callable"
            )
        if self.ok is None:
            return (
                f"not told: the derivatives explain {1 - self.unexplained:.0%} of the differences of values between "
                "neighbours, which are noisy or far apart; a callable that gives the values can be checked closer"
            )
        return "the derivatives are those of the values" if self.ok else "; ".join(self.faults)

    def __str__(self) -> str:
        head = f"{self.verdict} (by {self.by}, {self.unexplained:.2g} of their squares unexplained)"
        rows = [(row.column, row.slope, row.part, row.verdict) for row in self.columns]
        return f"{head}\n{table(('column', 'slope', 'part', 'verdict'), rows)}"

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"

    def plot(self, ax: Any = None) -> Any:
        """The slope of each column, 1 where its derivatives are right; returns the axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        ax = axes_of(ax, 6.4, 1.1 + 0.3 * len(self.columns))
        ax.axvline(1.0, color="black", lw=1)
        ax.axvline(0.0, color="#cccccc", lw=1)
        known = [row.slope for row in self.columns if math.isfinite(row.slope)]
        low, high = max(-3.0, min([0.0, *known])), min(4.0, max([1.0, *known]))
        for place, row in enumerate(self.columns):
            colour = COLOURS[row.verdict if row.verdict in COLOURS else "does not fit"]
            shown = min(max(row.slope, low), high) if math.isfinite(row.slope) else 0.0
            beyond = "" if shown == row.slope or not math.isfinite(row.slope) else f" ({row.slope:.2g})"
            ax.plot(shown, place, "o" if row.verdict != NOT_TOLD else "x", color=colour, ms=7)
            beside = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": colour}
            ax.annotate(f"{row.verdict}{beyond}", (shown, place), (8, 0), **beside)
        ax.set_yticks(range(len(self.columns)), [f"column {row.column}" for row in self.columns])
        ax.set(xlim=(low - 0.3, high + 1.2), ylim=(len(self.columns) - 0.4, -0.6))
        ax.set_xlabel("measured differences of values ÷ those by the derivatives")
        return plain(ax)


@in_words
def check_targets(
    x: torch.Tensor,
    values: torch.Tensor | Targets | Callable[[torch.Tensor], torch.Tensor],
    jacobian: torch.Tensor | None = None,
) -> TargetCheck:
    """Whether target derivatives are those of the target values, and if not, what is wrong with them.

    Values at near samples differ by what the derivatives between them say; of a callable, by its central differences at
    samples of x. Told are columns in each other's place, of the other sign or in another unit, derivatives in another
    order of rows or outputs, and derivatives that have nothing to do with the values. Noise of the values and kinks of
    the function are no fault; where they, or samples that are far apart, hide what there is, `ok` is None.

    Args:
        x: inputs [N, D], or of any shape [N, …], whose numbers are the columns then.
        values: targets y [N, O] or [N], or what gives them, a module or any callable; or a `Targets`, whose values and
            Jacobian are checked.
        jacobian: ∂y/∂x [N, O, D], or [N, D] if O is 1, of all columns.

    Returns:
        `check.ok`, `check.faults`, `print(check)`, `check.plot()`.

    Raises:
        TypeError, ValueError: in words.

    Example:
        >>> x = torch.rand(400, 2)
        >>> y, dy = x[:, 0] ** 2 + 3 * x[:, 1], torch.stack([2 * x[:, 0], 3 + 0 * x[:, 1]], 1)
        >>> check_targets(x, y, dy).ok
        True
        >>> check_targets(x, y, dy[:, [1, 0]]).faults
        ("columns 0 and 1 are in each other's place",)
    """
    function = values if callable(values) and not isinstance(values, (torch.Tensor, Targets)) else None
    x, y, jacobian, raw = of_rows(x, values, jacobian, function)
    if function is None:
        differences, by = of_neighbours(x, y), "differences between neighbours"
    else:
        differences = of_function(function, raw, jacobian.shape[1])
        by = "central differences"
    W = jacobian.shape[2]
    need(len(differences.dx) > 2 * W, "x", f"more than {2 * W} differences between {W} columns", len(differences.dx))
    faults = []
    jacobian, arranged = rearranged(differences, jacobian)
    faults += arranged
    differences, gradient, sums, found, B, unexplained = judge(differences, jacobian)
    if not sums.square > 0:
        rows = tuple(ColumnRow(d, math.nan, 0.0, NOT_TOLD) for d in range(W))
        moving = bool(torch.einsum("mow,mw->mo", gradient, differences.dx).any())
        faults += ["the values are the same everywhere, and their derivatives are not 0"] if moving else []
        return TargetCheck(not faults, tuple(faults), rows, float(moving), by)
    told = unexplained < EXPLAINED
    useless = [sentence(fault) for fault in found if fault.part < NOTHING]
    if not told:  # what is left is more than what the faults would explain
        found, unexplained = [], sums.left(torch.eye(W, dtype=torch.float64)) / sums.square
    faults += [sentence(fault) for fault in found]
    flat = ignored(differences, gradient, sums, B)
    faults += [f"column {d} has derivatives of 0, and the values change with it" for d in flat]
    if not faults and function is not None:
        faults += of_no_function(differences, gradient)
    elif not (told or faults) and are_of_others(sums, x, y, unexplained):
        everything = "the derivatives have nothing to do with the values: of other rows, or of another function"
        faults += useless or [everything]
    ok: bool | None = False if faults else (True if told else None)
    return TargetCheck(ok, tuple(faults), columns_of(sums, found, told), float(unexplained), by)


class Judged(NamedTuple):
    """What derivatives were found to be, by some differences: faults, B with them, what it leaves of the squares."""

    differences: Differences
    gradient: torch.Tensor
    sums: Sums
    found: list[Fault]
    B: torch.Tensor
    unexplained: float


def judge(differences: Differences, jacobian: torch.Tensor) -> Judged:
    """By the samples whose gradients agree, if these are enough and can be explained. Else by all; but between samples
    that are too far apart the values change by less than the gradients say, which looks like a unit, and is none."""
    near = differences.agreeing(jacobian)
    if len(near.dx) > ENOUGH * len(differences.dx):
        judged = judged_by(near, jacobian)
        if judged.unexplained < EXPLAINED:
            return judged
    judged = judged_by(differences, jacobian)
    if any(fault.kind != "swapped" and NOTHING <= fault.part and 0 < fault.factor < 1 for fault in judged.found):
        B = torch.eye(jacobian.shape[2], dtype=torch.float64)
        return judged._replace(found=[], B=B, unexplained=judged.sums.left(B) / judged.sums.square)
    return judged


def judged_by(differences: Differences, jacobian: torch.Tensor) -> Judged:
    gradient = differences.between(jacobian)
    sums = sums_of(differences.dx, gradient, differences.dy, differences.samples)
    if not sums.square > 0:
        return Judged(differences, gradient, sums, [], torch.eye(jacobian.shape[2], dtype=torch.float64), math.inf)
    found, B, left = faults_in(sums)
    return Judged(differences, gradient, sums, found, B, left / sums.square)


def of_rows(x: object, values: object, jacobian: object, function: Callable | None) -> tuple:
    """Inputs [N, D], values [N, O] and Jacobian [N, O, D] in float64 on the CPU, of samples without NaN; and inputs as
    they came."""
    if isinstance(values, Targets):
        need(jacobian is None, "jacobian", "none beside a sobolev_kernels.Targets", jacobian)
        need(values.jacobian is not None, "values", "targets with a jacobian to check", values)
        need(values.values is not None and not values.has_classes, "values", "targets with numbers for values", values)
        values, jacobian = values.values, values.jacobian
    x, jacobian = (
        tensor_of(n, t) if not isinstance(t, torch.Tensor) else t for n, t in (("x", x), ("jacobian", jacobian))
    )
    need(x.dim() > 1 and x.is_floating_point() and x[0:1].numel() > 0, "x", "floating inputs [N, D]", x)
    raw, N, D = x, len(x), x.shape[1:].numel()
    with_outputs = jacobian.dim() == x.dim() + 1
    sizes = f"{', '.join(map(str, x.shape[1:]))}"
    fits = jacobian.dim() in (x.dim(), x.dim() + 1) and len(jacobian) == N
    fits = fits and jacobian.shape[1 + with_outputs :] == x.shape[1:]
    need(fits, "jacobian", f"[{N}, O, {sizes}] or [{N}, {sizes}], of all columns", jacobian)
    need(D <= MOST, "x", f"at most {MOST} columns", x)
    x, jacobian = (t.detach().double().cpu() for t in (x, jacobian))
    x, jacobian = x.reshape(N, D), jacobian.reshape(N, -1, D)
    good = x.isfinite().all(1) & jacobian.isfinite().flatten(1).all(1)
    y = None
    if function is None:
        y = values if isinstance(values, torch.Tensor) else tensor_of("y", values)
        O = jacobian.shape[1]
        fits = y.shape == (N, O) or (O == 1 and y.shape == (N,))
        need(fits and not y.is_complex(), "values", f"[{N}, {O}], as the jacobian's outputs are", y)
        y = y.detach().double().cpu().reshape(N, O)
        good &= y.isfinite().all(1)
        y = y[good]
    need(int(good.sum()) > 2, "x", "at least three samples of finite numbers", x)
    return x[good], y, jacobian[good], raw[good.to(raw.device)]


def rearranged(differences: Differences, jacobian: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """The Jacobian in another order of rows or outputs, if that explains the differences much better."""
    O, W = jacobian.shape[1:]
    by = differences.left(jacobian)
    now = by.diagonal().mean()
    others = {
        "the rows of the derivatives are one too late": jacobian.roll(-1, 0),
        "the rows of the derivatives are one too early": jacobian.roll(1, 0),
        "the rows of the derivatives are in the opposite order": jacobian.flip(0),
    }
    if O == W > 1:
        others["the Jacobian is transposed"] = jacobian.transpose(1, 2)
    best = by.argmin(1)
    if len(set(best.tolist())) == O and best.tolist() != list(range(O)):
        wrong = [o for o in range(O) if best[o] != o]
        words = f"outputs {wrong[0]} and {wrong[1]} of the derivatives are in each other's place"
        if len(wrong) > 2:
            words = f"the outputs of the derivatives are in another order: {best.tolist()}"
        others[words] = jacobian[:, best]
    for words, other in others.items():
        then = differences.left(other).diagonal().mean()
        if then < min(EXPLAINED, BETTER / 2 * float(now)) and (now - then) / then * differences.samples > CERTAIN:
            return other, [words]
    return jacobian, []


def sentence(fault: Fault) -> str:
    if fault.kind == "swapped":
        return f"columns {fault.columns[0]} and {fault.columns[1]} are in each other's place"
    what = "all derivatives" if fault.kind == "all" else f"column {fault.columns[1]}"
    if fault.part < NOTHING:
        return f"{what} {'have' if fault.kind == 'all' else 'has'} nothing to do with the values"
    if -1.4 < fault.factor < -0.7:
        return f"{what} {'have' if fault.kind == 'all' else 'has'} the other sign"
    return f"{what} {'are' if fault.kind == 'all' else 'is'} in another unit: they would fit times {fault.factor:.3g}"


def columns_of(sums: Sums, found: list[Fault], told: bool) -> tuple[ColumnRow, ...]:
    W, places = sums.W, torch.arange(sums.W) * (sums.W + 1)
    products, with_y = sums.products[places][:, places], sums.with_y.diagonal()
    parts = products.diagonal() / sums.square
    slopes = torch.linalg.lstsq(products, with_y[:, None], driver="gelsd").solution[:, 0]
    verdicts = [FITS if told and part > SOME else NOT_TOLD for part in parts]
    for fault in found:
        for d in fault.columns if fault.kind == "swapped" else fault.columns[1:] or range(W):
            other = next((e for e in fault.columns if e != d), d)
            words = f"in the place of column {other}" if fault.kind == "swapped" else sentence(fault).split(" ", 2)[2]
            verdicts[d] = words
    each = zip(slopes.tolist(), parts.tolist(), verdicts, strict=True)
    return tuple(
        ColumnRow(d, slope if part > 0 else math.nan, part, said) for d, (slope, part, said) in enumerate(each)
    )


def are_of_others(sums: Sums, x: torch.Tensor, y: torch.Tensor, unexplained: float) -> bool:
    """Whether planes through neighbours tell much of the values, and derivatives of the right size little.

    Derivatives that would change the values by far more are those of ripples between the samples, as it may be.
    """
    one = torch.eye(sums.W, dtype=torch.float64).flatten()
    size = float(one @ sums.products @ one) / sums.square
    return size < OTHERS and predictable(x, y) < min(EXPLAINED, unexplained / 2)


def of_no_function(differences: Differences, gradient: torch.Tensor) -> list[str]:
    """Of central differences each is of one column."""
    dx, dy = differences.dx, differences.dy
    rest = (dy - torch.einsum("mow,mw->mo", gradient, dx)).square()
    moved = dx != 0
    left, whole = (torch.stack([part[moved[:, d]].sum() for d in range(dx.shape[1])]) for part in (rest, dy.square()))
    bad = (left > EXPLAINED * whole) & (left > SMALL * whole.sum())
    if bad.all():
        return ["the derivatives are not those of the function"]
    return [f"column {d} has nothing to do with the values" for d in bad.nonzero()[:, 0].tolist()]


def ignored(differences: Differences, gradient: torch.Tensor, sums: Sums, B: torch.Tensor) -> list[int]:
    """Columns without derivatives that most of what is left of the differences goes with."""
    parts = sums.products.diagonal()[torch.arange(sums.W) * (sums.W + 1)] / sums.square
    dx, dy = differences.dx, differences.dy
    squares = dx.square()
    flat = [d for d in range(sums.W) if parts[d] < 1e-9 and squares[:, d].any()]
    if not flat or sums.left(B) < 1e-2 * sums.square:
        return []
    unit = dy.square().mean(0).clamp_min(1e-300)
    rest = ((dy - torch.einsum("md,de,moe->mo", dx, B, gradient)).square() / unit).mean(1)
    each = torch.cat([torch.ones_like(squares[:, :1]), squares / squares.mean(0).clamp_min(1e-300)], 1)
    slopes = torch.linalg.lstsq(each, rest[:, None], driver="gelsd").solution[1:, 0]
    return [d for d in flat if slopes[d] > rest.mean() / (2 * len(flat))]

"""`term_gradients`: how the terms of a loss pull at a student's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import need, need_known, need_tensor
from ..loss import SobolevLoss
from ..settings import Settings
from ..targets import Targets
from ..terms import SobolevTerms, loss_of
from ..weights import weights_of
from .tables import COLOURS, axes_of, plain, table

NAMES = "value", "derivative", "second"
BUFFERS = "input_scale", "output_weight"
COLOURED = {"value": COLOURS["value"], "derivative": COLOURS["gradient"], "second": COLOURS["second"]}


@dataclass(frozen=True)
class TermGradients:
    """What `term_gradients` gives: of each unweighted term its value and the norm of its gradient with respect to all
    parameters, and of each two terms the cosine of the angle between their gradients.

    `weights` are those with which all gradients are as long as that of the first term: `weights=` of the loss. A term
    without a gradient keeps 1, and one without a target has 0.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def angle(self, a: str, b: str) -> float:
        """Between the gradients of two terms, in degrees."""
        cosine = self.cosines[self.names.index(a)][self.names.index(b)]
        return math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) if not math.isnan(cosine) else math.nan

    def __str__(self) -> str:
        heads = "term", "value", "|gradient|", *(f"cos to {name}" for name in self.names), "balancing weight"
        each = zip(self.names, self.values, self.norms, self.cosines, self.weights, strict=True)
        return table(heads, [(name, size, norm, *cosines, weight) for name, size, norm, cosines, weight in each])

    def _repr_html_(self) -> str:
        return f"<pre>{self}</pre>"

    def plot(self, ax: Any = None) -> Any:
        """The norms, with the weights that would balance them and the angles to the first; returns the axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        ax = axes_of(ax, 6.4, 0.9 + 0.5 * len(self.names))
        for place, (name, norm, weight) in enumerate(zip(self.names, self.norms, self.weights, strict=True)):
            ax.barh(place, norm, 0.55, color=COLOURED[name])
            turned = f", {self.angle(self.names[0], name):.0f}° to {self.names[0]}" if place else ""
            text = f" {norm:.2g}{turned}, weight {weight:.2g} balances" if place else f" {norm:.2g}"
            ax.annotate(text, (norm if norm == norm else 0, place), va="center", fontsize=8)
        largest = max((norm for norm in self.norms if math.isfinite(norm)), default=1.0) or 1.0
        ax.set_yticks(range(len(self.names)), self.names)
        ax.set(xlim=(0, 1.75 * largest), ylim=(len(self.names) - 0.4, -0.6), xlabel="norm of the term's gradient")
        return plain(ax)


def term_gradients(
    student: torch.nn.Module,
    inputs: torch.Tensor,
    targets: Targets,
    *,
    loss: SobolevLoss | None = None,
    parameters: Iterable[torch.Tensor] | None = None,
    sample_weight: torch.Tensor | None = None,
    derivative_weight: torch.Tensor | None = None,
    **settings: object,
) -> TermGradients:
    """How long the gradients of a loss's terms are, which way they point, and the weights that would balance them.

    Args:
        student, inputs, targets: as in `sobolev_loss`.
        loss: a `SobolevLoss` whose terms these are; or the keywords of one, `settings`.
        parameters: with respect to which, by default all of the student that ask for a gradient.
        sample_weight, derivative_weight: as in `sobolev_loss`.

    Returns:
        A table: `print(balance)`, `balance.norms`, `balance.cosines`, `balance.weights`, `balance.plot()`. No `.grad`
        is written.

    Raises:
        TypeError, ValueError: as `sobolev_loss`; or there is no parameter.

    Example:
        >>> x = torch.rand(8, 2)
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 1))
        >>> balance = term_gradients(student, x, Targets(x.sum(1), 3 * torch.ones(8, 2)), derivatives="exact")
        >>> balance.names
        ('value', 'derivative')
    """
    known = (*Settings.__dataclass_fields__, *BUFFERS)
    need_known(settings, known, "term_gradients")
    need_tensor(inputs, "inputs", "a tensor [N, D]")
    need(loss is None or isinstance(loss, SobolevLoss), "loss", "a sobolev_kernels.SobolevLoss", loss, TypeError)
    need(loss is None or not settings, "loss", "either a SobolevLoss or its keywords", "both")
    loss = SobolevLoss(**settings) if loss is None else loss
    need(loss.settings.reduction != "none", "reduction", "mean or sum", "none")
    if parameters is None:
        need(isinstance(student, torch.nn.Module), "parameters", "those of a student that is no module", None)
        parameters = student.parameters()
    wanted = [p for p in parameters if p.requires_grad]
    need(len(wanted) > 0, "parameters", "at least one that asks for a gradient", "none")
    weights = weights_of(sample_weight, loss.output_weight, derivative_weight)
    asked = replace(loss.settings, return_terms=True)
    with torch.enable_grad():
        terms = loss_of(asked, student, inputs, targets, loss.given, weights, loss.input_scale, head=loss.head)
    return gradients_of(terms, wanted)


def gradients_of(terms: SobolevTerms, parameters: Sequence[torch.Tensor]) -> TermGradients:
    """The same of terms that were computed, whose graph is kept."""
    named = {name: term for name in NAMES if (term := getattr(terms, name)) is not None}
    flat = []
    for term in named.values():
        there = term.requires_grad and bool(term.isfinite())
        each = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) if there else ()
        each = [torch.zeros_like(p) if g is None else g for g, p in zip(each, parameters, strict=False)]
        flat.append(torch.cat([g.flatten() for g in each]).double() if there else None)
    norms = [math.nan if g is None else float(g.norm()) for g in flat]
    cosines = tuple(tuple(cosine(a, b) for b in flat) for a in flat)
    first = next((norm for norm in norms if norm > 0), 1.0)
    weights = tuple(0.0 if math.isnan(n) else (first / n if n > 0 else 1.0) for n in norms)
    values = tuple(float(term.detach()) for term in named.values())
    return TermGradients(tuple(named), values, tuple(norms), cosines, weights)


def cosine(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    if a is None or b is None:
        return math.nan
    sizes = float(a.norm()) * float(b.norm())
    return float(a @ b) / sizes if sizes else math.nan

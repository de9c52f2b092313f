"""Rules by which the terms of a loss are weighed while a student is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..errors import in_words, need, refuse
from ..settings import Settings
from ..terms import SobolevTerms


class GradNorm:
    """Weights by which the gradients of all terms are of equal norm, after Chen et al. (2018): w_i ∝ 1 / |∇ L_i|, of
    mean 1, and of them a running mean, w ← momentum · w + (1 - momentum) · w_new.

    `fit(…, weights=GradNorm())` asks it at the beginning of each epoch, on the first batch of it. A term whose gradient
    is 0 keeps weight 1 before the others are scaled.
    """

    @in_words
    def __init__(self, momentum: float = 0.5):
        need(isinstance(momentum, (int, float)) and 0 <= momentum < 1, "momentum", "a number in [0, 1)", momentum)
        self.momentum, self.weights = float(momentum), None

    def __call__(self, terms: SobolevTerms) -> tuple[float, ...]:
        each = terms_of(terms)
        leaves = list(leaves_of(each))
        norms = [norm_of_gradient(term, leaves) for term in each]
        known = [1 / norm for norm in norms if norm > 0]
        usual = sum(known) / len(known) if known else 1.0
        found = [(1 / norm if norm > 0 else usual) / usual for norm in norms]
        scale = len(found) / sum(found)
        found = [weight * scale for weight in found]
        if self.weights is not None:
            found = [self.momentum * a + (1 - self.momentum) * b for a, b in zip(self.weights, found, strict=True)]
        self.weights = tuple(found)
        return self.weights

    def state_dict(self) -> dict:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.weights = None if state["weights"] is None else tuple(state["weights"])

    def __repr__(self) -> str:
        return f"GradNorm(momentum={self.momentum:g})"


class Uncertainty(nn.Module):
    """Weights that are learnt with the student (Kendall, Gal and Cipolla, 2018): Σ_i exp(-s_i) L_i + s_i, halved.

    The s_i, logarithms of the terms' variances, are parameters, which `fit(…, weights=Uncertainty())` gives to the
    optimizer. The gradients of terms are computed one by one, so that a step takes about twice as long.

    Args:
        terms: of the loss, one more than its order.
    """

    @in_words
    def __init__(self, terms: int = 2):
        super().__init__()
        need(type(terms) is int and terms in (2, 3, 4, 5), "terms", "2 to 5, one more than the loss's order", terms)
        self.log_variances = nn.Parameter(torch.zeros(terms))

    def forward(self, terms: SobolevTerms) -> torch.Tensor:
        each = terms_of(terms)
        s = self.log_variances
        need(len(each) == len(s), "weights", f"Uncertainty(terms={len(each)})", f"Uncertainty(terms={len(s)})")
        s = s.to(each[0])
        return sum(0.5 * (-s[i]).exp() * term + 0.5 * s[i] for i, term in enumerate(each))


def terms_of(terms: SobolevTerms) -> list[torch.Tensor]:
    """Value, derivative and, of higher orders, others."""
    return [term for term in terms[1:] if term is not None]


def leaves_of(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The parameters in the graphs of these, each once."""
    nodes, seen = [t.grad_fn for t in tensors if t.grad_fn is not None], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [following for following, _ in node.next_functions if following is not None]


def norm_of_gradient(term: torch.Tensor, leaves: Sequence[torch.Tensor]) -> float:
    if not (term.requires_grad and leaves and bool(term.isfinite())):
        return 0.0
    found = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in found if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def numbers_of_rule(found: object, order: int) -> tuple[float, ...]:
    """What a rule gave, as weights of a loss.

    Raises:
        ValueError, TypeError: they are none.
    """
    expected = f"{1 + order} finite numbers >= 0, from the rule"
    need(
        isinstance(found, (Sequence, torch.Tensor)) and not isinstance(found, str),
        "weights",
        expected,
        found,
        TypeError,
    )
    numbers = tuple(float(w.detach() if isinstance(w, torch.Tensor) else w) for w in found)
    need(len(numbers) == 1 + order, "weights", expected, numbers)
    refuse(Settings(weights=numbers, order=order)._faults(numbers, None))
    return numbers

"""A loss of polynomial residuals with all its gradients, in one pass of the core (csrc/cpu/jet_loss.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import empty, empty_like

from ..backends import core
from ..backends.core import strided
from .fused import as_read
from .loss import Loss
from .one_pass import planned


class CoreLoss(Loss):
    def run(
        self, tensors: Sequence[torch.Tensor | None], asked: Sequence[bool] | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """The loss, its terms, and the gradient of each tensor that is asked for, if any is."""
        x, inputs, parameters, coefficients, weights = self.parts(tensors)
        back, results, of, N = asked is not None, len(self.frame.call.streams.outputs), self.of, len(x)
        of_x, of_inputs, _, of_coefficients, _ = (False, False, [], [], []) if asked is None else self.parts(asked)
        wanted = (back,) * results + (of_inputs,) * len(self.columns) + tuple(of_coefficients)
        plan = planned(self.recording, self.columns, wanted, results, len(of.weights))
        new = lambda *shape: empty(shape, dtype=x.dtype, device=x.device)  # noqa: E731
        total, each = new(), new(len(of.weights))
        dx = new(*x.shape) if of_x else None
        dinputs = new(N, len(self.columns)) if of_inputs else None
        dcoefficients = new(len(coefficients)) if any(of_coefficients) else None
        like = empty_like if self.frame.dense else lambda p: new(*p.shape)
        gradients = list(map(like, parameters)) if back else []
        places = [None if t is None else t.data_ptr() for t in (total, each, dinputs, dcoefficients)]
        *targets, sample_weight, inputs = [
            None if t is None else as_read([t.to(x)])[0] for t in (*of.targets, of.sample_weight, inputs)
        ]
        rho, share, learnt, terms = core.formula("Loss", of.rho), 1 / N if of.mean else 1.0, iter(weights), []
        for scale, weight in zip(of.scales, of.weights, strict=True):
            weight = next(learnt) if isinstance(weight, torch.Tensor) else weight
            unit, weight = 1.0 if scale is None else 1 / float(scale), 1.0 if weight is None else float(weight)
            terms.append((rho, unit, weight, share))
        told = (
            plan, [float(c) for c in coefficients], terms, list(map(strided, targets)),
            strided(inputs), strided(sample_weight), *places,
        )  # fmt: skip
        self.frame.compute(self.addresses, gradients, dx, told)
        if not back:
            return total, each, []
        if dinputs is not None:
            of_all = torch.zeros_like(inputs)
            of_all[:, self.columns] = dinputs
            dinputs = of_all
        slopes = [None] * len(coefficients) if dcoefficients is None else dcoefficients.unbind()
        slopes = [None if s is None else s.reshape(c.shape).to(c.dtype)
                  for s, c in zip(slopes, coefficients, strict=True)]  # fmt: skip
        places = [i for i, weight in enumerate(of.weights) if isinstance(weight, torch.Tensor)]
        # Of a weight's gradient the memory is no one else's: the user has the terms too.
        of_terms = [each[i].clone().reshape(w.shape).to(w.dtype) for i, w in zip(places, weights, strict=True)]
        found = [dx, dinputs, *gradients, *slopes, *of_terms]
        return total, each, [g if here else None for g, here in zip(found, asked, strict=True)]

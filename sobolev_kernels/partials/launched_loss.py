"""A loss of polynomial residuals with all its gradients, in one script of Triton's (backends/triton/jet_loss.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import empty, empty_like

from .fused import as_read
from .loss import Loss

if TYPE_CHECKING:
    from ..backends.triton.jet_loss import Polynomials, Read


class LaunchedLoss(Loss):
    """The same, of tensors of one device, of float32."""

    def run(
        self, tensors: Sequence[torch.Tensor | None], asked: Sequence[bool] | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        """The loss, its terms, and the gradient of each tensor that is asked for, if any is."""
        from ..backends.triton import jet_loss

        x, inputs, parameters, coefficients, weights = self.parts(tensors)
        back, of, frame = asked is not None, self.of, self.frame
        of_x, of_inputs, _, of_coefficients, _ = (False, False, [], [], []) if asked is None else self.parts(asked)
        wanted = (back,) * len(frame.call.streams.outputs) + (of_inputs,) * len(self.columns) + tuple(of_coefficients)
        learnt = tuple([isinstance(weight, torch.Tensor) for weight in of.weights])
        recording, numbers = jet_loss.without_numbers(self.recording)
        made_of = jet_loss.Polynomials(
            recording, len(numbers), self.columns, wanted, of.rho,
            tuple([target is not None for target in of.targets]), learnt, of.sample_weight is not None,
            inputs.shape[1] if of_inputs else 0,
        )  # fmt: skip
        read = self.read(x, inputs, parameters, coefficients, weights)
        new = lambda *shape: empty(shape, dtype=x.dtype, device=x.device)  # noqa: E731
        like = empty_like if frame.dense else lambda p: new(*p.shape)
        made = jet_loss.Made(
            new(), new(len(of.weights)), new(*x.shape) if of_x else None, new(*inputs.shape) if of_inputs else None,
            new(len(coefficients)) if any(of_coefficients) else None, [*map(like, parameters)] if back else [],
        )  # fmt: skip
        units = [1.0 if scale is None else 1 / float(scale) for scale in of.scales]
        by = [1.0 if weight is None else 0.0 if tensor else float(weight)
              for weight, tensor in zip(of.weights, learnt, strict=True)]  # fmt: skip
        self.script(made_of, read, made).run(read.flat(), made.flat(), None, (*units, *by, *numbers))
        if not back:
            return made.loss, made.terms, []
        slopes = [None] * len(coefficients) if made.dcoefficients is None else made.dcoefficients.unbind()
        slopes = [None if s is None else s.reshape(c.shape).to(c.dtype)
                  for s, c in zip(slopes, coefficients, strict=True)]  # fmt: skip
        of_learnt = [term for term, tensor in zip(made.terms.unbind(), learnt, strict=True) if tensor]
        # Of a weight's gradient the memory is no one else's: the user has the terms too.
        of_terms = [term.clone().reshape(w.shape).to(w.dtype) for term, w in zip(of_learnt, weights, strict=True)]
        found = [made.dx, made.dinputs, *made.gradients, *slopes, *of_terms]
        return made.loss, made.terms, [g if here else None for g, here in zip(found, asked, strict=True)]

    def read(
        self, x: torch.Tensor, inputs: torch.Tensor | None, parameters: Sequence[torch.Tensor],
        coefficients: Sequence[torch.Tensor], weights: Sequence[torch.Tensor],
    ) -> Read:  # fmt: skip
        from ..backends.triton import jet_loss

        ready = lambda t: None if t is None else as_read([t.to(x)])[0]  # noqa: E731
        x_read, *parameters = self.held or [x, *parameters]
        targets = [ready(target) for target in self.of.targets if target is not None]
        return jet_loss.Read(
            x_read, self.frame.directions, parameters, ready(inputs), targets, ready(self.of.sample_weight),
            [*map(ready, weights)], [*map(ready, coefficients)],
        )  # fmt: skip

    def script(self, of: Polynomials, read: Read, made) -> object:
        """Found in the frame by what it does not tell, or written."""
        from ..backends.triton import jet_loss

        more = [tensor for tensor in (read.inputs, *read.targets, read.sample_weight) if tensor is not None]
        key = of, self.of.mean, made.dx is None, tuple([tensor.stride() for tensor in more])
        scripts = self.frame.scripts
        if (script := scripts.get(key)) is None:
            script = jet_loss.script_for(self.frame.call.asked, of, self.of.mean, read, made)
            if len(scripts) < MOST:
                scripts[key] = script
        return script


MOST = 32  # scripts of a frame

"""`sobolev_loss`, and `SobolevLoss`, its module form."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from .at_step import LossAtStep, Steps, at_step, checked, with_steps
from .checks import faults_of_scale
from .directions import Cotangents, Directions, given_of, offset_of
from .errors import in_words, need_tensor, refuse
from .math.heads import APART
from .settings import Settings, keywords, settings_named, settings_of
from .targets import Targets
from .terms import SobolevTerms, loss_of
from .typed import AllKeywords, Function, HeadName, LossKeywords, LossName, Wrt
from .weights import weights_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def sobolev_loss(
    student: Function, inputs: torch.Tensor, targets: Targets, *, return_terms: Literal[False] = ...,
    **keywords: Unpack[AllKeywords],
) -> torch.Tensor: ...  # fmt: skip
@overload
def sobolev_loss(
    student: Function, inputs: torch.Tensor, targets: Targets, *, return_terms: Literal[True],
    **keywords: Unpack[AllKeywords],
) -> SobolevTerms: ...  # fmt: skip
@in_words
def sobolev_loss(
    student: Function,
    inputs: torch.Tensor,
    targets: Targets,
    *,
    directions: Directions | None = None,
    cotangents: Cotangents | None = None,
    derivatives: str | None = None,
    order: int = 1,
    wrt: Wrt = None,
    value_loss: LossName = "mse",
    derivative_loss: LossName = "mse",
    head: HeadName = None,
    weights: Sequence[float] | str | None = None,
    input_scale: torch.Tensor | None = None,
    input_jacobian: torch.Tensor | None = None,
    sample_weight: torch.Tensor | None = None,
    output_weight: torch.Tensor | None = None,
    derivative_weight: torch.Tensor | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    backend: str | None = None,
    return_terms: bool = False,
    check_finite: bool = False,
) -> torch.Tensor | SobolevTerms:
    """The Sobolev loss of a student on values and derivatives (Czarnecki et al., 2017).

        loss = w_0 · mean_{n,o} ρ_0(m(x_n) - f(x_n)) + w_1 · mean_{p,n,o} ρ_1(D m(x_n)[v_p] - D f(x_n)[v_p])
                                                     + w_2 · mean_{p,n,o} ρ_1(D²m(x_n)[v_p, v_p] - D²f(x_n)[v_p, v_p])

    With `cotangents` the middle term is instead the mean over r, n and d of ρ_1 of (D m(x_n)ᵀu_r - D f(x_n)ᵀu_r)_d;
    with `derivatives="exact"` the mean over all entries of the Jacobian. On a fused backend one call computes the
    loss and all its gradients; `backward` only scales them.

    Args:
        student: a module from [N, D] to [N, O], or [N] if O is 1; fused if it is an MLP of the activation table (see
            `explain`).
        inputs: x [N, D], or of any shape [N, …], which D stands for below; floating point, of the student's dtype and
            device. Gets a gradient if it asks for one; the targets are constants then.
        targets: see `Targets`.
        directions: see `Directions`; by default `targets.directions`, else `Directions.sphere(1)`.
        cotangents: see `Cotangents`, instead of directions; by default `targets.cotangents`.
        derivatives: "exact", instead of directions and cotangents: the whole Jacobian, from the cheaper side.
        order: 2 adds the second directional derivatives along the same directions, 3 and 4 those of these orders too,
            whose targets are `jets` or a teacher's. Refused for a student or teacher
            with a module as ReLU in it, whose second derivative is 0 almost everywhere; a plain function, or a forward
            that calls relu as one, cannot be looked into, and its second derivatives are silently 0.
        wrt: the W input columns that are differentiated, for example without a label or time appended to the inputs;
            by default all; or a Boolean mask of an input's shape, the only way to name them where inputs are [N, …].
            Directions, Jacobian and Hessian have W columns then, in this order.
        value_loss, derivative_loss: "mse", "l1", "huber" or ("huber", delta), "log_cosh"; or a loss of all the
            numbers of a sample in a term, "relative_mse" or ("relative_mse", eps): |a - t|² / (|t|² + eps), and
            "cosine": 1 - a·t / (|a| |t|). The mean is over the samples alone for these; |a|² and |t|² must be numbers
            of float64. Of values behind a head, computed from what comes before it: "kl", target ‖ student, and
            "cross_entropy" of probabilities or classes, with a softmax or log_softmax, the sum over outputs; "bce",
            with a sigmoid or log_sigmoid, the mean.
        head: what the outputs of student and teacher go through before they are compared: "softmax", "log_softmax",
            "sigmoid", "log_sigmoid", of the outputs divided by a temperature as ("log_softmax", 2.0); or any callable
            of the outputs [N, O]. All targets, directions and cotangents belong to what it gives. With a name an MLP is
            fused on the CPU, of order 1.
        weights: (w_0, w_1), of order 2 (w_0, w_1, w_2), and so on, >= 0, by default ones. A term of weight zero
            needs no target. Or "differential-ml" (Huge & Savine, 2020): (1 / (1 + W), W / (1 + W)), with the
            `input_scale` 1 / rms(∂f/∂x_j) over the batch, from the entries of the target Jacobian that count.
        input_scale: [W], > 0: multiplies the derivatives with respect to each column, of student and target.
        input_jacobian: ∂x/∂q [N, D, K]: derivatives are those with respect to K numbers q that the inputs were made of
            (positions of atoms, of descriptors): directions have K numbers, a target Jacobian is [N, O, K], of forces
            [N, K]; `input_scale` and masks are of K. Of order 1, along directions, or "exact".
        sample_weight: [N], multiplies ρ of all residuals of a sample; `output_weight`: [O], of an output (of a coupled
            loss, its part in the sums). The numbers that means divide by stay what they are. A residual of weight 0
            counts as 0 whatever its target, NaN too: so are missing labels marked (inputs are numbers all the same, or
            gradients are NaN). Finite, >= 0, of the inputs' dtype.
        derivative_weight: of derivatives alone, and for order 2 of second ones alike: [N], as `sample_weight`; [N, O],
            each output's, where cotangents do not mix them; [N, O, W], of each entry of the Jacobian, where the entries
            are residuals: "exact", `Directions.basis()`, `Cotangents.basis()`, of order 1. Or, Boolean, which of these
            entries are known, or which columns [N, W], with a Jacobian, Hessian, vjps or teacher: where the entries are
            not residuals by themselves, directions have 0 in the others, and derivatives along those are compared.
        reduction: "mean" or "sum" over the samples, or "none": [N], and the gradients wait for the backward.
        precision: the least that what is multiplied may have: "ieee" (float32), "tf32", "bf16" or "fp16"; sums and
            all else are float32. By default what `torch.autocast` says, else "ieee". A backend that has no such
            multiply, as those of the CPU, takes a better one. The errors are in docs/triton.md.
        backend: forces one by name; it never falls back. So does SOBOLEV_BACKEND.
        return_terms: also return the terms, unweighted, as `SobolevTerms`.
        check_finite: look for NaN and infinity in inputs, parameters, and what counts of targets first, then in what a
            teacher gives (costs a pass over them).

    Returns:
        The loss, a scalar (or [N]) of the inputs' dtype; with `return_terms`, a `SobolevTerms`. Of an empty batch
        it is 0, and so are its gradients. What the loss does not depend on, as the last bias where only derivatives are
        compared, gets a gradient of zeros from every backend, not None, where the student is an MLP.

    Raises:
        TypeError, ValueError: bad arguments, naming the argument, what was expected and what came.
        NotImplementedError: the forced backend refuses, or a derivative is not provided.

    Warns:
        SobolevWarning: once a student, of a teacher that draws random numbers in train mode, of the same inputs and
            parameters evaluated again along fresh directions, as by L-BFGS, and of a student that goes to the reference
            since an operation of it has no rule (see `explain`).

    Example:
        >>> from sobolev_kernels import MLP, Directions, Targets
        >>> x = torch.rand(8, 2)
        >>> f = lambda x: (x ** 3).sum(-1, keepdim=True)
        >>> loss = sobolev_loss(MLP(2, 1, width=16), x, Targets(teacher=f), directions=Directions.sphere(4))
        >>> loss.backward()
    """
    apart = head if callable(head) and not isinstance(head, type) else None
    settings = settings_of(
        directions, cotangents, derivatives, order, wrt, value_loss, derivative_loss, weights, reduction, precision,
        backend, return_terms, check_finite, head if apart is None else APART,
    )  # fmt: skip
    each = weights_of(sample_weight, output_weight, derivative_weight)
    given, offset = given_of(directions, cotangents), offset_of(directions, cotangents)
    return loss_of(settings, student, inputs, targets, given, each, input_scale, offset, input_jacobian, apart)


class SobolevLoss(torch.nn.Module):
    """A Sobolev loss with its settings, called as
    `loss_fn(student, inputs, targets, sample_weight=None, derivative_weight=None, input_jacobian=None, step=None)`.

    The arguments and errors are those of `sobolev_loss`; they are checked here already. It has no parameters;
    `input_scale`, `output_weight`, and the tensor of directions or cotangents that were given, are buffers, which move
    with `.to(device)`. The state of a loss with `input_scale` or `output_weight` is loaded by one without, and the
    other way round. For optimizers that evaluate it several times a step there is `at`.

    Example:
        >>> from sobolev_kernels import MLP
        >>> loss_fn = SobolevLoss(directions=Directions.sphere(4))
        >>> x = torch.rand(8, 2)
        >>> targets = Targets(values=x.sum(1, keepdim=True), jacobian=torch.ones(8, 1, 2))
        >>> loss_fn(MLP(2, 1, width=16), x, targets).backward()
    """

    input_scale: torch.Tensor | None
    output_weight: torch.Tensor | None
    given: torch.Tensor | None  # directions or cotangents
    steps: Steps | None = None  # what `at` has found

    def __init__(
        self, *, input_scale: torch.Tensor | None = None, output_weight: torch.Tensor | None = None,
        **settings: Unpack[LossKeywords],
    ):  # fmt: skip
        super().__init__()
        self.settings = settings_named("SobolevLoss", settings, also=("input_scale", "output_weight"))
        self.head = settings["head"] if self.settings.head == APART else None
        refuse(faults_of_scale(self.settings, input_scale))
        given = given_of(settings.get("directions"), settings.get("cotangents"))
        for name, tensor in (("input_scale", input_scale), ("output_weight", output_weight)):
            if tensor is not None:
                need_tensor(tensor, name, "a tensor")
            self.register_buffer(name, tensor)
        self.register_buffer("given", given, persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """A buffer of a loss that was saved without it stays, and one that this loss is without is taken over."""
        for name in ("input_scale", "output_weight"):
            own, saved = getattr(self, name), state_dict.get(prefix + name)
            if own is None and isinstance(saved, torch.Tensor):
                setattr(self, name, saved.detach().clone())
            elif own is not None and saved is None:
                state_dict[prefix + name] = own
        super()._load_from_state_dict(state_dict, prefix, *others)

    @in_words
    def forward(
        self, student: Function, inputs: torch.Tensor, targets: Targets,
        sample_weight: torch.Tensor | None = None, derivative_weight: torch.Tensor | None = None,
        input_jacobian: torch.Tensor | None = None, step: int | None = None,
    ) -> torch.Tensor | SobolevTerms:  # fmt: skip
        weights, scale = weights_of(sample_weight, self.output_weight, derivative_weight), self.input_scale
        settings, offset = self.settings, None
        if step is not None:
            settings, targets, offset = at_step(self, targets, step)
        return loss_of(
            settings, student, inputs, targets, self.given, weights, scale, offset, input_jacobian, self.head
        )

    def at(self, step: int) -> LossAtStep:
        """The same loss with the same directions, or cotangents, at all evaluations of a step, and others at the next:
        one function for the line search of L-BFGS.

        They are those of the seed at the place `step` of its stream, as `directions.at(step)`. Directions without a
        seed get one for all steps, drawn once by torch's generator; what is given, a basis and "exact" are the same at
        all steps. What is kept of calls, and the buffers, are those of this loss: another step is another number.

        Raises:
            ValueError: step is no integer in [0, 2^32).
            NotImplementedError: torch.compile would have to draw the seed.

        Example:
            >>> from sobolev_kernels import MLP
            >>> student, loss_fn = MLP(2, 1, width=16), SobolevLoss(directions=Directions.sphere(4))
            >>> x = torch.rand(8, 2)
            >>> targets = Targets(values=x.sum(1, keepdim=True), jacobian=torch.ones(8, 1, 2))
            >>> optimizer = torch.optim.LBFGS(student.parameters(), line_search_fn="strong_wolfe")
            >>> for step in range(3):
            ...     def closure():
            ...         optimizer.zero_grad()
            ...         loss = loss_fn.at(step)(student, x, targets)
            ...         loss.backward()
            ...         return loss
            ...     loss = optimizer.step(closure)
        """
        step = checked(step)
        if not torch.compiler.is_compiling():
            with_steps(self)
        return LossAtStep(self, step)

    def extra_repr(self) -> str:
        return ", ".join(f"{field.name}={getattr(self.settings, field.name)}" for field in fields(Settings))


SobolevLoss.__init__.__signature__ = inspect.Signature(keywords(SobolevLoss.__init__))

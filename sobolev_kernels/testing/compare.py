"""A step of any backend beside the reference in float64: loss, terms and all gradients, by the one rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

import sobolev_kernels as sk

from .. import kept, planner, steps
from ..backends import triton
from ..directions import Projections
from ..partials.known import FRAMES
from .problems import Data, as_dtype, fixed, targets_of, threads, threads_for
from .rule import allowed, assert_within_rule, error, multiplies_in

TERMS = ("value", "derivative", "second")
Named = dict[str, torch.Tensor]


def step(
    data: Data, projections: Projections | None, backend: str, input_gradient: bool = True, **settings
) -> Named:  # fmt: skip
    """Loss, terms and all gradients of one call, by name; that of given projections where they ask for it."""
    x = data.x.detach().requires_grad_(input_gradient)
    projections = as_dtype(projections, x.dtype, x.device)
    data.student.zero_grad(set_to_none=True)
    targets = settings.pop("targets", None) or sk.Targets(values=data.y, jacobian=data.jacobian)
    settings["cotangents" if isinstance(projections, sk.Cotangents) else "directions"] = projections
    result = sk.sobolev_loss(data.student, x, targets, backend=backend, return_terms=True, **settings)
    result.loss.backward(ramp(result.loss))
    named = {"loss": result.loss.detach(), **dict(zip(TERMS, result[1:], strict=True))}
    if result.second is None:
        del named["second"]
    if input_gradient:
        named["dx"] = gradient(x)
    if projections is not None and projections.values is not None and projections.values.requires_grad:
        named["dgiven"] = gradient(projections.values)
    return named | {f"d{name}": g for name, g in gradients(data.student).items()}


def ramp(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers from 1 to 2, a cotangent that tells them all apart."""
    return torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype, device=tensor.device).reshape(tensor.shape)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """Zero where autograd leaves none, as for the last bias of a loss without values."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def gradients(student: torch.nn.Module) -> Named:
    return {name: gradient(p) for name, p in student.named_parameters()}


def forget() -> None:
    """The next call goes the long way, as if none like it had been before: what was patched is looked at."""
    kept.KEPT.clear()
    steps.STEPS.clear()
    steps.ONCE.clear()
    triton.SCRIPTS.clear()
    FRAMES.clear()


def layer_by_layer(monkeypatch) -> None:
    """No launch of Triton's has all layers: neither that of a step nor that of each way."""
    from ..backends.triton import chained, one_launch

    monkeypatch.setattr(one_launch, "refusal", lambda problem: "forced")
    monkeypatch.setattr(chained, "takes", lambda problem, N: False)


@contextmanager
def computed_from(side: str | None) -> Iterator[None]:
    """One of the planner's sides, where a problem has it, instead of the planner's choice; None: that choice."""
    chosen = planner.side
    if side is not None:
        planner.side = lambda problem: side if side in planner.chains(problem) else chosen(problem)
    forget()
    try:
        yield
    finally:
        planner.side = chosen
        forget()


@dataclass
class Comparison:
    """What was computed, the same by the reference in float64, and by the reference in the dtype of what was computed.

    `again` computes the expectation anew.
    """

    got: Named
    expected: Named
    baseline: Named = field(default_factory=dict)
    precision: str = "ieee"
    again: Callable[[], Named] | None = None

    def names(self) -> Iterator[str]:
        """All but the terms without a target, which are NaN in both."""
        for name, tensor in self.got.items():
            if not (name in TERMS and tensor.isnan().all() and self.expected[name].isnan().all()):
                yield name

    def check(self, what: str = "") -> Comparison:
        """Raise AssertionError for the first tensor that is not as close as the rule asks."""
        for name in self.names():
            assert_within_rule(
                f"{what}{name}", self.got[name].cpu(), self.expected[name], self.baseline.get(name), self.precision,
                None if self.again is None else lambda name=name: self.again()[name],
            )  # fmt: skip
        return self

    def worst(self) -> tuple[float, str]:
        """The largest error over what the rule allows without looking at what was summed, and of which tensor."""
        ratios = [(0.0, "")]
        for name in self.names():
            got, expected = self.got[name].cpu(), self.expected[name]
            limit = allowed(expected, got.dtype, self.baseline.get(name), self.precision)
            ratios.append((error(got, expected) / limit if limit else 0.0, name))
        return max(ratios)


@threads(1)
def beside_reference(
    data: Data, projections: Projections | None = None, targets: Sequence[str] | Callable = ("values", "jacobian"),
    backend: str = "cpu", *, precision: str = "ieee", device: str = "cpu",
    within: AbstractContextManager | None = None, **settings,
) -> Comparison:  # fmt: skip
    """A step of `backend`, in the dtype of `data` and on `device`, and what the reference makes of it.

    Args:
        data: on the CPU.
        projections: directions or cotangents; those that are drawn are drawn once, and given to the reference.
        targets: their kinds, or a function of Data.
        precision: of the products of the backend; the reference's are rounded alike for the baseline.
        within: a context that the backend's step is taken in.
        settings: of `sobolev_loss`; tensors among them take dtype and device.
    """
    dtype, wrt = data.x.dtype, settings.get("wrt")
    projections = as_dtype(projections, dtype)
    very = fixed(projections, data, None if wrt is None else len(wrt))
    # the basis has no P, and here no target that is projected already
    P = 1 if projections is None or projections.P is None else projections.P
    exact = data if dtype == torch.float64 else data.to(torch.float64)

    def run(dtype, projections, backend, device="cpu", **more):
        numbers = data if dtype == data.x.dtype else exact
        wanted = targets(numbers) if callable(targets) else targets_of(numbers, targets, P, wrt)
        tensors = {name: as_dtype(value, dtype, device) for name, value in settings.items()}
        numbers, wanted = numbers.on(device), on_device(wanted, device)
        with threads(threads_for(len(numbers.x), backend)):
            return step(numbers, as_dtype(projections, dtype, device), backend, targets=wanted, **tensors, **more)

    again = lambda: run(torch.float64, very, "reference")  # noqa: E731
    expected, baseline = again(), {}
    if dtype != torch.float64:
        with multiplies_in(precision):
            baseline = run(dtype, very, "reference")
    with within or nullcontext():
        got = run(dtype, projections, backend, device, precision=precision)
    assert all(tensor.dtype == dtype for tensor in got.values())
    return Comparison(got, expected, baseline, precision, again)


def on_device(targets: sk.Targets | None, device: str) -> sk.Targets | None:
    if targets is None or device == "cpu":
        return targets
    there = targets.to(device)
    return there if there.teacher is None else there.replace(teacher=there.teacher.to(device))


def compare(*arguments, **settings) -> Named:
    """`beside_reference`, checked; what was computed."""
    return beside_reference(*arguments, **settings).check().got

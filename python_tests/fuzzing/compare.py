"""Runs a case on a backend and compares it with the oracle: values, terms, all gradients, dtypes and errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

import sobolev_kernels as sk
from sobolev_kernels import dispatch, ops
from sobolev_kernels.testing.compare import computed_from
from sobolev_kernels.testing.problems import threads
from sobolev_kernels.testing.rule import DRAWS, EPSILONS, UNITS, error, largest, perturbed

from . import oracle
from .build import Built, build
from .cases import HALF, Case
from .oracle import Named

LONGEST_MESSAGE = 600
# How near to a kink a number may be, in units of what is about it: float32 must be on the side that float64 is on.
MARGIN = {"float64": 1e-10}
MARGIN_OF_FLOAT32 = 2e-5
ATTEMPTS = 50
# The draws of the rule, and more for who is still in doubt: of thousands of cases one is moved little by eight draws.
SEEDS = (range(DRAWS), range(DRAWS, 5 * DRAWS))


@dataclass
class Outcome:
    """What came of a case: findings in words, refusals by their first words, by backend."""

    case: Case
    findings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    compared: int = 0


def computed_in(case: Case) -> torch.dtype:
    """Half precision is computed in float32."""
    return torch.float32 if case.dtype in HALF else getattr(torch, case.dtype)


@contextmanager
def poisoned() -> Iterator[None]:
    """Outputs that a backend is given to fill start as NaN."""
    before = ops.empty, ops.empty_like
    ops.empty = lambda *size, **options: torch.full(*size, torch.nan, **options)
    ops.empty_like = lambda like: torch.full_like(like, torch.nan, requires_grad=False)
    try:
        yield
    finally:
        ops.empty, ops.empty_like = before


def backends_of(case: Case) -> list[str | None]:
    if not case.recognised:
        return [None]
    return [name for name in dispatch.BACKENDS if name != "cuda" and (name != "triton" or interpreted(case))]


def interpreted(case: Case) -> bool:
    """Whether Triton's interpreter is on, and the case small enough for it."""
    from sobolev_kernels.backends import triton

    small = case.N <= 8 and max(case.D, case.O, case.P, *case.hidden, 1) <= 8
    return not triton.MISSING and triton.interpreting() and case.dtype != "float64" and small


# What some of PyTorch's functions sum within themselves, which is more than what is left of it: 1 + erf(x / √2).
SUMMED = {
    torch.ops.aten.gelu.default: lambda x, **_: x / 2, torch.ops.aten.gelu_backward.default: lambda g, x, **_: g / 2
}  # fmt: skip


class Moved(perturbed):
    """Float64 alone: who rounds to float32 on his way must not be forgiven for it."""

    def moved(self, tensor: object) -> object:
        double = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
        return super().moved(tensor) if double else tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if function not in SUMMED:
            return result
        part = SUMMED[function](*args)
        return result + (self.moved(part) - part)


@dataclass
class Expected:
    """What the oracle says of a case: its results, their random cotangents, and the gradients along these."""

    built: Built
    attempt: int
    results: Named
    pull: Callable[[Named], Named]
    cotangents: Named
    measured: dict[range, dict[str, float]] = field(default_factory=dict, init=False)

    @cached_property
    def named(self) -> Named:
        return self.results | self.pull(self.cotangents)

    def along(self, names: Iterable[str]) -> Expected:
        """With cotangents for these results alone."""
        return replace(self, cotangents={name: self.cotangents[name] for name in names})

    def moves(self, leaves: Iterable[str]) -> bool:
        """Whether a result depends on any of these: that of a linear student's derivatives on x is none."""
        gradients = self.pull(self.cotangents)
        return any(bool(gradients[name].any()) for name in leaves)

    def sizes(self, seeds: range) -> dict[str, float]:
        """The size of what each result was summed of, as the rule measures it: how far it moves, over how far all that
        goes into it was moved. It is the reference that is moved, since nothing is within torch.func; no matter how
        wrong it may be, it is compared with itself."""
        if seeds in self.measured:
            return self.measured[seeds]
        case, eps = self.built.case, torch.finfo(computed_in(self.built.case)).eps
        built = build(case, self.attempt, torch.float64)
        again = lambda: named_results(built, "reference", self.cotangents)  # noqa: E731
        base, most = again(), {}
        for seed in seeds:
            with Moved(UNITS * eps / torch.finfo(torch.float64).eps, seed):
                moved = again()
            for name, t in base.items():
                most[name] = max(most.get(name, 0.0), error(moved[name], t) / (UNITS * eps))
        return self.measured.setdefault(seeds, {name: size for name, size in most.items() if size < float("inf")})

    def wrong(self, name: str, got: torch.Tensor) -> str | None:
        """In words by how much a result is off, if it is."""
        expected = self.named[name]
        if got.shape != expected.shape:
            return f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        if not got.numel():
            return None
        computed = computed_in(self.built.case)
        numbers, rounded = torch.finfo(computed), torch.finfo(got.dtype)
        # half precision is computed in float32 and rounded once, last; what is too large for it is infinite
        once = rounded.eps * expected.abs() + rounded.smallest_normal * rounded.eps if got.dtype != computed else 0.0
        expected = expected.to(got.dtype).double() if got.dtype != computed else expected
        off = (got.detach().double() - expected).abs()
        off = torch.where(got.double() == expected, 0.0, torch.nan_to_num(off, nan=torch.inf)) - once
        found = float(off.max())
        limit = EPSILONS * numbers.eps * largest(self.named[name]) + 2 * numbers.tiny
        for seeds in SEEDS:
            if found > limit:
                limit = max(limit, EPSILONS * numbers.eps * self.sizes(seeds).get(name, 0.0))
        if found <= limit:
            return None
        i = int(off.flatten().argmax())
        pair = f"{float(got.flatten()[i]):.9g}, expected {float(self.named[name].flatten()[i]):.9g}"
        return f"{pair} at {i} of {off.numel()}, off by {found:.3g}, allowed {limit:.3g}"


def expected_of(case: Case) -> Expected:
    """A case away from all kinks, and what the oracle says of it."""
    margin, dtype = MARGIN.get(case.dtype, MARGIN_OF_FLOAT32), getattr(torch, case.dtype)
    for attempt in range(ATTEMPTS):
        built = build(case, attempt)
        results, pull, distance = oracle.evaluate(built)
        if min(distance, oracle.kink_distance(built.twin, oracle.exact(built.x))) > margin:
            break
    generator = torch.Generator().manual_seed(built.generator)
    draw = lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype).double()  # noqa: E731
    return Expected(built, attempt, results, pull, {name: draw(t) for name, t in results.items()})


def call(built: Built, backend: str | None) -> Named:
    """The results of the public function, by the oracle's names."""
    case, given = built.case, built.projections
    torch.manual_seed(built.generator)
    if case.call == "loss":
        return call_loss(built, backend)
    more = {"wrt": case.wrt, "backend": backend}
    if case.call == "hvp":
        return dict(
            zip(("y", "second"), sk.hvp(built.student, built.x, given.values, built.other, **more), strict=True)
        )
    if case.call == "laplacian":
        exact = case.distribution == "basis" and not case.unbiased
        return dict(
            zip(("y", "second"), sk.laplacian(built.student, built.x, None if exact else given, **more), strict=True)
        )
    if case.call == "jet":
        more["order"] = case.order
    results = getattr(sk, case.call)(built.student, built.x, given, **more)
    return dict(zip(("y", "derivative", "second"), results, strict=False))


def call_loss(built: Built, backend: str | None) -> Named:
    case = built.case
    settings = {
        "order": case.order, "wrt": case.wrt, "value_loss": case.value_loss, "derivative_loss": case.derivative_loss,
        "head": case.head,
        "weights": case.weights, "reduction": case.reduction, "return_terms": case.return_terms, "backend": backend,
    }  # fmt: skip
    if case.projection == "exact":
        settings["derivatives"] = "exact"
    elif not case.in_targets:
        settings[case.projection] = built.projections
    targets, weights = sk.Targets(**built.targets), dict(built.weights)
    if case.module:
        samples = {name: weights.pop(name) for name in ("sample_weight", "derivative_weight") if name in weights}
        result = sk.SobolevLoss(**settings, **weights)(built.student, built.x, targets, **samples)
    else:
        result = sk.sobolev_loss(built.student, built.x, targets, **settings, **weights)
    return dict(zip(result._fields, result, strict=True)) if case.return_terms else {"loss": result}


def named_results(built: Built, backend: str, cotangents: Named) -> Named:
    """Results and gradients of a call."""
    with torch.set_grad_enabled(built.case.mode != "no_grad"):
        results = call(built, backend)
    got = {name: t.detach() for name, t in results.items() if t is not None}
    return got if built.case.mode == "no_grad" else got | gradients(built, results, cotangents)


def gradients(built: Built, results: Named, cotangents: Named):
    """All gradients of the results along their cotangents, zero where autograd leaves none."""
    for leaf in (built.x, *built.parameters):
        leaf.grad = None
    differentiable = [name for name in cotangents if results[name].requires_grad]
    torch.autograd.backward(
        [results[name] for name in differentiable],
        # a product, so that they are moved where everything is
        [1 * cotangents[name].to(results[name].dtype) for name in differentiable],
    )
    zero = lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad  # noqa: E731
    return {name: zero(leaf) for name, leaf in built.wanted.items()}


def problems(expected: Expected, backend: str | None) -> Iterator[str]:
    """All that is wrong with a case on a backend."""
    built, dtype = expected.built, getattr(torch, expected.built.case.dtype)
    with computed_from(built.case.side), threads(built.case.threads), poisoned():
        with torch.set_grad_enabled(built.case.mode != "no_grad"):
            results = call(built, backend)
        got = {name: t.detach() for name, t in results.items() if name in expected.results}
        for name in results.keys() - expected.results.keys():
            if results[name] is not None and not results[name].isnan().all():
                yield f"{name}: a number, where there is no target"
        if built.case.mode != "no_grad":
            differentiable = [name for name in got if results[name].requires_grad]
            for name in got.keys() - differentiable:
                if expected.along([name]).moves(built.wanted):
                    yield f"{name}: does not require grad"
            expected = expected.along(differentiable)
            got |= gradients(built, results, expected.cotangents)
            frozen = [p for p in built.parameters if not p.requires_grad and p.grad is not None]
            if frozen:
                yield "a gradient for a frozen parameter"
        elif any(t is not None and t.requires_grad for t in results.values()):
            yield "requires_grad under no_grad"
        if backend == "cpu":
            for name, tensor in named_results(built, backend, expected.cotangents).items():
                if name in got and not torch.equal(tensor.nan_to_num(7), got[name].nan_to_num(7)):
                    yield f"{name}: other numbers in a second call, which is like the first"
    for name in expected.results.keys() - results.keys():
        yield f"{name}: missing"
    for name, tensor in got.items():
        if tensor.dtype != dtype:
            yield f"{name}: {tensor.dtype}"
        wrong = expected.wrong(name, tensor)
        if wrong:
            yield f"{name}: {wrong}"


def run(case: Case, backends: list[str | None] | None = None) -> Outcome:
    """A case on every backend that runs here, or on those named."""
    outcome, expected = Outcome(case), expected_of(case)
    for backend in backends_of(case) if backends is None else backends:
        try:
            with warnings.catch_warnings():
                # a case is computed twice, along fresh directions too
                warnings.simplefilter("ignore", sk.SobolevWarning)
                findings = list(problems(expected, backend))
            outcome.compared += 1
        except NotImplementedError as error:
            outcome.refusals.append(str(error)[:70])
            findings = (
                [f"a message of {len(str(error))} characters"] if not 0 < len(str(error)) <= LONGEST_MESSAGE else []
            )
        except Exception as error:
            findings = [f"{type(error).__name__}: {str(error)[:300]}"]
        outcome.findings += [f"{backend or 'free'}: {finding}" for finding in findings]
    return outcome

"""`explain`: which backend a call would take, why the others refuse, from which side, and what it would cost."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch

from . import dispatch, planner
from .backends import on_device_of
from .derivatives import ASKED, request_of
from .directions import Cotangents, Directions, given_of
from .enums import DENSE, DIRECTIONS, GRADIENTS, PROJECTED, TANGENTS
from .errors import nearest, need, one_of
from .heads import inner_of, with_head
from .math.heads import APART
from .ops import is_apart
from .outputs import outputs_of
from .partials.along import KERNELS, TOGETHER
from .partials.explained import PARTIALS, RESIDUAL_LOSS, lines_of_partials, lines_of_residual_loss
from .parts import modules_of
from .paths import HOOKS, known_of, modules_read
from .prepare import prepare, undo
from .printed import printed
from .problem import DERIVATIVES, LOSS, PER_SAMPLE, UNSEEN, Problem
from .request import Request
from .rows import are_rows, behind, derivatives_on_rows
from .settings import EXACT, keywords, settings_named
from .streams.look import chains_of, flow_of
from .typed import Function

WITHIN = "in one pass with its derivatives, where neither samples nor outputs have weights"
SEPARATELY = "by PyTorch's operations, from fused derivatives"
WHY = ": the vectors' gradient goes through the dense target, too"


def explain(
    student: Function, x: torch.Tensor, directions: Directions | Cotangents | torch.Tensor | None = None, *,
    of: str = "loss", derivative_target: str = DENSE, names: Any = None, fields: Any = None, residual: Any = None,
    **settings,
) -> str:  # fmt: skip
    """Print, and return, what `sobolev_loss` would do with this student and these inputs [N, D]; or `jvp` and its like.

    It names the backend and why the others refuse, and what either side would cost; of a student that is no plain MLP
    also the operations that pairs of a value and its tangents meet, with the one that has no rule, if there is one.
    Nothing is computed, and no random number is drawn; the forward of a student that is no plain MLP may be run on
    something that stands for its input, and leaves no trace.

    Args:
        student, x, directions, …: as for `sobolev_loss`. Those of its arguments that are tensors change nothing.
        of: "loss", or "jvp", "vjp", "jet", "laplacian", "hvp". Then `directions` are the vectors that this function
            takes, v or u, of an HVP v alone; and the other keywords are those that it has too. "partials" has `names`
            and `fields` instead, "residual_loss" its `residual`: then it says also in how many streams, of which order,
            what sums under one name save, and which way these are taken, "reference" being autograd of autograd.
        derivative_target: "dense" or "projected", for the count of bytes.

    Raises:
        ValueError, TypeError, NotImplementedError: what the call itself would raise.

    Example:
        >>> from sobolev_kernels import MLP
        >>> text = explain(MLP(2, 1, width=16), torch.zeros(8, 2), backend="reference")
        student     2 -> 16 -> 16 -> 1 (tanh, tanh, identity), float32 on cpu
        ...
        >>> text = explain(MLP(2, 1, width=16), torch.zeros(8, 2), of="laplacian", backend="reference")
        call        laplacian
        student     2 -> 16 -> 16 -> 1 (tanh, tanh, identity), float32 on cpu
        directions  2 x basis, order 2, summed, N = 8
        ...
        >>> named = {"names": "u_xx + u_yy", "fields": "x y -> u"}
        >>> text = explain(MLP(2, 1, width=16), torch.zeros(8, 2), of="partials", **named)
        call        partials
        student     2 -> 16 -> 16 -> 1 (tanh, tanh, identity), float32 on cpu
        fields      x y -> u
        reads       u_xx + u_yy, N = 8
        order       2
        streams     3 beside the value, 4 without the sums
        ...
    """
    if of in (PARTIALS, RESIDUAL_LOSS):
        need(directions is None, "directions", f"none of {of}", directions)
        backend = settings.pop("backend", None)
        for name, value in settings.items():
            need(False, name, f"no such keyword of {of}", value, TypeError)
        if of == PARTIALS:
            return printed(lines_of_partials(student, x, names, fields, backend))
        return printed(lines_of_residual_loss(student, x, residual, backend))
    for name, value in (("names", names), ("fields", fields), ("residual", residual)):
        need(value is None, name, f'none but of "{PARTIALS}" and "{RESIDUAL_LOSS}"', value)
    call = prepare(asked(student, x, directions, of, derivative_target, settings))
    undo(call.followed)
    student, x = call.request.student, call.request.inputs
    problem, N, exact = call.problem, x.shape[0], call.request.settings.derivatives == EXACT
    if problem.unrecognised:
        what = f"{type(inner_of(behind(student))).__name__} of {problem.D} features"
    else:
        what = f"{' -> '.join(map(str, problem.widths))} ({', '.join(map(str, problem.activations))})"
    dtype = str(x.dtype).removeprefix("torch.")
    computed = "" if dtype == problem.dtype else f" computed in {problem.dtype}"
    lines = [] if of == LOSS else [f"call        {of}"]
    lines += [f"student     {what}, {dtype}{computed} on {problem.device}"]
    if (head := call.request.settings.head) is not None:
        lines += [f"head        {head}"]
    some = f"{problem.P or 'O'} x {problem.distribution}{', shared' if problem.shared else ''}"
    some = "none" if call.projections is None else some
    some += f", order {problem.order}{', summed' if problem.collapsed else ''}" if problem.order > 1 else ""
    some += f", of {problem.W} of {problem.D} inputs" if problem.wrt else ""
    lines += [f"{problem.projection:<11} {some}, N = {N}"]
    with on_device_of(x):
        for name, module in dispatch.BACKENDS.items():
            reason = dispatch.refusal(name, problem)
            taken = "-> " if name == problem.backend else "   "
            said = module.plan(problem, N) if reason is None else f"refused: {reason}"
            if reason is None and not taken.strip() and (reason := dispatch.better(name, problem)) is not None:
                said = f"{said} (not taken: {reason})"
            lines.append(f"{taken}{name:<11}{said}")
        flow = flow_of(student, x, problem.order) if problem.unfollowed != UNSEEN else None
        if problem.unrecognised and (costs := planner.sides_of_function(problem)) is not None:
            said = ", ".join(f"{cost:.3g} by {side}" for side, cost in costs.items())
            mixed = "; samples see each other, so not by gradients" if problem.mixed else ""
            lines += [f"sides       {said}, in runs of a value or of a tangent{mixed}"]
        for title, counts in (("operations", flow.counts), ("without rule", flow.without_rule)) if flow else ():
            if counts:
                lines += [f"{title:<11} {', '.join(f'{name} {count}' for name, count in counts.items())}"]
        fused = {} if flow is None or problem.collapsed else flow.fused
        if problem.backend == "reference" and problem.unrecognised:
            fused = chains_in(student, x, problem)
        if fused:
            lines += [f"segments    {segments_in_words(fused)}"]
        if of == "hvp" and problem.backend in KERNELS and not any(call.followed):
            lines += [
                f"mixed       by the streams of v, w and both, {3 * problem.P // 2} of them, without polarization"
            ]
        if is_apart(problem) and problem.backend != "reference" and not problem.unrecognised:
            few = problem.backend == "cpu" and 2 < problem.order and problem.P <= TOGETHER // problem.order
            lines += [f"loss        {WITHIN if few else SEPARATELY}{WHY if problem.order < 3 else ''}"]
        if not problem.unrecognised:
            lines += [f"work        {line}" for line in sides_of(problem, N, exact)]
            lines += [f"memory      {problem.bytes(N):.3g} bytes at the least"]
    return printed(lines)


def asked(
    student: object, x: torch.Tensor, directions: object, of: str, derivative_target: str, settings: dict[str, object]
) -> Request:  # fmt: skip
    """What the loss, or the function by this name, would be asked for."""
    calls = LOSS, *ASKED, PARTIALS, RESIDUAL_LOSS
    for name, value, names in (("of", of, calls), ("derivative_target", derivative_target, (DENSE, PROJECTED))):
        need(one_of(value, names), name, f"one of {', '.join(names)}", value, hint=nearest(value, names))
    if of != LOSS:
        need(derivative_target == DENSE, "derivative_target", f"none, since {of} has no targets", derivative_target)
        return request_of(of, student, x, directions, **settings)
    known = settings_named("explain", {"directions": directions, **settings}, also=("derivative_target",))
    given = given_of(directions, settings.get("cotangents"))
    result = PER_SAMPLE if known.reduction == "none" else LOSS
    student, _ = with_head(student, None, settings["head"] if known.head == APART else None)
    if not are_rows(x, known):
        student, x, known, given, _ = derivatives_on_rows(student, x, known, given)
    return Request(result, student, x, known, given, kinds=(derivative_target, derivative_target))


def chains_in(student: object, x: torch.Tensor, problem: Problem) -> dict[tuple[int, str], int]:
    """Chains of layers within a student whose gradients are taken, as of calls like one before."""
    hooked = any(getattr(module, name, None) for module in modules_of(student) for name in HOOKS)
    if hooked or not planner.takes_gradients(problem) or problem.given_gradient:
        return {}
    kinds, parameters = modules_read(student)
    graphs = known_of(student, x, kinds).graphs
    return chains_of(student, partial(outputs_of, student), x, graphs, parameters or []).fused


def segments_in_words(fused: dict[tuple[int, str], int]) -> str:
    """Chains of so many linear layers each."""
    many = lambda n, what: f"{n} {what}{'s' if n > 1 else ''}"  # noqa: E731
    counts = ", ".join(f"{many(n, 'segment')} of {many(layers, 'layer')}" for (layers, _), n in fused.items())
    return f"{counts}, fused by {' and '.join(sorted({backend for _, backend in fused}))}"


def sides_of(problem, N: int, exact: bool) -> list[str]:
    """The side taken first, then what the others would cost."""
    projected = TANGENTS if problem.projection == DIRECTIONS else GRADIENTS
    choices, counts = dict(dispatch.BACKENDS[problem.backend].plan(problem, N).choices), planner.chains(problem)
    taken = choices.get("side", projected)
    if exact:
        counts, taken = {TANGENTS: problem.W, GRADIENTS: problem.O}, projected
    elif "side" not in choices:
        counts = {taken: counts[taken]}
    again = ", and thrice that in a backward" if problem.result in (PER_SAMPLE, DERIVATIVES) else ""
    lines = []
    for side in sorted(counts, key=lambda side: side != taken):
        n, flops = counts[side], planner.flops(problem, N, counts[side])
        streams = f"by {n} {side if n != 1 else side[:-1]} beside the values" if n else "for the values"
        lines.append(f"{flops:.3g} FLOP in matrix products {streams}{again}")
    return [line if i == 0 else f"(instead of {line})" for i, line in enumerate(lines)]


explain.__signature__ = inspect.Signature(keywords(explain))

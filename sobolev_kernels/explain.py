"""`explain`: which backend a call would take, why the others refuse, from which side, and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import dispatch, planner
from .backends import on_device_of
from .call import EXACT, begin
from .columns import Columns
from .directions import Cotangents, Directions
from .errors import need
from .functional import REDUCTIONS, LossName, choose_weights, pick_one
from .math.losses import choose_loss
from .problem import DENSE, DIRECTIONS, LOSS, NONE, PER_SAMPLE, PROJECTED
from .validate import check_known_order


def explain(
    student: torch.nn.Module,
    x: torch.Tensor,
    directions: Directions | None = None,
    *,
    cotangents: Cotangents | None = None,
    derivatives: str | None = None,
    order: int = 1,
    wrt: Sequence[int] | None = None,
    value_loss: LossName = "mse",
    derivative_loss: LossName = "mse",
    weights: Sequence[float] | str | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    backend: str | None = None,
    return_terms: bool = False,
    derivative_target: str = DENSE,
) -> str:
    """Print, and return, what `sobolev_loss` would do with this student and these inputs [N, D].

    Nothing is computed, and no random number is drawn. (A student that is not recognised is run for cotangents, whose
    numbers it tells.)

    Args:
        student, x, …, return_terms: as for `sobolev_loss`. Those of its arguments that are not here change nothing.
        derivative_target: "dense" or "projected", for the count of bytes.

    Raises:
        ValueError, TypeError, NotImplementedError: what the call itself would raise.

    Example:
        >>> from sobolev_kernels import MLP
        >>> text = explain(MLP(2, 1, width=16), torch.zeros(8, 2), backend="reference")
        student     2 -> 16 -> 16 -> 1 (tanh, tanh, identity), float32 on cpu
        ...
    """
    known = derivative_target in (DENSE, PROJECTED)
    need(known, "derivative_target", f"one of {DENSE}, {PROJECTED}", derivative_target)
    need(reduction in REDUCTIONS, "reduction", f"one of {', '.join(REDUCTIONS)}", reduction)
    check_known_order(order)
    losses = (choose_loss("value_loss", value_loss), choose_loss("derivative_loss", derivative_loss))
    weights = choose_weights(weights, order)
    projections = pick_one(directions, cotangents, derivatives, order) or Directions.sphere(1)
    if not (isinstance(weights, str) or any(weights[1:]) or return_terms):
        projections, order, derivative_target = None, 1, NONE
    second = derivative_target if order == 2 else NONE
    columns = Columns.of(wrt)
    with torch.random.fork_rng(devices=[]):
        call = begin(
            student, x, projections, backend, columns, precision,
            result=PER_SAMPLE if reduction == "none" else LOSS, reduction=reduction, order=order,
            derivative_target=derivative_target, second_target=second, value_loss=losses[0], derivative_loss=losses[1],
        )  # fmt: skip
    problem, N = call.problem, x.shape[0]
    if problem.unrecognised:
        what = f"{type(student).__name__} of {problem.D} features"
    else:
        what = f"{' -> '.join(map(str, problem.widths))} ({', '.join(map(str, problem.activations))})"
    dtype = str(x.dtype).removeprefix("torch.")
    computed = "" if dtype == problem.dtype else f" computed in {problem.dtype}"
    lines = [f"student     {what}, {dtype}{computed} on {problem.device}"]
    some = f"{problem.P} x {problem.distribution}{', shared' if problem.shared else ''}" if projections else "none"
    some += f", order {order}" if order > 1 else ""
    some += f", of {problem.W} of {problem.D} inputs" if problem.wrt else ""
    lines += [f"{problem.projection:<11} {some}, N = {N}"]
    with on_device_of(x):
        for name, module in dispatch.BACKENDS.items():
            reason = dispatch.refusal(name, problem)
            taken = "-> " if name == problem.backend else "   "
            lines.append(f"{taken}{name:<11}{module.plan(problem, N) if reason is None else f'refused: {reason}'}")
        if not problem.unrecognised:
            lines += [f"work        {line}" for line in sides_of(problem, N, projections == EXACT)]
            lines += [f"memory      {problem.bytes(N):.3g} bytes at the least"]
    text = "\n".join(lines)
    print(text)
    return text


def sides_of(problem, N: int, exact: bool) -> list[str]:
    """The side taken first, then what the others would cost."""
    projected = planner.TANGENTS if problem.projection == DIRECTIONS else planner.GRADIENTS
    choices, counts = dict(dispatch.BACKENDS[problem.backend].plan(problem, N).choices), planner.chains(problem)
    taken = choices.get("side", projected)
    if exact:
        counts, taken = {planner.TANGENTS: problem.W, planner.GRADIENTS: problem.O}, projected
    elif "side" not in choices:
        counts = {taken: counts[taken]}
    again = ", and thrice that in a backward" if problem.result == PER_SAMPLE else ""
    lines = []
    for side in sorted(counts, key=lambda side: side != taken):
        n, flops = counts[side], planner.flops(problem, N, counts[side])
        streams = f"by {n} {side if n != 1 else side[:-1]} beside the values" if n else "for the values"
        lines.append(f"{flops:.3g} FLOP in matrix products {streams}{again}")
    return [line if i == 0 else f"(instead of {line})" for i, line in enumerate(lines)]

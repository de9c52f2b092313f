"""`explain`: which backend a call would take, why the others refuse, from which side, and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import dispatch, planner
from .call import EXACT, begin
from .columns import Columns
from .directions import Cotangents, Directions
from .errors import need
from .functional import pick_one
from .problem import DENSE, DIRECTIONS, LOSS, NONE, PROJECTED
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
    backend: str | None = None,
    derivative_target: str = DENSE,
) -> str:
    """Print, and return, what `sobolev_loss` would do with this student and these inputs [N, D].

    Nothing is computed, and no random number is drawn.

    Args:
        student, x, directions, cotangents, derivatives, order, wrt, backend: as for `sobolev_loss`.
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
    check_known_order(order)
    projections = pick_one(directions, cotangents, derivatives, order) or Directions.sphere(1)
    second = derivative_target if order == 2 else NONE
    columns = Columns.of(wrt)
    with torch.random.fork_rng(devices=[]):
        call = begin(
            student, x, projections, backend, columns, result=LOSS, order=order,
            derivative_target=derivative_target, second_target=second,
        )  # fmt: skip
    problem, N = call.problem, x.shape[0]
    if problem.unrecognised:
        what = f"{type(student).__name__} of {problem.D} features"
    else:
        what = f"{' -> '.join(map(str, problem.widths))} ({', '.join(map(str, problem.activations))})"
    dtype = str(x.dtype).removeprefix("torch.")
    computed = "" if dtype == problem.dtype else f" computed in {problem.dtype}"
    lines = [f"student     {what}, {dtype}{computed} on {problem.device}"]
    some = f"{problem.P} x {problem.distribution}{', shared' if problem.shared else ''}"
    some += f", order {order}" if order > 1 else ""
    some += f", of {problem.W} of {problem.D} inputs" if problem.wrt else ""
    lines += [f"{problem.projection:<11} {some}, N = {N}"]
    for name, module in dispatch.BACKENDS.items():
        reason = dispatch.refusal(name, problem)
        taken = "-> " if name == problem.backend else "   "
        lines.append(f"{taken}{name:<11}{module.plan(problem, N) if reason is None else f'refused: {reason}'}")
    if not problem.unrecognised:
        lines += [f"work        {line}" for line in sides_of(problem, N, derivatives == EXACT)]
        lines += [f"memory      {problem.bytes(N):.3g} bytes at the least"]
    text = "\n".join(lines)
    print(text)
    return text


def sides_of(problem, N: int, exact: bool) -> list[str]:
    """The side taken first, then what the others would cost."""
    taken, counts = planner.side(problem), planner.chains(problem)
    if exact:
        counts = {planner.TANGENTS: problem.W, planner.GRADIENTS: problem.O}
        taken = planner.TANGENTS if problem.projection == DIRECTIONS else planner.GRADIENTS
    lines = []
    for side in sorted(counts, key=lambda side: side != taken):
        flops = planner.flops(problem, N, counts[side])
        lines.append(f"{flops:.3g} FLOP in matrix products by {counts[side]} {side} beside the values")
    return [line if i == 0 else f"(instead of {line})" for i, line in enumerate(lines)]

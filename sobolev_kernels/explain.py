"""`explain`: which backend a call would take, why the others refuse, and what it would cost."""

from __future__ import annotations

import torch

from . import dispatch
from .directions import Directions
from .errors import need
from .functional import begin
from .problem import LOSS

DERIVATIVE_TARGETS = ("jacobian", "tangents")


def explain(
    student: torch.nn.Module,
    x: torch.Tensor,
    directions: Directions | None = None,
    *,
    backend: str | None = None,
    derivative_target: str = "jacobian",
) -> str:
    """Print, and return, what `sobolev_loss` would do with this student and these inputs [N, D].

    Nothing is computed, and no random number is drawn.

    Args:
        student, x, directions, backend: as for `sobolev_loss`.
        derivative_target: "jacobian" or "tangents", for the count of bytes.

    Raises:
        ValueError, TypeError, NotImplementedError: what the call itself would raise.

    Example:
        >>> from sobolev_kernels import MLP
        >>> text = explain(MLP(2, 1, width=16), torch.zeros(8, 2), backend="reference")
        student     2 -> 16 -> 16 -> 1 (tanh, tanh, identity), float32 on cpu
        ...
    """
    known = derivative_target in DERIVATIVE_TARGETS
    need(known, "derivative_target", f"one of {', '.join(DERIVATIVE_TARGETS)}", derivative_target)
    kind = directions is None or isinstance(directions, Directions)
    need(kind, "directions", "a sobolev_kernels.Directions", directions, TypeError)
    directions = directions or Directions.sphere(1)
    with torch.random.fork_rng(devices=[]):
        call = begin(student, x, directions, backend, result=LOSS, derivative_target=derivative_target)
    problem, N = call.problem, x.shape[0]
    if problem.unrecognised:
        what = f"{type(student).__name__} of {problem.D} features"
    else:
        what = f"{' -> '.join(map(str, problem.widths))} ({', '.join(map(str, problem.activations))})"
    dtype = str(x.dtype).removeprefix("torch.")
    computed = "" if dtype == problem.dtype else f" computed in {problem.dtype}"
    lines = [f"student     {what}, {dtype}{computed} on {problem.device}"]
    lines += [f"directions  {problem.P} x {problem.distribution}{', shared' if problem.shared else ''}, N = {N}"]
    for name, module in dispatch.BACKENDS.items():
        reason = dispatch.refusal(name, problem)
        taken = "-> " if name == problem.backend else "   "
        lines.append(f"{taken}{name:<11}{module.plan(problem, N) if reason is None else f'refused: {reason}'}")
    if not problem.unrecognised:
        flops, moved = problem.flops(N), problem.bytes(N)
        lines.append(f"work        {flops:.3g} FLOP in matrix products, {moved:.3g} bytes at the least")
    text = "\n".join(lines)
    print(text)
    return text

"""The backends, each with `supports(problem) -> None | reason` and `plan(problem, N)`.

A fused one has `run(problem, operands, outputs, gradients)`, which the op calls; the reference has none, because it is
plain PyTorch that autograd differentiates.
"""

"""The backends, each with `supports(problem) -> None | reason` and `plan(problem, N)`.

A fused one has `run(problem, operands, outputs, gradients)`, which the op calls; the reference has none, because it is
plain PyTorch that autograd differentiates. One that has `kept`, of the same arguments, gives what runs such a step
again, `launch(addresses, made, key, place[, seed_at])`, told where it reads and which tensors it fills; and the
addresses that this one reads and writes. `supports` and `plan` are asked on the tensors' device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """Within it the tensor's GPU is the current one."""
    several = tensor.is_cuda and torch.cuda.device_count() > 1
    return torch.cuda.device(tensor.device) if several else nullcontext()


def constant_while_traced(function: Callable) -> Callable:
    """What `torch.compiler.assume_constant_result` does, which takes two seconds to import the compiler for it."""
    function._dynamo_marked_constant = True
    return function


def held_by(number: int) -> object:
    """The object of this `id`, which the caller holds.

    Dynamo of PyTorch before 2.12 hands a constant function no module; its `id`, which it then watches, any does.
    """
    return ctypes.cast(number, ctypes.py_object).value

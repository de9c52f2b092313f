"""What kernels read: every operand is looked at here, once, before its address goes to C++ or to Triton.

Their memory is looked at before that, among the checks of a request: the first function of PyTorch would read it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._subclasses import FakeTensor

from .enums import DENSE, NONE
from .errors import Fault, refuse
from .problem import DERIVATIVES_GRADIENTS, Operands, Problem

Shape = tuple[int, ...]
# Tensors that no subclass of torch.Tensor computes in its own way.
PLAIN = (torch.Tensor, torch.nn.Parameter)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Operands that are targets in the forward pass, by what they are the cotangents of in the backward pass.
OUTPUTS = {
    "values": "the cotangent of y", "derivative": "the cotangent of the derivatives",
    "second": "the cotangent of the second derivatives",
}  # fmt: skip


def entering(problem: Problem, operands: Operands) -> Operands:
    """The operands as kernels may read them: of the Problem's shapes, dtype and device, at addresses that numbers can
    have, and with no negation left to be done.

    Raises:
        ValueError: one of them is not.
    """
    x, parameters = operands.x, operands.parameters
    device, N = x.device, x.shape[0] if x.dim() else 0
    if device.type != problem.device:
        refuse([Fault("inputs", f"a tensor on {problem.device}", x)])
    others = shapes_of_others(problem, operands, N)
    tensors = [x, *parameters, *[getattr(operands, name) for name in others]]
    shapes = [(N, problem.D), *shapes_of_parameters(problem), *others.values()]
    if len(shapes) != len(tensors):
        refuse([Fault("student", f"{len(shapes) - len(others) - 1} parameters", f"{len(parameters)}")])
    ready = all_ready(tensors, shapes, getattr(torch, problem.dtype), device)
    if isinstance(ready, int):
        names = ["inputs", *["student: a parameter"] * len(parameters), *others]
        refuse([fault_of(problem, names[ready], shapes[ready], tensors[ready], device)])
    if operands.given is None and problem.P and not is_seed(operands.seed, device):
        refuse([Fault("seed", f"int64 [2] on the CPU or on {device}", operands.seed)])
    if ready is tensors:
        return operands
    first = 1 + len(parameters)
    others = dict(zip(others, ready[first:], strict=True))
    return operands._replace(x=ready[0], parameters=ready[1:first], **others)


def is_seed(seed: torch.Tensor | None, device: torch.device) -> bool:
    if seed is None or seed.dtype is not torch.int64 or seed.shape != (2,):
        return False
    return seed.is_cpu or (seed.device == device and seed.is_contiguous())


def shapes_of_parameters(problem: Problem) -> list[Shape]:
    """[n_out, n_in] and [n_out] of each layer."""
    shapes: list[Shape] = []
    n_in = problem.widths[0]
    for n_out, bias in zip(problem.widths[1:], problem.biases, strict=True):
        shapes += ((n_out, n_in), (n_out,)) if bias else ((n_out, n_in),)
        n_in = n_out
    return shapes


def shapes_of_others(problem: Problem, operands: Operands, N: int) -> dict[str, Shape]:
    """Of the operands that need not be there; those that are not there, or not read, are left out."""
    shapes: dict[str, Shape] = {}
    O, W, P = problem.O, problem.W, problem.P
    if (given := operands.given) is not None:
        shapes["given"] = (P, problem.drawn) if given.dim() == 2 else (P, N, problem.drawn)
    if operands.values is not None:
        shapes["values"] = (N, O)
    if operands.derivative is not None and (kind := problem.derivative_target) != NONE:
        shapes["derivative"] = (N, O, W) if kind == DENSE else (P, N, problem.derived)
    if operands.second is not None and (kind := problem.second_target) != NONE:
        projected = (N, O) if problem.collapsed else (P, N, O)
        shapes["second"] = (N, O, W, W) if kind == DENSE else projected
    if operands.sample_weight is not None:
        shapes["sample_weight"] = (2, N)
    if operands.output_weight is not None:
        shapes["output_weight"] = (O,)
    if operands.derivative_weight is not None:
        shapes["derivative_weight"] = (P, N, problem.derived)
    return shapes


def all_ready(
    tensors: list[torch.Tensor], shapes: list[Shape], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor] | int:
    """The tensors, those that a kernel would misread as copies; or the place of one that it cannot read.

    One loop, without a call for each tensor: it stands in the way of every step.
    """
    size, copies = dtype.itemsize, {}
    try:
        for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            if not (tensor.shape == shape and tensor.dtype is dtype and tensor.device == device):
                return i
            # one that wraps another has no address, or raises
            address = tensor.data_ptr()
            if not address and tensor.numel():
                return i
            if address % size or tensor.is_neg():
                copies[i] = tensor.resolve_neg().clone()
    except RuntimeError:
        return i
    return [copies.get(i, tensor) for i, tensor in enumerate(tensors)] if copies else tensors


def fault_of(problem: Problem, name: str, shape: Shape, tensor: torch.Tensor, device: torch.device) -> Fault:
    """What was expected of an operand."""
    if name == "given":
        name = problem.projection
    elif problem.result == DERIVATIVES_GRADIENTS:
        name = OUTPUTS.get(name, name)
    elif name in ("derivative", "second"):
        name = f"the target {name}"
    size = ", ".join(map(str, shape))
    return Fault(name, f"{problem.dtype} [{size}] on {device}, in its memory", tensor)


def faults_of_memory(name: str, tensor: object) -> Iterator[Fault]:
    """Of a tensor of which PyTorch's own functions would not compute either: it is not one array of numbers, or not all
    of them are in its memory."""
    if not isinstance(tensor, torch.Tensor) or torch.compiler.is_compiling() or is_sound(tensor):
        return
    if tensor.is_nested:
        yield Fault(name, "a dense tensor (torch.nested.to_padded_tensor makes one)", tensor)
    if tensor.layout is not torch.strided:
        yield Fault(name, "a dense tensor (its to_dense() is one)", tensor)
    if isinstance(tensor, torch.masked.MaskedTensor):
        yield Fault(name, "a tensor without a mask (its to_tensor(0) is one)", tensor)
    if isinstance(tensor, FakeTensor) and torch._C._len_torch_dispatch_stack() == 0:
        yield Fault(name, "a tensor with numbers (a FakeTensor within its FakeTensorMode)", tensor)
    # a subclass, or a tensor in a transform, may keep its numbers elsewhere
    if type(tensor) in PLAIN and not torch._C._are_functorch_transforms_active():
        yield Fault(name, "a tensor whose numbers are in memory (it was freed, or left a transform)", tensor)


def is_sound(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an array of numbers, in memory that reaches as far as its strides."""
    try:
        if type(tensor) not in PLAIN or tensor.is_nested:
            return False
        last = tensor.numel()
        if last and not tensor.is_contiguous():
            last = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return not last or (tensor.storage_offset() + last) * tensor.itemsize <= tensor.untyped_storage().nbytes()
    except RuntimeError:
        return False

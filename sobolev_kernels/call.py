"""One validated call: the student's layers, the inputs, what is projected, the Problem; and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.amp.autocast_mode import is_autocast_available

from . import dispatch, ops
from .backends import on_device_of, reference
from .columns import Columns
from .directions import Cotangents, Directions, Projections
from .planner import exact_projection
from .problem import COTANGENTS, DIRECTIONS, LOSS, Operands, Problem
from .student import Student, recognise
from .validate import check_inputs, check_order, check_outputs, check_precision, check_student

COMPUTE_DTYPE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
EXACT = "exact"
AUTOCAST_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16"}
Derivatives = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class Call:
    student: object
    layers: Student | str
    x: torch.Tensor  # [N, D], in the dtype that is computed in
    columns: Columns
    projections: Projections | None
    seed: torch.Tensor | None
    problem: Problem
    ran: tuple[torch.Tensor, torch.Tensor] | None = None  # x and y, of a student that had to be run to know O

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [compute_dtype(p, self.layers) for p in self.layers.parameters]

    @property
    def given(self) -> torch.Tensor | None:
        return None if self.projections is None else self.projections.values

    def materialised(self) -> torch.Tensor:
        """Directions [P, N, W], or cotangents [P, N, O]."""
        if self.projections is None:
            return self.x.new_empty((0, self.x.shape[0], self.problem.drawn))
        like = self.x.detach().new_empty(()).expand(self.x.shape[0], self.problem.drawn)
        return ops.materialise(self.projections, self.seed, like).to(self.x.dtype)

    def by_reference(self) -> Derivatives:
        """y [N, O], its projected derivatives, and second derivatives or None."""
        problem, vectors = self.problem, self.materialised()
        mlp = not isinstance(self.layers, str)
        if problem.projection == COTANGENTS:
            if mlp:
                y, gradients = reference.mlp_vjp(self.layers, self.parameters, self.x, vectors)
            else:
                y, gradients = reference.vjps(*self.ran, vectors)
            return y, self.columns.restrict(gradients), None
        v = self.columns.embed(vectors, self.problem.D)
        if mlp:
            y, tangents, second = reference.mlp_jet(self.layers, self.parameters, self.x, v, problem.order)
        else:
            y, tangents, second = reference.function_jet(checked(self.student), self.x, v, problem.order)
        return (y, None, second.sum(0)) if problem.collapsed else (y, tangents, second)

    def fused(self, **tensors) -> tuple[torch.Tensor, ...]:
        """The op's results, with the targets, weights or cotangents of `Operands` in `tensors`."""
        x, parameters = self.columns.arrange(self.x, self.parameters)
        ops.need_no_transforms(self.given, *(t for t in tensors.values() if isinstance(t, torch.Tensor)))
        return ops.mlp_sobolev(self.problem, Operands(x, parameters, self.given, self.seed, **tensors))

    def derivatives(self) -> Derivatives:
        """The same as `by_reference`, on the backend of the Problem."""
        if self.problem.backend == "reference":
            return self.by_reference()
        y, *rest = self.fused()
        first = None if self.problem.collapsed else rest[0]
        return y, first, rest[-1] if self.problem.order == 2 else None


def compute_dtype(tensor: torch.Tensor | None, layers: Student | str) -> torch.Tensor | None:
    """bfloat16 and float16 are computed in float32; but of an unrecognised module only it knows how."""
    if tensor is None or isinstance(layers, str) or tensor.dtype not in COMPUTE_DTYPE:
        return tensor
    return tensor.to(COMPUTE_DTYPE[tensor.dtype])


def checked(student: Callable) -> Callable:
    return lambda x: check_outputs(student(x), x, "student")


def make_problem(
    layers: Student | str, x: torch.Tensor, projections: Projections | None, n: int, columns: Columns, **fields
) -> Problem:
    """Of a student that was not recognised, `layers` is the reason; `n` numbers make a direction or cotangent."""
    D = x.shape[1]
    cotangents = isinstance(projections, Cotangents)
    if isinstance(layers, str):
        widths = (D, n) if cotangents else (D,)
        fields |= {"widths": widths, "biases": (), "activations": (), "unrecognised": layers}
    else:
        fields |= {"widths": layers.widths, "biases": layers.biases, "activations": layers.activations}
        wanted = x.requires_grad or any(p.requires_grad for p in layers.parameters)
        fields["gradients"] = fields["result"] == LOSS and wanted and torch.is_grad_enabled()
    if projections is not None:
        fields |= {"P": projections.count(n), "distribution": projections.distribution}
        fields |= {"shared": projections.shared, "scale": projections.scale(n)}
        fields |= {"projection": COTANGENTS if cotangents else DIRECTIONS}
    W = columns.count(D)
    dtype = str(x.dtype).removeprefix("torch.")
    return Problem(dtype=dtype, device=x.device.type, input_gradient=x.requires_grad, wrt=0 if W == D else W, **fields)


def resolve_exact(student: object, layers: Student | str, W: int) -> Projections:
    O = None if isinstance(layers, str) else layers.widths[-1]
    return (Cotangents if exact_projection(W, O) == COTANGENTS else Directions).basis()


def choose_precision(precision: str | None, device: str) -> str:
    """What was asked for, or what autocast computes in on this kind of device."""
    check_precision(precision)
    if precision is not None or not (is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return precision or "ieee"
    return AUTOCAST_PRECISION.get(torch.get_autocast_dtype(device), "ieee")


def begin(
    student: object, inputs: torch.Tensor, projections: Projections | str | None, backend: str | None,
    columns: Columns | None = None, precision: str | None = None, **fields,
) -> Call:  # fmt: skip
    """Recognise the student, draw the seed, choose side and backend."""
    layers = recognise(student)
    check_inputs(inputs, layers)
    check_student(student, layers, inputs)
    check_order(student, layers, fields.get("order", 1))
    columns = columns or Columns()
    columns.check(inputs)
    W = columns.count(inputs.shape[1])
    if projections == EXACT:
        projections = resolve_exact(student, layers, W)
    n, ran = W, None
    if isinstance(projections, Cotangents) and isinstance(layers, str):
        ran = reference.with_graph(checked(student), inputs)
        n = ran[1].shape[1]
    elif isinstance(projections, Cotangents):
        n = layers.widths[-1]
    if projections is not None:
        projections.check(inputs, n)
        projections = replace(projections, values=compute_dtype(projections.values, layers))
    x = compute_dtype(inputs, layers)
    fields["precision"] = choose_precision(precision, x.device.type)
    columns = replace(columns, scale=compute_dtype(columns.scale, layers))
    problem = make_problem(layers, x, projections, n, columns, **fields)
    with on_device_of(x):
        problem = dispatch.choose(problem, backend)
    if problem.backend != "reference":
        ops.need_no_transforms(x, *layers.parameters)
    seed = None if projections is None else projections.draw_seed()
    return Call(student, layers, x, columns, projections, seed, problem, ran)

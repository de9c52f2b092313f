"""What a training is asked for, checked before anything is drawn or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real

import torch
from torch import nn

from ..columns import Columns
from ..errors import Fault, as_tensor, need, need_tensor, range_of, refuse
from ..loss import SobolevLoss
from ..math.losses import is_likelihood
from ..scaled import Scaled
from ..scaler import Scaler
from ..settings import EXACT
from ..student import widened
from ..targets import Targets
from ..teaching import from_teacher
from ..weights import weights_of
from .batches import Data
from .settings import with_scale, with_settings

# Numbers of a Jacobian or Hessian that a teacher is asked for once; of more he is asked at each step.
MOST = 1 << 26


def faults(
    student: object, x: object, loss: object, epochs: object, batch_size: object, scale: object, generator: object,
    weights: object,
) -> Iterator[Fault]:  # fmt: skip
    yield from faults_of_student(student, epochs, batch_size, generator)
    if not isinstance(x, torch.Tensor):
        yield Fault("x", "a tensor [N, …]", x, TypeError, as_tensor(x))
    if not x.is_floating_point() or x.dim() < 2 or not x.numel():
        yield Fault("x", "floating inputs [N, …] of at least one sample", x)
    if not isinstance(loss, SobolevLoss):
        yield Fault("loss", "a sobolev_kernels.SobolevLoss", loss, TypeError, "SobolevLoss(...) takes its settings")
    if loss.settings.reduction == "none":
        yield Fault("loss", 'one with reduction="mean" or "sum"', "reduction=none")
    if loss.given is not None and not (loss.settings.directions or loss.settings.cotangents).shared:
        hint = "Targets(tangents=…, directions=v) has each sample's own"
        yield Fault("loss", "directions or cotangents that all samples share", loss.given, hint=hint)
    if not (isinstance(scale, (bool, Scaler))):
        yield Fault("scale", "True, False or a sobolev_kernels.Scaler", scale, TypeError)
    if scale is not False:
        yield from faults_of_scale(student, loss, weights)


def faults_of_student(
    student: object, epochs: object, batch_size: object, generator: object
) -> Iterator[Fault]:  # fmt: skip
    """Of what any training has."""
    if not isinstance(student, nn.Module):
        yield Fault("student", "a torch.nn.Module", student, TypeError)
    if not any(p.requires_grad for p in student.parameters()):
        yield Fault("student", "a module with parameters that ask for gradients", type(student).__name__)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not (type(value) is int and value >= 1) and not (name == "batch_size" and value is None):
            yield Fault(name, "a whole number, at least 1", value)
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        yield Fault(
            "generator", "a torch.Generator of the CPU", generator, TypeError, "torch.Generator().manual_seed(0)"
        )


def faults_of_scale(student: nn.Module, loss: SobolevLoss, weights: object) -> Iterator[Fault]:
    """Of what has units of its own already."""
    if isinstance(student, Scaled):
        hint = "fit(scaled.student, …, scale=scaled.scaler) trains him on"
        yield Fault("scale", "a student that is not scaled yet", "a Scaled", hint=hint)
    if loss.input_scale is not None:
        yield Fault("scale", "no input_scale in the loss, since the scaler sets the units", loss.input_scale)
    named = loss.settings.weights if weights is None else weights
    if isinstance(named, str):
        hint = "scaler.transform(x, targets) first, and fit what it gives"
        yield Fault("scale", f"no weights {named!r}, which set units of their own", True, hint=hint)
    if is_likelihood(loss.settings.value_loss) or loss.settings.head is not None:
        yield Fault("scale", "a loss without a head, whose outputs have no unit to choose", loss.settings.head)
    if loss.given is not None:
        yield Fault("scale", "directions that are drawn, or come with the targets", loss.given)


def data_of(x: torch.Tensor, targets: object, loss: SobolevLoss, name: str, weights: tuple = (None, None)) -> Data:
    """Inputs and targets as tensors; a teacher is asked once, where what he says has room: up to order 2 by dense
    derivatives, which hold along any directions of a step."""
    x = x.detach()
    if not isinstance(targets, Targets):
        need(callable(targets) and not isinstance(targets, type), name, "Targets, or a teacher", targets, TypeError)
        targets = Targets(teacher=targets)
    settings = loss.settings
    if targets.teacher is not None and settings.order < 3 and has_room(targets.teacher, x, loss):
        head = settings.head if loss.head is None else loss.head
        taught = from_teacher(
            targets.teacher, x, order=settings.order, wrt=settings.wrt, head=head, value_loss=settings.value_loss,
            batch_size=4096,
        )  # fmt: skip
        targets = taught if targets.values is None else taught.replace(values=targets.values)
    targets = targets.along(x, settings.wrt).like(x)
    if targets._is_numbered and targets.tensors():
        targets = targets[:]
    count = targets._count()
    need(count in (None, len(x)), name, f"targets of {len(x)} samples, as x has", f"{count} samples")
    for argument, tensor in zip(("sample_weight", "derivative_weight"), weights, strict=True):
        if tensor is not None:
            need_tensor(tensor, argument, f"a tensor [N, …], N = {len(x)}")
            need(tensor.dim() > 0 and len(tensor) == len(x), argument, f"[N, …], N = {len(x)}", tensor)
    return Data(x, targets, *weights)


def has_room(teacher: Callable, x: torch.Tensor, loss: SobolevLoss) -> bool:
    """Whether all derivatives of a teacher are kept for all samples."""
    wrt = loss.settings.wrt
    W = x[0].numel() if wrt is None else len(getattr(wrt, "columns", wrt))
    with torch.no_grad():
        y = teacher(x[:1])
    O = y.shape[-1] if isinstance(y, torch.Tensor) and y.dim() == 2 else 1
    return len(x) * O * W * (W if loss.settings.order == 2 else 1) <= MOST


def split_of(validation: object, N: int, generator: torch.Generator | None) -> torch.Tensor | None:
    """The samples that are held out, where a part of them is asked for."""
    if validation is None or isinstance(validation, tuple):
        return None
    part = isinstance(validation, Real) and not isinstance(validation, bool) and 0 < validation < 1
    need(part, "validation", "a part of the samples, between 0 and 1, or (x, targets)", validation, TypeError)
    held = max(1, round(float(validation) * N))
    need(held < N, "validation", f"less than all of {N} samples", validation)
    return torch.randperm(N, generator=generator)[:held].sort().values


def held_out(data: Data, index: torch.Tensor) -> tuple[Data, Data]:
    """What is trained on, and what is not."""
    mask = torch.ones(len(data.x), dtype=torch.bool)
    mask[index] = False
    return data.part(mask.nonzero()[:, 0].to(data.x.device)), data.part(index.to(data.x.device))


def validation_of(validation: object, loss: SobolevLoss) -> Data | None:
    """Data that came for it."""
    if not isinstance(validation, tuple):
        return None
    need(len(validation) == 2, "validation", "(x, targets)", f"{len(validation)} parts")
    x, targets = validation
    need_tensor(x, "validation", "(x, targets), x a tensor [N, …]")
    need(x.dim() > 1 and x.numel() > 0, "validation", "x [N, …] of at least one sample", x)
    data = data_of(x, targets, loss, "validation")
    for name, tensor in {"x": x, **data.targets.tensors()}.items():
        known = range_of(tensor.detach())
        finite = known is None or -torch.inf < known[0] <= known[1] < torch.inf
        need(finite, "validation", "finite numbers", f"{name} from {known and known[0]} to {known and known[1]}")
    return data


def balanced(loss: SobolevLoss, data: Data) -> SobolevLoss:
    """A loss of "differential-ml" with the units of all that is trained on, instead of each batch's."""
    settings, jacobian = loss.settings, data.targets.jacobian
    expected = 'a Jacobian in the targets with weights="differential-ml"'
    need(jacobian is not None and data.x.dim() == 2, "targets", expected, data.targets)
    columns = Columns(settings.wrt)
    each = weights_of(data.sample_weight, loss.output_weight, data.derivative_weight)
    columns = columns.balanced(widened(jacobian), each.counting("jacobian", jacobian))
    refuse(columns.faults_of_balance())
    W = jacobian.shape[-1]
    return with_scale(with_settings(loss, weights=settings.numbers(W)), columns.scale)


def in_weights(loss: SobolevLoss, data: Data) -> tuple[SobolevLoss, Data]:
    """The same loss with its units of derivatives as weights of entries, which kernels read as they are; where that is
    the same: ρ(λ r) = λ² ρ(r), or λ ρ(r)."""
    settings, scale, jacobian = loss.settings, loss.input_scale, data.targets.jacobian
    power = {"mse": 2, "l1": 1}.get(settings.derivative_loss.name)
    projections = settings.directions or settings.cotangents
    entries = settings.derivatives == EXACT or (projections is not None and projections.entries)
    plain = settings.order == 1 and data.x.dim() == 2 and data.x.dtype in (torch.float32, torch.float64)
    if scale is None or jacobian is None or data.derivative_weight is not None or not (power and entries and plain):
        return loss, data
    jacobian = jacobian[:, None] if jacobian.dim() == 2 else jacobian
    if jacobian.shape[-1:] != scale.shape:
        return loss, data  # which the loss refuses
    weight = (scale.to(data.x) ** power).expand(len(data.x), *jacobian.shape[1:])
    return with_scale(loss, None), data._replace(derivative_weight=weight)


def counted(loss: SobolevLoss, data: Data) -> Data:
    """Without the derivatives that a loss gives no weight."""
    if any(loss.settings.weights[1:]) or data.targets.values is None or data.targets.teacher is not None:
        return data
    nothing = dict.fromkeys(("jacobian", "tangents", "vjps", "hessian", "seconds", "jets", "directions", "cotangents"))
    return data._replace(targets=data.targets.replace(**nothing), derivative_weight=None)

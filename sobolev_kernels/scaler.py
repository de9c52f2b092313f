"""`Scaler`: units in which inputs, outputs and their derivatives are of size 1 together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from .columns import Mask, root_mean_square
from .directions import Cotangents, Directions
from .errors import Fault, in_words, need, need_tensor, range_of, refuse
from .settings import as_columns, faults_of_columns
from .targets import Targets

UNITS = ("x_mean", "x_scale", "y_mean", "y_scale")
TARGETS = "a sobolev_kernels.Targets"


class Scaler(nn.Module):
    """u = (x - x_mean) / x_scale and t = (y - y_mean) / y_scale, and by the chain rule all derivatives with them:
    ∂t/∂u = ∂y/∂x · x_scale / y_scale, ∂²t/∂u² likewise with two scales of x.

    `fit(x, targets)` finds the units. Those of x are the mean and the standard deviation of each column, those of y of
    each output, so that u and t have mean 0 and deviation 1, and a function that changes about once over the data has
    derivatives of size 1. A column that is constant in the data has no size: its scale is 1, which leaves its
    derivatives in its own unit. An output that is constant, or has no target values, takes the root mean square of its
    derivatives, Σ over columns in the units of u, or 1 if there are none.

    A scaler is a module: `state_dict()` has its units, `load_state_dict` takes them whatever this one was fit on, and
    `.to()` moves them. They are buffers of the dtype of x (float32 of half precision): `x_mean`, `x_scale` of one
    input's shape, `y_mean`, `y_scale` [O].

    Example:
        >>> x = torch.rand(64, 2) * 100
        >>> targets = Targets(values=x.square().sum(1, keepdim=True), jacobian=2 * x[:, None, :])
        >>> scaler = Scaler().fit(x, targets)
        >>> u, t = scaler.transform(x, targets)
        >>> back = scaler.inverse(u, t)
    """

    x_mean: torch.Tensor
    x_scale: torch.Tensor
    y_mean: torch.Tensor
    y_scale: torch.Tensor

    def __init__(self):
        super().__init__()
        for name in UNITS:
            self.register_buffer(name, torch.empty(0))

    @in_words
    @torch.no_grad()
    def fit(self, x: torch.Tensor, targets: Targets = None, *, wrt: Sequence[int] | None = None) -> Scaler:
        """Find the units of data, in float64.

        Args:
            x: inputs [N, D], or of any shape [N, …]; N >= 1.
            targets: see `Targets`. A teacher is asked for its values at x.
            wrt: the columns that the targets' derivatives are of, as of the loss.

        Returns:
            The scaler itself.

        Raises:
            ValueError, TypeError: x or targets are not such; numbers in them are not finite; values are classes.
        """
        need(isinstance(self, Scaler), "Scaler.fit", "an instance", self, TypeError, "Scaler().fit(x, targets) has one")
        refuse(faults_of_data(x, targets, wrt))
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        mean, scale = mean_and_deviation(x)
        values = targets.values if targets.teacher is None or targets.values is not None else asked(targets.teacher, x)
        columns = scale if wrt is None else scale.flatten()[list(columns_of(wrt))]
        y_mean, y_scale = self._of_outputs(values, targets, torch.where(columns == 0, 1.0, columns))
        found = mean, torch.where(scale == 0, 1.0, scale), y_mean, y_scale
        for name, unit in zip(UNITS, found, strict=True):
            setattr(self, name, unit.to(dtype))
        need(bool((self.x_scale > 0).all() and (self.y_scale > 0).all()), "x", f"deviations that {dtype} holds", x)
        return self

    def _of_outputs(self, values: torch.Tensor | None, targets: Targets, columns: torch.Tensor) -> tuple:
        """Mean and scale [O] of outputs, from their derivatives where the values have no deviation."""
        of_derivatives = deviation_of_derivatives(targets, columns)
        if values is None:
            scale = columns.new_ones(1) if of_derivatives is None else of_derivatives
            return torch.zeros_like(scale), torch.where(scale == 0, 1.0, scale)
        mean, scale = mean_and_deviation(values[:, None] if values.dim() == 1 else values)
        if of_derivatives is not None:
            scale = torch.where(scale == 0, of_derivatives, scale)
        return mean, torch.where(scale == 0, 1.0, scale)

    @in_words
    @torch.no_grad()
    def transform(
        self, x: torch.Tensor, targets: Targets | None = None, *, wrt: Sequence[int] | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, Targets]:  # fmt: skip
        """Data in these units: u of x, and with targets also theirs, as (u, targets).

        Directions that came with the targets are v / x_scale then, cotangents u · y_scale; a teacher is one of u.

        Raises:
            ValueError, TypeError: they are not data of the shapes that this one was fit on; values are classes; or
                directions or cotangents of the targets are fresh ones, whose distribution is not that of other units.
        """
        return self._moved(x, targets, wrt, inverse=False)

    @in_words
    @torch.no_grad()
    def inverse(
        self, x: torch.Tensor, targets: Targets | None = None, *, wrt: Sequence[int] | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, Targets]:  # fmt: skip
        """The data of what is in these units: `transform` the other way round, but for a teacher, which is refused."""
        return self._moved(x, targets, wrt, inverse=True)

    def _moved(self, x: torch.Tensor, targets: Targets | None, wrt: object, inverse: bool):
        if isinstance(targets, Targets) and isinstance(x, torch.Tensor) and x.dim() > 1:
            targets = targets.along(x, wrt)
        refuse(self._faults(x, targets, wrt))
        mean, scale = (unit.to(x.device) for unit in (self.x_mean, self.x_scale))
        u = (x * scale + mean if inverse else (x - mean) / scale).to(x.dtype)
        if targets is None:
            return u
        scale, y_scale = scale if wrt is None else scale.flatten()[list(columns_of(wrt))], self.y_scale.to(x.device)
        scale, y_scale = (1 / scale, 1 / y_scale) if inverse else (scale, y_scale)
        return u, self._of_targets(targets, scale, y_scale, inverse)

    def _of_targets(self, targets: Targets, s: torch.Tensor, t: torch.Tensor, inverse: bool) -> Targets:
        """All but the inputs, with scales [W] (or of an input's shape) and [O], or their reciprocals."""
        outer = s[(...,) + (None,) * s.dim()] * s

        def values(y: torch.Tensor) -> torch.Tensor:
            mean = self.y_mean.to(y)
            return y / t.to(y) + mean if inverse else (y - mean) / t.to(y)

        def entries(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            """[N, O, …] or [N, …]."""
            of_output = t[(slice(None),) + (None,) * scale.dim()]
            of_output = of_output[0] if tensor.dim() == scale.dim() + 1 else of_output
            return (tensor * scale / of_output).to(tensor.dtype)

        found = targets.tensors()
        if (hessian := found.get("hessian")) is not None and hessian.dim() < 2 * s.dim() + 1:
            outer = outer.reshape(s.numel(), s.numel())  # of an image, whose Hessian is of its numbers
        rules: dict[str, Callable] = {
            "values": values,
            "jacobian": lambda jacobian: entries(jacobian, s),
            "hessian": lambda hessian: entries(hessian, outer),
            "tangents": lambda tangents: (tangents / t).to(tangents.dtype),
            "seconds": lambda seconds: (seconds / t).to(seconds.dtype),
            "jets": lambda jets: (jets / t).to(jets.dtype),
            "vjps": lambda vjps: (vjps * s).to(vjps.dtype),
        }
        moved = {name: rules[name](tensor) for name, tensor in found.items()}
        if (v := targets.directions) is not None:
            moved["directions"] = Directions.given((v.values / s).to(v.values.dtype))
        if (u := targets.cotangents) is not None:
            moved["cotangents"] = Cotangents.given((u.values * t).to(u.values.dtype))
        if targets.teacher is not None:
            moved["teacher"] = Taught(targets.teacher, self)
        return targets.replace(**moved)

    @property
    def is_fit(self) -> bool:
        return self.y_scale.numel() > 0

    def _faults(self, x: object, targets: object, wrt: object) -> Iterator[Fault]:
        if not self.is_fit:
            yield Fault("scaler", "one that was fit", "Scaler()", hint="scaler.fit(x, targets) finds its units")
        need_tensor(x, "x", "a tensor [N, …]")
        if not x.is_floating_point() or x.shape[1:] != self.x_mean.shape:
            yield Fault("x", f"floating point [N, {', '.join(map(str, self.x_mean.shape))}]", x)
        yield from faults_of_wrt(wrt, x)
        if targets is not None:
            yield from faults_of_targets(targets)
            shape = list(self.x_scale.shape) if wrt is None else [len(columns_of(wrt))]
            yield from faults_of_shapes(targets, len(x), self.y_scale.numel(), shape)

    def _load_from_state_dict(self, state_dict, prefix, *others):
        for name in UNITS:  # whose shapes are those of the data that they were found on
            if isinstance(unit := state_dict.get(prefix + name), torch.Tensor):
                setattr(self, name, torch.empty_like(unit, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        if not self.is_fit:
            return "not fit"
        return f"x {list(self.x_mean.shape)}, y {list(self.y_mean.shape)}"


class Taught(nn.Module):
    """A teacher of the data's units as one of a scaler's."""

    def __init__(self, teacher: Callable[[torch.Tensor], torch.Tensor], scaler: Scaler):
        super().__init__()
        self.teacher = teacher
        for name in UNITS:  # as they are now
            self.register_buffer(name, getattr(scaler, name).clone())

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        y = self.teacher((u * self.x_scale + self.x_mean).to(u.dtype))
        return ((y - self.y_mean) / self.y_scale).to(u.dtype)


def asked(teacher: Callable, x: torch.Tensor) -> torch.Tensor:
    """A teacher's values [N, O] at x."""
    values = teacher(x)
    need(
        isinstance(values, torch.Tensor) and values.dim() in (1, 2) and len(values) == len(x),
        "teacher", f"a function to [N, O], N = {len(x)}", values,
    )  # fmt: skip
    return values


def mean_and_deviation(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the samples [N, …], in float64; what differs by rounding alone is constant, and its deviation 0.

    The mean of what is constant is its number, so that it becomes 0.
    """
    wide = numbers.detach().double()
    mean, spread = wide.mean(0), wide.amax(0) - wide.amin(0)
    deviation = (wide - mean).square().mean(0).sqrt()
    constant = spread <= 2 * torch.finfo(numbers.dtype).eps * wide.abs().amax(0)
    return torch.where(constant, wide[0], mean), torch.where(constant, 0.0, deviation)


def deviation_of_derivatives(targets: Targets, columns: torch.Tensor) -> torch.Tensor | None:
    """The root of the sum over columns of ∂y/∂x's mean squares [O], in the units of the inputs; None of none."""
    derivative = targets.jacobian
    if derivative is None:
        tangents = targets.tangents
        return None if tangents is None else root_mean_square(tangents.double().flatten(0, -2))
    derivative = derivative.double() * columns
    of_one = derivative.dim() == 1 + columns.dim()
    derivative = (derivative[:, None] if of_one else derivative).flatten(2)  # [N, O, W]
    return root_mean_square(derivative.transpose(1, 2).flatten(0, 1)) * derivative.shape[2] ** 0.5


def columns_of(wrt: object) -> tuple[int, ...]:
    """The numbers of the columns of an input's row."""
    found = as_columns(wrt)
    return found.columns if isinstance(found, Mask) else tuple(found)


def faults_of_wrt(wrt: object, x: torch.Tensor) -> Iterator[Fault]:
    if wrt is None:
        return
    yield from faults_of_columns(wrt)
    D = x[0].numel() if len(x) else x.flatten(1).shape[1]
    if not all(0 <= column < D for column in columns_of(wrt)):
        yield Fault("wrt", f"columns of the inputs, whole numbers from 0 to {D - 1}", wrt)


def faults_of_data(x: object, targets: object, wrt: object) -> Iterator[Fault]:
    need_tensor(x, "x", "a tensor [N, …]")
    if not x.is_floating_point() or x.dim() < 2 or not x.numel():
        yield Fault("x", "floating point [N, …] of at least one sample and one column", x)
    yield from faults_of_wrt(wrt, x)
    yield from faults_of_targets(targets)
    shape = list(x.shape[1:]) if wrt is None else [len(columns_of(wrt))]
    yield from faults_of_shapes(targets, len(x), None, shape)
    for name, tensor in {"x": x, **targets.tensors()}.items():
        if (known := range_of(tensor)) and not -torch.inf < known[0] <= known[1] < torch.inf:
            hint = "leave out the samples without a label; the units hold for all"
            yield Fault(name, "finite numbers", f"from {known[0]} to {known[1]}", hint=hint)


def faults_of_targets(targets: object) -> Iterator[Fault]:
    if not isinstance(targets, Targets):
        yield Fault("targets", TARGETS, targets, TypeError, "Targets(values=y, jacobian=dy) is one")
    if targets.has_classes:
        yield Fault("values", "numbers with a unit (classes have none to be scaled)", targets.values)
    for name, projections in targets.asked().items():
        if projections.values is None:
            hint = "Directions.given(v) says which they are" if "dir" in name else "Cotangents.given(u) says so"
            yield Fault(name, "given ones, since those that are drawn are of other units", projections, hint=hint)


def faults_of_shapes(targets: Targets, N: int, O: int | None, shape: list[int]) -> Iterator[Fault]:
    """Targets that are not of N samples, of O outputs (None: any), or of columns of this shape."""
    tail = ", ".join(map(str, shape))
    n, flat = len(shape), torch.Size(shape).numel()
    values, jacobian, hessian = targets.values, targets.jacobian, targets.hessian
    outputs = "O" if O is None else O
    if values is not None and not (values.dim() in (1, 2) and len(values) == N and fits(values.shape[1:], O)):
        yield Fault("values", f"[N, O] = [{N}, {outputs}]", values)
    if jacobian is not None:
        right = jacobian.shape[:1] == (N,) and list(jacobian.shape[-n:]) == shape and jacobian.dim() in (n + 1, n + 2)
        if not (right and fits(jacobian.shape[1:-n], O)):
            yield Fault("jacobian", f"[N, O, {tail}] = [{N}, {outputs}, {tail}]", jacobian)
    if hessian is not None:
        sizes = list(hessian.shape)
        ends = [end for end in (shape + shape, [flat, flat]) if sizes[-len(end) :] == end]
        if not (sizes[:1] == [N] and ends and fits(sizes[1 : -len(ends[0])], O)):
            yield Fault("hessian", f"[N, O, {tail}, {tail}], N = {N}", hessian)
    for name, end in (("tangents", None), ("seconds", None), ("vjps", shape)):
        tensor = getattr(targets, name)
        if tensor is None:
            continue
        ending = fits(tensor.shape[2:], O) if end is None else list(tensor.shape[2:]) == shape
        if tensor.dim() < 3 or tensor.shape[1] != N or not ending:
            yield Fault(name, f"[P, N, {outputs if end is None else tail}], N = {N}", tensor)
    if (jets := targets.jets) is not None and not (jets.dim() == 4 and jets.shape[2] == N and fits(jets.shape[3:], O)):
        yield Fault("jets", f"[K, P, N, {outputs}], N = {N}", jets)
    for name, projections in targets.asked().items():
        v, end = projections.values, shape if name.startswith("dir") else [O]
        if list(v.shape)[-len(end) :] != end and end != [None]:
            yield Fault(name, f"[…, {', '.join(map(str, end))}]", v)


def fits(outputs: Sequence[int], O: int | None) -> bool:
    """Whether these sizes, of outputs, are [O], or [] of one."""
    return len(outputs) <= 1 and (O is None or (outputs[0] if len(outputs) else 1) == O)

"""`Targets`: what the student is to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .arrays import tensor_of
from .boundary import FLOATING, faults_of_memory
from .directions import Cotangents, Directions, Projections
from .enums import DENSE, NONE, PROJECTED
from .errors import Fault, as_tensor, describe, in_words, need, need_known, need_tensor, refuse, whole
from .sampled import (
    AXIS,
    as_index,
    is_each,
    is_numbered,
    joined,
    joined_vectors,
    like_columns,
    numbers_of,
    picked,
    vectors_at,
    vectors_for,
    with_tensor,
)
from .typed import Function, Wrt

TENSORS = ("values", "jacobian", "tangents", "vjps", "hessian", "seconds", "jets")
FIELDS = (
    "values", "jacobian", "tangents", "directions", "teacher", "vjps", "cotangents", "hessian", "seconds", "samples",
    "jets",
)  # fmt: skip
KINDS = {"jacobian": DENSE, "tangents": PROJECTED, "vjps": PROJECTED, "jets": PROJECTED, "teacher": PROJECTED}
CONSTANT = "a tensor without requires_grad (no gradient to targets is provided)"
SECOND_KINDS = {"hessian": DENSE, "seconds": PROJECTED, "jets": PROJECTED, "teacher": PROJECTED}


def is_constant(tensor: object) -> bool:
    """Whether it is an ordinary tensor without requires_grad, or None."""
    return tensor is None or (type(tensor) is torch.Tensor and not tensor.requires_grad)


class Targets:
    """Target values, one kind of target derivative, and for order 2 one of second derivatives: constants of the loss.

    They are data of N samples: `len`, an index (`targets[3]` is of one sample, `targets[8:16]`, whole numbers or a mask
    as a tensor, an array or a list), `Targets.cat`, `.to(device, dtype)`, `.pin_memory()`; loaders collate them, and
    they are a pytree of their tensors. A loss takes them in any floating dtype: they are cast to that of its inputs.

    Args:
        values: f(x) [N, O] ([N] if O is 1). May be left out with a teacher, or if their weight is zero. Behind a head,
            they and all derivatives are those of its output; of the value loss "cross_entropy" they are probabilities
            [N, O] or classes, int64 [N], of "bce" probabilities.
        jacobian: ∂f/∂x [N, O, D] ([N, D] if O is 1); the kernel projects it. With `wrt`, its W columns. Where inputs
            are of another shape [N, …], it stands for D in all of this.
        tangents: D f(x)[v_p] [P, N, O], along `directions`.
        directions: those of `tangents` and `seconds`, a `Directions` or a tensor [P, N, D]; the call must not name
            others.
        vjps: D f(x)ᵀu_r [R, N, D], of `cotangents`.
        cotangents: those of `vjps`, a `Cotangents` or a tensor [R, N, O]; the call must not name others.
        teacher: a module or any callable from [N, D] to [N, O] ([N] if O is 1): values and derivatives are computed
            along the very directions or cotangents of the student, and no gradient goes to its parameters.
        hessian: ∂²f/∂x² [N, O, D, D], of order 2.
        seconds: D²f(x)[v_p, v_p] [P, N, O], of order 2, along `directions`.
        samples: int64 [N], the numbers by which samples have their own directions or cotangents of a seed, by default
            0, 1, …; an index sets them, so that no sample meets the directions of another.
        jets: the derivatives Dᵏf(x)[v_p, …, v_p] of all orders k from 1 to that of the loss, a list of [P, N, O] or one
            tensor [K, P, N, O], along `directions`; what orders 3 and 4 are given as, if not by a teacher.

    Raises:
        ValueError: more than one kind of derivative, a tensor with requires_grad, or directions [P, D] that may be the
            batch's (`Directions.given(v)`) or the samples' (`v[None]`).
        TypeError: not a tensor, or a teacher that cannot be called.
    """

    if TYPE_CHECKING:  # teaching.py gives it to the class

        @staticmethod
        def from_teacher(teacher: Function, x: torch.Tensor, **keywords: Any) -> Targets: ...

    values: torch.Tensor | None
    jacobian: torch.Tensor | None
    tangents: torch.Tensor | None
    directions: Directions | None
    teacher: Function | None
    vjps: torch.Tensor | None
    cotangents: Cotangents | None
    hessian: torch.Tensor | None
    seconds: torch.Tensor | None
    samples: torch.Tensor | None
    jets: torch.Tensor | None

    def __init__(
        self,
        values: torch.Tensor | None = None,
        jacobian: torch.Tensor | None = None,
        tangents: torch.Tensor | None = None,
        directions: Directions | torch.Tensor | None = None,
        teacher: Function | None = None,
        vjps: torch.Tensor | None = None,
        cotangents: Cotangents | torch.Tensor | None = None,
        hessian: torch.Tensor | None = None,
        seconds: torch.Tensor | None = None,
        samples: torch.Tensor | None = None,
        jets: Sequence[torch.Tensor] | torch.Tensor | None = None,
    ):
        put = object.__setattr__
        put(self, "values", values)
        put(self, "jacobian", jacobian)
        put(self, "tangents", tangents)
        put(self, "directions", directions)
        put(self, "teacher", teacher)
        put(self, "vjps", vjps)
        put(self, "cotangents", cotangents)
        put(self, "hessian", hessian)
        put(self, "seconds", seconds)
        put(self, "samples", samples)
        put(self, "jets", stacked(jets))
        derivatives = [tensor for tensor in (jacobian, tangents, vjps) if tensor is not None]
        others = teacher is hessian is seconds is samples is jets is None
        if not (others and len(derivatives) < 2 and is_constant(values) and all(map(is_constant, derivatives))):
            refuse(self._faults())
        if directions is not None:
            put(self, "directions", Directions.of(directions, "directions"))
        if cotangents is not None:
            put(self, "cotangents", Cotangents.of(cotangents, "cotangents"))

    def __setattr__(self, name: str, value: object):
        raise AttributeError(f"{name}: targets do not change; targets.replace({name}=...) are others")

    def __delattr__(self, name: str):
        raise AttributeError(f"{name}: targets do not change; targets.replace({name}=None) are others")

    def _faults(self) -> Iterator[Fault]:
        for name, tensor in self.tensors().items():
            if not isinstance(tensor, torch.Tensor):
                hint = as_tensor(tensor)
                hint += "; Targets.from_numpy(...) takes arrays" if "from_numpy" in hint else ""
                yield Fault(name, "a tensor", tensor, TypeError, hint)
            if tensor.requires_grad:
                yield Fault(name, CONSTANT, tensor)
        numbers = self.samples
        if not (numbers is None or (isinstance(numbers, torch.Tensor) and numbers.dtype is torch.int64)):
            yield Fault("samples", "None or the numbers of the samples, int64 [N]", numbers)
        if not (self.teacher is None or callable(self.teacher)):
            yield Fault("teacher", "a callable", self.teacher, TypeError)
        for kinds in (KINDS, SECOND_KINDS):
            given = [name for name in kinds if getattr(self, name) is not None]
            if len(given) > 1:
                expected = f"one of {', '.join(list(kinds)[:-1])} and {list(kinds)[-1]}"
                yield Fault("targets", expected, " and ".join(given))

    @classmethod
    def from_numpy(cls, *arrays: object, dtype: torch.dtype | None = None, device: object = None, **named: object):
        """Targets of NumPy's arrays, or what it makes one of, in the arguments of `Targets`.

        They share the memory of the arrays, unless they are of another `dtype` or at another `device`. Values that are
        whole numbers are classes.

        Example:
            >>> import numpy
            >>> Targets.from_numpy(numpy.zeros((8, 1)), numpy.zeros((8, 1, 2)), dtype=torch.float32)
            Targets(values: float32 [8, 1] on cpu, jacobian: float32 [8, 1, 2] on cpu)
        """
        need(len(arrays) < len(FIELDS), "from_numpy", f"at most {len(FIELDS) - 1} arrays", len(arrays), TypeError)
        need_known(named, FIELDS, "Targets.from_numpy")
        fields = dict(zip(FIELDS, arrays, strict=False))
        twice = next((name for name in named if name in fields), None)
        need(twice is None, "from_numpy", "each argument once", twice, TypeError)
        fields |= named
        for name, value in fields.items():
            kept = value is None or name == "teacher" or isinstance(value, (torch.Tensor, Projections))
            fields[name] = value if kept else tensor_of(name, value)
        return cls(**fields).to(device, dtype)

    def replace(self, **fields: object) -> Targets:
        """The same with other fields, which are checked as those of any targets."""
        return Targets(**{name: getattr(self, name) for name in FIELDS} | fields)

    def _with(self, **fields: object) -> Targets:
        """The same with fields that need no check."""
        made = object.__new__(Targets)
        for name in FIELDS:
            object.__setattr__(made, name, fields[name] if name in fields else getattr(self, name))
        return made

    def __repr__(self) -> str:
        parts = [f"{name}: {describe(tensor).removeprefix('a tensor ')}" for name, tensor in self.tensors().items()]
        parts += [f"{name}: {value.said_in_short()}" for name, value in self._vectors().items()]
        if self.teacher is not None:
            parts.append(f"teacher: {getattr(self.teacher, '__name__', type(self.teacher).__name__)}")
        return f"Targets({', '.join(parts)})"

    def _vectors(self) -> dict[str, Projections]:
        named = {name: getattr(self, name) for name in ("directions", "cotangents")}
        return {name: value for name, value in named.items() if value is not None}

    def _of_samples(self) -> dict[str, tuple[torch.Tensor, int]]:
        """All that has a part for each sample, by name, and along which dimension."""
        named = self.tensors() | {"samples": self.samples}
        found = {name: (named[name], axis) for name, axis in AXIS.items() if named.get(name) is not None}
        return found | {name: (value.values, 1) for name, value in self._vectors().items() if is_each(value)}

    def _count(self) -> int | None:
        """N, or None where nothing has a part for each sample."""
        found = {name: tensor.shape[axis] for name, (tensor, axis) in self._of_samples().items() if tensor.dim() > axis}
        counts = set(found.values())
        need(len(counts) < 2, "targets", "as many samples in all of them", found)
        return next(iter(counts), None)

    def __len__(self) -> int:
        """N, the samples."""
        N = self._count()
        need(
            N is not None, "len", "targets with a tensor in them (a teacher has no number of samples)", self, TypeError
        )
        return N

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> Targets:
        """Those of some samples, one of a whole number; all of each sample's own goes with it, directions too."""
        N = self._count()
        if N is None:
            hint = "targets.along(x) has them given"
            need(not self._is_numbered, "index", "targets with a tensor in them, beside a seed", self, TypeError, hint)
            return self
        index = as_index(index, N)
        fields = {name: picked(*of, index) for name, of in self._of_samples().items() if name in AXIS}
        fields |= {name: vectors_at(value, index) for name, value in self._vectors().items()}
        if self.samples is None and self._is_numbered:
            own = next(iter(self._vectors().values()), None)
            fields["samples"] = picked(numbers_of(own, N), 0, index)
        return self._with(**fields)

    @property
    def _is_numbered(self) -> bool:
        """Whether samples have directions of their own by their number, in these targets or in a call with them."""
        vectors = self._vectors().values()
        return any(map(is_numbered, vectors)) or (self.is_projected and not vectors)

    @property
    def is_projected(self) -> bool:
        """Whether they are derivatives along directions or cotangents, and so belong to these."""
        return any(getattr(self, name) is not None for name in ("tangents", "seconds", "jets", "vjps"))

    @classmethod
    def cat(cls, targets: Sequence[Targets]) -> Targets:
        """Those of all samples, one after the other.

        Raises:
            ValueError: none, or they differ in more than their samples.
        """
        targets = list(targets)
        need(len(targets) > 0, "targets", "at least one", "none")
        first, counts = targets[0], []
        for one in targets:
            need(isinstance(one, Targets), "targets", "a list of sobolev_kernels.Targets", one, TypeError)
            alike = [name for name in FIELDS if name != "samples"]
            here, there = ([name for name in alike if getattr(t, name) is not None] for t in (first, one))
            need(here == there, "targets", f"{', '.join(here)} in all of them", ", ".join(there))
            need(one.teacher is first.teacher, "teacher", "the same one in all of them", one.teacher)
            counts.append(one._count())
        if len(targets) == 1 or counts[0] is None:
            return first
        fields = {}
        for name in first.tensors():
            fields[name] = joined(name, [getattr(one, name) for one in targets], AXIS[name])
        for name in first._vectors():
            fields[name] = joined_vectors(name, [getattr(one, name) for one in targets], counts)
        own = next(iter(first._vectors().values()), None)
        if any(one.samples is not None for one in targets) or is_numbered(own):
            each = zip(targets, counts, strict=True)
            fields["samples"] = torch.cat([numbers_of(own, N) if t.samples is None else t.samples for t, N in each])
        return first._with(**fields)

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor], floating: bool = False) -> Targets:
        """The same with what a function makes of each tensor, also those of given directions and cotangents.

        `floating`: of those alone that are no classes and no numbers of samples.
        """
        named = self.tensors() | ({} if self.samples is None else {"samples": self.samples})
        fields = {name: function(t) for name, t in named.items() if not floating or t.is_floating_point()}
        for name, value in self._vectors().items():
            fields[name] = with_tensor(value, function)
        return self if all(new is getattr(self, name) for name, new in fields.items()) else self._with(**fields)

    def to(self, *args: Any, **kwargs: Any) -> Targets:
        """At another device or of another floating dtype, as `torch.Tensor.to`; classes stay whole numbers. A teacher
        stays where he is."""
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        need(dtype is None or dtype in FLOATING, "dtype", f"one of {', '.join(map(str, FLOATING))}", dtype)
        more = {} if memory_format is None else {"memory_format": memory_format}

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            its = dtype if tensor.is_floating_point() else None
            return tensor.to(device, its, non_blocking=non_blocking, copy=copy, **more)

        return self.mapped(moved)

    def cpu(self) -> Targets:
        return self.to("cpu")

    def cuda(self, device: object = None, non_blocking: bool = False) -> Targets:
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    def float(self) -> Targets:
        return self.to(torch.float32)

    def double(self) -> Targets:
        return self.to(torch.float64)

    def pin_memory(self) -> Targets:
        return self.mapped(torch.Tensor.pin_memory)

    def like(self, inputs: object) -> Targets:
        """Of the inputs' dtype, where both are floating."""
        dtype = getattr(inputs, "dtype", None)
        if dtype not in FLOATING:
            return self
        return self.mapped(lambda t: t if t.dtype is dtype or t.dtype not in FLOATING else t.to(dtype), floating=True)

    def _outputs(self, dims: int) -> int | None:
        """O, where values or a Jacobian with respect to inputs of so many dimensions tell."""
        values = None if self.has_classes else self.values
        for tensor, of_one in ((values, 1), (self.jacobian, dims)):
            if tensor is not None and tensor.dim() == of_one:
                return 1
            if tensor is not None and tensor.dim() == of_one + 1:
                return tensor.shape[1]
        return None

    def along(self, x: torch.Tensor, wrt: Wrt = None, outputs: int | None = None) -> Targets:
        """The same with seeded directions or cotangents as tensors: those that a call with these inputs x uses, whose
        differentiated columns are `wrt`. Directions without a seed, which are fresh at each call, stay. `outputs` is O,
        where neither values nor a Jacobian tell.

        Raises:
            ValueError: cotangents of outputs whose number the targets do not tell.
        """
        need_tensor(x, "x", "the inputs [N, D]")
        refuse(faults_of_memory("x", x))
        N, fields = None if self.samples is None else len(self.samples), {}
        need(N in (None, len(x)), "targets", f"those of {len(x)} samples, as there are inputs", f"{N}")
        if self.directions is not None:
            fields["directions"] = vectors_for(self.directions, self.samples, like_columns(x, wrt))
        if is_numbered(self.cotangents):
            O = self._outputs(x.dim() if wrt is None else 2) or whole(outputs)
            expected, hint = "values [N, O], which tell O, beside a seed", "targets.along(x, outputs=O) says it"
            need(type(O) is int and O > 0, "cotangents", expected, self.cotangents, hint=hint)
            fields["cotangents"] = vectors_for(self.cotangents, self.samples, x.new_empty(()).expand(len(x), O))
        given = any(new is not getattr(self, name) for name, new in fields.items())
        return self._with(**fields, samples=None) if given else self

    @property
    def has_classes(self) -> bool:
        """Whether its values are whole numbers."""
        return self.values is not None and not (self.values.is_floating_point() or self.values.is_complex())

    @property
    def kind(self) -> str:
        """A Problem's derivative_target."""
        return next((kind for name, kind in KINDS.items() if getattr(self, name) is not None), NONE)

    @property
    def second_kind(self) -> str:
        """A Problem's second_target."""
        return next((kind for name, kind in SECOND_KINDS.items() if getattr(self, name) is not None), NONE)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that there are, by name."""
        return {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}

    def asked(self) -> dict[str, Projections]:
        """What their derivatives are projected on, by the argument that says it."""
        named = {f"{name} in targets": getattr(self, name) for name in ("directions", "cotangents")}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def derivative(self) -> torch.Tensor | None:
        first = None if self.jets is None else self.jets[0]
        return next((t for t in (self.jacobian, self.tangents, self.vjps, first) if t is not None), None)

    @property
    def second(self) -> torch.Tensor | None:
        found = self.hessian if self.hessian is not None else self.seconds
        return self.jets[1] if found is None and self.jets is not None and len(self.jets) > 1 else found

    def higher(self, order: int) -> torch.Tensor | None:
        """Second derivatives; of a loss above order 2 those of all orders from 2 on, [order - 1, P, N, O]."""
        return self.second if order < 3 or self.jets is None else self.jets[1:order]


def stacked(jets: object) -> object:
    """Derivatives of all orders as one tensor [K, P, N, O], which they may be already."""
    if not isinstance(jets, (list, tuple)):
        return jets
    for k, jet in enumerate(jets):
        need_tensor(jet, "jets", "a list of tensors [P, N, O], one for each order")
        refuse(faults_of_memory("jets", jet))
        same = jet.shape == jets[0].shape and jet.dtype == jets[0].dtype and jet.device == jets[0].device
        need(same, "jets", f"tensors like the first, of {describe(jets[0])}", f"for order {k + 1} {describe(jet)}")
    need(len(jets) > 0, "jets", "a list of tensors [P, N, O], one for each order", "an empty one")
    return torch.stack(list(jets))


Targets.__init__ = in_words(Targets.__init__)

"""How the package says no: the argument, what was expected, what came, and where it is known what would do."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import torch

LONGEST = 600  # characters of a message
CASTS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}


# What other libraries call things, where the nearest spelling would be another thing.
MEANT = {
    "fp32": "ieee", "float32": "ieee", "float": "ieee", "mae": "l1", "l2": "mse", "smooth_l1": "huber",
    "mse_loss": "mse", "mseloss": "mse", "l1_loss": "l1", "huber_loss": "huber", "smooth_l1_loss": "huber",
    "kl_div": "kl", "bce_loss": "bce",
    "gauss": "normal", "gaussian": "normal", "randn": "normal", "swish": "silu",
}  # fmt: skip


class Fault(NamedTuple):
    """Why an argument is refused."""

    argument: str
    expected: str
    got: Any
    kind: type[Exception] = ValueError
    hint: str = ""


class NotProvided(NotImplementedError):
    """A derivative or a transform that this library does not compute, and refuses rather than return zero."""


class SobolevWarning(UserWarning):
    """What is computed as asked, and is hardly what was meant; said once a student."""


class Shortened(reprlib.Repr):
    """As Python prints, but a tensor by its shape, and the parts of a container up to the sixth."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 6
        self.maxstring = self.maxlong = self.maxother = 200

    def repr1(self, value: Any, level: int) -> str:
        return by_shape(value) or super().repr1(value, level)


def by_shape(value: Any) -> str | None:
    """A tensor by dtype, shape and device, another array by type, dtype and shape; None for all else."""
    if isinstance(value, torch.Tensor):
        grad = ", requires_grad" if value.requires_grad else ""
        shape = "..." if value.is_nested else clipped(", ".join(map(str, value.shape)), 60)
        layout = "nested " if value.is_nested else f"{str(value.layout).removeprefix('torch.').strip('_')} "
        layout = "" if layout == "strided " else layout
        return f"a {layout}tensor {str(value.dtype).removeprefix('torch.')} [{shape}] on {value.device}{grad}"
    shape = getattr(value, "shape", None)
    if not (hasattr(value, "__array__") and isinstance(shape, tuple) and shape) or isinstance(value, type):
        return None
    kind = "NumPy array" if type(value).__module__ == "numpy" else type(value).__name__
    dtype = f" {value.dtype}" if hasattr(value, "dtype") else ""
    return clipped(f"a {kind}{dtype} [{', '.join(map(str, shape))}]", 120)


def describe(value: Any) -> str:
    """A value in an error message: tensors and arrays by shape, long lists by type and shape, all else as it prints.

    Never more than 300 characters, whatever came, and also of what cannot be printed.
    """
    try:
        return clipped(described(value), 300)
    except Exception:
        return f"a {type(value).__name__}"


def described(value: Any) -> str:
    if shaped := by_shape(value):
        return shaped
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (tuple, list)):
        if any(isinstance(part, torch.Tensor) for part in value[:6]):
            more = ["…"] if len(value) > 6 else []
            return f"a {type(value).__name__} of {', '.join([*map(describe, value[:6]), *more])}"
        if len(shape := shape_of(value)) > 1 or len(value) > 6:
            return f"a {type(value).__name__} {shape}"
    return " ".join(Shortened().repr(value).split())


def shape_of(values: Any) -> list[int]:
    """The sizes of a nested list, along the first entries."""
    shape: list[int] = []
    while isinstance(values, (tuple, list)) and len(shape) < 8:
        shape.append(len(values))
        values = values[0] if values else None
    return shape


def clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]} …"


def as_tensor(value: Any) -> str:
    """The call that makes a tensor of what is not one, if there is such a call."""
    if isinstance(value, (tuple, list)):
        return f"torch.tensor(...) makes one of a {type(value).__name__}"
    if not isinstance(value, torch.Tensor) and by_shape(value):
        array = "..." if type(value).__module__ == "numpy" else "numpy.asarray(...)"
        return f"torch.from_numpy({array}) makes one of an array"
    return ""


def converted(tensor: torch.Tensor, like: torch.Tensor, name: str) -> str:
    """The call that gives a tensor the dtype and device of another, where they differ."""
    cast = f".{CASTS[like.dtype]}()" if tensor.dtype != like.dtype and like.dtype in CASTS else ""
    moved = f".to({str(like.device)!r})" if tensor.device != like.device else ""
    return f"{name}{cast}{moved} converts it" if cast or moved else ""


def closest(value: Any, names: Iterable[str]) -> str:
    """The name that may have been meant, or none."""
    names = list(names)
    if not isinstance(value, str):
        return ""
    word = value[:40].lower()
    close = [MEANT[word]] if MEANT.get(word) in names else difflib.get_close_matches(word, names, n=1)
    return close[0] if close else ""


def nearest(value: Any, names: Iterable[str]) -> str:
    close = closest(value, names)
    return f"did you mean {close!r}?" if close else ""


def one_of(value: Any, names: Iterable[str]) -> bool:
    """Whether a value is one of these names; what cannot be compared with a name is none."""
    return isinstance(value, str) and value in names


def message_of(fault: Fault) -> str:
    got = describe(fault.got)
    hint = f"; {fault.hint}" if fault.hint else ""
    return clipped(f"{clipped(fault.argument, 100)}: expected {clipped(fault.expected, 300)}, got {got}{hint}", LONGEST)


def range_of(tensor: torch.Tensor) -> tuple[float, float] | None:
    """The least and the largest number, NaN if there is one; None where to look would wait for a GPU, or be traced."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if watched or tensor.device.type != "cpu" or torch._C._are_functorch_transforms_active():
        return None
    least, largest = tensor.aminmax() if tensor.numel() else (1.0, 1.0)
    return float(least), float(largest)


def refuse(faults: Iterable[Fault]) -> None:
    """Raise the first fault, if there is one.

    Checks are generators of faults: each reads like a list, runs once, and makes a message only when there is one.
    """
    for fault in faults:
        raise fault.kind(message_of(fault))


def whole(value: Any) -> Any:
    """A whole number of NumPy's, or any that Python can count with, as int; what is none is left for the checks."""
    if type(value) is int or isinstance(value, (bool, torch.Tensor)) or not hasattr(value, "__index__"):
        return value
    if "bool" in type(value).__name__ or getattr(value, "shape", ()) != ():
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def need(
    condition: bool, argument: str, expected: str, got: Any, kind: type[Exception] = ValueError, hint: str = ""
) -> None:
    """A single check: raise `kind` unless `condition` holds."""
    if not condition:
        refuse([Fault(argument, expected, got, kind, hint)])


def need_tensor(value: object, argument: str, expected: str) -> None:
    """That it is a tensor at all."""
    if not isinstance(value, torch.Tensor):
        refuse([Fault(argument, expected, value, TypeError, as_tensor(value))])


F = TypeVar("F", bound=Callable[..., Any])


def in_words(function: F) -> F:
    """A public function, or a method, that refuses keywords it does not know as it refuses all else."""
    known, method = tuple(inspect.signature(function).parameters), "." in function.__qualname__

    @functools.wraps(function)
    def called(*arguments, **keywords):
        # looked at where Python says no, so that a call that it takes costs nothing more
        try:
            return function(*arguments, **keywords)
        except TypeError:
            if all(name in known for name in keywords):
                raise
        of = function.__name__
        if method:
            of = f"{getattr(arguments[0], '__name__', type(arguments[0]).__name__)}.{of}".removesuffix(".__init__")
        need_known(keywords, known[method:], of)

    return cast(F, called)


def need_known(keywords: Iterable[str], known: Iterable[str], function: str) -> None:
    """That a function whose keywords are those of another takes these."""
    names = list(known)
    for name in keywords:
        if name not in names:
            what = f"{function}: takes no argument {clipped(name, 100)!r}"
            raise TypeError("; ".join(part for part in (what, nearest(name, names)) if part))
